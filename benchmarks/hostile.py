"""The bars against hostile clients: every attack by itself, minutes of mixed traffic, and what honest clients pay.

    PYTHONPATH=. python benchmarks/hostile.py --before COMMIT
    PYTHONPATH=. python benchmarks/hostile.py attacks --quick

Bar 1 (`attacks`): each attack of tests/hostile/attacks has a documented status within its deadline and a second,
`/livez` comes within 100 ms throughout, and the service with its children never has more memory than the ceiling.
Bar 2 (`mixed`): honest clients beside hostile ones get the answers of before, or a 429; afterwards memory is back
within a tenth. Bar 3 (`honest`): encode and log-likelihood at 0.95 of the speed of COMMIT, measured in turn.

Every service runs in a child with default settings and a limit on memory. `/livez` is asked for by a process of its
own; what that waited for a processor itself is told beside, and taken off before the bar is applied. Run it on an
otherwise idle machine: 20 minutes, --minutes, and 15 more. The exit status is 1 where a bar is not met.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostile_parts import attacks, honest, mixed

from model_store import ImageShape, PixelPreparation
from tests.hostile.attacks.attack import Attack
from tests.hostile.attacks.crowds import ADMIN_KEY
from tests.hostile.attacks.reported import catalogue
from tests.hostile.harness import MEMORY_LIMIT, ChildService
from tests.toys import bernoulli_toy
from tests.web.conftest import put

BARS = ("attacks", "mixed", "honest")
QUICK_SHARE = 20
SETTINGS: dict[str, Any] = {"admin_keys": ADMIN_KEY, "cors_origins": "https://ours.example"}


def main() -> None:
    """Measure the bars that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bars", nargs="*", choices=[*BARS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="a part of the attacks, a minute, two rounds of a second")
    parser.add_argument("--only", default="", help="attacks, and cases of honest traffic, whose name has this in it")
    parser.add_argument("--clients", type=int, default=256, help="that send a single hostile request at once")
    parser.add_argument("--ceiling-mib", type=float, help="of resident memory; default: what the log tells")
    parser.add_argument("--minutes", type=float, default=30, help="of mixed traffic")
    parser.add_argument("--before", help="the commit to compare honest traffic with; without it, bar 3 is left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement of honest traffic")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.clients, parsed.minutes = min(parsed.clients, 16), min(parsed.minutes, 1.0)
        parsed.rounds, parsed.seconds = 2, 1.0
    wanted = parsed.bars or BARS
    met = []
    chosen = [attack for attack in catalogue() if parsed.only in attack.name]
    if parsed.quick and not parsed.only:
        chosen = random.Random(0).sample(chosen, len(chosen) // QUICK_SHARE)
    if "attacks" in wanted:
        ceiling = None if parsed.ceiling_mib is None else parsed.ceiling_mib * 2**20
        met.append(_attacks(chosen, parsed.clients, ceiling))
    if "mixed" in wanted:
        with ChildService(memory_limit=2 * MEMORY_LIMIT, **SETTINGS) as service:
            met.append(mixed.measure(service, chosen, minutes=parsed.minutes, honest_clients=4, hostile_clients=8))
    if "honest" in wanted and parsed.before:
        only = parsed.only if parsed.bars else ""
        met.append(honest.measure(parsed.before, rounds=parsed.rounds, seconds=parsed.seconds, chosen=only))
    raise SystemExit(0 if all(met) else 1)


def _attacks(chosen: Sequence[Attack], clients: int, ceiling: float | None) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        digits = ImageShape(channels=1, height=28, width=28)
        for seed in (5, 6):  # two versions
            dynamic = PixelPreparation(binarisation="dynamic")
            put(store, bernoulli_toy(digits, name="digits", preparation=dynamic, seed=seed))
        with ChildService(store, memory_limit=2 * MEMORY_LIMIT, model="digits", **SETTINGS) as service:
            return not any(result.failings for result in attacks.measure(service, chosen, clients, ceiling))


if __name__ == "__main__":
    main()
