"""The first stage of a model of features: `features.onnx`, which makes maps [F, h, w] of an image's pixels.

Everything behind it takes these maps for x. A convolution of several images at once may add in another order than that
of one, so that an image's maps would differ in their last bits by what else is in its batch. On the CPU the stage
therefore runs one image after another, on all of the session's threads; on a GPU, as many as fit.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import FEATURES as FEATURES_FILE
from model_store import Description, ImageShape, InvalidArtifactError
from service.engine.anomaly.local import at_image_size
from service.engine.arrays import Float32Array
from service.engine.chunks import Chunks
from service.engine.graph_check import check_shape, read_graph
from service.engine.preparation import Preparation, PreparedImages
from service.engine.proposal import DEFAULT_SEED
from service.engine.runtime import CPU, Runtime, blaming

X, FEATURES = "x", "features"
BATCH_TOLERANCE = 1e-4
"""By how much an image's maps may differ by its batch, of the largest number. Other orders of adding make some 10⁻⁶ in
float32; maps that depend on the other images, as by statistics of the batch, differ by far more."""
_BYTES_A_NUMBER = 256
"""Of memory, for each number of an image that is in a run: networks widen an image's three channels to 16 to 64."""
_DEVICE_MEMORY = 2**30
"""Bytes that one run may take on a GPU by that count."""
_MOST_ROWS = 64


class NoImagesError(Exception):
    """A model of features was asked for an image: it makes maps of numbers, and nothing leads back from these."""


class FeatureStage:
    """The graph, ready to run.

    Args:
        graph: features.onnx: `x` [B, C, H, W], pixels in [0, 1] → `features` [B, F, h, w].
        image: C, H, W.
        features: F, h, w.
        runtime: where it runs.
        file: what an error names.

    Attributes:
        run_bytes: of memory that a run may take.

    Raises:
        InvalidArtifactError: the graph is not what the shapes say, or ONNX Runtime refuses it.
    """

    def __init__(self, graph: bytes, image: ImageShape, features: ImageShape, *, runtime: Runtime, file: Path) -> None:
        read_graph(graph, file, inputs={X: image.chw}, outputs={FEATURES: features.chw})
        self._graph = graph
        self._image, self._features = image, features
        self._runtime = runtime
        self._file = file
        self._session = runtime.open(graph, file)
        bytes_an_image = _BYTES_A_NUMBER * max(image.size, features.size)
        self._rows = 1 if runtime.provider == CPU else max(1, min(_MOST_ROWS, _DEVICE_MEMORY // bytes_an_image))
        self.run_bytes = self._rows * bytes_an_image

    def maps(self, images: "PreparedImages | NDArray[np.float32]") -> Chunks[Float32Array]:
        """Pixels [B, C, H, W] in [0, 1] → maps [B, F, h, w]; yields after every run.

        On the CPU an image's maps are the same to the last bit in any batch.
        """
        maps = np.empty((len(images), *self._features.chw), np.float32)
        for start in range(0, len(images), self._rows):
            rows = slice(start, start + self._rows)
            found = self._run(images[rows])
            check_shape(self._file, FEATURES, found.shape, maps[rows].shape)
            maps[rows] = found
            yield
        return maps

    def try_out(self) -> None:
        """Run it on black, white and noise, alone and together, twice.

        Raises:
            InvalidArtifactError: it does not run, gives another shape, numbers that are not finite, or others the
                second time; an image's maps depend on the other images of its batch; or a GPU computes other numbers.
        """
        shape = self._image.chw
        noise = np.random.default_rng(DEFAULT_SEED).random(shape, np.float32)
        images = np.stack([np.zeros(shape, np.float32), np.ones(shape, np.float32), noise])
        with blaming(self._file):
            together, alone = self._run(images), [self._run(images[i : i + 1]) for i in range(len(images))]
            again = self._run(images[-1:])
            self._runtime.verify(self._graph, self._session, {X: images}, self._file, tolerance=BATCH_TOLERANCE)
        check_shape(self._file, FEATURES, together.shape, (len(images), *self._features.chw))
        for found in alone:
            check_shape(self._file, FEATURES, found.shape, (1, *self._features.chw))
        if not np.isfinite(together).all():
            raise InvalidArtifactError(self._file, "output 'features' is not finite for black, white or noise")
        if not np.array_equal(again, alone[-1]):
            raise InvalidArtifactError(self._file, "output 'features' of one image differs from run to run")
        difference = float(np.abs(np.concatenate(alone) - together).max())
        largest = float(np.abs(together).max())
        if difference > BATCH_TOLERANCE * max(largest, float(np.finfo(np.float32).tiny)):
            problem = f"output 'features' of an image differs by {difference:.2g} with the other images of its batch"
            raise InvalidArtifactError(
                self._file, f"{problem}; at most {BATCH_TOLERANCE:g} of {largest:.2g} is allowed"
            )

    def _run(self, x: NDArray[np.float32]) -> Float32Array:
        found: Float32Array = self._session.run({X: np.ascontiguousarray(x, np.float32)})[FEATURES]
        return found


class PlainMaps(Preparation):
    """Of feature maps, which the graphs take as they are."""

    def __init__(self) -> None:
        """There is nothing to say."""

    def prepare(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The maps."""
        return pixels

    def restore(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The maps, which may be any real numbers."""
        return x


def preparation_of_x(description: Description) -> Preparation:
    """How what a model draws, or is asked of, becomes the encoder's x: of pixels the manifest's, of features none."""
    if description.features is not None:
        return PlainMaps()
    return Preparation(description.preparation, description.image, description.likelihood.levels)


class FirstStage:
    """From pixels to x: their preparation and, of a model of features, the graph behind it.

    Args:
        description: the manifest.
        graph: features.onnx; None of a model of pixels.
        runtime: where it runs.
        folder: where the files came from, for error messages.
        trusted: the graph need not be tried out.

    Attributes:
        of_x: how what the model makes in place of x is shown.
        run_bytes: of memory that a run of the graph may take.

    Raises:
        InvalidArtifactError: see `FeatureStage`; or there is a graph and the manifest does not say so, or no graph.
    """

    def __init__(
        self, description: Description, graph: bytes | None, *, runtime: Runtime, folder: Path, trusted: bool
    ) -> None:
        image, features = description.image, description.features
        self.of_x = preparation_of_x(description)
        self.run_bytes = 0
        self._image = image
        self.map_bytes = 0 if features is None else 4 * features.size
        self._preparation = Preparation(description.preparation, image, description.likelihood.levels)
        self._stage: FeatureStage | None = None
        file = folder / FEATURES_FILE
        if (graph is None) != (features is None):
            raise InvalidArtifactError(file, "the graph and the manifest's field `features` belong together")
        if graph is not None and features is not None:
            self._stage = FeatureStage(graph, image, features, runtime=runtime, file=file)
            self.run_bytes = self._stage.run_bytes
            if not trusted:
                self._stage.try_out()

    def observe(self, pixels: NDArray[np.float32]) -> Chunks[PreparedImages]:
        """x of images [B, C, H, W]: their pixels, prepared where they are used, or their feature maps [B, F, h, w]."""
        x = PreparedImages(pixels, self._preparation)
        return x if self._stage is None else PreparedImages((yield from self._stage.maps(x)), self.of_x)

    def map_of(self, surprise: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is surprising about each number of x [B, *x] as a map of the image: [B, C, H, W], or [B, 1, H, W]."""
        return surprise if self._stage is None else at_image_size(surprise, self._image.height, self._image.width)
