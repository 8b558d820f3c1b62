"""Is `auto` right, reliable and affordable on images that nothing was tuned on? Beside `laplace`, the former default.

    PYTHONPATH=. python benchmarks/ladder.py --data ../shared/data --font FONT.ttf [--images 40] [--only letters]
    PYTHONPATH=. python benchmarks/ladder.py --model STORE/NAME --pixels IMAGES.npy [--images 24]

The second line takes any model, and images of its size that it was not trained on, uint8 [N, H, W] or [N, C, H, W].

Each set is compared with a search of more than ten times the budget: modes from 72 starting points that are not the
ladder's, followed to their ends, and 2000 particles from up to four of them; twice, with other starting points. That is
no truth (benchmarks/truth.py is, for some sets): a mode that it misses too is not seen. "low": share of all estimates
more than 1 nat below it. "covered" and "off" are of the reliable ones: within 1.96 standard errors, and off by more
than 4 and a tenth of a nat.

The ladder was chosen on the first 600 images of Omniglot, MNIST's test digits 0 to 660 and letters of DejaVu Sans; the
sets here are others: the last images of Omniglot, digits from 5000 on, and letters of the font that is given.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model_store import BUNDLED, open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior import bank, mode_search, multistart, starts
from service.engine.posterior.annealing import log_mean_exp
from service.engine.posterior.estimate import LogLikelihood
from service.engine.runtime import Runtime
from training.data.sources import read_source
from training.publish.evaluation import fresh_binarisation

SEED = 11
LETTERS = [chr(c) for first, last in ((0x391, 0x3C9), (0x410, 0x44F), (0x531, 0x556)) for c in range(first, last)]
"""Greek, Cyrillic, Armenian."""
THOROUGH_ROUNDS = 18
"""Of four searches each, whatever they find; the ladder takes one or two as a rule, and seven at most."""
PROPOSALS = ("laplace", "auto")
Pixels = NDArray[np.float32]


def main() -> None:
    """Print a table for each set."""
    parser = arguments(__doc__, images=40)
    parsed = parser.parse_args()
    head = f"{'':22}{'reliable':>9}{'RMSE':>7}{'med':>6}{'covered':>9}{'off':>6}{'low':>6}{'rows':>7}{'ms':>7}"
    print(f"{head}   (RMSE, median error, covered, off: of the reliable ones; {parsed.images} images a set)")
    for name, stored, pixels in chosen_sets(parser, parsed):
        model = _open(stored)
        reference = _thorough(stored, pixels)
        apart = np.abs(reference[0] - reference[1])
        print(f"{name} ({stored.name}); the thorough search by two seeds: {np.median(apart):.2f} nats apart, at most "
              f"{apart.max():.2f}", flush=True)  # fmt: skip
        truth = log_mean_exp(reference.T)
        for proposal in PROPOSALS:
            before, started = model.decoder_rows, time.perf_counter()
            record = complete(model.log_likelihood(pixels, proposal=proposal))
            seconds = time.perf_counter() - started
            rows = (model.decoder_rows - before) / len(pixels)
            print(f"  {proposal:20}{_figures(record, truth)}{rows:7.0f}{1000 * seconds / len(pixels):7.1f}", flush=True)


def arguments(usage: str | None, *, images: int) -> argparse.ArgumentParser:
    """Which sets are to be measured."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of mnist, fashion-mnist and omniglot")
    parser.add_argument("--font", type=Path, help="TrueType file to draw letters with")
    parser.add_argument("--model", type=Path, help="STORE/NAME, the latest version, in place of the bundled models")
    parser.add_argument("--pixels", type=Path, help="with --model: uint8 array, .npy")
    parser.add_argument("--images", type=int, default=images, help="of each set")
    parser.add_argument("--only", default="", help="sets whose name has this in it")
    return parser


