"""CUDA as ONNX Runtime shows it to us, with the CPU in its place: nothing here needs a GPU, or is proof for one."""

import ctypes
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from model_store import ImageShape, InvalidArtifactError
from service.engine import cuda
from service.engine.blocks import CPU_BLOCKS, cuda_blocks
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import (
    CPU,
    CUDA,
    DeviceLostError,
    ExecutionProviderError,
    OutOfDeviceMemoryError,
    Runtime,
    Session,
)
from tests.toys import bernoulli_toy

SHAPE = ImageShape(channels=1, height=4, width=5)
ILLEGAL = RuntimeError(
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaStreamSynchronize"
)
FULL = RuntimeError("bfc_arena.cc:360 Available memory of 184549376 is smaller than requested bytes of 251658240")
Graph = Callable[[bytes], bytes]


def ten_bits(*operators: str) -> Graph:
    """Graphs whose products see ten bits of each float32 number, as TF32's do: float16 has as many."""

    def rounded(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        nodes = []
        for node in model.graph.node:
            if node.op_type in operators and not node.output[0].endswith("float64"):
                for index, name in enumerate(list(node.input)[:2]):
                    half, back = f"{node.output[0]} {index} half", f"{node.output[0]} {index} back"
                    nodes.append(helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
                    nodes.append(helper.make_node("Cast", [half], [back], to=TensorProto.FLOAT))
                    node.input[index] = back
            nodes.append(node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return bytes(model.SerializeToString())

    return rounded


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[Graph], None]:
    """Have a CUDA provider that runs on the CPU whatever a function makes of each graph."""
    open_graph = Runtime._open

    def install(change: Graph = lambda content: content) -> None:
        def opened(runtime: Runtime, graph: bytes, provider: str, _: int = 1) -> ort.InferenceSession:
            return open_graph(runtime, change(graph) if provider == CUDA else graph, CPU)

        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)
        monkeypatch.setattr(Runtime, "_share_memory", lambda runtime: None)
        monkeypatch.setattr(Runtime, "place", lambda runtime, array: ort.OrtValue.ortvalue_from_numpy(array.copy()))
        monkeypatch.setattr(Runtime, "_open", opened)

    return install


def test_a_card_that_gives_the_cpus_numbers_is_taken(card: Callable[..., None]) -> None:
    card()
    runtime = Runtime("auto")
    assert (runtime.provider, runtime.device, runtime.fallback_reason) == (CUDA, "cuda", None)
    assert runtime.blocks == cuda_blocks(None)
    assert runtime.team.size == 1  # its runs follow one another on the card


@pytest.mark.parametrize("operator", ["MatMul", "Conv", "ConvTranspose"])
def test_a_card_that_rounds_to_tf32_is_not(card: Callable[..., None], operator: str) -> None:
    """The whole reason why a product's result is compared, and not only whether it comes: TF32 is off by 5e-4."""
    card(ten_bits(operator))
    runtime = Runtime("auto")
    assert runtime.provider == CPU
    assert f"computes other numbers than the CPU: {operator} differs by 0.0005" in str(runtime.fallback_reason)
    with pytest.raises(ExecutionProviderError, match=f"{operator} differs"):
        Runtime("cuda")


def test_the_probe_asks_for_what_the_graphs_need() -> None:
    """Without cuDNN a product runs, and reductions do not."""
    nodes = {node.op_type for node in onnx.load_from_string(cuda.probe_graph()).graph.node}
    assert nodes >= {"MatMul", "Conv", "Softplus", "ReduceSum", "ReduceProd", "ReduceLogSumExp", "Cast", "Log"}


def test_a_model_that_cuda_computes_with_fewer_digits_is_refused(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN may take TF32 for one layer alone: the probe passes, the model's own numbers do not."""
    toy = bernoulli_toy(SHAPE, 3)
    card()
    good = Model(toy.description, toy.encoder, toy.decoder, toy.likelihood, runtime=Runtime("cuda"))
    assert good.provider == CUDA
    pixels = np.zeros((2, *SHAPE.chw), np.float32)
    plain = Model(toy.description, toy.encoder, toy.decoder, toy.likelihood, runtime=Runtime("cpu"))
    np.testing.assert_array_equal(
        complete(good.log_likelihood(pixels)).log_likelihood, complete(plain.log_likelihood(pixels)).log_likelihood
    )
    monkeypatch.setattr(Runtime, "_probe", lambda runtime: None)
    card(ten_bits("MatMul", "Gemm"))
    with pytest.raises(InvalidArtifactError, match="CUDAExecutionProvider computes other numbers than the CPU: "):
        Model(toy.description, toy.encoder, toy.decoder, toy.likelihood, runtime=Runtime("cuda"))


def test_a_difference_is_told_by_the_output_and_no_number_is_the_worst() -> None:
    expected = {"a": np.array([1.0, 1000.0]), "b": np.array([2.0])}
    assert cuda.difference({"a": np.array([1.001, 1000.0]), "b": np.array([2.0])}, expected, 1e-5) is None
    problem = cuda.difference({"a": np.array([1.0, 1001.0]), "b": np.array([2.1])}, expected, 1e-5)
    assert str(problem).startswith("b differs by 0.05 ")
    problem = cuda.difference({"a": np.array([np.nan, 1000.0]), "b": np.array([2.1])}, expected, 1e-5)
    assert str(problem).startswith("a differs by inf ")


def test_the_reason_names_the_library_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, card: Callable[..., None]
) -> None:
    def load(name: str) -> None:
        assert name.endswith("libonnxruntime_providers_cuda.so")
        raise OSError("libcublasLt.so.13: cannot open shared object file: No such file or directory")

    def refuse(*arguments: object) -> ort.InferenceSession:
        raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")

    card()
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(Runtime, "_open", refuse)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert str(Runtime("auto").fallback_reason).startswith("the library libcublasLt.so.13 is not found")


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_a_gpu_that_is_not_there_is_refused(
    choice: Any, monkeypatch: pytest.MonkeyPatch, card: Callable[..., None]
) -> None:
    def refuse(*arguments: object) -> ort.InferenceSession:
        raise RuntimeError("Invalid device ID: 3, must be between 0 (inclusive) and 2 (exclusive).")

    card()
    monkeypatch.setattr(Runtime, "_open", refuse)
    with pytest.raises(ExecutionProviderError, match="there is no GPU 3: CUDA sees 2, numbered from 0"):
        Runtime(choice, device_id=3)


def test_what_loading_the_libraries_prints_goes_to_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    printed = "\033[33mFailed to load\033[0m libcurand.so.10\nSee the page\n"
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write(printed))
    with caplog.at_level(logging.WARNING):
        cuda.preload_libraries()
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["loading CUDA's libraries: Failed to load libcurand.so.10; See the page"]


