"""Several services on one port: start them, start anew what ends, and end all with a signal (docs/operations.md).

Each is a process of its own with its own models, queue and metrics, like a replica. All listen at the same port, among
which the kernel spreads connections (SO_REUSEPORT), and each at one more of its own, where its metrics are.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import structlog

from service.child_process import ROOT
from service.cores import affinity
from service.serve import read_settings, serve
from service.web.operations.logs import configure_logging, open_standard_descriptors, write_to_stderr

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FATAL = {2, 3}
"""Exit statuses of a service that would be the same again: a wrong setting, or a port that is taken."""
_LAST_PORT = 65_535
_SOON_SECONDS, _MOST_SOON = 60.0, 3
_PAUSES = (0.5, 2.0)  # before a process that ended soon is started anew
_log = structlog.get_logger()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how many processes there are."""
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--processes", type=_count, help="so many processes on one port, each with its share of the cores"
    )
    several.add_argument("--devices", type=_devices, help="one process for each of these GPUs on one port, such as 0,1")


def run(given: argparse.Namespace) -> int:
    """Serve with the options; returns the exit status."""
    if given.devices is None and given.processes is None:
        return serve()
    open_standard_descriptors()
    if (settings := read_settings()) is None:
        return 2
    configure_logging(settings)
    devices = given.devices or [None] * given.processes
    if settings.port and settings.port + len(devices) > _LAST_PORT:
        write_to_stderr(f"LOGPX_PORT: there are no {len(devices)} ports after {settings.port} for the processes' own")
        return 2
    try:
        reserved = reserve(settings.host, settings.port)
    except OSError as error:
        _log.error("address already in use or not ours", port=settings.port, reason=str(error))
        return 3
    with reserved:
        port = reserved.getsockname()[1]
        _log.info("serving", address=f"http://{settings.host}:{port}", processes=len(devices))
        shares = shares_of(sorted(affinity()), len(devices))
        children = [
            Child(settings.port and port + 1 + number, port, share, device)
            for number, (share, device) in enumerate(zip(shares, devices, strict=True))
        ]
        return asyncio.run(Supervisor([child.start for child in children]).run())


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"a whole number from 1 to 1024, not {text!r}")
    return int(text)


def _devices(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"numbers of GPUs, each once, such as 0,1, not {text!r}")
    return [int(part) for part in parts]


def shares_of(cores: Sequence[int], processes: int) -> list[Sequence[int]]:
    """Each process's cores: neighbours, and as many for each as there can be; with too few cores, one by turns.

    >>> shares_of([0, 1, 2, 3, 4], 2), shares_of([4, 5], 3), shares_of([], 2)
    ([[0, 1, 2], [3, 4]], [[4], [5], [4]], [[], []])
    """
    if len(cores) < processes:
        return [cores[number % len(cores) :][:1] if cores else [] for number in range(processes)]
    size, larger = divmod(len(cores), processes)
    bounds = [number * size + min(number, larger) for number in range(processes + 1)]
    return [cores[start:stop] for start, stop in pairwise(bounds)]


def open_shared(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address to which others are bound, too.

    Raises:
        OSError: the address cannot be had.
    """
    return _bound(host, port, shared=True)


def reserve(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address and does not listen, so that the port stays ours while nobody listens.

    Raises:
        OSError: somebody else listens there, even if they would share it; or the address cannot be had.
    """
    with _bound(host, port, shared=False) as alone:
        found = alone.getsockname()[1]
    return _bound(host, found, shared=True)


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    opened = socket.socket(family, kind)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened


@dataclass(frozen=True)
class Start:
    """How a process is started."""

    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Child:
    """One service.

    Attributes:
        own_port: at which it alone listens; 0 chooses a free one.
        port: at which all listen.
        cores: on which it runs; if there are none, on any.
        device: its GPU, or None.
    """

    own_port: int
    port: int
    cores: Sequence[int]
    device: int | None

    def start(self, *, again: bool) -> Start:
        """How it is started. One that is started again listens only when its models are loaded."""
        cores = ",".join(map(str, self.cores))
        arguments = [str(os.getpid()), str(self.port), str(self.own_port), cores, "ready" if again else "at-once"]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths}
        if self.device is not None:
            environment = {"LOGPX_EXECUTION_PROVIDER": "cuda", **environment, "LOGPX_DEVICE_ID": str(self.device)}
        return Start([sys.executable, "-m", "service.shared_port", *arguments], environment)


class Supervisor:
    """Keeps processes running until a signal comes, or one cannot be kept.

    Args:
        starts: of each process how it is started; `again` says whether it ran before.
    """

    def __init__(self, starts: Sequence[Callable[..., Start]]) -> None:
        self._starts = starts
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._ending = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Start all, and return the exit status once all have ended: 0 if a signal ended them and each ended well."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._end, 0)
        await asyncio.gather(*(self._keep(number) for number in range(len(self._starts))))
        return self._status

    def _end(self, status: int) -> None:
        """End all processes: the first signal lets them finish what they accepted, a second does not."""
        self._ending.set()
        self._status = self._status or status
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)

    async def _keep(self, number: int) -> None:
        """Start a process, and start it anew when it ends, until all shall end."""
        again, soon = False, 0
        while not self._ending.is_set():
            start = self._starts[number](again=again)
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *start.command,
                env=start.environment,
                start_new_session=True,  # a terminal's Ctrl-C reaches it through us
            )
            self._running[number] = process
            if self._ending.is_set():
                process.send_signal(signal.SIGTERM)
            status = await process.wait()
            del self._running[number]
            if self._ending.is_set():
                self._status = self._status or (0 if status in (0, -signal.SIGTERM) else 1)
                return
            soon = soon + 1 if time.monotonic() - started < _SOON_SECONDS else 1
            _log.warning("a process has ended", process=number, status=status, in_a_row=soon)
            if status in _FATAL or soon >= _MOST_SOON:
                _log.error("a process cannot be kept", process=number, status=status)
                self._end(status if status in _FATAL else 1)
                return
            again = True
            await self._pause(_PAUSES[min(soon, len(_PAUSES)) - 1])

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            pass
