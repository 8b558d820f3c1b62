"""Ten models in one process: threads, memory, one digit's latency, and what idle threads cost, shared and not shared.

python benchmarks/many_models.py

What sessions of ONNX Runtime can share, each way in processes of its own that take turns:

    nothing     each session has its threads, an arena of memory for intermediate results, and its weights
    arena       one arena for all sessions: as the service runs
    pool        one pool of threads for all sessions (`set_global_thread_pool_sizes`), which spins after each run
    weights     one arena, and equal weights are held once (`SessionOptions.add_initializer`)
    unpacked    the same, and weights are not copied into the order that the processor's caches like best

A digit is encoded and its log-likelihood estimated by the engine in process, and by `POST /v1/log-likelihood` to the
service in the same process. CPU is the time of all threads for a request and the 20 ms after it. The answers' digest
shows whether the bits are the same.
"""

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
from load import ROOT, digits, png, post
from onnx import numpy_helper
from request_way import answer, wait_until_ready

from model_store import BUNDLED, list_store, open_version
from service.engine.chunks import complete
from service.engine.host_memory import share_arena
from service.engine.model import Model
from service.engine.runtime import CPU, Runtime
from service.serve import make_server
from service.web.models import registry
from service.web.operations.allocator import tune_allocator
from service.web.operations.settings import Settings

MODELS = 10
REPEATS = 16
PAUSED = 20
PAUSE_SECONDS = 0.02
SHARED_BYTES = 2**12
"""Smaller weights are left where they are."""
SHARES: dict[str, set[str]] = {
    "nothing": set(),
    "arena": {"arena"},
    "pool": {"pool"},
    "weights": {"arena", "weights"},
    "unpacked": {"arena", "weights", "unpacked"},
}


class SharingRuntime(Runtime):
    """Opens sessions on the CPU that share what is named."""

    def __init__(self, shares: set[str]) -> None:
        super().__init__("cpu")
        self._shares = shares
        self._weights: dict[bytes, ort.OrtValue] = {}
        if "pool" in shares:
            ort.set_global_thread_pool_sizes(0, 1)

    def _open(self, graph: bytes, provider: str, num_threads: int = 1) -> ort.InferenceSession:
        if self._shares == {"arena"}:
            return super()._open(graph, provider, num_threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.use_per_session_threads = "pool" not in self._shares
        if "arena" in self._shares:
            share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        if "unpacked" in self._shares:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if "weights" in self._shares:
            for initializer in onnx.load_from_string(graph).graph.initializer:
                array = numpy_helper.to_array(initializer)
                if array.nbytes >= SHARED_BYTES:
                    key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).digest()
                    value = self._weights.setdefault(key, ort.OrtValue.ortvalue_from_numpy(array))
                    options.add_initializer(initializer.name, value)
        return ort.InferenceSession(graph, options, providers=[CPU], enable_fallback=0)


def milliseconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median of some calls."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def cpu_milliseconds(function: Callable[[], object]) -> float:
    """CPU time of one call and of the pause that follows it, all threads together."""
    started = time.process_time()
    for _ in range(PAUSED):
        function()
        time.sleep(PAUSE_SECONDS)
    return 1000 * (time.process_time() - started) / PAUSED


def mebibytes() -> float:
    """Memory of this process that is not a file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def measure(name: str) -> dict[str, Any]:
    """Everything about one way of sharing, in this process."""
    tune_allocator()
    runtime = SharingRuntime(SHARES[name])
    stored = [open_version(BUNDLED, model, versions[-1]) for model, versions in list_store(BUNDLED).versions.items()]
    before, threads = mebibytes(), _threads()
    started = time.perf_counter()
    models = [Model.open(stored[index % len(stored)], runtime=runtime, tried=True) for index in range(MODELS)]
    found: dict[str, Any] = {"load s": time.perf_counter() - started, "threads": _threads() - threads}
    found["MiB loaded"] = mebibytes() - before
    model = next(model for model in models if model.manifest.name == "mnist")
    images = digits()[:, None].astype(np.float32) / np.float32(255)
    for one in models:  # its largest runs, as far as the digits go
        complete(one.log_likelihood(images[:16]))
    found["MiB used"] = mebibytes() - before
    digest = hashlib.sha256()
    for one in models[: len(stored)]:
        codes, estimate = complete(one.encode(images)), complete(one.log_likelihood(images[:16]))
        digest.update(codes.mean.tobytes() + estimate.log_likelihood.tobytes() + estimate.std_error.tobytes())
    found["digest"] = digest.hexdigest()[:12]
    found["encode ms"] = milliseconds(lambda: complete(model.encode(images[:1])))
    found["estimate ms"] = milliseconds(lambda: complete(model.log_likelihood(images[:1])))
    found["16 estimates ms"] = milliseconds(lambda: complete(model.log_likelihood(images[:16])), REPEATS // 4)
    found["encode CPU ms"] = cpu_milliseconds(lambda: complete(model.encode(images[:1])))
    found["estimate CPU ms"] = cpu_milliseconds(lambda: complete(model.log_likelihood(images[:1])))
    found |= _over_http(runtime, post("/v1/log-likelihood", png(digits()[0]), "image/png"))
    return found


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _over_http(runtime: Runtime, request: bytes) -> dict[str, float]:
    """The service in this process, on this runtime."""
    server = make_server(Settings(port=0))
    found: dict[str, float] = {}

    def ask() -> None:
        try:
            port, _ = wait_until_ready(server)
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                found["/v1 ms"] = milliseconds(lambda: answer(connection, request))
                found["/v1 CPU ms"] = cpu_milliseconds(lambda: answer(connection, request))
        finally:
            server.should_exit = True

    asking = threading.Thread(target=ask)
    asking.start()
    with mock.patch.object(registry, "runtime_of", return_value=runtime):
        server.run()
    asking.join()
    return found


def main() -> None:
    """Measure each way in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ways", nargs="*", default=list(SHARES), metavar="WAY", help=f"of {', '.join(SHARES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.child:
        print(json.dumps(measure(parsed.ways[0])))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in parsed.ways}
    for _ in range(parsed.rounds):
        for way in parsed.ways:
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            said = subprocess.run(
                [sys.executable, __file__, "--child", way],
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            found[way].append(json.loads(said.splitlines()[-1]))
    print(f"{'':16}" + "".join(f"{way:>14}" for way in parsed.ways))
    for row in found[parsed.ways[0]][0]:
        cells = []
        for way in parsed.ways:
            values = [round_[row] for round_ in found[way]]
            cells.append("/".join(sorted(set(values))) if row == "digest" else f"{statistics.median(values):.2f}")
        print(f"{row:16}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
