"""A feature graph made of a trained network: cut at some layers, their maps on one grid, normalisation inside."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from service.engine.features import FEATURES, X
from service.engine.runtime import Runtime
from training.errors import ConfigurationError, ParityError
from training.features.graph import FeatureGraph, feature_graph
from training.networks.precision import full_float32
from training.publish.export import PARITY_TOLERANCE, export_graph
from training.publish.pretrained import Pretrained

_SHOWN = 20
_PARITY_IMAGES = 3


class CutNetwork(nn.Module):
    """Pixels [B, C, H, W] in [0, 1] → the maps of some layers, side by side on one grid: [B, F, h, w].

    An exported graph computes nothing of what comes after the layers.

    Args:
        pretrained: the network. Grey images are repeated in its three channels.
        layers: names of its modules, each with one output [B, F, h, w].
        grid: h, w.
    """

    def __init__(self, pretrained: Pretrained, layers: Sequence[str], grid: tuple[int, int]) -> None:
        super().__init__()
        self.network = pretrained.network
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (pretrained.mean, pretrained.std))
        self._layers = tuple(layers)
        self._grid = grid
        known = dict(self.network.named_modules())
        if missing := [name for name in layers if name not in known]:
            several = ", ".join(name for name in known if name)[: 40 * _SHOWN]
            raise ConfigurationError(f"the network has no layer {missing[0]!r}; it has {several} …")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: dict[str, Tensor] = {}
        modules: dict[str, nn.Module] = dict(self.network.named_modules())

        def keep(name: str) -> RemovableHandle:
            def store(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                found[name] = output

            return modules[name].register_forward_hook(store)

        hooks = [keep(name) for name in self._layers]
        try:
            self.network((x.repeat(1, 3 // x.shape[1], 1, 1) - self._mean) / self._std)
        finally:
            for hook in hooks:
                hook.remove()
        for name in self._layers:
            if name not in found or found[name].ndim != 4:
                raise ConfigurationError(f"layer {name!r} makes no maps [batch, F, h, w] of such images")
        return torch.cat([on_grid(found[name], self._grid) for name in self._layers], dim=1)


def on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps [B, F, h, w] on another grid: averaged where h and w are multiples of it, else interpolated linearly."""
    height, width = maps.shape[2:]
    down, across = height // grid[0], width // grid[1]
    if (down * grid[0], across * grid[1]) == (height, width):
        return maps if (down, across) == (1, 1) else F.avg_pool2d(maps, (down, across))
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False)


@full_float32()
@torch.no_grad()
def export_features(
    pretrained: Pretrained,
    layers: Sequence[str],
    *,
    image: tuple[int, int, int],
    grid: tuple[int, int],
    file: Path,
    runtime: Runtime,
) -> FeatureGraph:
    """features.onnx of a network, checked as the service does and against PyTorch.

    Args:
        pretrained: the network.
        layers: to cut it at; none are those that it brings.
        image: C, H, W of the images.
        grid: h, w of the maps.
        file: what an error names.
        runtime: where the graph is opened.

    Raises:
        ConfigurationError: there is no such layer, or it makes no maps of such images.
        InvalidArtifactError: the graph cannot be a first stage.
        ParityError: it computes something else than PyTorch, by more than 1e-4 of the largest number.
    """
    chosen = tuple(dict.fromkeys(layers or pretrained.layers))
    if not chosen:
        raise ConfigurationError("--layers is needed: names of the network's modules, such as layer2,layer3")
    network = CutNetwork(pretrained, chosen, grid).eval()
    noise = torch.rand((_PARITY_IMAGES, *image), generator=torch.Generator().manual_seed(0))
    try:
        expected = network(noise)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigurationError(f"the network cannot take images {list(image)}: {reason}") from error
    try:
        content = export_graph(network, noise, X, [FEATURES], batch="batch")
    except torch.onnx.OnnxExporterError as error:
        raise ConfigurationError(f"PyTorch cannot export this network ({str(error).splitlines()[0]})") from error
    graph = feature_graph(content, file, runtime)
    difference = float(np.abs(graph.of(noise.numpy()) - expected.numpy()).max())
    if not difference <= PARITY_TOLERANCE * float(expected.abs().max()):
        raise ParityError(f"{file}: the graph differs from PyTorch by {difference:.3g}")
    return graph
