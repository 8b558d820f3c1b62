"""One worker process and the shards that it is given: an image at which it dies costs that image, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from service.child_process import environment_of_child
from service.images.decode_request import MAX_HEADER_BYTES, head, receive_head
from service.scoring.errors import ScoringError

PROGRAM = ("-m", "service.scoring.worker")
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "ORT_DISABLE_TELEMETRY", "VIRTUAL_ENV")
_OF_ITS_OWN = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc returns what is freed to the system, as service/web/operations/allocator.py asks of it for the service.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**24),
}
_MOST_STARTS = 2


class ClosedError(Exception):
    """The worker was closed while it worked."""


class _DiedError(Exception):
    """The process has ended by itself, or was killed; the message says how."""

    def __init__(self, problem: str, row: int | None) -> None:
        super().__init__(problem)
        self.row = row


@dataclass(frozen=True)
class Part:
    """A shard's results.

    Attributes:
        content: the Parquet file.
        errors: images without results.
    """

    content: bytes
    errors: int


class Supervisor:
    """Has one process at a time, which is started when there is something to do, and anew when it dies.

    A shard at which the process dies is given to the next one, since somebody may have killed it. If that one dies too,
    the images are read one by one, and the one at which the process dies again is a row with an error.

    Used by one thread; any thread may close it.

    Args:
        start: the first message to each process, see worker.py.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        self._start_message = start
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process that there is now."""
        process = self._process
        return None if process is None else process.pid

    def score(self, shard: Mapping[str, Any], on_scored: Callable[[int], object] = lambda _: None) -> Part:
        """The results of a shard.

        Args:
            shard: as worker.py takes it, without `careful` and `lost`.
            on_scored: is called with how many of its images are scored; with fewer than before, where they are scored
                again.

        Raises:
            ScoringError: the model is refused, or the process does not start.
            ClosedError: another thread has closed this.
        """
        deaths = 0
        lost: dict[int, str] = {}
        while True:
            careful = deaths >= _MOST_STARTS
            try:
                return self._ask({**shard, "careful": careful, "lost": lost}, on_scored)
            except _DiedError as error:
                if careful and error.row is None:
                    raise ScoringError(f"a worker process was ended by {error}, and not by an image") from error
                if careful and error.row is not None:
                    lost[error.row] = f"the process that read it was ended by {error}"
                deaths += 1
                on_scored(0)

    def end(self) -> None:
        """End the process, and wait until it has ended; by the thread that uses this."""
        self.close()
        if self._process is not None:
            with suppress(ClosedError):
                self._ended(self._process)

    def close(self) -> None:
        """Kill the process, and start no other."""
        with self._closing:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _ask(self, shard: Mapping[str, Any], on_scored: Callable[[int], object]) -> Part:
        process = self._started()
        row: int | None = None
        try:
            _send(process, shard)
            while True:
                answer = self._answer(process)
                if "part" in answer:
                    content = cast(IO[bytes], process.stdout).read(answer["part"])
                    if len(content) < answer["part"]:
                        raise EOFError("cut off")
                    return Part(content, answer["errors"])
                row = answer.get("at", row)
                if "scored" in answer:
                    row = None
                    on_scored(answer["scored"])
        except (OSError, EOFError, ValueError) as error:
            raise _DiedError(self._ended(process), row) from error

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        for _ in range(_MOST_STARTS):
            process = self._start()
            try:
                _send(process, self._start_message)
                self._answer(process)
            except (OSError, EOFError, ValueError):
                problem = self._ended(process)
            else:
                return process
        raise ScoringError(
            f"a worker process was ended by {problem} while it loaded the model: is there enough memory?"
        )

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._closing:
            if self._closed:
                raise ClosedError
            self._process = subprocess.Popen(  # noqa: S603 (our own program)
                [sys.executable, *PROGRAM, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment_of_child(os.environ, kept=_PASSED_ON, added=_OF_ITS_OWN),
            )
            return self._process

    def _answer(self, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
        """The next message of a process.

        Raises:
            ScoringError: the model is refused, or the process tells of a fault of ours.
            OSError, EOFError, ValueError: there is none.
        """
        answer = receive_head(cast(BinaryIO, process.stdout))
        if answer is None:
            raise EOFError("it has ended")
        if sentence := answer.get("refused"):
            raise ScoringError(str(sentence))
        if fault := answer.get("fault"):
            raise ScoringError(f"a worker process has failed; this is a fault of logpx:\n{fault}")
        return answer

    def _ended(self, process: "subprocess.Popen[bytes]") -> str:
        """By what a process was ended.

        Raises:
            ClosedError: by `close`.
        """
        process.kill()
        status = process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                cast(IO[bytes], stream).close()
        self._process = None
        if self._closed:
            raise ClosedError
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def _send(process: "subprocess.Popen[bytes]", document: Mapping[str, Any]) -> None:
    message = head(dict(document))
    if len(message) > MAX_HEADER_BYTES:
        raise ScoringError("the paths of a part's images are too long together: say a smaller --shard-size")
    stream = cast(IO[bytes], process.stdin)
    stream.write(message)
    stream.flush()
