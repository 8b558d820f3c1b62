"""How often the engine runs a session, and how long it waits for the device."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from service.engine.runtime import Runtime, Session


class TimingRuntime(Runtime):
    """A runtime that counts the runs of its sessions and adds up their seconds, which copies to and from it are in."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.runs = 0
        self.seconds = 0.0

    def open(self, graph: bytes, file: Path, *arguments: Any, **keywords: Any) -> Session:
        """As the runtime's own."""
        return cast(Session, _TimedSession(super().open(graph, file, *arguments, **keywords), self))

    def count(self, work: Callable[[], object]) -> dict[str, float]:
        """Of one call: seconds, of these in sessions, and the sessions' runs."""
        self.runs, self.seconds = 0, 0.0
        started = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - started, "in_sessions": self.seconds, "runs": float(self.runs)}


class _TimedSession:
    def __init__(self, session: Session, runtime: TimingRuntime) -> None:
        self._timed = session
        self._runtime = runtime

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        started = time.perf_counter()
        outputs = self._timed.run(inputs)
        self._runtime.seconds += time.perf_counter() - started
        self._runtime.runs += 1
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timed, name)


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    """Quartiles of the seconds, medians of the rest."""
    low, high = (float(np.quantile([one["seconds"] for one in found], share)) for share in (0.25, 0.75))
    middle = {name: float(np.median([one[name] for one in found])) for name in found[0]}
    return {"seconds": middle["seconds"], "q1": low, "q3": high, "runs": middle["runs"]} | {
        "host_share": 1 - middle["in_sessions"] / middle["seconds"]
    }
