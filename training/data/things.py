"""Which images show the same thing: all images of a thing are on one side of every division."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.engine.anomaly.conformal import guarantee
from service.engine.anomaly.detector import DEFAULT_ALPHA, fitting_images
from training.errors import DataError

COLUMN = "column group"
_FITTING_SHARE = 3
"""Of a calibration, one image in so many fits the scores: service/engine/anomaly/detector.py."""

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Things:
    """What a data set says of what its images show.

    Attributes:
        paths: by part, the paths of its images below the data set, with `/`; none of data without paths.
        column: by path what a table's column `group` says; None where there is no such column.
    """

    paths: Mapping[str, Sequence[str]] = field(default_factory=dict)
    column: Mapping[str, str] | None = None

    def named(self, pattern: str | None, name: str) -> dict[str, list[str]] | None:
        """By part, the name of the thing that each image shows; None where nothing tells.

        With a pattern it is what the pattern's brackets capture in the path, or all that it matches where it has none.
        Without one it is the table's column; an image of whose thing the column says nothing is a thing by itself.

        Args:
            pattern: a regular expression, searched in each path.
            name: of the data set, for errors.

        Raises:
            DataError: there are no paths, the pattern does not match them all, or two own parts of the data share a
                thing.
        """
        if pattern is None and self.column is None:
            return None
        if not self.paths:
            raise DataError(name, "has no paths for --group; folders, archives and tables of image files have")
        named = {part: [self._thing(path, pattern) for path in paths] for part, paths in self.paths.items()}
        self._check_matched(named, pattern, name)
        _check_apart(named, name)
        return named

    def _thing(self, path: str, pattern: str | None) -> str:
        if pattern is None:
            return (self.column or {}).get(path) or f"the image {path}"
        if (match := re.search(pattern, path)) is None:
            return ""
        captured = [text for text in match.groups() if text is not None]
        return " ".join(captured) if match.re.groups else match[0]

    def _check_matched(self, named: Mapping[str, Sequence[str]], pattern: str | None, name: str) -> None:
        unnamed = [
            path
            for part, paths in self.paths.items()
            for path, thing in zip(paths, named[part], strict=True)
            if not thing
        ]
        if unnamed:
            total = sum(map(len, self.paths.values()))
            raise DataError(
                name,
                f"--group {pattern!r} finds a name in {total - len(unnamed)} of {total} paths, and none in "
                f"{unnamed[0]!r}: change it so that its brackets capture in every path what names the thing shown",
            )


NO_THINGS = Things()


@dataclass(frozen=True)
class Division:
    """How the images of a data set were divided by things.

    Attributes:
        by: the pattern, or `COLUMN`.
        num_things: by part, how many its images show.
        of_calibration: for each calibration image, the number of its thing.
    """

    by: str
    num_things: Mapping[str, int]
    of_calibration: Places

    @property
    def record(self) -> dict[str, str | int]:
        """What a run's description and a manifest say of it."""
        return {"by": self.by, **self.num_things}

    @property
    def fitting(self) -> NDArray[np.float64]:
        """See `fitting_of_things`."""
        return fitting_of_things(self.of_calibration)

    @property
    def num_compared(self) -> int:
        """Of the calibration images, how many scores are compared with."""
        return int((self.fitting == 0).sum())

    def promises(self) -> list[str]:
        """What the calibration images can and cannot promise, in words: less than as many images of as many things."""
        count, compared = len(self.of_calibration), self.num_compared
        things = len(set(self.of_calibration[self.fitting == 0].tolist()))
        few = [guarantee(compared, alpha) for alpha in (DEFAULT_ALPHA, 0.01) if 1 / (compared + 1) > alpha]
        return [
            f"of {count} calibration images {count - compared} fit the scores and {compared}, of {things} "
            f"{'thing' if things == 1 else 'things'}, are compared with: the smallest p-value is "
            f"{1 / (compared + 1):.2g}",
            "a p-value holds on average over things; with these things the share of ordinary images flagged may be "
            "further from alpha than with as many images of a thing each",
            *few,
        ]


