"""Every setting of the service: an environment variable `LOGPX_<NAME>`, or a default that suits one machine."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_store import BUNDLED
from service.engine.model import DEFAULT_MAX_STEPS


class Settings(BaseSettings):
    """Read once at start; a value that does not fit stops the service with a sentence that names it."""

    model_config = SettingsConfigDict(env_prefix="LOGPX_", frozen=True, protected_namespaces=())

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model_store: Path = Field(BUNDLED, description="folder of models, see model_store/README.md")
    model: str | None = Field(None, description="model that a request means when it names none; else the only model")
    reload_seconds: NonNegativeFloat = Field(
        0, allow_inf_nan=False, description="how often to look for published versions while serving; 0: never"
    )
    max_other_versions: PositiveInt = Field(
        2, description="versions in memory beside the defaults; the one asked for least recently goes first"
    )
    admin: bool = Field(False, description="whether there are routes under /v1/admin")
    execution_provider: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="where the graphs run; `cuda` refuses to start where CUDA cannot really be used"
    )
    num_threads: int = Field(0, ge=0, description="threads of one operator on the CPU; 0: one a physical core")
    chunk_rows: PositiveInt = Field(512, description="decoder rows of one run on the device; others wait no longer")
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
        8 * 2**20, description="bytes of a JSON body (413); parsing holds up all other requests, npy does not"
    )
    max_pixels: PositiveInt = Field(
        2**25, description="width × height × images of a request, in or out, counted before decoding (413)"
    )
    max_rows: PositiveInt = Field(2_000_000, description="images × samples of a request (413)")
    max_queued_rows: PositiveInt = Field(4_000_000, description="rows waiting or running, over all requests (429)")
    max_queued_requests: PositiveInt = Field(256, description="requests waiting or running (429)")
    timeout_seconds: PositiveFloat = Field(
        120, allow_inf_nan=False, description="a request not computed by then is dropped (504)"
    )
    drain_seconds: PositiveFloat = Field(
        20, allow_inf_nan=False, description="after SIGTERM, how long accepted work may still take"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line logged")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or text for people")