def chosen_sets(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> Iterator[tuple[str, Path, Pixels]]:
    """Name, model and images of each."""
    if parsed.model is not None:
        yield _own_set(parsed)
    elif parsed.data is None or parsed.font is None:
        parser.error("--data and --font, or --model and --pixels")
    else:
        yield from (one for one in _sets(parsed.data, parsed.font, parsed.images) if parsed.only in one[0])


def _figures(record: LogLikelihood, truth: NDArray[np.float64]) -> str:
    error, reliable = record.log_likelihood - truth, record.reliable
    of_reliable, std_error = np.abs(error[reliable]), record.std_error[reliable]
    if not reliable.any():
        return f"{0:9.2f}{'–':>7}{'–':>6}{'–':>9}{'–':>6}{(error < -1).mean():6.2f}"
    return (
        f"{reliable.mean():9.2f}{np.sqrt((of_reliable**2).mean()):7.2f}{np.median(of_reliable):6.2f}"
        f"{(of_reliable < 1.96 * std_error).mean():9.2f}{(of_reliable > 4 * std_error + 0.1).mean():6.2f}"
        f"{(error < -1).mean():6.2f}"
    )


def _own_set(parsed: argparse.Namespace) -> tuple[str, Path, Pixels]:
    """The images that were given, for the model that was given."""
    model = _open(parsed.model)
    pixels = np.load(parsed.pixels)[: parsed.images].reshape(-1, *model.description.image.chw)
    return parsed.pixels.stem, parsed.model, pixels.astype(np.float32) / np.float32(255)


def _thorough(stored: Path, pixels: Pixels) -> NDArray[np.float64]:
    """log P(x) with modes contested from many starting points whatever an image looks like: [2, N].

    The two searches begin elsewhere, and neither where the ladder's begin.
    """
    found = []
    for seed in (901, 902):
        with (
            mock.patch.object(bank, "_SEED", seed),
            mock.patch.object(starts, "ROUND_SEED", 1000 * seed),
            mock.patch.multiple(mode_search, _MAX_ROUNDS=THOROUGH_ROUNDS, _SEVERAL_STEPS=40),
            mock.patch.object(mode_search, "_SEVERAL_TOLERANCE", 0.05),
            mock.patch.multiple(multistart, _ENOUGH=10**6, _ENOUGH_AT_BEST=10**6),
        ):
            model = _open(stored)
            model._estimator.ladder._familiar_gain = -1.0
            record = complete(model.log_likelihood(pixels, proposal="annealed", num_samples=2000, seed=seed))
            found.append(record.log_likelihood)
    return np.array(found)


def _open(stored: Path) -> Model:
    return Model.open(open_version(stored.parent, stored.name), runtime=Runtime("cpu"), tried=True)


def _sets(data: Path, font: Path, count: int) -> Iterator[tuple[str, Path, Pixels]]:
    """Name, model and images [N, 1, 28, 28]."""
    mnist, fashion_mnist = BUNDLED / "mnist", BUNDLED / "fashion-mnist"
    digits, clothes = _test(data / "mnist")[5000:], _test(data / "fashion-mnist")[5000:]
    binary = fresh_binarisation(digits[:count], "dynamic", seed=SEED)
    yield "test digits", mnist, np.asarray(binary, np.float32)
    yield "upside down", mnist, np.ascontiguousarray(binary[:, :, ::-1], np.float32)
    with np.load(data / "omniglot" / "omniglot.npz") as archive:
        drawn = archive[archive.files[0]].reshape(-1, 1, 28, 28)
    yield "omniglot", mnist, (drawn[-count:] > 100).astype(np.float32)
    yield "letters", mnist, letters(font, count)
    yield "thresholded clothes", mnist, (clothes[:count] > 0.5).astype(np.float32)
    noise = np.random.default_rng(SEED).random((count, 1, 28, 28)) < 0.5
    yield "noise", mnist, noise.astype(np.float32)
    yield "test clothes, 8-bit", fashion_mnist, np.asarray(clothes[:count], np.float32)
    yield "test digits, 8-bit", fashion_mnist, np.asarray(digits[:count], np.float32)


def _test(source: Path) -> Pixels:
    test = read_source(source).test
    if test is None:
        raise SystemExit(f"{source} has no test images")
    return test.astype(np.float32) / np.float32(255)


def letters(font: Path, count: int) -> Pixels:
    """White on black, 22 pixels high, centred."""
    drawn = []
    for letter in np.random.default_rng(SEED).choice(LETTERS, count):
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).text((14, 14), str(letter), font=ImageFont.truetype(font, 22), fill=255, anchor="mm")
        drawn.append(np.asarray(image))
    return (np.stack(drawn)[:, None] > 127).astype(np.float32)


if __name__ == "__main__":
    main()
