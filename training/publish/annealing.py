"""Annealed importance sampling: log P(x) from below and from above, with no encoder and no mode search in it.

Chains go from the prior N(0, I) to the posterior through densities ∝ p(z)·p(x|z)^β, β from 0 to 1, by Hamiltonian
Monte Carlo (Neal 2001, Statistics and Computing 11:125). The mean of a chain's weight is P(x), so the logarithm of a
mean of weights bounds log P(x) from below, in expectation. The inverse weight of a chain that goes back from an exact
posterior sample has the mean 1/P(x), and bounds it from above: bidirectional Monte Carlo (Grosse, Ghahramani, Adams
2015, arXiv 1511.02543; for decoders Wu et al. 2017, arXiv 1611.04273). Bounds that meet leave no room for a mode that
was missed. `recentre` lets chains begin at another Gaussian than the prior, nearer to the posterior.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

TARGET_ACCEPTANCE = 0.65
NUM_BANDS = 25
"""Of temperatures; within one, an image's chains share a step size."""
_ADAPTATION_RATE = 0.4
_STEP_LIMITS = (1e-4, 1.0)


@dataclass(frozen=True)
class Target:
    """log p(x|z) of B images as a function of z [B, K, D], K chains an image, in float64.

    `gradient` only proposes: each move is accepted or refused by `log_likelihood`, so the weights stay exact with a
    gradient in lower precision.
    """

    log_likelihood: Function
    """[B, K, D] → [B, K], nats."""
    gradient: Function
    """[B, K, D] → [B, K, D], about the derivative of `log_likelihood`."""


@dataclass(frozen=True)
class Chains:
    """Where chains ended, and their log weights.

    Attributes:
        log_weight: [B, K], nats: of a weight with mean P(x); on the way back, of one whose inverse has mean 1/P(x).
        z: [B, K, D].
        acceptance: of the moves, by image and band of temperatures, [B, NUM_BANDS].
    """

    log_weight: Tensor
    z: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class _State:
    z: Tensor  # [B, K, D]
    value: Tensor  # [B, K]
    gradient: Tensor  # [B, K, D]


def sigmoidal_schedule(num_temperatures: int, *, steepness: float = 4.0) -> Tensor:
    """β_0 = 0 < … < β_T = 1, [T + 1]: sigmoid(s·(2t/T − 1)), moved and scaled to begin at 0 and to end at 1.

    >>> [round(beta, 3) for beta in sigmoidal_schedule(4).tolist()]
    [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    beta = torch.sigmoid(steepness * torch.linspace(-1, 1, num_temperatures + 1, dtype=torch.float64))
    return (beta - beta[0]) / (beta[-1] - beta[0])


def automatic_gradient(log_likelihood: Function) -> Function:
    """The derivative of Σ log p(x|z), by automatic differentiation."""

    def gradient(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        (found,) = torch.autograd.grad(log_likelihood(z).sum(), z)
        return found

    return gradient


def recentre(target: Target, mean: Tensor, root: Tensor) -> Target:
    """The same P(x) in coordinates u, z = mean + root·u, with N(0, I) over u: chains that begin at any Gaussian.

    p(x|z)·p(z) = N(u; 0, I)/|root| · weight(u), so the weight log p(x|z) + log p(z) − log N(z; mean, root·rootᵀ) takes
    the place of the likelihood. From a Gaussian near the posterior the way is short, and all axes are about as long.

    `mean` is [B, D], `root` [B, D, D] and lower triangular.
    """
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [B]

    def place(u: Tensor) -> Tensor:
        return mean[:, None] + u.double() @ root.mT

    def log_weight(u: Tensor) -> Tensor:
        z = place(u)
        return target.log_likelihood(z) + 0.5 * (u.square() - z.square()).sum(-1) + log_det[:, None]

    def gradient(u: Tensor) -> Tensor:
        z = place(u)
        return (target.gradient(z).double() - z) @ root + u

    return Target(log_weight, gradient)


def fit_gaussian(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [B, D] and the covariance's lower triangular root [B, D, D] of samples [B, N, D]."""
    mean = samples.mean(1)
    centred = samples - mean[:, None]
    covariance = centred.mT @ centred / (samples.shape[1] - 1)
    return mean, torch.linalg.cholesky(covariance)


