"""The same shards over a Ray cluster: plain actors, each with one worker process, which Ray starts again elsewhere.

The driver alone writes results. Images must be readable by every machine under the same paths; the model is sent.
"""

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.scoring.crew import Shard, Tell
from service.scoring.errors import ScoringError
from service.scoring.supervisor import Part, Supervisor

_CONNECT_SECONDS = 10.0
_MISSING = "--ray needs ray, which is not installed: pip install 'logpx[service,cpu,score,ray]'"


class Actor:
    """What runs on the cluster; Ray gives a shard to another one if this one is lost.

    Args:
        start: the first message to the worker process.
        files: the files of the model's version by name.
    """

    def __init__(self, start: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        self._store = tempfile.TemporaryDirectory(prefix="logpx-score-")
        folder = Path(self._store.name) / start["model"] / str(start["version"])
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self._supervisor = Supervisor({**start, "store": self._store.name})

    def score(self, shard: Mapping[str, Any]) -> Part | str:
        """A shard's results, or the sentence of a ScoringError."""
        try:
            return self._supervisor.score(shard)
        except ScoringError as error:
            return str(error)


class RayActors:
    """Worker processes on a Ray cluster.

    Args:
        address: of the cluster, as `ray.init` takes it; None: the one that Ray's environment names, or a new one here.
        num_workers: at most so many; by default one for each of the cluster's CPUs.
    """

    def __init__(self, address: str | None, num_workers: int | None = None) -> None:
        self._address = address
        self._num_workers = num_workers

    def run(self, start: Mapping[str, Any], shards: Iterator[Shard], tell: Tell) -> None:
        """See `crew.Crew`.

        Raises:
            ScoringError: Ray is not installed, the cluster cannot be reached, or a shard cannot be scored.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ScoringError(_MISSING) from error
        started_here = not ray.is_initialized()
        if started_here:
            _check_reachable(self._address or os.environ.get("RAY_ADDRESS", ""))
            try:
                ray.init(self._address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ScoringError(f"the Ray cluster cannot be reached ({error})") from error
        try:
            self._run(ray, start, shards, tell)
        except ray.exceptions.RayError as error:
            raise ScoringError(f"Ray has failed ({next(iter(str(error).splitlines()), '')})") from error
        finally:
            if started_here:
                ray.shutdown()

    def _run(self, ray: Any, start: Mapping[str, Any], shards: Iterator[Shard], tell: Tell) -> None:
        folder = Path(start["store"]) / start["model"] / str(start["version"])
        # Kept here until the end: with it Ray makes an actor anew.
        files = ray.put({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})
        remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Actor)
        actors: list[Any] = []
        pending: dict[Any, tuple[int, int]] = {}
        most = self._num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            for worker, (number, shard) in zip(range(most), shards, strict=False):
                actors.append(remote.remote(start, files))
                pending[actors[worker].score.remote(shard)] = worker, number
            while pending:
                (ready, *_), _ = ray.wait([*pending])
                worker, number = pending.pop(ready)
                part = ray.get(ready)
                if isinstance(part, str):
                    raise ScoringError(part)
                tell.done(worker, number, part)
                if (following := next(shards, None)) is not None:
                    pending[actors[worker].score.remote(following[1])] = worker, following[0]
        finally:
            for actor in actors:
                ray.kill(actor)


def _check_reachable(address: str) -> None:
    """Refuse an address at which nobody answers: Ray would try for a quarter of an hour.

    Raises:
        ScoringError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, `local` or nothing
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ScoringError(f"the Ray cluster at {address} cannot be reached ({error})") from error
