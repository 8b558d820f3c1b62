"""Bar 2: minutes of hostile and honest traffic together; every honest answer is the one of before, or a 429."""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hostile_parts.requests import Honest, honest_requests, largest_requests
from tests.hostile.attacks.attack import Attack
from tests.hostile.harness import ChildService, watched

ROOM = 1.1
"""Memory afterwards is at most so many times that of before."""
SETTLE_SECONDS = 30.0
SECONDS_TO_GIVE_BACK = 4.0
"""The service gives memory back within two after requests are finished."""
TOLD = 10


@dataclass
class Tally:
    """What honest clients got, and what hostile ones did."""

    honest: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hostile: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def measure(
    service: ChildService, attacks: Sequence[Attack], *, minutes: float, honest_clients: int, hostile_clients: int
) -> bool:
    """Print what came of it; whether the bar is met."""
    requests = honest_requests()
    expected = [request.ask(service) for request in requests]
    for _ in range(3):  # what is not the same from one time to the next proves nothing
        assert [request.ask(service) for request in requests] == expected
    for request in largest_requests():  # what graphs keep after them is no leak: docs/operations.md, Memory
        assert request.ask(service)[0] == 200, request.name
    time.sleep(SECONDS_TO_GIVE_BACK)
    before = service.resident()
    tally, ended = Tally(), threading.Event()
    clients = [
        threading.Thread(target=_honest, args=(service, requests, expected, tally, ended, seed))
        for seed in range(honest_clients)
    ]
    clients += [
        threading.Thread(target=_hostile, args=(service, attacks, tally, ended, seed))
        for seed in range(hostile_clients)
    ]
    print(
        f"\nbar 2: {minutes:g} minutes, {honest_clients} honest clients and {hostile_clients} hostile ones", flush=True
    )
    with watched(service, seconds=60) as watch:
        for client in clients:
            client.start()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end and service.process.poll() is None:
            time.sleep(min(30, max(0.0, end - time.monotonic())))
            print(f"    {service.resident() / 2**20:6.0f} MiB, {sum(tally.honest.values())} honest answers", flush=True)
        ended.set()
        for client in clients:
            client.join()
    settled = _settled(service, before)
    for name, count in sorted(tally.honest.items()):
        print(f"    {name:60} {count:8}")
    print(f"    attacks: {sum(tally.hostile.values())}, of {len(tally.hostile)} outcomes")
    for name, count in sorted(tally.hostile.items()):
        if not name.startswith("documented"):
            print(f"    {name[:110]:110} {count:6}")
    for sentence in tally.wrong[:TOLD]:
        print(f"    FAILED: {sentence}")
    print(f"honest answers that were wrong or lost: {len(tally.wrong)} of {sum(tally.honest.values())} (bar 0)")
    share = settled / before
    print(
        f"memory: {before / 2**20:.0f} MiB before, at most {watch.peak / 2**20:.0f}, {settled / 2**20:.0f} afterwards"
    )
    print(f"    afterwards / before: {share:.3f} (bar {ROOM})")
    print(f"slowest /livez: {1000 * watch.slowest:.0f} ms; the prober itself waited up to {1000 * watch.overran:.0f}")
    return not tally.wrong and share <= ROOM


def _settled(service: ChildService, before: int) -> int:
    """Resident bytes once they are few enough, or after a while."""
    end = time.monotonic() + SETTLE_SECONDS
    while (now := service.resident()) > ROOM * before and time.monotonic() < end:
        time.sleep(0.5)
    return now


def _honest(
    service: ChildService,
    requests: Sequence[Honest],
    expected: Sequence[tuple[int, bytes]],
    tally: Tally,
    ended: threading.Event,
    seed: int,
) -> None:
    """Ask for something at random, and compare; come back when told to."""
    chance = random.Random(seed)
    while not ended.is_set():
        index = chance.randrange(len(requests))
        name = requests[index].name
        try:
            status, body = requests[index].ask(service)
        except (AssertionError, OSError) as error:
            status, body = 0, str(error).encode()
        with tally.lock:
            tally.honest[f"{name}: {status or 'lost'}"] += 1
            if status != 429 and (status, body) != expected[index]:
                tally.wrong.append(f"{name}: {status} {body[:200]!r}, not {expected[index][1][:200]!r}")
        ended.wait(1.0 if status == 429 else 0.02)


def _hostile(service: ChildService, attacks: Sequence[Attack], tally: Tally, ended: threading.Event, seed: int) -> None:
    """Attack after attack, at random."""
    chance = random.Random(1000 + seed)
    while not ended.is_set():
        attack = chance.choice(attacks)
        try:
            statuses = {answer.status for answer in attack.run(service)} - {*attack.statuses, 429, 503, 504}
            outcome = f"{attack.name}: {sorted(statuses)}" if statuses else "documented"
        except (AssertionError, OSError) as error:
            outcome = f"{attack.name}: {type(error).__name__} {str(error).splitlines()[0][:60] if str(error) else ''}"
        with tally.lock:
            tally.hostile[outcome] += 1