class Annealing:
    """Chains for one target along one schedule.

    Args:
        schedule: β_0 = 0 to β_T = 1, [T + 1].
        num_leapfrog: steps of one trajectory; there is one trajectory a temperature.
    """

    def __init__(self, target: Target, schedule: Tensor, *, num_leapfrog: int = 10) -> None:
        self._target = target
        self._schedule = schedule
        self._num_leapfrog = num_leapfrog

    def adapt(self, z: Tensor, *, generator: torch.Generator) -> Tensor:
        """Step sizes [B, NUM_BANDS] with about 65 % acceptance, from prior samples z [B, K, D] going forward.

        A run of its own, to be thrown away: step sizes that learn from a chain would bias its weight.
        """
        with torch.no_grad():
            state = self._start(z)
            step = torch.full((len(z),), 0.5, dtype=torch.float64)  # [B]
            log_steps = torch.zeros(len(z), NUM_BANDS, dtype=torch.float64)
            num_temperatures = len(self._schedule) - 1
            counts = torch.zeros(NUM_BANDS, dtype=torch.float64)
            for t in range(1, num_temperatures + 1):
                state, accepted = self._move(state, self._schedule[t], step, generator)
                step = step * torch.exp(_ADAPTATION_RATE * (accepted.mean(1) - TARGET_ACCEPTANCE))
                step = step.clamp(*_STEP_LIMITS)
                band = _band(t, num_temperatures)
                log_steps[:, band] += step.log()
                counts[band] += 1
            return torch.exp(log_steps / counts)

    def forward(self, z: Tensor, steps: Tensor, *, generator: torch.Generator) -> Chains:
        """From prior samples z [B, K, D]: log w = Σ_t (β_t − β_{t−1})·log p(x|z_{t−1})."""
        with torch.no_grad():
            state = self._start(z)
            log_weight = torch.zeros(z.shape[:2], dtype=torch.float64)
            acceptance = _Tally(len(z))
            for t in range(1, len(self._schedule)):
                log_weight += (self._schedule[t] - self._schedule[t - 1]) * state.value
                state = self._step(t, state, steps, acceptance, generator)
            return Chains(log_weight, state.z, acceptance.mean())

    def backward(self, z: Tensor, steps: Tensor, *, generator: torch.Generator) -> Chains:
        """From posterior samples z [B, K, D]: the same sum along the way back, each move before its term."""
        with torch.no_grad():
            state = self._start(z)
            log_weight = torch.zeros(z.shape[:2], dtype=torch.float64)
            acceptance = _Tally(len(z))
            for t in range(len(self._schedule) - 1, 0, -1):
                state = self._step(t, state, steps, acceptance, generator)
                log_weight += (self._schedule[t] - self._schedule[t - 1]) * state.value
            return Chains(log_weight, state.z, acceptance.mean())

    def explore(self, z: Tensor, step: Tensor, num_moves: int, *, generator: torch.Generator) -> Tensor:
        """Moves within the posterior, β = 1, from z [B, K, D] with step sizes [B]: all places seen, [B, K·moves, D]."""
        with torch.no_grad():
            state, seen = self._start(z), []
            for _ in range(num_moves):
                state, _ = self._move(state, self._schedule[-1], step, generator)
                seen.append(state.z)
            return torch.cat(seen, 1)

    def _start(self, z: Tensor) -> _State:
        z = z.double()
        return _State(z, self._target.log_likelihood(z), self._gradient(z))

    def _step(self, t: int, state: _State, steps: Tensor, acceptance: "_Tally", generator: torch.Generator) -> _State:
        band = _band(t, len(self._schedule) - 1)
        state, accepted = self._move(state, self._schedule[t], steps[:, band], generator)
        acceptance.add(band, accepted)
        return state

    def _move(self, state: _State, beta: Tensor, step: Tensor, generator: torch.Generator) -> tuple[_State, Tensor]:
        """One trajectory of leapfrog steps that leaves p(z)·p(x|z)^β as it is; and its acceptance [B, K].

        Each trajectory's step is up to a fifth shorter or longer than `step` [B], so that none closes on itself.
        """

        def force(z: Tensor, gradient: Tensor) -> Tensor:
            return beta * gradient - z

        z, gradient = state.z, state.gradient
        jitter = 0.8 + 0.4 * torch.rand(z.shape[:2], generator=generator, dtype=torch.float64)
        size = (step[:, None] * jitter)[..., None]  # [B, K, 1]
        momentum = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        before = beta * state.value - 0.5 * (z.square() + momentum.square()).sum(-1)
        momentum = momentum + 0.5 * size * force(z, gradient)
        for leap in range(1, self._num_leapfrog + 1):
            z = z + size * momentum
            gradient = self._gradient(z)
            momentum = momentum + (1.0 if leap < self._num_leapfrog else 0.5) * size * force(z, gradient)
        value = self._target.log_likelihood(z)
        log_ratio = beta * value - 0.5 * (z.square() + momentum.square()).sum(-1) - before
        log_ratio = torch.nan_to_num(log_ratio, nan=-math.inf)  # a trajectory that left the numbers is refused
        uniform = torch.rand(log_ratio.shape, generator=generator, dtype=torch.float64)
        accepted = uniform.log() < log_ratio
        chosen = accepted[..., None]
        moved = _State(
            torch.where(chosen, z, state.z),
            torch.where(accepted, value, state.value),
            torch.where(chosen, gradient, state.gradient),
        )
        return moved, log_ratio.clamp(max=0).exp()

    def _gradient(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            return self._target.gradient(z).double()


class _Tally:
    """Means of acceptance by image and band."""

    def __init__(self, num_images: int) -> None:
        self._sum = torch.zeros(num_images, NUM_BANDS, dtype=torch.float64)
        self._count = torch.zeros(NUM_BANDS, dtype=torch.float64)

    def add(self, band: int, accepted: Tensor) -> None:
        self._sum[:, band] += accepted.mean(1)
        self._count[band] += 1

    def mean(self) -> Tensor:
        return self._sum / self._count


def _band(t: int, num_temperatures: int) -> int:
    return (t - 1) * NUM_BANDS // num_temperatures


def lower_bound(log_weight: Tensor) -> Tensor:
    """log of the mean forward weight, [B, K] → [B]: below log P(x) in expectation, and nearer with more chains."""
    return torch.logsumexp(log_weight, 1) - math.log(log_weight.shape[1])


def upper_bound(log_weight: Tensor) -> Tensor:
    """Minus the log of the mean inverse weight of chains that went back, [B, K] → [B]: above in expectation."""
    return -lower_bound(-log_weight)


def resample(chains: Chains, *, generator: torch.Generator) -> Tensor:
    """Ends of forward chains drawn by their weights, [B, K, D]: about posterior samples, exactly so as K grows."""
    index = torch.multinomial(
        torch.softmax(chains.log_weight, 1), chains.z.shape[1], replacement=True, generator=generator
    )  # [B, K]
    return torch.take_along_dim(chains.z, index[..., None], dim=1)
