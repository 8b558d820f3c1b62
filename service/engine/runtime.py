"""ONNX Runtime sessions on one execution provider, which is the one that really runs.

    ExecutionProviderError      the wanted provider cannot be used on this machine

ONNX Runtime falls back to the CPU in silence in four ways: a provider library that does not load, a session that is
built again, a `run` that is retried, and single nodes. All four are closed here, so `Runtime.provider` tells the truth.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from model_store import InvalidArtifactError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
Choice = Literal["auto", "cuda", "cpu"]

RUNTIME_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,  # what a run with bound inputs raises
)
"""Whatever ONNX Runtime raises when it cannot build or run a graph."""


class ExecutionProviderError(Exception):
    """The wanted execution provider cannot be used on this machine."""


class Session:
    """One graph, ready to run on the runtime's device."""

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        self._session = session
        self._device = device
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, "NDArray[Any] | ort.OrtValue"]) -> dict[str, NDArray[Any]]:
        """Run the graph; an `OrtValue` (see `Runtime.place`) is used where it lies, an array is copied there."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))


class Runtime:
    """Opens sessions, all on one execution provider.

    Args:
        execution_provider: `cpu`; `cuda`, which fails when CUDA cannot really be used; or `auto`, which takes CUDA
            where a probe runs on it and the CPU elsewhere, and keeps the reason in `fallback_reason`.
        num_threads: threads of one operator on the CPU; 0 means one a physical core.

    >>> Runtime("cpu").provider
    'CPUExecutionProvider'
    """

    def __init__(self, execution_provider: Choice = "auto", num_threads: int = 0) -> None:
        self._num_threads = num_threads
        self.fallback_reason: str | None = None
        self.provider = CPU
        if execution_provider != "cpu":
            self.fallback_reason = self._reason_against_cuda()
            if self.fallback_reason is None:
                self.provider = CUDA
            elif execution_provider == "cuda":
                raise ExecutionProviderError(f"CUDA cannot be used: {self.fallback_reason}")

    @property
    def device(self) -> str:
        """`cpu` or `cuda`, as ONNX Runtime names memory."""
        return "cuda" if self.provider == CUDA else "cpu"

    def open(self, graph: bytes, file: Path) -> Session:
        """Build a session; `file` is what an error names.

        Raises:
            InvalidArtifactError: ONNX Runtime refuses the graph, or cannot run all of it on this provider.
        """
        try:
            return Session(self._open(graph, self.provider), self.device)
        except RUNTIME_ERRORS as error:
            raise InvalidArtifactError(file, f"ONNX Runtime refuses it on {self.provider} ({error})") from error

    def place(self, array: NDArray[Any]) -> ort.OrtValue:
        """Copy an array to the device once, for use in many runs."""
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)

    def _open(self, graph: bytes, provider: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        providers: Sequence[Any]
        if provider == CUDA:
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # TF32 keeps 10 bits of a product's mantissa: sums over a thousand pixels would move by more than 1e-3 nat.
            providers = [(CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})]
        else:
            options.intra_op_num_threads = self._num_threads
            # A spinning pool takes the second core from the event loop between two runs.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            providers = [CPU]
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        session.disable_fallback()
        used = session.get_providers()
        if used[0] != provider:
            raise ExecutionProviderError(f"asked for {provider}, the session runs on {used[0]}")
        return session

    def _reason_against_cuda(self) -> str | None:
        """Multiply two matrices on CUDA; None when that works."""
        if CUDA not in ort.get_available_providers():
            return "this onnxruntime has no CUDA provider; install the extra `gpu` in place of `cpu`"
        ort.preload_dlls()
        probe = helper.make_graph(
            [helper.make_node("MatMul", ["a", "a"], ["b"])],
            "probe",
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 2])],
            [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 2])],
        )
        model = helper.make_model(probe, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        a = np.array([[1, 2], [0, 3]], np.float32)
        try:
            b = Session(self._open(model.SerializeToString(), CUDA), "cuda").run({"a": a})["b"]
        except (*RUNTIME_ERRORS, ExecutionProviderError) as error:
            return str(error)
        return None if np.allclose(a @ a, b) else "a matrix product came out wrong"
