import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model_store import ImageShape, InvalidArtifactError
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
