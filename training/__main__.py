"""python -m training fit|evaluate|publish."""

import argparse
import os
import signal
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from training.configuration import Configuration
from training.data import DataSplits, split
from training.errors import TrainingError
from training.figures import draw_figures
from training.networks import Vae
from training.run import RunDescription, create_run, resume_run
from training.sources import Source, read_source
from training.trainer import EpochFigures, choose_device, fit

_EPOCHS_BETWEEN_FIGURES = 10
_OPTION_HELP = {
    "preset": "networks: mlp is two hidden layers with SiLU in encoder and decoder",
    "width": "units of each hidden layer",
    "latent_dim": "dimensions of the latent code",
    "objective": "iwae: importance weighted bound with DReG gradients; elbo: evidence lower bound, analytic KL",
    "num_samples": "latent samples an image in training",
    "binarisation": "dynamic: afresh each time an image is seen; threshold: above 0.5; none: grey values as they are",
    "epochs": "passes over the training images",
    "batch_size": "images a step",
    "learning_rate": "Adam's, after the warm-up; falls to 0 along a cosine",
    "warm_up_epochs": "epochs of linear warm-up",
    "ema_decay": "decay a step of the averaged weights that are validated and exported; 0: no averaging",
    "seed": "of the splits, the weights and all noise",
    "num_validation": "held-out images that watch training (default: 2000, at most a tenth of the images)",
    "num_calibration": "held-out images that calibrate anomaly scores (default: 3000, at most a tenth)",
    "num_test": "held-out test images where the data has none of its own (default: 10000, at most a tenth)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for an error of the user's making, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit_parser = _add_command(commands, "fit", _fit, "train a model")
    fit_parser.add_argument("--data", required=True, help="mnist, fashion-mnist, a folder, or an .npy or .npz file")
    fit_parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    fit_parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    fit_parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    _add_configuration_options(fit_parser)
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: typing.Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(command=command)
    return parser


def _add_configuration_options(parser: argparse.ArgumentParser) -> None:
    hints = typing.get_type_hints(Configuration)
    for field in fields(Configuration):
        hint = hints[field.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        if isinstance(hint, types.UnionType):
            hint = int
        option = "--" + field.name.replace("_", "-")
        default = argparse.SUPPRESS if field.default is None else field.default
        parser.add_argument(
            option, type=str if choices else hint, choices=choices, default=default, help=_OPTION_HELP[field.name]
        )


def _fit(parsed: argparse.Namespace) -> None:
    given = {field.name: getattr(parsed, field.name) for field in fields(Configuration) if hasattr(parsed, field.name)}
    configuration = Configuration(**given)
    device = choose_device(parsed.device)
    splits = split(read_source(Path(parsed.data)), configuration)
    counts = {part: len(getattr(splits, part)) for part in ("train", "validation", "calibration", "test")}
    description = RunDescription(
        configuration, splits.name, splits.sha256, splits.image_shape, counts, source=parsed.data
    )
    run = resume_run(parsed.out, description) if parsed.resume else create_run(parsed.out, description)
    print(f"{splits.name}: {', '.join(f'{count} {part}' for part, count in counts.items())} images; on {device}")

    def on_epoch(figures: EpochFigures, model: Vae) -> None:
        print(
            f"epoch {figures.epoch}/{configuration.epochs}: train {figures.train_bound:.2f}, validation "
            f"{figures.validation_bound:.2f}, ELBO {figures.validation_elbo:.2f} nats; "
            f"{figures.images_per_second:.0f} images/s",
            flush=True,
        )
        if figures.epoch % _EPOCHS_BETWEEN_FIGURES == 0 or figures.epoch == configuration.epochs:
            draw_figures(run, model, splits.validation)

    fit(run, splits, device=device, on_epoch=on_epoch, progress=sys.stderr.isatty())


if __name__ == "__main__":
    sys.exit(main())
