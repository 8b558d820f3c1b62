"""Try versions out in a process of their own, `python -m service.engine.trial`: what hangs or crashes there is alone.

Whoever starts it writes requests to its standard input and reads reports from its standard output, one JSON object a
line. It begins with `{"ready": true}`. A request holds the fields of `Request`; while it is worked on,
`{"file": "decoder.onnx"}` tells which file is looked at, and one of these ends it:

    {"passed": "<SHA-256 of manifest.json>", "graph_bytes": {"encoder.onnx": …, "decoder.onnx": …}}
    {"refused": "what is wrong", "file": "decoder.onnx"}
    {"missing": "what is not there"}

The process bounds its own memory and processor time, ends with the thread that started it, and leaves nothing on disk.
What bounds the time by the clock is whoever waits for the report, and kills it.
"""

import json
import math
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from model_store import (
    DECODER,
    ENCODER,
    FEATURES,
    HASHED_FILES,
    LIKELIHOOD,
    MANIFEST,
    InvalidArtifactError,
    StoreError,
    open_version,
)
from service.child_process import end_with
from service.engine.acceptance import accept
from service.engine.runtime import Runtime, Session

_BYTES_A_BYTE = 16
"""Of memory, for one of the files: seven sessions may hold a decoder's weights, and be built from copies of them."""
_LARGEST_FILE = 2**31
"""No graph is larger: protobuf cannot say more."""
Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Request:
    """Which version to try out, and how it would be served."""

    root: str
    name: str
    version: int
    seconds: float
    """Of the clock, which bound the processor's: a process that nobody kills ends itself."""
    memory_bytes: int
    """For all but the files themselves."""
    num_threads: int
    """That compute: a few, for some sessions have as many each, and each of them takes of the memory."""
    chunk_rows: int | None
    max_steps: int
    max_num_samples: int


def try_out(request: Request, send: Send) -> dict[str, Any]:
    """Read, check, load and ask a version on the CPU; the report that ends the request.

    `send` is given the name of each file when its turn comes.
    """
    runtime = _ReportingRuntime(send, request.num_threads)
    runtime.now(Path(MANIFEST))
    try:
        stored = open_version(Path(request.root), request.name, request.version)
        accept(
            stored,
            runtime=runtime,
            chunk_rows=request.chunk_rows,
            max_steps=request.max_steps,
            max_num_samples=request.max_num_samples,
        )
    except InvalidArtifactError as error:
        refusal = error
    except MemoryError:
        refusal = InvalidArtifactError(runtime.file, "needs more memory than it may have (LOGPX_TRIAL_MEMORY_BYTES)")
    except StoreError as error:
        return {"missing": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a version brings about is the end of this version only
        refusal = InvalidArtifactError(runtime.file, f"{type(error).__name__}: {error}")
    else:
        graphs = {ENCODER: stored.encoder, DECODER: stored.decoder, LIKELIHOOD: stored.likelihood or b""}
        if stored.features is not None:
            graphs[FEATURES] = stored.features
        graph_bytes = {file: len(content) for file, content in graphs.items()}
        return {"passed": stored.digest, "graph_bytes": graph_bytes}
    return {"refused": refusal.problem, "file": refusal.file.name}


class _ReportingRuntime(Runtime):
    """Tells which file is looked at before anything is done with it that may not end."""

    def __init__(self, send: Send, num_threads: int) -> None:
        super().__init__("cpu", num_threads)
        self._send = send
        self._lock = threading.Lock()  # runs are made at once
        self.file = ""

    def now(self, file: Path) -> None:
        """From now on it is this one."""
        with self._lock:
            if file.name != self.file:
                self.file = file.name
                self._send({"file": file.name})

    def open(self, graph: bytes, file: Path, *, for_team: bool = False) -> Session:
        """As any runtime."""
        self.now(file)
        return _ReportingSession(super().open(graph, file, for_team=for_team), lambda: self.now(file))


class _ReportingSession(Session):
    def __init__(self, session: Session, now: Callable[[], None]) -> None:
        self._inner = session
        self._now = now

    def run(self, inputs: Any) -> Any:
        self._now()
        return self._inner.run(inputs)


def main() -> int:
    """Serve requests until there are no more."""
    reports = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no report
    end_with(os.getppid())
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this one goes first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C means the one that started it

    def send(report: dict[str, Any]) -> None:
        _write(reports, report)

    send({"ready": True})
    for line in sys.stdin:
        request = Request(**json.loads(line))
        _limit(request)
        send(try_out(request, send))
    return 0


def _write(stream: TextIO, report: dict[str, Any]) -> None:
    stream.write(json.dumps(report) + "\n")
    stream.flush()


def _limit(request: Request) -> None:
    """Bound memory and processor time from here on, beside what earlier requests have taken."""
    folder, size = Path(request.root, request.name, str(request.version)), 0
    for file in HASHED_FILES:
        with suppress(OSError):
            size += min((folder / file).stat().st_size, _LARGEST_FILE)
    _lower(resource.RLIMIT_AS, _address_space() + request.memory_bytes + _BYTES_A_BYTE * size)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _lower(resource.RLIMIT_CPU, math.ceil(used + (request.num_threads + 1) * request.seconds) + 1)


def _lower(limit: int, soft: int) -> None:
    _, hard = resource.getrlimit(limit)
    with suppress(ValueError, OSError):  # elsewhere than on Linux there may be no such limit
        resource.setrlimit(limit, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _address_space() -> int:
    """Bytes of address space in use."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
