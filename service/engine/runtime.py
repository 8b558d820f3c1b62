"""ONNX Runtime sessions on one execution provider, which is the one that really runs.

    ExecutionProviderError      the wanted provider cannot be used on this machine
    DeviceLostError             the GPU failed, and whatever is run on it fails now
    OutOfDeviceMemoryError      the GPU has no room for this run

ONNX Runtime falls back to the CPU in silence in four ways: a provider library that does not load, a session that is
built again, a `run` that is retried, and single nodes. All four are closed here, so `Runtime.provider` tells the truth.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from model_store import InvalidArtifactError
from service.cores import usable_cores
from service.engine import cuda
from service.engine.blocks import BlockSizes, cpu_blocks, cuda_blocks
from service.engine.host_memory import share_arena
from service.engine.team import Team

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
Choice = Literal["auto", "cuda", "cpu"]

_AS_REQUESTED = 1
"""ONNX Runtime's kSameAsRequested."""

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


@contextmanager
def blaming(file: Path) -> Iterator[None]:
    """Whatever ONNX Runtime raises in here is this file's fault: an InvalidArtifactError."""
    try:
        yield
    except RUNTIME_ERRORS as error:
        raise InvalidArtifactError(file, f"cannot be run ({error})") from error


class ExecutionProviderError(Exception):
    """The wanted execution provider cannot be used on this machine."""


class DeviceLostError(Exception):
    """The GPU failed, and whatever is run on it fails now: only another process can use it again."""


class OutOfDeviceMemoryError(Exception):
    """The GPU has no room for this run."""


DEVICE_ERRORS = (ExecutionProviderError, DeviceLostError, OutOfDeviceMemoryError)
"""What the machine is to blame for, whatever is asked of it."""


