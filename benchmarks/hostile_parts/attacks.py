"""Bar 1: every attack of the catalogue, by one client and by as many as the queue has room for."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.hostile.attacks.attack import Attack
from tests.hostile.harness import ChildService, Watch, watched

LIVEZ_SECONDS = 0.1
PATIENCE = 60.0
"""Within which `/livez` must come for the run to go on; the bar is reported, not enforced."""
GRACE_SECONDS = 1.0
MANY_MAY = (429, 503, 504)
"""What a single request may be refused with when many clients send it, and not when one does."""


@dataclass
class Result:
    """What one attack did."""

    name: str
    clients: int
    statuses: Counter[int]
    slowest: float
    watch: Watch
    failings: list[str]

    def line(self) -> str:
        """Of a table."""
        told = ", ".join(f"{count} × {status}" for status, count in sorted(self.statuses.items())) or "no answer wanted"
        livez = f"{1000 * self.watch.slowest:8.0f} {1000 * self.watch.overran:8.0f}"
        peak = f"{self.watch.peak / 2**20:8.0f}"
        return f"{self.name[:46]:46} {self.clients:4} {self.slowest:8.2f} {livez} {peak}   {told}"


HEAD = f"{'':46} {'of':>4} {'slowest s':>8} {'livez ms':>8} {'(own)':>8} {'MiB':>8}   answers"


def attack_with(service: ChildService, attack: Attack, clients: int) -> Result:
    """So many clients do it at once; what was not as documented is in `failings`."""
    answers, errors = [], []

    def one() -> None:
        try:
            answers.extend(attack.run(service))
        except (AssertionError, OSError) as error:
            errors.append(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")

    watch, failings = Watch(0), []
    try:
        with watched(service, seconds=PATIENCE) as watch:
            threads = [threading.Thread(target=one) for _ in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    except AssertionError as error:
        failings.append(str(error).splitlines()[0])
    statuses = Counter(answer.status for answer in answers)
    documented = {*attack.statuses, *(MANY_MAY if clients > 1 else ())}
    failings += [f"answered {status}, not documented" for status in statuses if status not in documented]
    if attack.num_answers is not None and len(answers) != clients * attack.num_answers:
        failings.append(f"{len(answers)} answers, not {clients * attack.num_answers}")
    failings += sorted(set(errors))
    slowest = max((answer.seconds for answer in answers), default=0.0)
    if slowest > attack.seconds + GRACE_SECONDS:
        failings.append(f"an answer came after {slowest:.1f} s, the deadline being {attack.seconds:g}")
    if watch.slowest - watch.overran > LIVEZ_SECONDS:
        failings.append(f"/livez took {1000 * watch.slowest:.0f} ms")
    return Result(attack.name, clients, statuses, slowest, watch, failings)


def told_ceiling(service: ChildService) -> float | None:
    """The most bytes that service and decoders may have, as its last log line `memory` tells; None without one."""
    told = [line["at_most"] + line["decoders_at_most"] for line in service.log_lines() if line["event"] == "memory"]
    return float(told[-1]) if told else None


def measure(service: ChildService, attacks: Sequence[Attack], clients: int, ceiling: float | None) -> list[Result]:
    """Each attack in turn: by one client, and what is one request by many; prints a line of each that stands out."""
    results = []
    idle = service.resident()
    if ceiling is None:
        ceiling = told_ceiling(service)
    print(f"\nbar 1: {len(attacks)} attacks; the service has {idle / 2**20:.0f} MiB at rest\n{HEAD}", flush=True)
    for attack in attacks:
        single = attack.num_answers == 1 and attack.seconds <= 5 and not attack.is_crowd
        for count in (1, clients) if single and clients > 1 else (1,):
            result = attack_with(service, attack, count)
            if ceiling is not None and result.watch.peak > ceiling:
                result.failings.append(f"{result.watch.peak / 2**20:.0f} MiB were resident")
            results.append(result)
            if result.failings or not single:
                print(result.line(), flush=True)
            for failing in result.failings:
                print(f"    FAILED: {failing}", flush=True)
            if service.process.poll() is not None:
                raise SystemExit(f"the service died of {attack.name!r}\n{service.log_tail()}")
    slowest = max(results, key=lambda result: result.watch.slowest)
    peak = max(results, key=lambda result: result.watch.peak)
    failed = sum(bool(result.failings) for result in results)
    print(f"attacks that were not answered as documented: {failed} of {len(results)}")
    print(
        f"slowest /livez: {1000 * slowest.watch.slowest:.0f} ms, at {slowest.name!r} (bar {1000 * LIVEZ_SECONDS:.0f})"
    )
    told = "no ceiling given" if ceiling is None else f"ceiling {ceiling / 2**20:.0f}"
    print(f"most memory: {peak.watch.peak / 2**20:.0f} MiB, at {peak.name!r} ({told})")
    return results
