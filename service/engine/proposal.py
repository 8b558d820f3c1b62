"""Where importance samples come from: the proposal r(z|x), and the noise that all images of a request share."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.engine.runtime import Runtime

DEFAULT_SEED = 0
Proposal = Literal["prior", "encoder", "laplace", "annealed", "auto"]
PROPOSALS: tuple[Proposal, ...] = get_args(Proposal)
IMPORTANCE_PROPOSALS = ("prior", "encoder", "laplace")
"""Those whose estimate is a mean of weights; the others are of posterior/ladder.py."""
DEFAULT_PROPOSAL: Proposal = "auto"
DEFAULT_NUM_SAMPLES: Mapping[str, int] = {"prior": 5000, "encoder": 5000, "laplace": 400, "annealed": 400, "auto": 400}
MIN_NUM_SAMPLES: Mapping[str, int] = {"prior": 1, "encoder": 1, "laplace": 4, "annealed": 4, "auto": 4}


class UnknownProposalError(ValueError):
    """A proposal this engine does not have."""


class TooFewSamplesError(ValueError):
    """Fewer samples than the proposal has parts: the Laplace mixture has four."""


def check_request(proposal: str, num_samples: int) -> None:
    """Refuse what no proposal can do.

    Raises:
        UnknownProposalError, TooFewSamplesError.
    """
    if proposal not in PROPOSALS:
        raise UnknownProposalError(f"unknown proposal {proposal!r}; accepted: {', '.join(PROPOSALS)}")
    least = MIN_NUM_SAMPLES[proposal]
    if num_samples < least:
        raise TooFewSamplesError(f"num_samples is {num_samples}; the proposal {proposal} takes at least {least}")


@dataclass(frozen=True)
class Effort:
    """How much is sampled.

    Attributes:
        num_samples: of each image, to begin with.
        seed: of the noise.
        max_std_error: go on, image by image, until the estimate is reliable to so many nats; None: do not go on.
        max_num_samples: with it, the most.
        num_draws: R, draws from each image's posterior.
    """

    num_samples: int
    seed: int = DEFAULT_SEED
    max_std_error: float | None = None
    max_num_samples: int = 0
    num_draws: int = 0

    @property
    def limit(self) -> int:
        """Samples of an image, at most."""
        return self.num_samples if self.max_std_error is None else max(self.num_samples, self.max_num_samples)


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag exp(log_var)), one for each image; both [B, D] float32."""

    mean: NDArray[np.float32]
    log_var: NDArray[np.float32]

    def take(self, images: NDArray[np.intp]) -> "DiagonalGaussian":
        """Those of these images."""
        return DiagonalGaussian(self.mean[images], self.log_var[images])


def standard_normal(num_samples: int, latent_dim: int, *, seed: int) -> NDArray[np.float32]:
    """Noise [K, D] from one seeded generator; the first rows are the same whatever K is.

    >>> bool((standard_normal(2, 3, seed=7) == standard_normal(5, 3, seed=7)[:2]).all())
    True
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.standard_normal((num_samples, latent_dim), np.float32)


class NoiseCache:
    """Noise rows by seed: the default seed's stay on the device, those of the last few seeds in memory."""

    _MAX_SEEDS = 4  # requests take turns: their seeds should not drive one another out
    _MAX_PLACED = 64

    def __init__(self, latent_dim: int, runtime: Runtime) -> None:
        self._latent_dim = latent_dim
        self._runtime = runtime
        self._drawn: dict[int, NDArray[np.float32]] = {}
        self._placed: dict[tuple[int, int], OrtValue] = {}
        self._lock = Lock()

    def rows(self, seed: int, start: int, stop: int) -> "NDArray[np.float32] | OrtValue":
        """Rows start to stop of the seed's noise, as [1, stop − start, D]."""
        with self._lock:
            if seed != DEFAULT_SEED:
                return self._draw(seed, start, stop)
            placed = self._placed.pop((start, stop), None)
            if placed is None:
                placed = self._runtime.place(self._draw(seed, start, stop))
            self._placed[start, stop] = placed  # last: the one used most recently
            if len(self._placed) > self._MAX_PLACED:
                del self._placed[next(iter(self._placed))]
            return placed

    def at(self, seed: int, samples: NDArray[np.intp]) -> NDArray[np.float32]:
        """Rows by index [...] of the seed's noise: [..., D]."""
        with self._lock:
            drawn: NDArray[np.float32] = self._draw(seed, 0, int(samples.max(initial=0)) + 1)[0, samples]
        return drawn

    def _draw(self, seed: int, start: int, stop: int) -> NDArray[np.float32]:
        drawn = self._drawn.pop(seed, None)
        if drawn is None or len(drawn) < stop:
            drawn = standard_normal(1 << (stop - 1).bit_length(), self._latent_dim, seed=seed)
        self._drawn[seed] = drawn  # last: the one used most recently
        if len(self._drawn) > self._MAX_SEEDS:
            del self._drawn[next(iter(self._drawn))]
        return drawn[None, start:stop]
