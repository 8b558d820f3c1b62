"""A bank of decoded latents: which draws of the model look most like an image.

A search for the posterior's modes that starts at such a draw needs fewer iterations than one from a draw of the prior,
and to look through the bank takes no decoder row but those of a few candidates. Images are compared by squared
distance to E[x|z] first, whatever the likelihood, and the nearest then by log p(x|z).
"""

import numpy as np

from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.chunks import Chunks
from service.engine.posterior.sampling import Sampler
from service.engine.proposal import standard_normal

NEAREST = 32
"""Draws that are compared by their likelihood, at most: a decoder row each."""
_MAX_DRAWS = 4096
_MIN_DRAWS = NEAREST
_NUMBERS = 2**22
"""Pixels and channels of all draws; bounds memory."""
_WIDE = 1.5
"""Times the prior's standard deviation: half of the draws, for images unlike the training set lie far out."""
_APART = 1.0
"""Distance below which two draws lie beside one another, where the prior's standard deviation is one."""
_SEED = 3


class Bank:
    """Draws from the prior with what a model's decoder makes of them, decoded when they are first asked for."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._num_pixels = num_pixels = int(sampler.drawn.shape[1])
        count = max(_MIN_DRAWS, min(_MAX_DRAWS, _NUMBERS // num_pixels))
        draws = standard_normal(count, sampler.latent_dim, seed=_SEED)[:, sampler.familiar_dimensions]
        draws[1::2] *= np.float32(_WIDE)
        self._draws = draws  # [N, A]
        self._means = np.empty((count, num_pixels), np.float32)  # no memory is taken before it is written to
        self._squares = np.empty(count, np.float32)
        self._num_decoded = 0

    @property
    def num_bytes(self) -> int:
        """Memory that it keeps once it is decoded."""
        return 4 * len(self._draws) * (self._num_pixels + int(self._draws.shape[1]) + 1)

    def nearest(self, x: Float32Array, count: int) -> Chunks[Float64Array]:
        """Images [B, P] → draws that explain each well, in the familiar dimensions, the best first: [B, C, A].

        C is `count`, at most `NEAREST`. A draw that lies beside a better one comes after those that lie apart: it would
        lead to the same mode.
        """
        yield from self._decode()
        candidates = np.empty((len(x), NEAREST), np.intp)
        for index, image in enumerate(x):  # one by one: the digits of a product of matrices depend on the batch
            candidates[index] = self._nearest(image)
            yield
        points = self._draws[candidates].astype(np.float64)  # [B, C, A]
        found = yield from self._sampler.log_likelihoods(x, points)
        chosen = _apart(points, np.nan_to_num(found, nan=-np.inf), count)
        return np.take_along_axis(points, chosen[..., None], axis=1)

    def _decode(self) -> Chunks[None]:
        """Find E[x|z] of every draw, once. Whoever asks while another waits goes on where that one stopped.

        Two threads may decode some draws both; they write the same numbers.
        """
        while self._num_decoded < len(self._draws):
            first = self._num_decoded
            draws = self._draws[first : first + self._sampler.chunk_rows]
            latents = np.zeros((len(draws), self._sampler.latent_dim), np.float32)
            latents[:, self._sampler.familiar_dimensions] = draws
            self._keep(first, self._sampler.decode(latents).reshape(len(draws), -1))
            yield

    @np.errstate(all="ignore")  # a decoder may give anything
    def _keep(self, first: int, means: Float32Array) -> None:
        rows = slice(first, first + len(means))
        self._means[rows], self._squares[rows] = means, (means * means).sum(axis=1)
        self._num_decoded = rows.stop

    @np.errstate(all="ignore")
    def _nearest(self, image: Float32Array) -> Indices:
        """Draws by squared distance to an image [P], less |x|²; one that is not a number is the farthest."""
        return np.argsort(self._squares - 2 * (self._means @ image), kind="stable")[:NEAREST]


def _apart(points: Float64Array, value: Float64Array, count: int) -> Indices:
    """The best of points [B, K, A] by value [B, K], by index; those beside a better one are last: [B, C]."""
    every = np.arange(len(points))
    rank = np.argsort(np.argsort(-value, axis=1, kind="stable"), axis=1)  # [B, K]
    chosen = np.empty((len(points), count), np.intp)
    for place in range(count):
        chosen[:, place] = rank.argmin(axis=1)
        squares = ((points - points[every, chosen[:, place]][:, None]) ** 2).sum(axis=2)
        rank += NEAREST * (squares < _APART**2)
        rank[every, chosen[:, place]] = NEAREST * NEAREST + NEAREST
    return chosen