def _check_apart(named: Mapping[str, Sequence[str]], name: str) -> None:
    """Refuse things of which the data's own parts each have images: that division is not by things."""
    parts = list(named)
    for index, part in enumerate(parts):
        for other in parts[index + 1 :]:
            if both := sorted(set(named[part]) & set(named[other])):
                raise DataError(
                    name,
                    f"the {part} and the {other} part both have images of {both[0]!r}"
                    f"{f' and of {len(both) - 1} more things' if len(both) > 1 else ''}: put all images of a thing "
                    f"into one part, or, if these are not the same things, change --group or the column so that they "
                    "have different names",
                )


def divide_things(things: Sequence[str], held_out: Mapping[str, int], *, seed: int, name: str) -> list[Places]:
    """Divide images by what they show: the places of each part to hold out, then those to train on, ascending.

    Things are put into an order drawn from the seed, which does not depend on the order of the images. The parts are
    cut from its beginning, each at the thing where it comes nearest to the wanted number of images; each has at least
    one thing. A thing with more images than all parts are to have together is trained on, as long as others remain.

    Args:
        things: for each image, what it shows.
        held_out: by part, how many images are wanted.
        seed: of the order.
        name: of the data set, for the error.

    Raises:
        DataError: there are fewer things than parts.

    >>> [part.tolist() for part in divide_things(["a", "b", "a", "c"], {"x": 1, "y": 1}, seed=3, name="n")]
    [[3], [1], [0, 2]]
    """
    names, thing = numbered(things)
    sizes = np.bincount(thing)
    spare = len(names) - len(held_out)
    if spare < 1:
        parts = ", ".join(part.removeprefix("num_") for part in held_out)
        raise DataError(
            name,
            f"its images show {len(names)} {'thing' if len(names) == 1 else 'things'}, such as {names[0]!r}, which "
            f"cannot be divided into {parts} and training, each with things of its own: change --group or the column "
            "so that it tells more things apart, or add images of others",
        )
    large = [number for number in np.argsort(-sizes, kind="stable") if sizes[number] > sum(held_out.values())][:spare]
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[~np.isin(order, large)]
    ends = np.cumsum(sizes[order])
    most = len(order) - (0 if large else 1)
    cuts = [0]
    for number, target in enumerate(np.cumsum(list(held_out.values())), 1):
        nearest = int(np.abs(ends - target).argmin()) + 1
        cuts.append(min(max(nearest, cuts[-1] + 1), most - (len(held_out) - number)))
    parts_of_order = np.split(order, cuts[1:])
    chosen = [*parts_of_order[:-1], np.array([*parts_of_order[-1], *large], np.int64)]
    return [np.flatnonzero(np.isin(thing, part)) for part in chosen]


def numbered(things: Sequence[str]) -> tuple[list[str], Places]:
    """The names of the things in alphabetical order, and for each image the place of its own there.

    >>> numbered(["b", "a", "b"])[1].tolist()
    [1, 0, 1]
    """
    names = sorted(set(things))
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[name] for name in things], np.int64)


def fitting_of_things(things: Places) -> NDArray[np.float64]:
    """`fitting_images` by things: which of the calibration images of these things fit the scores, 1 or 0.

    About a third of the images, and all those of a thing or none: a score that has seen a thing is not compared with
    its other images. Images of a single thing are divided as if they were of many.

    >>> fitting_of_things(np.array([0, 0, 1, 1, 2, 2])).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    """
    if len(set(things.tolist())) < 2:
        return fitting_images(len(things))
    fitting = np.zeros(len(things))
    seen = 0
    for number in range(int(things.max()) + 1):
        own = things == number
        seen += int(own.sum())
        if _FITTING_SHARE * (fitting.sum() + own.sum() / 2) <= seen:
            fitting[own] = 1
    return fitting
