"""A run of `logpx score`: images cut into shards, each scored once, whoever was killed meanwhile."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from model_store import StoredModel
from service.folder_lock import FolderInUseError, lock_folder
from service.images.folder import describe_skipped
from service.progress import Progress
from service.scoring.crew import Crew, Shard
from service.scoring.errors import ScoringError
from service.scoring.inputs import Inputs
from service.scoring.parts import Results
from service.scoring.scorer import Options
from service.scoring.supervisor import Part

_LEAST_SHARD, _LARGEST_SHARD, _WANTED_SHARDS = 64, 1024, 64
_NAMED = 5  # images without results that the summary names


@dataclass(frozen=True)
class Plan:
    """What a run computes, whoever does it.

    Attributes:
        stored: the model.
        options: see scorer.py.
        fdr: decide by Benjamini-Hochberg's procedure at this rate over all images, else by `options.alpha`.
        inputs: the images.
        shard_size: images of a part.
    """

    stored: StoredModel
    options: Options
    fdr: float | None
    inputs: Inputs
    shard_size: int

    @property
    def num_parts(self) -> int:
        """How many parts there will be."""
        return -(-len(self.inputs) // self.shard_size)

    def fingerprint(self) -> str:
        """SHA-256 in hex of the model, the options and the list of images: parts of one run have the same."""
        told = {
            "format": 1,
            "model": self.stored.digest,
            **asdict(self.options),
            "fdr": self.fdr,
            "shard_size": self.shard_size,
            "images": self.inputs.sha256(),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def metadata(self, fingerprint: str) -> dict[str, str]:
        """What each Parquet file says of its origin."""
        manifest, options = self.stored.manifest, self.options
        told = {
            "model": manifest.name,
            "version": manifest.version,
            "sha256": self.stored.digest,
            "proposal": options.proposal,
            "num_samples": options.num_samples,
            "seed": options.seed,
            "resize": options.resize,
            "alpha": options.alpha if self.fdr is None else None,
            "fdr": self.fdr,
            "calibration": manifest.calibration.model_dump(mode="json", exclude={"source"}),
            "fingerprint": fingerprint,
            "logpx": version("logpx"),
        }
        return {f"logpx.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}

    def start(self) -> dict[str, Any]:
        """The first message to each worker process."""
        stored = self.stored
        return {
            "store": str(stored.path.parents[1].absolute()),
            "model": stored.manifest.name,
            "version": stored.manifest.version,
            "digest": stored.digest,
            "options": asdict(self.options),
            "folder": str(Path.cwd()),
        }

    def shards(self, metadata: Mapping[str, str], done: set[int]) -> Iterator[Shard]:
        """What is left to do."""
        for number, rows in enumerate(self.inputs.shards(self.shard_size)):
            if number not in done:
                told = {**metadata, "logpx.part": str(number), "logpx.parts": str(self.num_parts)}
                yield number, {"rows": rows, "metadata": told, "decided": self.fdr is None}


def default_shard_size(num_images: int) -> int:
    """Images of a part: enough to fill the engine's batches, few enough to lose little, and 64 parts if there can be.

    >>> [default_shard_size(count) for count in (10, 10_000, 1_000_000)]
    [64, 192, 1024]
    """
    wanted = -(-num_images // _WANTED_SHARDS)
    return min(_LARGEST_SHARD, _LEAST_SHARD * max(1, -(-wanted // _LEAST_SHARD)))


@dataclass
class _Told:
    """Writes what is done, and shows progress."""

    results: Results
    sizes: Mapping[int, int]
    progress: Progress

    def __post_init__(self) -> None:
        self._under_way: dict[int, int] = {}

    def scored(self, worker: int, images: int) -> None:
        self.progress.advance(images - self._under_way.get(worker, 0))
        self._under_way[worker] = images

    def done(self, worker: int, number: int, part: Part) -> None:
        self.results.write(number, part.content)
        self.scored(worker, self.sizes[number])
        self._under_way[worker] = 0


def score(plan: Plan, out: Path, crew: Crew) -> None:
    """Score all images of a plan that have no results in `out` yet.

    Raises:
        ScoringError: the folder holds another run, is in use or cannot be written; or no image could be scored.
        KeyboardInterrupt: Ctrl-C; what is done is kept.
    """
    with ExitStack() as held:
        try:
            problem = held.enter_context(lock_folder(out, "is scoring there"))
        except FolderInUseError as error:
            raise ScoringError(str(error)) from error
        if problem:
            print(f"warning: {problem}", file=sys.stderr)
        _score(plan, out, crew)


def _score(plan: Plan, out: Path, crew: Crew) -> None:
    num_images = len(plan.inputs)
    fingerprint = plan.fingerprint()
    results = Results(out, fingerprint, plan.num_parts)
    results.find()
    sizes = {number: min(plan.shard_size, num_images - number * plan.shard_size) for number in range(plan.num_parts)}
    before = sum(sizes[number] for number in results.done)
    _print_plan(plan, before)
    if before < num_images:
        with Progress("scoring", num_images, before=before, rate=True) as progress:
            told = _Told(results, sizes, progress)
            crew.run(plan.start(), plan.shards(plan.metadata(fingerprint), set(results.done)), told)
    if plan.fdr is not None:
        results.decide(plan.fdr)
    _print_summary(results, num_images)


def _print_plan(plan: Plan, before: int) -> None:
    manifest, options, by = plan.stored.manifest, plan.options, plan.stored.manifest.calibration
    num_images = len(plan.inputs)
    if skipped := describe_skipped(plan.inputs.skipped):
        print(f"skipped: {skipped}")
    print(
        f"{_counted(num_images)} in {_counted(plan.num_parts, 'part')}; {manifest.name} version {manifest.version}, "
        f"log P(x) by {options.proposal}, {options.num_samples} samples, seed {options.seed}"
        + (f"; {_counted(before)} done already" if before else "")
    )
    if (options.proposal, options.num_samples, options.seed) != (by.proposal, by.num_samples, by.seed):
        print(
            f"scores and p-values by {by.proposal}, {by.num_samples} samples, seed {by.seed}, as they were calibrated: "
            f"a second pass. --proposal {by.proposal} --num-samples {by.num_samples} --seed {by.seed} would need one",
            flush=True,
        )


def _print_summary(results: Results, num_images: int) -> None:
    counted = anomalies = 0
    for number in range(results.num_parts):
        scored, strange = results.counts(number)
        counted, anomalies = counted + scored, anomalies + strange
    print(
        f"{results.folder}: {counted} of {_counted(num_images)} scored, {_counted(anomalies, 'anomaly', 'anomalies')}"
    )
    if counted == num_images:
        return
    named = [f"\n  {path}: {error}" for path, error in islice(results.failures(), _NAMED)]
    more = f"\n  and {num_images - counted - len(named)} more" if num_images - counted > len(named) else ""
    if not counted:
        raise ScoringError(f"no image could be scored; the column `error` says why:{''.join(named)}{more}")
    has = "has" if num_images - counted == 1 else "have"
    print(
        f"warning: {_counted(num_images - counted)} {has} no results; the "
        f"column `error` says why:{''.join(named)}{more}",
        file=sys.stderr,
    )


def _counted(number: int, one: str = "image", many: str = "") -> str:
    """A number of things.

    >>> _counted(1), _counted(0), _counted(2, "anomaly", "anomalies")
    ('1 image', '0 images', '2 anomalies')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
