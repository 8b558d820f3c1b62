"""`python -m service calibrate`: a new version of a model, whose anomaly scores are compared with your own images'."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from threadpoolctl import threadpool_limits

from model_store import (
    CalibrationProtocol,
    Description,
    Manifest,
    StoredModel,
    StoreError,
    max_calibration_images,
    open_version,
    publish,
)
from service.arguments import add_number
from service.engine.acceptance import DEFAULT_MAX_NUM_SAMPLES, accept
from service.engine.arrays import Float64Array
from service.engine.calibration import calibrate, guarantees
from service.engine.format1 import likelihood_graph_of
from service.engine.model import Pixels
from service.engine.proposal import DEFAULT_NUM_SAMPLES, PROPOSALS, TooFewSamplesError, check_request
from service.engine.runtime import DEVICE_ERRORS, Runtime
from service.images.bottom_k import BottomKSketch, image_hashes
from service.images.errors import ImageError
from service.images.fitting import Fitting
from service.images.folder import Listing, describe_skipped, list_files, printable
from service.images.npy import parse_pixels
from service.images.reader import ImageReader
from service.images.resampler import ResamplerError, check_resampler
from service.images.split_names import divide
from service.printing import print_any_name, print_published
from service.progress import Progress

_BATCH_IMAGES = 64
_MAX_PIXELS = 2**25  # of one image, before it is resampled
_NAMED = 20  # images that a message names
_SHARE_TRAINED = 0.01  # of images that were trained on, above which they cannot calibrate
_SUSPICIOUS = 4.0  # standard errors; by chance one calibration in 30 000


class CalibrationError(Exception):
    """The images cannot calibrate the model."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    none = argparse.SUPPRESS
    of_scores = get_type_hints(CalibrationProtocol, include_extras=True)
    version = get_type_hints(Manifest, include_extras=True)["version"]
    parser.add_argument("--model", required=True, default=none, help="the model's name in the store")
    add_number(parser, "--version", version, help="version whose graphs to use", unset="the latest")
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
        "--proposal",
        choices=PROPOSALS,
        default=none,
        help="how log P(x) is estimated (default: as before)",
    )
    add_number(
        parser, "--num-samples", of_scores["num_samples"], help="samples per image, to begin with", unset="as before"
    )
    add_number(parser, "--seed", of_scores["seed"], help="seed of the noise", unset="as before")
    add_number(parser, "--max-images", PositiveInt, help="use only this many images, chosen at random", unset="all")
    parser.add_argument("--resize", action="store_true", help="resample images of another size, as ?resize=true does")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be read")
    parser.add_argument(
        "--allow-training-images", action="store_true", help="calibrate even if the model was trained on these images"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the graphs run")


def run(parsed: argparse.Namespace) -> int:
    """Calibrate and publish; returns the exit status: 0, 2 for an error that has a sentence, 130 after Ctrl-C."""
    threadpool_limits(1, user_api="blas")
    print_any_name()
    try:
        _run(parsed)
    except (CalibrationError, StoreError, ResamplerError, TooFewSamplesError, OSError, *DEVICE_ERRORS) as error:
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
    model = accept(stored, runtime=Runtime(parsed.device), max_num_samples=sys.maxsize)  # a new one may have fewer
    preparation = stored.manifest.preparation
    if warning := check_resampler(preparation):
        print(f"warning: {stored.path}: {warning}", file=sys.stderr)
    fitting = Fitting(preparation.fit, preparation.invert)
    reader = ImageReader(stored.manifest.image, resize=parsed.resize, max_pixels=_MAX_PIXELS, fitting=fitting)
    images = _Images(parsed.images, reader)
    chosen = np.random.default_rng(seed).permutation(len(images))[: getattr(parsed, "max_images", None)]
    readable = images.check(chosen.tolist(), skip_corrupt=parsed.skip_corrupt)  # in no order, of which every third fits
    _check_not_trained_on(stored, images.hashes, allowed=parsed.allow_training_images)
    if len(readable) > (most := max_calibration_images(stored.manifest.latent_dim)):
        raise CalibrationError(f"{len(readable)} images are too many for this model: --max-images {most} or fewer")
    print(f"{parsed.images}: {len(readable)} images; {proposal}, {num_samples} samples, seed {seed}")
    for line in guarantees(len(readable)):
        print(line)
    if num_samples > DEFAULT_MAX_NUM_SAMPLES:
        print(f"warning: a service loads it only if LOGPX_MAX_NUM_SAMPLES is {num_samples} or more", file=sys.stderr)
    with Progress("calibrating", len(readable)) as progress:
        arrays = calibrate(
            model,
            images.batches(readable),
            proposal=proposal,
            num_samples=num_samples,
            seed=seed,
            on_batch=progress.advance,
            on_chunk=progress.tick,
        )
    if (proposal, num_samples, seed) == (protocol.proposal, protocol.num_samples, protocol.seed):
        _warn_if_familiar(stored, arrays["log_likelihood"])
    new = CalibrationProtocol(
        proposal=proposal,
        num_samples=num_samples,
        seed=seed,
        num_images=len(readable),
        source=f"images of {printable(parsed.images.name)}, prepared as the service prepares a request's; "
        f"graphs and metrics are those of version {stored.manifest.version}",
    )
    published = publish(
        parsed.store,
        _described(stored, new),
        encoder=stored.encoder,
        decoder=stored.decoder,
        likelihood=likelihood_graph_of(stored),
        calibration=arrays,
        features=stored.features,
    )
    print_published(published)


def _described(stored: StoredModel, calibration: CalibrationProtocol) -> Description:
    kept = {name: getattr(stored.manifest, name) for name in Description.model_fields}
    return Description(**{**kept, "calibration": calibration})


def _check_not_trained_on(stored: StoredModel, hashes: NDArray[np.uint64], *, allowed: bool) -> None:
    """Refuse images that the model was trained on, as far as its manifest knows those; a few may be there by chance."""
    sketch = BottomKSketch.from_json(stored.manifest.provenance.configuration.get("training_images", {}))
    if sketch is None:
        print(f"note: {stored.path} does not record its training images: make sure that none of them are here")
        return
    decidable, found = sketch.look_up(hashes)
    if not found:
        return
    checked = "" if decidable == len(hashes) else f", of the {decidable} of all {len(hashes)} for which that is known"
    problem = f"the model was trained on {found} of these images{checked}"
    if found > _SHARE_TRAINED * decidable and not allowed:
        raise CalibrationError(
            f"{problem}: they look more familiar than new images, which would then seem too strange; use images that "
            "were held out, or --allow-training-images"
        )
    print(f"warning: {problem}", file=sys.stderr)


def _warn_if_familiar(stored: StoredModel, log_likelihood: Float64Array) -> None:
    """Warn where the images are clearly likelier than those that calibrated before, by the same protocol."""
    before = stored.calibration["log_likelihood"]
    if min(len(before), len(log_likelihood)) < 2:
        return
    difference = float(log_likelihood.mean() - before.mean())
    std_error = float(np.sqrt(before.var(ddof=1) / len(before) + log_likelihood.var(ddof=1) / len(log_likelihood)))
    if difference > _SUSPICIOUS * std_error:
        print(
            f"warning: log P(x) of these images is on average {difference:.1f} ± {std_error:.1f} nats higher than of "
            f"those that calibrated version {stored.manifest.version}: if the model was trained on any of them, new "
            "images will seem too strange",
            file=sys.stderr,
        )


class _Images:
    """The user's images, read as a request's are; numbered from 0, files by path."""

    def __init__(self, path: Path, reader: ImageReader) -> None:
        self._path = path
        self._reader = reader
        self._listing: Listing | None = None
        self.hashes: NDArray[np.uint64] = np.zeros(0, np.uint64)
        if path.is_dir():
            self._listing = list_files(path)
            self._check_parts(self._listing)
        else:
            try:
                self._array = parse_pixels(path.read_bytes())
            except ImageError as error:
                raise CalibrationError(f"{path}: {error}") from None

    def __len__(self) -> int:
        return len(self._array if self._listing is None else self._listing.files)

    def _check_parts(self, listing: Listing) -> None:
        skipped = describe_skipped(listing.skipped)
        if not listing.files:
            raise CalibrationError(f"{self._path}: no image that can be read{f'; there are {skipped}' * bool(skipped)}")
        if skipped:
            print(f"skipped: {skipped}")
        division = divide(listing.files)
        if len(division.parts) > 1 or division.doubtful:
            named = [division.doubtful] if division.doubtful else [files[0] for files in division.parts.values()]
            raise CalibrationError(
                f"{self._path}: has folders for the parts of a data set ({', '.join(named)}): pass --images the one "
                "whose images the model was not trained on"
            )

    def check(self, chosen: Sequence[int], *, skip_corrupt: bool) -> list[int]:
        """Those of the chosen that can be read; `hashes` are then theirs.

        Raises:
            CalibrationError: none can, or one cannot and is not to be skipped; the message names it.
        """
        problems: dict[int, str] = {}
        hashes = []
        with Progress("checking", len(chosen)) as progress:
            for index in chosen:
                try:
                    hashes.append(image_hashes(self._read(index)))
                except ImageError as error:
                    problems[index] = str(error).replace("?resize=true", "--resize")
                progress.advance(1)
        self.hashes = np.concatenate(hashes) if hashes else self.hashes
        readable = [index for index in chosen if index not in problems]
        named = "".join(f"\n  {self._name(index)}: {problems[index]}" for index in list(problems)[:_NAMED])
        more = f"\n  and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        if problems and not skip_corrupt:
            raise CalibrationError(
                f"{len(problems)} images cannot be read; --skip-corrupt leaves them out:{named}{more}"
            )
        if not readable:
            raise CalibrationError(f"{self._path}: no image that can be read{named}{more}")
        if problems:
            print(f"warning: {len(problems)} images cannot be read and are left out:{named}{more}", file=sys.stderr)
        return readable

    def batches(self, indices: Sequence[int]) -> Iterator[Pixels]:
        """Pixels [B, C, H, W] of these images.

        Raises:
            CalibrationError: one has changed since it was checked, and cannot be read any more.
        """
        for start in range(0, len(indices), _BATCH_IMAGES):
            yield np.concatenate([self._read_again(index) for index in indices[start : start + _BATCH_IMAGES]])

    def _read(self, index: int) -> Pixels:
        if self._listing is None:
            return self._reader.read_array(self._array[index : index + 1])
        return self._reader.read_items([self._listing.path(index).read_bytes()])

    def _read_again(self, index: int) -> Pixels:
        try:
            return self._read(index)
        except ImageError as error:
            raise CalibrationError(f"{self._name(index)}: has changed since it was checked: {error}") from None

    def _name(self, index: int) -> str:
        return f"{self._path}[{index}]" if self._listing is None else str(self._listing.path(index))
