"""Every setting of the service: an environment variable `LOGPX_<NAME>`, or a default that suits one machine."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model_store import BUNDLED
from service.engine.model import DEFAULT_MAX_STEPS

MIN_KEY_LENGTH = 16


class Settings(BaseSettings):
    """Read once at start; a value that does not fit stops the service with a sentence that names it."""

    model_config = SettingsConfigDict(
        env_prefix="LOGPX_", frozen=True, protected_namespaces=(), hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model_store: Path = Field(BUNDLED, description="folder of models, see model_store/README.md")
    model: str | None = Field(
        None,
        description="model that a request means when it names none; else the only model, of the bundled ones `mnist`",
    )
    reload_seconds: NonNegativeFloat = Field(
        0, allow_inf_nan=False, description="how often to look for published versions while serving; 0: never"
    )
    max_other_versions: PositiveInt = Field(
        2, description="versions in memory beside the defaults; the one asked for least recently goes first"
    )
    execution_provider: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="where the graphs run; `cuda` refuses to start where CUDA cannot really be used"
    )
    num_threads: int = Field(0, ge=0, description="threads of one operator on the CPU; 0: one a physical core")
    chunk_rows: PositiveInt = Field(256, description="decoder rows of one run on the device; others wait no longer")
    num_samples: PositiveInt | None = Field(
        None, description="importance samples an image when none is asked; else the proposal's own default"
    )
    max_steps: PositiveInt = Field(
        DEFAULT_MAX_STEPS,
        description="tries to find an image's posterior mode before its estimate is called unreliable",
    )
    max_num_samples: PositiveInt = Field(
        100_000, description="samples an image: asked for (413), or reached by `max_std_error`"
    )
    max_body_bytes: PositiveInt = Field(64 * 2**20, description="bytes of a request's body (413)")
    max_json_bytes: PositiveInt = Field(
        2 * 2**20, description="bytes of a JSON body (413); parsing holds up all other requests, npy does not"
    )
    max_pixels: PositiveInt = Field(
        2**25, description="width × height × images of a request, in or out, counted before decoding (413)"
    )
    max_answer_bytes: PositiveInt = Field(
        64 * 2**20, description="bytes that an answer could have, by what is asked for, before it is computed (413)"
    )
    max_rows: PositiveInt = Field(5_000_000, description="images × samples of a request (413)")
    max_queued_rows: PositiveInt = Field(10_000_000, description="rows waiting or running, over all requests (429)")
    max_queued_requests: PositiveInt = Field(256, description="requests waiting or running (429)")
    max_header_bytes: PositiveInt = Field(32 * 2**10, description="bytes of a request's headers and query (431)")
    header_seconds: PositiveFloat = Field(
        10, allow_inf_nan=False, description="from a request's first byte to the end of its headers (408)"
    )
    body_seconds: PositiveFloat = Field(
        60, allow_inf_nan=False, description="from there to the end of its body (408), however steadily it trickles"
    )
    api_keys: SecretStr | None = Field(None, description="keys, separated by commas; a request must carry one (401)")
    api_keys_file: Path | None = Field(None, description="a file with more of them, one a line")
    admin_keys: SecretStr | None = Field(None, description="keys that also open the admin routes, else off (403)")
    admin_keys_file: Path | None = Field(None, description="a file with more of them, one a line")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins, separated by commas, whose pages a browser lets use the service"
    )
    timeout_seconds: PositiveFloat = Field(
        120, allow_inf_nan=False, description="a request not computed by then is dropped (504)"
    )
    drain_seconds: PositiveFloat = Field(
        20, allow_inf_nan=False, description="after SIGTERM, how long accepted work may still take"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line logged")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or text for people")

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _check_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None:
            split_keys(keys.get_secret_value())
        return keys

    @field_validator("api_keys_file", "admin_keys_file")
    @classmethod
    def _check_keys_file(cls, file: Path | None) -> Path | None:
        if file is not None:
            _keys_of_file(file)
        return file

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        origins = re.split(r"[\s,]+", value.strip()) if isinstance(value, str) else value
        return [origin for origin in origins if origin] if isinstance(origins, list) else origins

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise ValueError("an origin is * or like https://example.org, without a path")
        return origins

    def all_keys(self) -> tuple[list[str], list[str]]:
        """The API keys and the admin keys, each from the variable and from the file."""
        api = _keys_of(self.api_keys) + _keys_of_file(self.api_keys_file)
        return api, _keys_of(self.admin_keys) + _keys_of_file(self.admin_keys_file)


def split_keys(text: str) -> list[str]:
    r"""Keys separated by commas or white space; in a file, a line that starts with # is a comment.

    >>> split_keys("# the shop\n0123456789abcdef\n")
    ['0123456789abcdef']

    Raises:
        ValueError: there is none, or one is too short to be safe, or cannot travel in a header. It tells no key.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    keys = re.findall(r"[^\s,]+", "\n".join(lines))
    if not keys:
        raise ValueError("it holds no key")
    if any(len(key) < MIN_KEY_LENGTH or not re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ValueError(f"a key has at least {MIN_KEY_LENGTH} characters, printable ASCII")
    return keys


def _keys_of(keys: SecretStr | None) -> list[str]:
    return split_keys(keys.get_secret_value()) if keys else []


def _keys_of_file(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return split_keys(file.read_text())
    except OSError as error:
        raise ValueError(f"the file of keys cannot be read: {error.strerror}") from None
