"""The command line's options for a run's configuration."""

import argparse
import types
import typing
from dataclasses import fields

from training.configuration import Configuration, Preset
from training.recipes import AUTO, RECIPES

_HELP = {
    "preset": "networks: mlp, hidden layers with SiLU; resnet, residual convolutions without normalisation, in patches "
    "of images beyond 40 pixels (default: auto, an mlp up to 64×64 numbers an image, a resnet for larger ones)",
    "width": "units of each hidden layer of an mlp; channels of a resnet at the size of the image or its patches",
    "depth": "hidden layers of an mlp; residual blocks at each size, halved until 8 or fewer, of a resnet",
    "latent_dim": "dimensions of the latent code",
    "likelihood": "of a pixel: bernoulli, black or white; discretised_logistic, 256 levels; gaussian, real values "
    "(default: discretised_logistic for 8-bit images of which more than a fifth is grey, else bernoulli)",
    "gaussian_scale": "standard deviation of a gaussian pixel in [0, 1] (default: learned, one for each pixel)",
    "binarisation": "of bernoulli pixels: dynamic, afresh each time an image is seen; threshold, above 0.5; none, grey "
    "values as they are, which is all that other likelihoods take (default: dynamic, or none)",
    "flip": "mirror each training image, left to right, every other time it is seen: the model's images are then both",
    "shift": "move each training image by up to so many pixels, down or up and right or left, each time it is seen",
    "objective": "iwae: importance weighted bound with DReG gradients; elbo: evidence lower bound, analytic KL",
    "num_samples": "latent samples an image in training",
    "first_samples": "where the number of samples begins, which then doubles until --num-samples, each number having "
    "as many decoder rows: many cheap epochs, then few dear ones (default: --num-samples throughout)",
    "kl_warm_up_epochs": "elbo: epochs over which the KL term's weight rises from 0 to 1",
    "free_bits": "elbo: nats of each latent dimension's KL term that cost nothing",
    "epochs": "passes over the training images",
    "batch_size": "images a step, over all processes; of a resnet in patches fewer, at least 8, where an epoch would "
    "have less than 100 steps",
    "learning_rate": "Adam's, after the warm-up; falls to 0 along a cosine",
    "warm_up_epochs": "epochs of linear warm-up (default: 1, or as many as have 100 steps, but at most a tenth of all)",
    "max_gradient_norm": "a longer gradient is shortened to this; 0: never",
    "ema_decay": "decay a step of the averaged weights that are validated and exported; 0: no averaging",
    "patience": "end after so many epochs without a better validation bound, and keep the best epoch; 0: never",
    "seed": "of the splits, the weights and all noise",
    "num_validation": "held-out images that watch training (default: 2000, at most a tenth of the images)",
    "num_calibration": "held-out images that calibrate anomaly scores (default: 3000, at most a tenth)",
    "max_memory": "GiB of decoded pixels up to which image files and Parquet are loaded whole; larger data streams",
    "skip_corrupt": "leave out images that cannot be decoded, instead of refusing the data",
    "num_test": "held-out test images where the data has none of its own (default: 10000, at most a tenth)",
}
_CHOSEN_BY_THE_DATA = ("preset", "likelihood", "binarisation", "warm_up_epochs")


def add_configuration_options(parser: argparse.ArgumentParser) -> None:
    """One option for each of the configuration's fields. What is not given is left out: the recipes see to it."""
    hints = typing.get_type_hints(Configuration)
    for field in fields(Configuration):
        hint = hints[field.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        if field.name == "preset":
            choices = (AUTO, *typing.get_args(Preset))
        if isinstance(hint, types.UnionType):
            hint = typing.get_args(hint)[0]
        if hint is bool:
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=_HELP[field.name])
            continue
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=str if choices else hint,
            choices=choices,
            default=argparse.SUPPRESS,
            help=_HELP[field.name] + _stated_default(field.name, field.default),
        )


def _stated_default(name: str, default: object) -> str:
    """What help says of a default that the option's own text does not tell."""
    if default is None or name in _CHOSEN_BY_THE_DATA:
        return ""
    by_preset = [f"{recipe[name]} for {preset}" for preset, recipe in RECIPES.items() if name in recipe]
    return f" (default: {'; '.join([str(default), *by_preset])})"
