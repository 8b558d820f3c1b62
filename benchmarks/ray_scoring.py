"""`logpx score --ray` on a local Ray cluster: the same files as without Ray, also where workers die mid-shard.

    pip install '.[service,cpu,score,ray]'
    python benchmarks/ray_scoring.py [--images 2000] [--shard-size 256]

Ray is in no environment of this repository, so this is a script and not a test. It ends with status 1 if a check fails:

1. two actors give the same files, byte for byte, as two processes without Ray;
2. so they do where an actor's process is killed mid-shard, and Ray starts it anew;
3. so they do where the worker process of an actor is killed mid-shard;
4. `Scorer` gives the same numbers through `ray.data.Dataset.map_batches`.

For 2 it checks that one shard was begun again, that of the actor which was killed, and no other.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray

from model_store import BUNDLED, open_version
from service.scoring import cluster
from service.scoring.crew import Crew, Processes, Shard, Tell
from service.scoring.inputs import find_inputs
from service.scoring.run import Plan, score
from service.scoring.scorer import COLUMNS, Options, Scorer

ROOT = Path(__file__).parents[1]
OPTIONS: dict[str, Any] = {"proposal": "laplace", "num_samples": 400}


class LoggedActor(cluster.Actor):
    """An actor that writes down which shard it begins, and the processes that work on it."""

    def score(self, shard: Mapping[str, Any]) -> Any:
        """See `cluster.Actor`."""
        log = Path(shard["metadata"]["log"])
        watcher = threading.Timer(0.5, self._note, (log, shard["metadata"]["logpx.part"]))
        watcher.start()
        metadata = {key: value for key, value in shard["metadata"].items() if key != "log"}
        return super().score({**shard, "metadata": metadata})

    def _note(self, log: Path, part: str) -> None:
        with log.open("a") as stream:
            stream.write(f"{part} {os.getpid()} {self._supervisor.pid}\n")


class LoggingCrew:
    """`RayActors` whose actors write a log; one process that the log names is killed while it works.

    Args:
        log: the file.
        killed: which is killed after two shards have begun: nothing, `actor` or `worker`.
    """

    def __init__(self, log: Path, killed: str = "") -> None:
        self._log = log
        self._killed = killed
        self.victim: list[str] = []

    def run(self, start: Mapping[str, Any], shards: Iterator[Shard], tell: Tell) -> None:
        """See `Crew`."""
        self._log.write_text("")
        if self._killed:
            threading.Thread(target=self._kill, daemon=True).start()
        logged = ((number, {**s, "metadata": {**s["metadata"], "log": str(self._log)}}) for number, s in shards)
        cluster.RayActors(None, 2).run(start, logged, tell)

    def _kill(self) -> None:
        while len(lines := self._log.read_text().splitlines()) < 3:
            time.sleep(0.01)
        self.victim = lines[2].split()
        os.kill(int(self.victim[1 if self._killed == "actor" else 2]), signal.SIGKILL)

    def begun(self) -> list[int]:
        """The shards that were begun, each as often as that."""
        return sorted(int(line.split()[0]) for line in self._log.read_text().splitlines())


def scored(plan: Plan, out: Path, crew: Crew) -> dict[str, bytes]:
    """The parts that a run gives."""
    score(plan, out, crew)
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.parquet"))}


def main() -> int:
    """Run all checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=256)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    cluster.Actor = LoggedActor  # type: ignore[misc]
    checks: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        with np.load(ROOT / "tests" / "data" / "digits.npz") as archive:
            digits = archive["train"]
        array = np.resize(digits, (given.images, *digits.shape[1:]))
        np.save(here / "digits.npy", array)
        inputs = find_inputs([str(here / "digits.npy")], here / "out")
        plan = Plan(open_version(BUNDLED, "mnist"), Options.of(**OPTIONS), 0.1, inputs, given.shard_size)
        expected = scored(plan, here / "processes", Processes(2))
        for killed in ("", "actor", "worker"):
            crew = LoggingCrew(here / "log", killed)
            started = time.perf_counter()
            found = scored(plan, here / f"ray-{killed}", crew)
            name = f"two actors, {killed or 'none'} killed"
            checks[f"{name}: the same {len(expected)} files"] = found == expected
            if killed:
                checks[f"{name}: a process was killed"] = bool(crew.victim)
            if killed == "actor":
                begun = crew.begun()
                again = {number for number in begun if begun.count(number) > 1}
                checks[f"{name}: shard {crew.victim[:1]} was begun again, and no other"] = again == {
                    int(crew.victim[0])
                }
            print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
        table = pq.read_table(here / "processes").to_pydict()
        checks["map_batches gives the same numbers"] = mapped(array) == {
            name: [value == value and value for value in table[name]] for name in COLUMNS if name != "is_anomaly"
        }
    for name, passed in checks.items():
        print(f"{'ok  ' if passed else 'FAIL'} {name}")
    ray.shutdown()
    return 0 if all(checks.values()) else 1


def mapped(array: Any) -> dict[str, list[Any]]:
    """Columns by `ray.data`, in the order of the images; a NaN as False, since it is not equal to itself."""
    rows = ray.data.from_items([{"number": number, "image": image} for number, image in enumerate(array)])
    scorer = Scorer("mnist", **OPTIONS)
    found = rows.map_batches(scorer, batch_size=256).to_pandas().sort_values("number")
    return {
        name: [value == value and value for value in found[name].tolist()] for name in COLUMNS if name != "is_anomaly"
    }


if __name__ == "__main__":
    sys.exit(main())
