"""The graphs by which the service reads format version 1: `python -m training.publish.format1` writes them anew."""

from collections.abc import Mapping
from pathlib import Path

from service.engine import format1
from training.likelihoods import Bernoulli, DiscretisedLogistic, Gaussian, GaussianWithScale
from training.publish.likelihood_graph import export_for_any_size

_SHAPE = (1, 37, 1)
"""Of what is traced; any would do."""


def graphs_of_format_1() -> Mapping[str, bytes]:
    """By the file's name, of every likelihood that a manifest of format version 1 can name."""
    return {
        "bernoulli.onnx": export_for_any_size(Bernoulli(_SHAPE)),
        "gaussian.onnx": export_for_any_size(GaussianWithScale(_SHAPE)),
        "gaussian_of_scale.onnx": export_for_any_size(Gaussian(_SHAPE, 0.5), "scale", "log_normaliser"),
        "discretised_logistic.onnx": export_for_any_size(DiscretisedLogistic(_SHAPE)),
    }


if __name__ == "__main__":
    for name, content in graphs_of_format_1().items():
        (Path(format1.__file__).parent / name).write_bytes(content)
