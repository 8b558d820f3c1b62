"""The command line of `python -m training`: its commands and their options."""

import argparse
import math
import os
import typing
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from model_store import CalibrationProtocol
from model_store.manifest import ModelName
from service.arguments import Parser, add_number
from service.engine.proposal import DEFAULT_NUM_SAMPLES, DEFAULT_PROPOSAL, PROPOSALS
from training.configuration import Positive
from training.fit.devices import Compilation, Precision
from training.fit.options import add_configuration_options, size_of
from training.fit.plan import DEFAULT_MINUTES
from training.networks.mlp import FULL_RATE_PIXELS
from training.publish.pretrained import IMAGENET, SOURCES
from training.publish.protocols import DEFAULT_ENCODER_SAMPLES, MOST_IMAGES
from training.publish.publication import SCORING_SEED

_MOST_WORKERS = 8
_DATA = (
    "mnist or fashion-mnist (downloaded once), a folder, a zip or tar file of images, a table of their paths (.csv, "
    ".tsv or .parquet), or a .parquet, .npy or .npz file"
)
_BY_SIZE = f"all; {MOST_IMAGES} if they have more than {FULL_RATE_PIXELS} numbers each"
_SCORING = typing.get_type_hints(CalibrationProtocol, include_extras=True)


def build_parser(description: str | None, prog: str = "python -m training") -> argparse.ArgumentParser:
    """The parser; what it parses says which command was given, as `command`."""
    parser = Parser(prog=prog, description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_fit(_add_command(commands, "fit", "Train a model; how the bundled ones were trained is in the README."))
    summary = (
        "Train the encoder of a finished run or of a published version alone, by the ELBO, decoder frozen: a new run. "
        "It is for models that were trained without it; the density does not change."
    )
    _add_finish_encoder(_add_command(commands, "finish-encoder", summary))
    summary = (
        "Score a data set's test images. Without a test set: those that the model's training held out of it as a test "
        "set, or all its images if the model was trained on others."
    )
    evaluate = _add_command(commands, "evaluate", summary)
    _add_evaluate(evaluate)
    summary = "Score the same images by two models, and say which finds them likelier, and by how much."
    compare = _add_command(commands, "compare", summary)
    compare.add_argument("first", metavar="A", type=Path, help="a run's folder, or store/NAME or store/NAME/VERSION")
    compare.add_argument("second", metavar="B", type=Path, help="another")
    _add_data_to_score(compare, unset=_BY_SIZE)
    publish = _add_command(commands, "publish", "Export, check, evaluate, calibrate and publish a run.")
    _add_publish(publish)
    summary = (
        "Publish each model's newest version again in the store's newest format, if it has an older one; weights, "
        "calibration and figures stay as they are."
    )
    _add_upgrade(_add_command(commands, "upgrade", summary))
    summary = "Make the graph of --features from a network that was trained on photographs."
    _add_features(_add_command(commands, "features", summary))
    _add_scoring(evaluate)
    _add_proposal(compare)
    _add_scoring(publish, by_size=f"{DEFAULT_ENCODER_SAMPLES}; 0 for images of more than {FULL_RATE_PIXELS} numbers")
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--start-from",
        type=Path,
        default=argparse.SUPPRESS,
        help="folder of another run, or store/NAME or store/NAME/VERSION, whose weights to begin with; its networks "
        "and split are the defaults",
    )
    parser.add_argument(
        "--features",
        type=Path,
        default=argparse.SUPPRESS,
        help="model the features that this ONNX graph makes of the images, instead of pixels: docs/your-images.md",
    )
    add_number(
        parser,
        "--minutes",
        Positive,
        help="instead of --epochs: plan as many epochs as end in this time, the encoder's own included",
        unset=f"{DEFAULT_MINUTES:g}, without --epochs",
    )
    add_configuration_options(parser)


