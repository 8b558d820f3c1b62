"""The one arena that all CPU sessions of this process take memory for intermediate results from."""

from functools import cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

_RELEASE = "memory.enable_memory_arena_shrinkage"
_INPUT = np.zeros(1, np.float32)


@cache
def share_arena() -> None:
    """Register the arena, once. Sessions with `session.use_env_allocators` take from it.

    An arena keeps what its largest run took. Where each session has its own, ten models keep it seventy times.
    """
    arenas, default = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", arenas, 0, default), ort.OrtArenaCfg({}))


def release_arena() -> None:
    """Return what the arena keeps and no run uses to the system. Runs may go on meanwhile; the next ones ask anew."""
    options = ort.RunOptions()
    options.add_run_config_entry(_RELEASE, "cpu:0")
    _smallest_session().run(None, {"x": _INPUT}, options)


@cache
def _smallest_session() -> ort.InferenceSession:
    """A session on the arena: memory is returned at the end of a run, whichever session it is of."""
    share_arena()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "smallest", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers, enable_fallback=0)
