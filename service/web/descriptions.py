"""The JSON answers that describe a calibration and the service's limits, as `/docs` shows them."""

from typing import Self

import numpy as np
from pydantic import BaseModel, Field

from service.engine.model import Model
from service.web.connections.framing import MAX_TARGET_BYTES
from service.web.media_types import PIXEL_TYPES
from service.web.operations.settings import Settings
from service.web.schemas import Answer

_PROBABILITIES = np.linspace(0, 1, 101)


class LatentUnits(BaseModel):
    """The codes of the calibration images: of the encoder's means."""

    mean: list[float | None] = Field(description="[D]")
    variance: list[float | None] = Field(description="[D]; near 0 for a unit that the decoder does not use")


class Calibration(Answer):
    """Answer of `GET /v1/models/{name}/calibration`: what a version's p-values compare with."""

    calibration_size: int = Field(description="how many images scores are compared with")
    proposal: str = Field(description="of the estimates that the scores are made of, like the next two")
    num_samples: int
    seed: int
    probabilities: list[float] = Field(description="from 0 to 1, [Q]")
    quantiles: dict[str, list[float | None]] = Field(
        description="by method, [Q]: the smallest score that this share of the calibration images does not exceed"
    )
    latents: LatentUnits | None = Field(description="null if the calibration is older than this")

    @classmethod
    def of(cls, model: Model) -> Self:
        """That of a model from the store.

        Raises:
            UncalibratedModelError: see `Model.detector`.
        """
        detector, manifest = model.detector, model.manifest
        summary, protocol = detector.summary(_PROBABILITIES), manifest.calibration
        latents = None
        if summary.code_mean is not None and summary.code_variance is not None:
            latents = LatentUnits(mean=summary.code_mean.tolist(), variance=summary.code_variance.tolist())
        return cls(
            model=manifest.name,
            version=manifest.version,
            calibration_size=detector.calibration_size,
            proposal=protocol.proposal,
            num_samples=protocol.num_samples,
            seed=protocol.seed,
            probabilities=_PROBABILITIES.tolist(),
            quantiles={name: scores.tolist() for name, scores in summary.quantiles.items()},
            latents=latents,
        )


class Limits(BaseModel):
    """Answer of `GET /v1/limits`: what a client must respect. `docs/operations.md` describes each setting."""

    execution_provider: str = Field(description="what the models run on")
    media_types: list[str] = Field(description="of bodies with images")
    max_body_bytes: int
    max_json_bytes: int
    max_pixels: int
    max_answer_bytes: int
    max_rows: int
    max_num_samples: int
    max_queued_rows: int
    max_queued_requests: int
    max_connections: int
    max_target_bytes: int = Field(description="of a path with its query")
    max_header_bytes: int
    header_seconds: float
    body_seconds: float
    write_seconds: float
    timeout_seconds: float = Field(description="the longest deadline, and the default of X-Request-Timeout-Ms")

    @classmethod
    def of(cls, settings: Settings, execution_provider: str) -> Self:
        """Those of the settings, by their names."""
        named = {name: value for name, value in settings if name in cls.model_fields}
        own = {
            "execution_provider": execution_provider,
            "media_types": PIXEL_TYPES,
            "max_target_bytes": MAX_TARGET_BYTES,
        }
        return cls(**{**named, **own})