def _add_finish_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "start_from", metavar="MODEL", type=Path, help="a run's folder, or store/NAME or store/NAME/VERSION"
    )
    _add_run(parser)
    add_configuration_options(parser, ("finish_epochs",))


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, default=argparse.SUPPRESS, help=_DATA)
    parser.add_argument(
        "--out", type=Path, required=True, default=argparse.SUPPRESS, help="the run's folder, new or empty"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in that folder, with the options it began with"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.add_argument(
        "--precision",
        choices=typing.get_args(Precision),
        default="auto",
        help="of the networks in training; densities and bounds are always float32; auto: bfloat16 only on a GPU",
    )
    parser.add_argument(
        "--compile", choices=typing.get_args(Compilation), default="auto", help="torch.compile; auto: only on a GPU"
    )
    _add_workers(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run's folder, or store/NAME or store/NAME/VERSION")
    _add_data_to_score(parser, unset="all")
    parser.add_argument(
        "--report", type=Path, default=argparse.SUPPRESS, help="write an HTML page with pictures to this file"
    )


def _add_data_to_score(parser: argparse.ArgumentParser, *, unset: str) -> None:
    parser.add_argument("--data", required=True, default=argparse.SUPPRESS, help=_DATA)
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")
    help_images = "score only this many of the images, evenly spaced, read into memory"
    add_number(parser, "--images", PositiveInt, help=help_images, unset=unset)
    add_number(parser, "--seed", _SCORING["seed"], help="seed of the noise and the binarisation", default=SCORING_SEED)


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument(
        "--name", type=_model_name, required=True, default=argparse.SUPPRESS, help="the model's name in the store"
    )
    parser.add_argument("--store", type=Path, default=Path("model_store/artifacts"), help="the store's folder")
    parser.add_argument(
        "--data", default=argparse.SUPPRESS, help="the data set of the run (default: the one it was trained on)"
    )
    help_images = "measure only this many of the test images and of the images of defects, evenly spaced"
    add_number(parser, "--images", PositiveInt, help=help_images, unset=_BY_SIZE)
    parser.add_argument(
        "--score-proposal",
        choices=PROPOSALS,
        default=argparse.SUPPRESS,
        help="proposal of anomaly scores and their calibration (default: that of the estimates; if it is auto, "
        "laplace, and encoder for images of more than 784 numbers)",
    )
    add_number(
        parser,
        "--score-samples",
        _SCORING["num_samples"],
        help="samples per image for anomaly scores",
        unset="128, unless estimates or scores are by a proposal that was chosen and is not laplace",
    )


def _add_upgrade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path, help="the store's folder")
    parser.add_argument(
        "--model", type=_model_name, default=argparse.SUPPRESS, help="upgrade only this model (default: all)"
    )


def _add_features(parser: argparse.ArgumentParser) -> None:
    none = argparse.SUPPRESS
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--from", dest="source", default=none, help=f"the network: {SOURCES}")
    network.add_argument("--onnx", type=Path, default=none, help="or a network in an ONNX file of any origin")
    parser.add_argument("--out", type=Path, required=True, default=none, help="the graph's file, features.onnx")
    parser.add_argument("--weights", type=Path, default=none, help="file of its weights (default: its package's own)")
    help_layers = "names of its modules, separated by commas, at which it is cut (default: of efficientnet-lite0 two)"
    parser.add_argument("--layers", type=_names, default=none, help=help_layers)
    help_outputs = "of --onnx: names of its tensors, separated by commas, at which it is cut; a wrong one lists them"
    parser.add_argument("--outputs", type=_names, default=none, help=help_outputs)
    for name, value in zip(("mean", "std"), IMAGENET, strict=True):
        help_numbers = f"of --onnx: {name} of its input, of pixels in [0, 1]: one number, or one a channel (default: "
        help_numbers += f"{','.join(map(str, value))}, ImageNet's)"
        parser.add_argument(f"--{name}", type=_numbers, default=none, help=help_numbers)
    parser.add_argument("--size", type=size_of, default=(128, 128), help="height and width of the images")
    parser.add_argument("--grid", type=size_of, default=(8, 8), help="height and width of the maps")
    parser.add_argument("--colour", choices=("grey", "rgb"), default="rgb", help="of the images")


def _add_scoring(parser: argparse.ArgumentParser, by_size: str = "") -> None:
    """How images are scored; `by_size` says what the default of `--encoder-samples` is, where it is not 0."""
    _add_proposal(parser)
    add_number(
        parser,
        "--encoder-samples",
        NonNegativeInt,
        help="samples per image of a second estimate, from the encoder as in the literature; 0: none",
        unset=by_size,
        default=argparse.SUPPRESS if by_size else 0,
    )


def _add_proposal(parser: argparse.ArgumentParser) -> None:
    defaults = ", ".join(f"{DEFAULT_NUM_SAMPLES[proposal]} by {proposal}" for proposal in PROPOSALS)
    parser.add_argument("--proposal", choices=PROPOSALS, default=DEFAULT_PROPOSAL, help="how log P(x) is estimated")
    add_number(
        parser,
        "--num-samples",
        _SCORING["num_samples"],
        help="samples per image, to begin with",
        unset=f"the proposal's own, {defaults}",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the graphs run")
    _add_workers(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add_number(
        parser,
        "--workers",
        NonNegativeInt,
        help="processes that decode streamed images; they change no result; 0: this process decodes",
        default=min(cores, _MOST_WORKERS),
    )


def _add_command(commands: "argparse._SubParsersAction[Parser]", name: str, summary: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[float]:
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(f"must be numbers separated by commas, not {text!r}")
    return found


def _model_name(text: str) -> str:
    try:
        name: str = TypeAdapter(ModelName).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from error
    return name
