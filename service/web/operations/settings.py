"""Every setting of the service: an environment variable `LOGPX_<NAME>`, or a default that suits one machine."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, get_origin

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from model_store import BUNDLED
from service.engine.model import DEFAULT_MAX_STEPS
from service.engine.proposal import DEFAULT_NUM_SAMPLES, DEFAULT_PROPOSAL, MIN_NUM_SAMPLES
from service.web.answer_size import log_likelihoods_bytes
from service.web.operations.environment import PREFIX, Environment, is_of_keys, read_environment

MIN_KEY_LENGTH = 16
OWN_PATHS = ("docs", "livez", "metrics", "openapi.json", "page", "readyz", "static-offline-docs", "v1", "v2")


class Settings(BaseSettings):
    """Read once at start. If a value is invalid, the service ends with a sentence that names it: see `sentences`.

    Raises:
        ValidationError: a value is invalid, or contradicts another, or a variable looks like keys but is not a setting.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, protected_namespaces=(), hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 chooses a free one")
    root_path: str = Field("", description="prefix that a proxy puts before all paths, like /logpx")
    model_store: Path = Field(BUNDLED, description="folder of models, see model_store/README.md")
    model: str | None = Field(
        None,
        description="model of requests that name none; without it, the only model, or `mnist` of the bundled ones",
    )
    reload_seconds: NonNegativeFloat = Field(
        0, allow_inf_nan=False, description="how often to look for published versions while serving; 0: never"
    )
    max_other_versions: PositiveInt = Field(
        2, description="versions in memory beside the defaults; the one requested least recently is dropped first"
    )
    trial_seconds: PositiveFloat = Field(
        120, allow_inf_nan=False, description="how long it may take to try out a version before it is loaded"
    )
    trial_memory_bytes: PositiveInt = Field(
        4 * 2**30, description="memory for trying out a version, in addition to 16 times the size of its files"
    )
    execution_provider: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="where the graphs run; `cuda` refuses to start if CUDA cannot really be used"
    )
    num_threads: int = Field(0, ge=0, description="threads that compute on the CPU; 0: one for each core it may use")
    device_id: int = Field(0, ge=0, description="which GPU, of those that CUDA sees")
    gpu_memory_bytes: PositiveInt | None = Field(
        None, description="GPU memory that all models together may use; without it, all there is"
    )
    chunk_rows: PositiveInt | None = Field(
        None,
        description="decoder rows of one run, on each thread; without it, what suits the device and the images",
    )
    num_samples: PositiveInt | None = Field(
        None, description="samples per image to begin with if a request has none; without it, the proposal's default"
    )
    max_steps: PositiveInt = Field(
        DEFAULT_MAX_STEPS,
        description="iterations to find an image's posterior mode before its estimate is called unreliable",
    )
    max_num_samples: PositiveInt = Field(
        100_000, description="samples per image: a request for more is refused (413), `max_std_error` stops there"
    )
    max_body_bytes: PositiveInt = Field(64 * 2**20, description="bytes of a request's body (413)")
    max_json_bytes: PositiveInt = Field(
        2 * 2**20, description="bytes of a JSON body (413); parsing JSON blocks all other requests, npy does not"
    )
    max_pixels: PositiveInt = Field(
        2**24, description="width × height × images of a request, in or out, counted before decoding (413)"
    )
    decoders: int = Field(
        2,
        ge=0,
        le=64,
        description="processes that read image files; if several, one reads no large ones. 0: the service reads them",
    )
    max_answer_bytes: PositiveInt = Field(
        64 * 2**20, description="bytes that an answer could have, estimated before it is computed (413)"
    )
    max_memory_bytes: PositiveInt = Field(
        2**30, description="bytes of memory for all requests together, see service/web/memory_budget.py (429)"
    )
    max_rows: PositiveInt = Field(5_000_000, description="images × samples of a request (413)")
    max_queued_rows: PositiveInt = Field(10_000_000, description="rows waiting or running, over all requests (429)")
    max_queued_requests: PositiveInt = Field(256, description="requests waiting or running (429)")
    max_header_bytes: PositiveInt = Field(32 * 2**10, description="bytes of a request's path, query and headers (431)")
    header_seconds: PositiveFloat = Field(
        10, allow_inf_nan=False, description="from a request's first byte to the end of its headers (408)"
    )
    body_seconds: PositiveFloat = Field(
        60, allow_inf_nan=False, description="from there to the end of its body (408), even if it keeps arriving"
    )
    write_seconds: PositiveFloat = Field(
        30, allow_inf_nan=False, description="time in which a client must read some of its answer"
    )
    max_unsent_bytes: PositiveInt = Field(
        256 * 2**20, description="bytes of answers not yet read; beyond it, the slowest clients are disconnected"
    )
    max_connections: PositiveInt = Field(
        1024, description="open connections; beyond it, idle ones are closed, and if none is idle, new ones get 503"
    )
    api_keys: SecretStr | None = Field(None, description="keys, separated by commas; requests must carry one (401)")
    api_keys_file: Path | None = Field(None, description="a file with more of them, one a line")
    admin_keys: SecretStr | None = Field(None, description="keys for the admin routes too; none: these are off (403)")
    admin_keys_file: Path | None = Field(None, description="a file with more of them, one a line")
    page: Literal["on", "off"] = Field("on", description="whether `/` answers with the page for people")
    cors_origins: tuple[str, ...] = Field((), description="origins, separated by commas, whose pages browsers let in")
    timeout_seconds: PositiveFloat = Field(
        120, allow_inf_nan=False, description="a request that is not computed in this time is dropped (504)"
    )
    drain_seconds: PositiveFloat = Field(
        20, allow_inf_nan=False, description="how long accepted requests may still take after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least severe lines logged")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or text for people")

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, root_path: str) -> str:
        if root_path and not re.fullmatch(r"(/[\w~-][\w.~-]*)+", root_path, re.ASCII):
            raise ValueError("a prefix is like /logpx, without a slash at its end")
        if (first := root_path.partition("/")[2].partition("/")[0]) in OWN_PATHS:
            raise ValueError(f"/{first} is a path of the service itself")
        return root_path

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

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if problems := list(self._contradictions()):
            raise PydanticCustomError("contradiction", "{problems}", {"problems": "\n".join(problems)})
        return self

    def _contradictions(self) -> Iterator[str]:
        """Settings with which requests that ask for nothing special, or all requests of a kind, would be refused."""
        least = max(MIN_NUM_SAMPLES.values())
        if self.num_samples is not None and self.num_samples < least:
            yield f"LOGPX_NUM_SAMPLES: {self.num_samples} is too few for some proposals; they take at least {least}"
        samples = self.num_samples or DEFAULT_NUM_SAMPLES[DEFAULT_PROPOSAL]
        taken = f"the {samples} samples that a request begins with when it does not say (LOGPX_NUM_SAMPLES)"
        if samples > self.max_num_samples:
            yield f"LOGPX_MAX_NUM_SAMPLES: {self.max_num_samples} is less than {taken}"
        if samples > self.max_rows:
            yield f"LOGPX_MAX_ROWS: {self.max_rows} is less than {taken}"
        if self.max_rows > self.max_queued_rows:
            queued = f"LOGPX_MAX_QUEUED_ROWS ({self.max_queued_rows})"
            yield f"LOGPX_MAX_ROWS: {self.max_rows} is more than {queued}; a request must fit into the queue"
        if self.max_body_bytes > (most := 3 * self.max_memory_bytes // 8):
            memory = f"{most}, three eighths of LOGPX_MAX_MEMORY_BYTES"
            yield f"LOGPX_MAX_BODY_BYTES: {self.max_body_bytes} is more than {memory}; a body must fit into it"
        if "max_json_bytes" in self.model_fields_set and self.max_json_bytes > self.max_body_bytes:
            body = f"LOGPX_MAX_BODY_BYTES ({self.max_body_bytes})"
            yield f"LOGPX_MAX_JSON_BYTES: {self.max_json_bytes} is more than {body}, which bounds JSON too"
        if (one := log_likelihoods_bytes(1)) > self.max_answer_bytes:
            yield f"LOGPX_MAX_ANSWER_BYTES: {self.max_answer_bytes} is less than the {one} that one estimate may have"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments come first, then the environment as `read_environment` reads it; there is nothing else."""
        return init_settings, _FromEnvironment(settings_cls)

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


class _FromEnvironment(PydanticBaseSettingsSource):
    """The environment variables; where a setting is one of several words, in upper or lower case."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """One setting's text, or None."""
        text = environment().values.get(field_name)
        return text.lower() if text and get_origin(field.annotation) is Literal else text, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All that is there."""
        if refusals := environment().refusals:
            raise ValidationError.from_exception_data(
                "Settings",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("environment", "{problem}", {"problem": f"{name}: {sentence}"}),
                        input=None,
                    )
                    for name, sentence in ((refusal.variable, refusal.sentence) for refusal in refusals)
                ],
            )
        found = {name: self.get_field_value(field, name)[0] for name, field in Settings.model_fields.items()}
        return {name: text for name, text in found.items() if text is not None}


def environment() -> Environment:
    """The process's variables: settings, and what to say of those that look like some."""
    return read_environment(os.environ, Settings.model_fields)


def sentences(error: ValidationError) -> list[str]:
    """What is wrong with the settings: each sentence begins with its variable, and none tells a key.

    >>> try:
    ...     Settings(port="many")
    ... except ValidationError as error:
    ...     sentences(error)
    ["LOGPX_PORT: Input should be a valid integer, unable to parse string as an integer, not 'many'"]
    """
    shown = []
    for item in error.errors():
        name = PREFIX + "_".join(str(part) for part in item["loc"]).upper()
        found = "" if is_of_keys(name) else f", not {item['input']!r}"
        shown += [f"{name}: {item['msg']}{found}"] if item["loc"] else item["msg"].splitlines()
    return shown


def _keys_of(keys: SecretStr | None) -> list[str]:
    return split_keys(keys.get_secret_value()) if keys else []


def _keys_of_file(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return split_keys(file.read_text())
    except OSError as error:
        raise ValueError(f"the file of keys cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("the file of keys is not text") from None  # the error's own words would tell its bytes
