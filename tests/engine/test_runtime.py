import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from model_store import ImageShape, InvalidArtifactError
from service.engine.host_memory import release_arena
from service.engine.runtime import CPU, CUDA, ExecutionProviderError, Runtime
from tests.rounding import network_error
from tests.toys import bernoulli_toy

DECODER = bernoulli_toy(ImageShape(channels=1, height=2, width=3), 3).decoder
FILE = Path("store/toy/1/decoder.onnx")


def test_the_cpu_runs_everywhere() -> None:
    runtime = Runtime("cpu")
    assert (runtime.provider, runtime.device, runtime.fallback_reason) == (CPU, "cpu", None)
    logits = runtime.open(DECODER, FILE).run({"z": np.zeros((4, 3), np.float32)})["logits"]
    assert logits.shape == (4, 1, 2, 3)


def test_auto_takes_cuda_or_says_why_not_and_cuda_never_falls_back() -> None:
    auto = Runtime("auto")
    if auto.provider == CUDA:  # a machine with a GPU
        assert auto.fallback_reason is None
        assert Runtime("cuda").device == "cuda"
    else:
        assert (auto.provider, auto.device) == (CPU, "cpu")
        assert auto.fallback_reason
        with pytest.raises(ExecutionProviderError) as caught:
            Runtime("cuda")
        assert str(caught.value) == f"CUDA cannot be used: {auto.fallback_reason}"


def test_the_reason_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    assert "extra `gpu` in place of `cpu`" in str(Runtime("auto").fallback_reason)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        pytest.param(ort.capi.onnxruntime_pybind11_state.EPFail("no driver"), "no driver", id="provider fails"),
        pytest.param(RuntimeError("CUDA error 35"), "CUDA error 35", id="run fails"),
        pytest.param(ExecutionProviderError("runs on CPU"), "runs on CPU", id="falls back"),
    ],
)
def test_a_probe_that_fails_is_the_reason(monkeypatch: pytest.MonkeyPatch, failure: Exception, reason: str) -> None:
    """CUDA listed is not CUDA usable: what counts is that a matrix product runs."""

    def refuse(*arguments: object) -> ort.InferenceSession:
        raise failure

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(Runtime, "_share_memory", lambda runtime: None)
    monkeypatch.setattr(Runtime, "_open", refuse)
    assert Runtime("auto").fallback_reason == reason
    with pytest.raises(ExecutionProviderError, match=reason):
        Runtime("cuda")


def test_a_session_that_runs_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime without CUDA warns and runs on the CPU when asked for it; the probe must notice."""
    listed = ort.get_available_providers()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(Runtime, "_share_memory", lambda runtime: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runtime = Runtime("auto")
    assert (runtime.provider == CUDA) == (runtime.fallback_reason is None)
    if CUDA not in listed:
        assert runtime.provider == CPU
        assert "CPU" in str(runtime.fallback_reason)


@pytest.mark.parametrize("content", [b"", b"not a graph", DECODER[:-20], DECODER[: len(DECODER) // 2]])
def test_what_is_no_graph_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(InvalidArtifactError, match="ONNX Runtime refuses it on") as caught:
        Runtime("cpu").open(content, FILE)
    assert caught.value.file == FILE


def test_arrays_give_the_same_wherever_they_lie() -> None:
    runtime = Runtime("cpu")
    session = runtime.open(DECODER, FILE)
    z = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    expected = session.run({"z": z})["logits"]
    for same in (runtime.place(z), np.asfortranarray(z), np.repeat(z, 2, axis=0)[::2], runtime.place(z.T.copy().T)):
        np.testing.assert_array_equal(session.run({"z": same})["logits"], expected)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_number_of_threads_changes_no_number(num_threads: int) -> None:
    z = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
    expected = Runtime("cpu").open(DECODER, FILE).run({"z": z})["logits"]
    found = Runtime("cpu", num_threads=num_threads).open(DECODER, FILE).run({"z": z})["logits"]
    assert (np.abs(found - expected) <= 2 * network_error(DECODER, z=z)["logits"]).all()


def resident_bytes() -> int:
    """Memory of this process that is not a file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024


def wide_graph() -> bytes:
    """exp(x) for 2^23 numbers at a time, 32 MiB, of which only the sum leaves the graph."""
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["wide"]),
            helper.make_node("Exp", ["wide"], ["exp"]),
            helper.make_node("ReduceMax", ["exp"], ["y"], keepdims=0),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        initializer=[helper.make_tensor("shape", TensorProto.INT64, [1], [2**23])],
    )
    opset = helper.make_opsetid("", 18)
    content: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return content


def test_sessions_share_what_they_keep_for_their_intermediate_results() -> None:
    """Of whatever runtime; before, each kept as much as its own largest run took."""
    sessions = [Runtime("cpu", num_threads).open(wide_graph(), FILE) for num_threads in (1, 2, 1, 0)]
    x = np.ones(1, np.float32)
    for _ in range(2):  # the first run shows how much memory the next ones take at once
        sessions[0].run({"x": x})
    after_one = resident_bytes()
    for session in sessions:
        assert session.run({"x": x})["y"] == pytest.approx(np.e)
    assert resident_bytes() - after_one < 2**24


def test_what_no_run_uses_is_returned_to_the_system() -> None:
    session = Runtime("cpu", 1).open(wide_graph(), FILE)
    x = np.ones(1, np.float32)
    for _ in range(2):
        assert session.run({"x": x})["y"] == pytest.approx(np.e)
        kept = resident_bytes()
        release_arena()
        assert resident_bytes() < kept - 2**24


def test_memory_is_returned_while_sessions_run() -> None:
    z = np.random.default_rng(0).standard_normal((4, 256, 3)).astype(np.float32)
    session = Runtime("cpu", 1).open(DECODER, FILE)
    expected = [session.run({"z": rows})["logits"] for rows in z]

    def agree(index: int) -> bool:
        return all(np.array_equal(session.run({"z": z[index]})["logits"], expected[index]) for _ in range(200))

    with ThreadPoolExecutor(len(z)) as threads:
        ran = threads.map(agree, range(len(z)))
        for _ in range(50):
            release_arena()
        assert all(ran)


def test_sessions_that_run_at_the_same_time_do_not_write_into_one_another() -> None:
    z = np.random.default_rng(0).standard_normal((4, 64, 3)).astype(np.float32)
    sessions = [Runtime("cpu", 1).open(DECODER, FILE) for _ in z]
    expected = [session.run({"z": rows})["logits"] for session, rows in zip(sessions, z, strict=True)]

    def agree(index: int) -> bool:
        return all(np.array_equal(sessions[index].run({"z": z[index]})["logits"], expected[index]) for _ in range(200))

    with ThreadPoolExecutor(len(z)) as threads:
        assert all(threads.map(agree, range(len(z))))
