"""The graphs by which the service reads format version 1: `python -m training.publish.format1` writes them anew."""

from collections.abc import Iterator
from pathlib import Path

from service.engine import format1
from training.likelihoods import Bernoulli, DiscretisedLogistic, Gaussian, GaussianWithScale
from training.publish.likelihood_export import export_for_any_size

_SHAPE = (1, 36, 1)
"""Of what is traced; any would do."""


def graphs_of_format_1() -> Iterator[tuple[str, bytes]]:
    """Each file's name and content: of every likelihood that a manifest of format version 1 can name."""
    for small in (True, False):
        size = ".small" if small else ""
        gaussian, levels = Gaussian(_SHAPE, 0.5), DiscretisedLogistic(_SHAPE)
        yield f"bernoulli{size}.onnx", export_for_any_size(Bernoulli(_SHAPE), small=small)
        yield f"gaussian{size}.onnx", export_for_any_size(GaussianWithScale(_SHAPE), small=small)
        yield f"gaussian_of_scale{size}.onnx", export_for_any_size(gaussian, "scale", "log_normaliser", small=small)
        yield f"discretised_logistic{size}.onnx", export_for_any_size(levels, "top", "half_step", small=small)


if __name__ == "__main__":
    for name, content in graphs_of_format_1():
        (Path(format1.__file__).parent / name).write_bytes(content)
