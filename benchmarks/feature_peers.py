"""The field's methods on feature maps [N, F, h, w], for benchmarks/photographs.py: numbers of positions, or one."""

import importlib
import importlib.util
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

REGULARISATION = 0.01
CORESET = 0.1
SEED = 0
PYOD = {"ECOD": "ecod", "COPOD": "copod", "KNN": "knn", "LOF": "lof", "IForest": "iforest"}

Floats = NDArray[np.float64]
Maps = NDArray[np.float32]


class PositionGaussian:
    """Mahalanobis distance at each position, covariance + 0.01·I (PaDiM, Defard et al. 2020, with all channels)."""

    def __init__(self, train: Maps) -> None:
        rows = train.reshape(*train.shape[:2], -1).astype(np.float64)  # [N, F, p]
        self._mean = rows.mean(axis=0)
        centred = rows - self._mean
        covariance = np.einsum("nfp,ngp->pfg", centred, centred, optimize=True) / len(rows)
        self._precision = np.linalg.inv(covariance + REGULARISATION * np.eye(rows.shape[1]))
        self.numbers = self._precision.size + self._mean.size

    def positions(self, maps: Maps) -> Floats:
        """[N, F, h, w] → [N, p], squared distances."""
        centred = (maps.reshape(*maps.shape[:2], -1) - self._mean).transpose(2, 0, 1)  # [p, N, F]
        return np.asarray((centred @ self._precision * centred).sum(axis=2).T)


class NearestPosition:
    """Euclidean distance to the nearest training position, wherever it lies (PatchCore, Roth et al. 2022).

    With `coreset`, as there, maps are averaged over 3×3 positions first, and a tenth of the positions is kept: each
    next one is that which is farthest from all kept ones.
    """

    def __init__(self, train: Maps, *, coreset: bool) -> None:
        self._coreset = coreset
        bank = _rows(_averaged(train) if coreset else train)
        self._bank = bank[_farthest_first(bank, int(CORESET * len(bank)))] if coreset else bank
        self._squares = np.square(self._bank).sum(axis=1)
        self.numbers = self._bank.size

    def positions(self, maps: Maps) -> Floats:
        """[N, F, h, w] → [N, p]."""
        found = []
        for image in _averaged(maps) if self._coreset else maps:
            rows = _rows(image[None])
            found.append((self._squares - 2 * rows @ self._bank.T).min(axis=1) + np.square(rows).sum(axis=1))
        return np.sqrt(np.maximum(np.array(found, np.float64), 0))


def _rows(maps: Maps) -> Maps:
    return maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1).reshape(-1, maps.shape[1])


def _averaged(maps: Maps) -> Maps:
    """Means over 3×3 positions, fewer at the edges."""
    height, width = maps.shape[2:]
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    shifted = [padded[:, :, down : down + height, right : right + width] for down in range(3) for right in range(3)]
    return np.asarray(np.nanmean(shifted, axis=0), np.float32)


def _farthest_first(rows: Maps, count: int) -> NDArray[np.int64]:
    squares = np.square(rows).sum(axis=1)
    chosen = [int(np.random.default_rng(SEED).integers(len(rows)))]
    nearest = np.full(len(rows), np.inf, np.float32)
    while len(chosen) < count:
        last = chosen[-1]
        nearest = np.minimum(nearest, squares - 2 * rows @ rows[last] + squares[last])
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def mean_distance(train: Maps, by_kind: Mapping[str, Maps]) -> dict[str, Floats]:
    """Mahalanobis distance of the mean over positions: [N, F, h, w] → [N]."""
    of_train = train.mean(axis=(2, 3), dtype=np.float64)
    precision = np.linalg.inv(np.cov(of_train.T) + REGULARISATION * np.eye(of_train.shape[1]))
    found = {}
    for kind, maps in by_kind.items():
        centred = maps.mean(axis=(2, 3), dtype=np.float64) - of_train.mean(axis=0)
        found[kind] = np.asarray((centred @ precision * centred).sum(axis=1))
    return found


def pyod_scores(train: Maps, by_kind: Mapping[str, Maps]) -> dict[str, dict[str, Floats]]:
    """By detector of PyOD, with its defaults, of the mean over positions; none where PyOD is not installed."""
    if importlib.util.find_spec("pyod") is None:
        return {}
    found = {}
    for name, module in PYOD.items():
        detector = getattr(importlib.import_module(f"pyod.models.{module}"), name)()
        detector.fit(train.mean(axis=(2, 3)))
        found[name] = {kind: detector.decision_function(maps.mean(axis=(2, 3))) for kind, maps in by_kind.items()}
    return found
