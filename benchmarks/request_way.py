"""One PNG's way from its first byte to its answer's last: the calls on the event loop, and the files of ours.

python benchmarks/request_way.py

The service runs in this process, with its bundled store and its log going nowhere, and answers `POST /v1/encode` on a
connection that is kept alive. After some requests to warm up, some are watched with `sys.setprofile` on the event
loop's thread, and the one with the fewest calls is told: now and then something else runs there, too. What Python
counts as a call is counted: of a function, or of a coroutine that goes on.
"""

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FrameType

from load import ROOT, digits, png, post

from service.serve import Server, make_server
from service.web import disconnection
from service.web.operations.logs import configure_logging
from service.web.operations.settings import Settings

WARM_UP = 50
WATCHED = 5
_OURS = (f"{ROOT / 'service'}{os.sep}", f"{ROOT / 'model_store'}{os.sep}")


@dataclass
class Way:
    """What was called, in order.

    Attributes:
        calls: file and function of each call.
        entries: files of ours in the order in which they were entered: called from another one, or by a library.
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    _frames: dict[int, FrameType] = field(default_factory=dict)

    def see(self, frame: FrameType, event: str, _: object) -> None:
        """What Python tells of each call."""
        if event != "call":
            return
        code = frame.f_code
        self.calls.append((code.co_filename, code.co_qualname))
        if self._is_ours(code) and id(frame) not in self._frames:
            self._frames[id(frame)] = frame  # kept, so that no other has its number; one that goes on is not entered
            caller = frame.f_back
            while caller is not None and not self._is_ours(caller.f_code):
                caller = caller.f_back
            if caller is None or caller.f_code.co_filename != code.co_filename:
                self.entries.append(Path(code.co_filename).relative_to(ROOT).as_posix())

    @property
    def ours(self) -> list[tuple[str, str]]:
        """Calls of functions of ours."""
        return [call for call in self.calls if call[0].startswith(_OURS)]

    @property
    def files(self) -> list[str]:
        """Files of ours, in order of their first entry."""
        return list(dict.fromkeys(self.entries))

    @staticmethod
    def _is_ours(code: CodeType) -> bool:
        return code.co_filename.startswith(_OURS)


def answer(connection: socket.socket, request: bytes) -> bytes:
    """Send a request, and read the whole of its answer."""
    connection.sendall(request)
    found = b""
    while True:
        found += connection.recv(2**16)
        head, end, body = found.partition(b"\r\n\r\n")
        if end:
            (length,) = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if len(body) >= length:
                return found


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Have the event loop call this, and wait until it has."""
    done = threading.Event()

    def call() -> None:
        function()
        done.set()

    loop.call_soon_threadsafe(call)
    done.wait()


def watch(port: int, loop: asyncio.AbstractEventLoop, request: bytes) -> list[Way]:
    """The way of some requests."""
    ways = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for _ in range(WARM_UP):
            assert answer(connection, request).startswith(b"HTTP/1.1 200 ")
        for _ in range(WATCHED):
            way = Way()
            on_loop(loop, partial(sys.setprofile, way.see))
            answer(connection, request)
            on_loop(loop, partial(sys.setprofile, None))
            names = [name for _, name in way.calls]
            first = next(index for index, name in enumerate(names) if name.endswith(".data_received"))
            way.calls = way.calls[first : names.index("on_loop.<locals>.call")]
            ways.append(way)
    return ways


def main() -> None:
    """Print the way."""
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the service's log
    disconnection.PATIENCE_SECONDS = 60  # as if each were answered within 20 ms, however busy the machine is
    settings = Settings(port=0)
    configure_logging(settings)
    server = make_server(settings)
    found: list[Way] = []

    def ask() -> None:
        try:
            port, loop = wait_until_ready(server)
            found.extend(watch(port, loop, post("/v1/encode", png(digits()[0]), "image/png")))
        finally:
            server.should_exit = True

    asking = threading.Thread(target=ask)
    asking.start()
    server.run()
    asking.join()
    way = min(found, key=lambda one: len(one.calls))
    with os.fdopen(out, "w") as stream:
        print(f"{len(way.calls)} calls, {len(way.ours)} of them of ours", file=stream)
        print(f"{len(way.files)} files of ours, {len(way.entries)} times entered:", file=stream)
        for file in way.files:
            print(f"{way.entries.count(file):4} {file}", file=stream)
        if "--calls" in sys.argv:
            for file, name in way.calls:
                print(f"{'/'.join(Path(file).parts[-2:]):50} {name}", file=stream)


def wait_until_ready(server: Server) -> tuple[int, asyncio.AbstractEventLoop]:
    """The port on which the service answers, and its event loop."""
    while not (server.started and server.app.state.backend.reason_against_serving() is None):
        time.sleep(0.01)
    return server.servers[0].sockets[0].getsockname()[1], server.servers[0].get_loop()


if __name__ == "__main__":
    main()
