"""`logpx features --onnx`: a graph cut out of a file of another origin, against PyTorch, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from service.engine.runtime import Runtime
from training.__main__ import main
from training.features.graph import read_feature_graph

RNG = np.random.default_rng(12)
FIRST = RNG.normal(0, 0.4, (4, 3, 3, 3)).astype(np.float32)
SECOND = RNG.normal(0, 0.4, (5, 4, 3, 3)).astype(np.float32)
HEAD = RNG.normal(0, 0.4, (5 * 4 * 4, 1000)).astype(np.float32)
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def network(*, opset: int = 11, sizes: tuple[int | str, ...] = (1, 3, 16, 16), kind: int = TensorProto.FLOAT) -> bytes:
    """A file of long ago: opset 11, one image of 16×16 at a time, names that our graphs have, and a head for classes.

    x → Conv, stride 2 → Relu (/stage1/Relu) → MaxPool → Conv → features → Flatten → MatMul → classes.
    """
    weights = {"first": FIRST, "second": SECOND, "head": HEAD}
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["mean"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["mean"], ["/stage1/Relu"]),
        helper.make_node("MaxPool", ["/stage1/Relu"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pooled", "second"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["classes"]),
    ]
    if kind == TensorProto.DOUBLE:
        nodes = [helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT), *nodes[1:1]]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, sizes)],
        [helper.make_tensor_value_info("classes" if len(nodes) > 1 else "float", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    return bytes(model.SerializeToString())


def computed(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """/stage1/Relu and features of pixels [B, 3, H, W] in [0, 1], by PyTorch."""
    x = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    stage = F.relu(F.conv2d(x, torch.from_numpy(FIRST), stride=2, padding=1))
    return stage, F.conv2d(F.max_pool2d(stage, 2), torch.from_numpy(SECOND), padding=1)


def cut(folder: Path, content: bytes, *more: str) -> int:
    (folder / "network.onnx").write_bytes(content)
    out = ["--out", str(folder / "features.onnx")]
    return main(["features", "--onnx", str(folder / "network.onnx"), "--size", "16", "--grid", "4", *out, *more])


@pytest.mark.parametrize("colour", ["rgb", "grey"])
@pytest.mark.parametrize(("opset", "size"), [(11, (16, 16)), (21, (24, 20))])
def test_the_cut_is_what_the_file_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], opset: int, size: tuple[int, int], colour: str
) -> None:
    """Of its own size, and of another, whose maps 12×10 and 6×5 are interpolated to 4×4; in batches of any size."""
    options = ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--size", f"{size[0]}x{size[1]}"]
    options += ["--outputs", "/stage1/Relu,features", "--colour", colour]
    assert cut(tmp_path, network(opset=opset), *options) == 0
    channels = 3 if colour == "rgb" else 1
    assert f"images [{channels}, {size[0]}, {size[1]}] to maps [9, 4, 4]" in capsys.readouterr().out
    pixels = np.random.default_rng(3).random((5, channels, *size), np.float32)
    maps = computed(torch.from_numpy(pixels).expand(5, 3, *size))
    if size == (16, 16):
        expected = torch.cat([maps[0].reshape(5, 4, 4, 2, 4, 2).mean((3, 5)), maps[1]], dim=1)
    else:
        expected = torch.cat([F.interpolate(each, (4, 4), mode="bilinear") for each in maps], dim=1)
    graph = read_feature_graph(tmp_path / "features.onnx", Runtime("cpu"))
    np.testing.assert_allclose(graph.of(pixels), expected, atol=1e-5)
    np.testing.assert_array_equal(graph.of(pixels[3:4])[0], graph.of(pixels)[3])
    assert max(np.prod(tensor.dims) for tensor in onnx.load(tmp_path / "features.onnx").graph.initializer) < 1000


def test_one_tensor_and_numbers_for_all_channels_are_enough(tmp_path: Path) -> None:
    """Of a network of grey levels in 0..255 whose batch and size are open."""
    grey = network(sizes=("n", 3, "h", "w"))
    assert cut(tmp_path, grey, "--outputs", "/stage1/Relu", "--mean", "0", "--std", "0.00392156862745098") == 0
    pixels = np.random.default_rng(4).random((2, 3, 16, 16), np.float32)
    stage = F.relu(F.conv2d(torch.from_numpy(255 * pixels), torch.from_numpy(FIRST), stride=2, padding=1))
    graph = read_feature_graph(tmp_path / "features.onnx", Runtime("cpu"))
    np.testing.assert_allclose(graph.of(pixels), F.avg_pool2d(stage, 2), rtol=1e-4, atol=1e-3)


LISTED = "there are features [5, 4, 4], /stage1/Relu [4, 8, 8], pooled [4, 4, 4], mean [4, 8, 8]\n"


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        (network(), [], f"--outputs is needed; {LISTED}"),
        (network(), ["--outputs", "features,flat"], f"no maps of such images are called 'flat'; {LISTED}"),
        (
            network(),
            ["--outputs", "features", "--mean", "0,0"],
            "has 3 channels, so --mean must be one number, or 3 separated by commas; there are 2",
        ),
        (network(), ["--outputs", "features", "--std", "0"], "std must be above 0, not 0.0"),
        (network(), ["--outputs", "features", "--layers", "a"], "--layers belongs to --from"),
        (network(), ["--outputs", "features", "--size", "auto"], "size and grid are numbers here"),
        (network(sizes=(1, 16, 16, 3)), ["--outputs", "features"], "found {'x': [1, 16, 16, 3]} (channels come last"),
        (network(sizes=(1, 3)), ["--outputs", "features"], "one input [batch, C, H, W] is needed; found {'x': [1, 3]}"),
        (network(kind=TensorProto.DOUBLE), ["--outputs", "float"], "its input 'x' is not float32"),
        (b"no graph", ["--outputs", "features"], "not a readable ONNX file"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, more: list[str], sentence: str
) -> None:
    assert cut(tmp_path, content, *more) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "features.onnx").exists()


def test_options_of_files_are_not_for_networks_of_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["features", "--from", "timm:any", "--out", str(tmp_path / "f.onnx"), "--outputs", "features"]
    assert main(arguments) == 2
    assert "--outputs belongs to --onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--mean", "a"])
    assert "must be numbers separated by commas, not 'a'" in capsys.readouterr().err
