"""Scores shards in the test's own process, with the worker's code: a process takes a second to start."""

from collections.abc import Iterator, Mapping
from typing import Any

from service.scoring.crew import Shard, Tell
from service.scoring.scorer import Scorer
from service.scoring.supervisor import Part
from service.scoring.worker import opened, score_shard


class InProcess:
    """One worker after another.

    Args:
        ends_after: KeyboardInterrupt, as Ctrl-C raises it, after so many parts.
    """

    scorers: dict[str, Scorer] = {}  # noqa: RUF012 (shared on purpose: loading a model takes a quarter of a second)

    def __init__(self, ends_after: int | None = None) -> None:
        self.numbers: list[int] = []
        self._ends_after = ends_after

    def run(self, start: Mapping[str, Any], shards: Iterator[Shard], tell: Tell) -> None:
        scorer = self.scorers.setdefault(repr(start), opened(start))
        for number, shard in shards:
            if len(self.numbers) == self._ends_after:
                raise KeyboardInterrupt
            content, errors = score_shard(scorer, {**shard, "careful": False, "lost": {}}, lambda document: None)
            tell.done(0, number, Part(content, errors))
            self.numbers.append(number)