class Failing:
    """A session of ONNX Runtime that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_outputs(self) -> list[Any]:
        return []

    def io_binding(self) -> Any:
        raise self.error


def failing(card: Callable[..., None], error: Exception) -> tuple[Runtime, Session]:
    card()
    runtime = Runtime("cuda")
    return runtime, Session(Failing(error), runtime._explain)


def test_an_error_that_the_card_stays_in_is_told_from_one_that_passes(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, session = failing(card, ILLEGAL)
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        session.run({})  # the probe still runs: this request alone failed

    def refuse(*arguments: object) -> ort.InferenceSession:
        raise ILLEGAL

    monkeypatch.setattr(Runtime, "_open", refuse)
    with pytest.raises(DeviceLostError, match="the GPU has failed: CUDA failure 700"):
        session.run({})
    with pytest.raises(DeviceLostError):
        runtime.open(b"", Path("decoder.onnx"))


def test_an_error_of_the_graph_or_of_the_cpu_is_no_lost_card(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, session = failing(card, RuntimeError("Non-zero status code returned while running Reshape node"))
    monkeypatch.setattr(Runtime, "_probe", lambda runtime: "out of order")
    with pytest.raises(RuntimeError, match="Reshape"):
        session.run({})
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        Session(Failing(ILLEGAL), Runtime("cpu")._explain).run({})


def test_a_card_without_room_is_not_lost(card: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    _, session = failing(card, FULL)
    monkeypatch.setattr(Runtime, "_probe", lambda runtime: "out of order")
    with pytest.raises(OutOfDeviceMemoryError):
        session.run({})


def test_block_sizes_bound_memory_at_every_size_of_image() -> None:
    assert (CPU_BLOCKS.chunk_rows(784), CPU_BLOCKS.estimate_rows(784)) == (256, 96)
    assert cuda_blocks(None).estimate_rows(784) == 4096
    assert cuda_blocks(None).chunk_rows(784) == 4096
    for blocks in (CPU_BLOCKS, cuda_blocks(None), cuda_blocks(2**30)):
        for num_pixels in (1, 784, 300 * 300 * 3, 512 * 512 * 3, 10**9):
            rows = blocks.chunk_rows(num_pixels)
            assert rows == 1 or rows * num_pixels * 40 <= blocks.memory
            assert 1 <= blocks.estimate_rows(num_pixels) <= rows
    assert cuda_blocks(2**30).memory == 2**29
