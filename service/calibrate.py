"""`python -m service calibrate`: a new version of a model, whose anomaly scores are compared with your own images'."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from model_store import CalibrationProtocol, Description, StoredModel, StoreError, open_version, publish
from service.engine.calibration import calibrate, promises
from service.engine.model import Model, Pixels
from service.engine.proposal import DEFAULT_NUM_SAMPLES, PROPOSALS, TooFewSamplesError, check_request
from service.engine.runtime import ExecutionProviderError, Runtime
from service.images.errors import ImageError
from service.images.npy import parse_pixels
from service.images.reader import ImageReader

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_BATCH_IMAGES = 64
_MAX_PIXELS = 2**25  # of one image, before it is resampled
_NAMED = 20  # images that a message names


class CalibrationError(Exception):
    """The images cannot calibrate the model."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    none = argparse.SUPPRESS
    parser.add_argument("--model", required=True, default=none, help="the model's name in the store")
    parser.add_argument("--version", type=_positive, default=none, help="whose graphs to take (default: the latest)")
    parser.add_argument("--store", type=Path, required=True, default=none, help="the store's folder")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        default=none,
        help="a folder of PNG, JPEG or WebP files, at any depth, or an .npy file as requests send it: ordinary images, "
        "none of which the model was trained on",
    )
    parser.add_argument(
        "--proposal", choices=PROPOSALS, default=none, help="where samples come from (default: as before)"
    )
    parser.add_argument("--num-samples", type=_positive, default=none, help="an image (default: as before)")
    parser.add_argument("--seed", type=_natural, default=none, help="of the noise (default: as before)")
    parser.add_argument("--max-images", type=_positive, default=none, help="take so many at random (default: all)")
    parser.add_argument("--resize", action="store_true", help="resample images of another size, as ?resize=true does")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the graphs run")


def run(parsed: argparse.Namespace) -> int:
    """Calibrate and publish; returns the exit status: 0, 2 for an error of the user's making, 130 after Ctrl-C."""
    threadpool_limits(1, user_api="blas")
    try:
        _run(parsed)
    except (CalibrationError, StoreError, TooFewSamplesError, ExecutionProviderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was published", file=sys.stderr)
        return 130
    return 0


def _run(parsed: argparse.Namespace) -> None:
    stored = open_version(parsed.store, parsed.model, getattr(parsed, "version", None))
    protocol = stored.manifest.calibration
    proposal = getattr(parsed, "proposal", protocol.proposal)
    before = protocol.num_samples if proposal == protocol.proposal else DEFAULT_NUM_SAMPLES[proposal]
    num_samples, seed = getattr(parsed, "num_samples", before), getattr(parsed, "seed", protocol.seed)
    check_request(proposal, num_samples)
    model = Model.open(stored, runtime=Runtime(parsed.device))
    images = _Images(parsed.images, ImageReader(stored.manifest.image, resize=parsed.resize, max_pixels=_MAX_PIXELS))
    chosen = np.random.default_rng(seed).permutation(len(images))[: getattr(parsed, "max_images", None)]
    readable = images.check(chosen.tolist(), skip_corrupt=parsed.skip_corrupt)  # in no order, of which every third fits
    print(f"{parsed.images}: {len(readable)} images; {proposal}, {num_samples} samples, seed {seed}")
    for line in promises(len(readable)):
        print(line)
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        if sys.stderr.isatty():
            print(f"\r{done} of {len(readable)} images", end="" if done < len(readable) else "\n", file=sys.stderr)

    arrays = calibrate(
        model, images.batches(readable), proposal=proposal, num_samples=num_samples, seed=seed, on_batch=on_batch
    )
    new = CalibrationProtocol(
        proposal=proposal,
        num_samples=num_samples,
        seed=seed,
        num_images=len(readable),
        source=f"images of {parsed.images.name}, prepared as the service prepares a request's; "
        f"graphs and metrics are those of version {stored.manifest.version}",
    )
    published = publish(
        parsed.store, _described(stored, new), encoder=stored.encoder, decoder=stored.decoder, calibration=arrays
    )
    print(f"published {published.path}")


def _described(stored: StoredModel, calibration: CalibrationProtocol) -> Description:
    kept = {name: getattr(stored.manifest, name) for name in Description.model_fields}
    return Description(**{**kept, "calibration": calibration})


class _Images:
    """The user's images, read as a request's are; numbered from 0, files by path."""

    def __init__(self, path: Path, reader: ImageReader) -> None:
        self._path = path
        self._reader = reader
        self._files: list[Path] | None = None
        if path.is_dir():
            self._files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
        else:
            try:
                self._array = parse_pixels(path.read_bytes())
            except ImageError as error:
                raise CalibrationError(f"{path}: {error}") from None

    def __len__(self) -> int:
        return len(self._array if self._files is None else self._files)

    def check(self, chosen: Sequence[int], *, skip_corrupt: bool) -> list[int]:
        """Those of the chosen that can be read.

        Raises:
            CalibrationError: none can, or one cannot and is not to be skipped; the message names it.
        """
        problems: dict[int, str] = {}
        for index in chosen:
            try:
                self._read(index)
            except ImageError as error:
                problems[index] = str(error).replace("?resize=true", "--resize")
        readable = [index for index in chosen if index not in problems]
        named = "".join(f"\n  {self._name(index)}: {problems[index]}" for index in list(problems)[:_NAMED])
        more = f"\n  and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        if problems and not skip_corrupt:
            raise CalibrationError(
                f"{len(problems)} images cannot be read, which --skip-corrupt would leave out:{named}{more}"
            )
        if not readable:
            raise CalibrationError(f"{self._path}: no image that can be read{named}{more}")
        if problems:
            print(f"warning: {len(problems)} images cannot be read and are left out:{named}{more}", file=sys.stderr)
        return readable

    def batches(self, indices: Sequence[int]) -> Iterator[Pixels]:
        """Pixels [B, C, H, W] of these images."""
        for start in range(0, len(indices), _BATCH_IMAGES):
            yield np.concatenate([self._read(index) for index in indices[start : start + _BATCH_IMAGES]])

    def _read(self, index: int) -> Pixels:
        if self._files is None:
            return self._reader.read_array(self._array[index : index + 1])
        return self._reader.read_items([self._files[index].read_bytes()])

    def _name(self, index: int) -> str:
        return f"{self._path}[{index}]" if self._files is None else str(self._files[index])


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number
