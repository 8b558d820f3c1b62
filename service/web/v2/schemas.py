"""The JSON answers of `/v2` as `/docs` shows them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.web.schemas import Problem


class Live(BaseModel):
    """Answer of `GET /v2/health/live`."""

    live: bool


class Ready(BaseModel):
    """Answer of `GET /v2/health/ready`."""

    ready: bool


class ModelReady(BaseModel):
    """Answer of `GET /v2/models/{name}/ready`."""

    name: str
    ready: bool


class ServerMetadata(BaseModel):
    """Answer of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """One input or output; a size of -1 is that of the request."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Answer of `GET /v2/models/{name}`."""

    name: str
    versions: list[str] = Field(description="in the store; those not in memory are loaded when first requested")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Output(TensorMetadata):
    """One output, with its data in JSON or their number of bytes."""

    parameters: dict[str, Any] | None = Field(None, description="`binary_data_size`, of an output wanted as bytes")
    data: list[float | int | bool | None] | None = Field(None, description="in row-major order; null: not finite")


class InferenceAnswer(BaseModel):
    """Answer of `POST /v2/models/{name}/infer`."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Output]


class IndexRow(BaseModel):
    """One version of a model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="why it is not ready; else empty")


class Loaded(BaseModel):
    """Answer of `POST /v2/repository/models/{name}/load`."""

    name: str
    load: bool


class InferenceProblem(Problem):
    """A problem document, with its detail once more where clients of this protocol look for it."""

    error: str
