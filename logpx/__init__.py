"""The client of logpx: `Client`, `AsyncClient`, what they return and what they raise (docs/client.md)."""

from logpx.client import AsyncClient, Client
from logpx.errors import ImageError, LogpxError, ProblemError, SlowServiceError, UnreachableError
from logpx.results import (
    AnomalyScores,
    Images,
    Judgements,
    Latents,
    LogLikelihoods,
    ModelSummary,
    Reconstructions,
    Samples,
)

__all__ = [
    "AnomalyScores",
    "AsyncClient",
    "Client",
    "ImageError",
    "Images",
    "Judgements",
    "Latents",
    "LogLikelihoods",
    "LogpxError",
    "ModelSummary",
    "ProblemError",
    "Reconstructions",
    "Samples",
    "SlowServiceError",
    "UnreachableError",
]