class Session:
    """One graph, ready to run on the runtime's device.

    Args:
        explain: given what ONNX Runtime raised, returns what to raise.
    """

    def __init__(self, session: ort.InferenceSession, explain: Callable[[Exception], Exception]) -> None:
        self._session = session
        self._explain = explain
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, "NDArray[Any] | ort.OrtValue"]) -> dict[str, NDArray[Any]]:
        """Run the graph; an `OrtValue` (see `Runtime.place`) is used where it lies, an array is copied there.

        Raises:
            DeviceLostError, OutOfDeviceMemoryError: on a GPU; or one of RUNTIME_ERRORS.
        """
        try:
            return self._run(inputs)
        except RUNTIME_ERRORS as error:
            explained = self._explain(error)
            if explained is error:
                raise
            raise explained from error

    def _run(self, inputs: Mapping[str, "NDArray[Any] | ort.OrtValue"]) -> dict[str, NDArray[Any]]:
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
            where a probe runs on it with the CPU's numbers and the CPU elsewhere, and keeps the reason in
            `fallback_reason`.
        num_threads: threads that compute on the CPU; 0 means one for each core that this process may use.
        device_id: which GPU, of those that CUDA sees.
        memory_limit: bytes of the GPU's memory that all sessions of the process take together; None: all there is. The
            first runtime on a GPU decides.

    Raises:
        ExecutionProviderError: CUDA was asked for and cannot be used, or there is no such GPU.

    >>> Runtime("cpu").provider
    'CPUExecutionProvider'
    """

    def __init__(
        self,
        execution_provider: Choice = "auto",
        num_threads: int = 0,
        *,
        device_id: int = 0,
        memory_limit: int | None = None,
    ) -> None:
        self._num_threads = num_threads or usable_cores()
        self._device_id = device_id
        self._memory_limit = memory_limit
        self._no_such_device = False
        self.fallback_reason: str | None = None
        self.provider = CPU
        if execution_provider != "cpu":
            self.fallback_reason = self._reason_against_cuda()
            if self.fallback_reason is None:
                self.provider = CUDA
            elif execution_provider == "cuda" or self._no_such_device:
                raise ExecutionProviderError(f"CUDA cannot be used: {self.fallback_reason}")
        self.team = Team(self._num_threads if self.provider == CPU else 1)
        """Makes several runs at once, of sessions that were opened for it."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`, as ONNX Runtime names memory."""
        return "cuda" if self.provider == CUDA else "cpu"

    @property
    def blocks(self) -> BlockSizes:
        """How much to compute at once."""
        return cuda_blocks(self._memory_limit) if self.provider == CUDA else cpu_blocks(self.team.size)

    def open(self, graph: bytes, file: Path, *, for_team: bool = False) -> Session:
        """Build a session; `file` is what an error names. A run of one that is `for_team` takes one thread only.

        Raises:
            InvalidArtifactError: ONNX Runtime refuses the graph, or cannot run all of it on this provider.
            DeviceLostError, OutOfDeviceMemoryError: on a GPU.
        """
        try:
            return Session(self._open(graph, self.provider, 1 if for_team else self._num_threads), self._explain)
        except RUNTIME_ERRORS as error:
            explained = self._explain(error)
            if explained is not error:
                raise explained from error
            raise InvalidArtifactError(file, f"ONNX Runtime refuses it on {self.provider} ({error})") from error

    def verify(
        self, graph: bytes, session: Session, inputs: Mapping[str, NDArray[Any]], file: Path, *, tolerance: float
    ) -> None:
        """On a GPU, run a graph there and on the CPU: cuDNN may take TF32 for a convolution that it was told not to.

        Args:
            graph: what `session` was opened with.
            session: on this runtime's device.
            inputs: what to run it on.
            file: what an error names.
            tolerance: largest difference, of an output's largest value.

        Raises:
            InvalidArtifactError: the numbers differ by more.
        """
        if self.provider == CPU:
            return
        expected = Session(self._open(graph, CPU), lambda error: error).run(inputs)
        problem = cuda.difference(session.run(inputs), expected, tolerance)
        if problem is not None:
            raise InvalidArtifactError(file, f"{self.provider} computes other numbers than the CPU: {problem}")

    def place(self, array: NDArray[Any]) -> ort.OrtValue:
        """Copy an array to the device once, for use in many runs."""
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, self._device_id)

    def _open(self, graph: bytes, provider: str, num_threads: int = 1) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        providers: Sequence[Any]
        if provider == CUDA:
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            options.add_session_config_entry("session.use_env_allocators", "1")  # see `_share_memory`
            # TF32 keeps 10 bits of a product's mantissa: sums over a thousand pixels would move by more than 1e-3 nat.
            providers = [
                (
                    CUDA,
                    {"device_id": str(self._device_id), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
                )
            ]
        else:
            share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
            # Threads of its own: the one pool that all sessions could share spins, and no setting of it prevents that.
            options.intra_op_num_threads = num_threads
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
        """Why CUDA cannot be used; None where the probe runs on it and gives the CPU's numbers."""
        if CUDA not in ort.get_available_providers():
            return "this onnxruntime has no CUDA provider; install the extra `gpu` in place of `cpu`"
        cuda.preload_libraries()
        try:
            self._share_memory()
            problem = self._probe()
        except (*RUNTIME_ERRORS, ExecutionProviderError) as error:
            if missing := cuda.missing_library():
                return f"the library {missing} is not found; install the extra `gpu`, which brings CUDA's libraries"
            devices = cuda.num_devices_of(str(error))
            if devices is not None:
                self._no_such_device = self._device_id > 0  # nobody asked for the first one
                return f"there is no GPU {self._device_id}: CUDA sees {devices}, numbered from 0"
            return str(error)
        return None if problem is None else f"it computes other numbers than the CPU: {problem}"

    def _probe(self) -> str | None:
        """Run one of each sort of operator on CUDA and on the CPU; returns how the numbers differ."""
        graph, inputs = cuda.probe_graph(), cuda.probe_inputs()
        found, expected = (
            Session(self._open(graph, provider), lambda error: error).run(inputs) for provider in (CUDA, CPU)
        )
        return cuda.difference(found, expected, cuda.PROBE_TOLERANCE)

    def _share_memory(self) -> None:
        """Have one arena for all sessions on this GPU. One each would take twice as much, and no limit would hold.

        It grows by what is asked for, and not by doubling.
        """
        arenas, default = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
        kind = ort.OrtMemoryInfo("Cuda", arenas, self._device_id, default)
        arena = ort.OrtArenaCfg({"max_mem": self._memory_limit or 0, "arena_extend_strategy": _AS_REQUESTED})
        ort.create_and_register_allocator_v2(CUDA, kind, {"device_id": str(self._device_id)}, arena)

    def _explain(self, error: Exception) -> Exception:
        """What an error of a run means: is the GPU lost, or full?"""
        if self.provider == CPU:
            return error
        if cuda.is_out_of_memory(error):
            return OutOfDeviceMemoryError(f"the GPU has no room for this computation ({error})")
        if not cuda.is_of_the_device(error):
            return error
        try:
            problem = self._probe()
        except (*RUNTIME_ERRORS, ExecutionProviderError) as again:
            if cuda.is_out_of_memory(again):
                return error
            problem = str(again)
        return error if problem is None else DeviceLostError(f"the GPU has failed: {error}; then a probe: {problem}")
