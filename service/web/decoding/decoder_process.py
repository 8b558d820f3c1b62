"""Start, use and end one process that reads images (service/images/worker.py), on the event loop."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.child_process import environment_of_child
from service.images.worker import error_of

START_SECONDS = 60.0
_MAX_ANSWER_HEAD_BYTES = 2**16
_CHUNK_BYTES = 2**18  # small pieces are joined to about this length before sending
_SOCKET_BYTES = 2**20
_POLL_SECONDS = 0.005
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_PASSED_VARIABLES = ("LD_LIBRARY_PATH", "PATH")
# Larger blocks, and more free memory than this at the heap's end, are returned to the system. Smaller ones are kept for
# the next job: without that, each photograph of 300×300 pixels takes about 400 page faults.
_LARGE_BYTES, _KEPT_BYTES = 2**22, 2**23
_SET_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(_LARGE_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
}


class DecoderLostError(Exception):
    """The process has ended, or sent something invalid."""


class DecoderFaultError(Exception):
    """A bug in the code that reads images; the message is its traceback."""


class DecoderMemoryError(Exception):
    """Reading these images needs more memory than the process may have."""


class Decoder:
    """A process that is ready to read images. Used by one task, on the event loop in which it is created."""

    def __init__(self, process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        self._process = process
        self._socket = connection
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def start(cls, memory_bytes: int) -> "Decoder":
        """Start a process, with this much memory in addition to its code, and wait until it is ready.

        Raises:
            DecoderLostError: it ended, or was not ready after a minute.
            OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            ours.setblocking(False)
            numbers = map(str, (theirs.fileno(), os.getpid(), memory_bytes))
            try:
                process = subprocess.Popen(  # noqa: S603 (it returns once the process has begun)
                    [sys.executable, "-P", "-B", "-m", "service.images.worker", *numbers],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    cwd="/",
                    env=environment_of_child(os.environ, kept=_PASSED_VARIABLES, added=_SET_VARIABLES),
                )
            except BaseException:
                ours.close()
                raise
        decoder = cls(process, ours)
        try:
            async with asyncio.timeout(START_SECONDS):
                await decoder._head()
        except TimeoutError:
            await decoder.end()
            raise DecoderLostError(f"it was not ready after {START_SECONDS:g} s") from None
        except BaseException:
            await decoder.end()
            raise
        return decoder

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def has_crashed(self) -> bool:
        """Whether the process ended by itself and was not killed; known once `end` has returned."""
        return self._process.returncode is not None and -self._process.returncode in _CRASHES

    async def read(self, pieces: Sequence[bytes | memoryview], shape: Sequence[int]) -> NDArray[np.float32]:
        """Send a message (service/images/decode_request.py), and receive pixels of this shape.

        Raises:
            ImageError: the images cannot be read.
            DecoderLostError, DecoderFaultError, DecoderMemoryError: see these classes.
        """
        try:
            for chunk in _chunks(pieces):
                await self._loop.sock_sendall(self._socket, chunk)
            answer = await self._head()
            if answer.get("pixels") == list(shape):
                pixels = np.empty(shape, np.float32)
                await self._receive(pixels.reshape(-1).view(np.uint8).data)
                return pixels
        except OSError as error:
            raise DecoderLostError(str(error)) from error
        if "error" in answer:
            raise error_of(answer)
        if "memory" in answer:
            raise DecoderMemoryError
        if "fault" in answer:
            raise DecoderFaultError(str(answer["fault"]))
        raise DecoderLostError(f"its answer is {str(answer)[:200]}")

    def wake_at_end(self, waiter: "asyncio.Future[None]") -> None:
        """Wake the task that waits for a job if the process ends meanwhile."""
        self._loop.add_reader(self._socket, _wake, waiter)

    def check_alive(self) -> None:
        """After `wake_at_end`: stop watching.

        Raises:
            DecoderLostError: the process has ended.
        """
        self._loop.remove_reader(self._socket)
        if self._process.poll() is not None:
            raise DecoderLostError(f"it ended with status {self._process.returncode}")
        try:
            said = self._socket.recv(1)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        raise DecoderLostError("it spoke without being asked" if said else "it closed its socket")

    def kill(self) -> None:
        """Kill the process now. Whoever waits for it gets a DecoderLostError."""
        self._process.kill()

    async def end(self) -> None:
        """End the process, and release everything that belongs to it."""
        self._process.kill()
        if self._socket.fileno() >= 0:  # `end` may have been called before
            self._loop.remove_reader(self._socket)
            self._socket.close()
        while self._process.poll() is None:  # its memory must be free before another process starts
            await asyncio.sleep(_POLL_SECONDS)

    async def _head(self) -> dict[str, Any]:
        """Read the JSON fields of the process's next message.

        Raises:
            DecoderLostError: there is no valid message.
        """
        start = bytearray(4)
        await self._receive(memoryview(start))
        if (length := int.from_bytes(start, "little")) > _MAX_ANSWER_HEAD_BYTES:
            raise DecoderLostError(f"its answer begins with {length} bytes")
        text = bytearray(length)
        await self._receive(memoryview(text))
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise DecoderLostError("its answer is no JSON object")
        return document

    async def _receive(self, into: memoryview) -> None:
        while len(into):
            try:
                count = await self._loop.sock_recv_into(self._socket, into)
            except OSError as error:
                raise DecoderLostError(str(error)) from error
            if count == 0:
                raise DecoderLostError("it closed its socket")
            into = into[count:]


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _chunks(pieces: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes in pieces that, except for the last, are not much smaller than `_CHUNK_BYTES`."""
    small: list[bytes | memoryview] = []
    length = 0
    for piece in pieces:
        if len(piece) >= _CHUNK_BYTES:
            if small:
                yield b"".join(small)
            small, length = [], 0
            yield piece
            continue
        small.append(piece)
        length += len(piece)
        if length >= _CHUNK_BYTES:
            yield b"".join(small)
            small, length = [], 0
    if small:
        yield b"".join(small)
