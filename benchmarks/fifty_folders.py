"""Fifty folders of images that are made: each has to end in a model, or in one sentence that says what to change.

    PYTHONPATH=. python benchmarks/fifty_folders.py [--minutes 0.02] [--only NUMBER ...]

Sides of 16 to 512 pixels; grey, colour, 16 bits, palettes, transparency; few, constant, noisy, broken and mixed images.
Each is trained and published with the defaults of `make train` but for the time, and for scores by few samples. It
counts as a failure if a command ends otherwise than with 0, or with 2 and one line that begins with "error: "; or if a
bound is not finite. A folder takes 5 to 30 seconds of one core.
"""

import argparse
import contextlib
import io
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.exporter import operators_looked_up_once
from tests.training.photographs import photographs
from training.__main__ import main as training
from training.fit.run import open_run

Pixels = NDArray[np.uint8]
SIZES = ((16, 16), (20, 33), (48, 48), (64, 96), (128, 128), (200, 150), (256, 256), (512, 512))


def write(folder: Path, images: Pixels, suffix: str = "png", mode: str | None = None) -> None:
    """Images [N, C, H, W] as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        picture = Image.fromarray(image.transpose(1, 2, 0) if len(image) == 3 else image[0])
        (picture.convert(mode) if mode else picture).save(folder / f"{index:04}.{suffix}")


def noise(count: int, height: int, width: int, channels: int = 1) -> Pixels:
    """Independent pixels."""
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width)).astype(np.uint8)


def _mixed(folder: Path) -> None:
    for index, (height, width) in enumerate(SIZES):
        write(folder / str(index), photographs(6, height, width, channels=1 + 2 * (index % 2), seed=index), "jpg")


def _with_defects(folder: Path) -> None:
    write(folder / "train" / "good", photographs(40, 64, 64))
    write(folder / "test" / "good", photographs(12, 64, 64, seed=1))
    write(folder / "test" / "cut", photographs(12, 64, 64, contrast=3.0, seed=2))
    write(folder / "ground_truth" / "cut", (noise(12, 64, 64) > 250).astype(np.uint8) * np.uint8(255))


def _sixteen_bits(folder: Path) -> None:
    folder.mkdir()
    for index, image in enumerate(photographs(30, 32, 32)):
        Image.fromarray(image[0].astype(np.uint16) * 257).save(folder / f"{index}.png")


def _one_broken(folder: Path) -> None:
    write(folder, photographs(30, 32, 32))
    (folder / "0007.png").write_bytes((folder / "0007.png").read_bytes()[:100])


def _strips(folder: Path) -> None:
    write(folder, photographs(20, 16, 512))
    write(folder / "tall", photographs(20, 512, 16))


def _one_colour_among_grey(folder: Path) -> None:
    write(folder, photographs(30, 32, 32))
    write(folder / "b", photographs(2, 32, 32, channels=3))


def _constant_but_one(folder: Path) -> None:
    images = np.full((40, 1, 24, 24), 90, np.uint8)
    images[7] = 255
    write(folder, images)


def _masks_beside(folder: Path) -> None:
    write(folder, photographs(30, 48, 48), "jpg")
    write(folder, (noise(30, 48, 48) > 200).astype(np.uint8) * np.uint8(255))


def _parts(folder: Path) -> None:
    for part, count in (("train", 30), ("val", 5), ("test", 7)):
        write(folder / part / "a", photographs(count, 32, 40, seed=count))


def folders() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """The name of each, and what makes it."""

    def of(images: Pixels, suffix: str = "png", mode: str | None = None) -> Callable[[Path], None]:
        return lambda folder: write(folder, images, suffix, mode)

    for height, width in SIZES:
        count = 40 if height * width < 200 * 200 else 20
        yield f"{count} grey photographs of {height}×{width}", of(photographs(count, height, width))
        yield (
            f"{count} colour photographs of {height}×{width}",
            of(photographs(count, height, width, channels=3), "jpg"),
        )
    for side in (16, 64, 256):
        yield f"noise of {side}×{side}", of(noise(24, side, side))
        yield f"colour noise of {side}×{side}", of(noise(24, side, side, 3))
        yield f"one grey level, {side}×{side}", of(np.full((24, 1, side, side), 128, np.uint8))
        yield f"black, {side}×{side}", of(np.zeros((24, 1, side, side), np.uint8))
        yield f"white, {side}×{side}", of(np.full((24, 1, side, side), 255, np.uint8))
    for count in (0, 1, 9, 10):
        yield f"{count} images", of(photographs(count, 24, 24))
    yield "masks of 0 and 1", of((noise(30, 32, 32) > 128).astype(np.uint8))
    yield "masks of 0 and 255", of((noise(30, 32, 32) > 128).astype(np.uint8) * np.uint8(255))
    yield "palettes", of(photographs(30, 32, 32, channels=3), "png", "P")
    yield "transparent", of(photographs(30, 32, 32, channels=3), "webp", "RGBA")
    yield "CMYK", of(photographs(30, 32, 32, channels=3), "jpg", "CMYK")
    yield "grey with transparency", of(photographs(30, 32, 32), "png", "LA")
    yield "sizes and colours mixed", _mixed
    yield "16 bits", _sixteen_bits
    yield "one file cut off", _one_broken
    yield "strips across and down", _strips
    yield "one colour image among grey ones", _one_colour_among_grey
    yield "all alike but one", _constant_but_one
    yield "masks beside photographs", _masks_beside


def outcome(folder: Path, minutes: float) -> tuple[bool, str]:
    """Whether it ended as it has to, and how, in words."""
    run = folder.parent / "run"
    fit = ["fit", f"--data={folder}", f"--out={run}", "--size=auto", f"--minutes={minutes}", "--device=cpu"]
    scoring = ["--proposal=encoder", "--num-samples=8", "--encoder-samples=0", "--images=8", "--device=cpu"]
    publish = ["publish", str(run), "--name=made", f"--store={folder.parent / 'store'}", *scoring]
    for command in (fit, publish):
        said, errors = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
                code = training(command)
        except BaseException:  # noqa: BLE001 (whatever it is, it is the finding)
            return False, f"{command[0]}: {traceback.format_exc().splitlines()[-1]}"
        lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
        if code:
            return code == 2 and len(lines) == 1, (lines or ["no sentence"])[0]
    bounds = [line["validation_bound"] for line in open_run(run).read_metrics()]
    verdict = next(line for line in said.getvalue().splitlines() if line.startswith("verdict: "))
    return all(map(math.isfinite, bounds)), f"a model after {len(bounds)} epochs; {verdict}"


def main() -> None:
    """Make, train and publish each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.02, help="of training")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of folders, from 1")
    given = parser.parse_args()
    every = [*folders(), ("defects beside ordinary images", _with_defects), ("three parts", _parts)]
    chosen = {number: each for number, each in enumerate(every, 1) if not given.only or number in given.only}
    with operators_looked_up_once():
        failed = sum(not _report(number, *each, given.minutes) for number, each in chosen.items())
    print(f"{failed} failed")


def _report(number: int, name: str, make: Callable[[Path], None], minutes: float) -> bool:
    """Whether one folder ends as it has to; prints how."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "x" / "images"
        folder.parent.mkdir()
        make(folder)
        folder.mkdir(exist_ok=True)
        started = time.process_time()
        good, how = outcome(folder, minutes)
    seconds = time.process_time() - started
    print(f"{number:2} {'ok  ' if good else 'FAIL'} {seconds:5.1f} s  {name}: {how.replace(root, '…')}", flush=True)
    return good


if __name__ == "__main__":
    main()
