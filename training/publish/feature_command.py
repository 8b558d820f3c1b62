"""The command `features`: a feature graph made of a trained network, or cut out of an ONNX file."""

from collections.abc import Sequence
from pathlib import Path

from model_store import CHANNELS
from service.engine.runtime import Runtime
from training.errors import ConfigurationError
from training.files import write_atomically
from training.publish.feature_export import export_features
from training.publish.onnx_cut import cut_onnx
from training.publish.pretrained import IMAGENET, open_network


def write_features(
    *,
    out: Path,
    size: tuple[int, int] | str,
    grid: tuple[int, int] | str,
    colour: str,
    runtime: Runtime,
    source: str | None = None,
    layers: Sequence[str] | None = None,
    weights: Path | None = None,
    onnx: Path | None = None,
    outputs: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> str:
    """Write the graph to a file; what was written, in a line.

    Either `source` names a network, with `layers` and `weights`; or `onnx` is a file, with `outputs`, `mean` and `std`,
    which are by default those of ImageNet.

    Raises:
        ConfigurationError, InvalidArtifactError, ParityError: see `open_network`, `export_features` and `cut_onnx`.
    """
    if isinstance(size, str) or isinstance(grid, str):
        raise ConfigurationError("size and grid are numbers here, such as 128 and 8x8")
    image = (CHANNELS[colour], *size)
    of_file = {"outputs": outputs, "mean": mean, "std": std}
    of_network = {"layers": layers, "weights": weights}
    for name, value in (of_network if onnx else of_file).items():
        if value is not None:
            raise ConfigurationError(f"--{name} belongs to {'--from' if onnx else '--onnx'}")
    if onnx:
        graph = cut_onnx(
            onnx,
            outputs or (),
            image=image,
            grid=grid,
            mean=mean or IMAGENET[0],
            std=std or IMAGENET[1],
            out=out,
            runtime=runtime,
        )
    else:
        network = open_network(source or "", weights)
        graph = export_features(network, layers or (), image=image, grid=grid, file=out, runtime=runtime)
    write_atomically(out, lambda stream: stream.write(graph.content))
    return f"{out}: images {list(graph.image)} to maps {list(graph.maps)}, {len(graph.content) / 2**20:.1f} MiB"
