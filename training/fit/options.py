"""The command line's options for a run's configuration."""

import argparse
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

from service.arguments import add_number
from training.configuration import Configuration, Preset
from training.fit.recipes import AUTO, RECIPES
from training.likelihoods import BLACK_AND_WHITE, GREY, LIKELIHOODS

_HELP = {
    "preset": "networks: mlp, hidden layers with SiLU; resnet, residual convolutions without normalisation, in patches "
    "of images beyond 40 pixels",
    "width": "units of each hidden layer of an mlp; channels of a resnet at the size of the image or its patches",
    "depth": "hidden layers of an mlp; residual blocks at each size, halved until 8 or fewer, of a resnet",
    "latent_dim": "dimensions of the latent code",
    "likelihood": "of a pixel: " + "; ".join(f"{name}, {kind.pixel}" for name, kind in LIKELIHOODS.items()),
    "gaussian_scale": "standard deviation of a gaussian pixel in [0, 1]",
    "num_components": "logistics of a mixture",
    "binarisation": f"of {BLACK_AND_WHITE} pixels: dynamic, afresh each time an image is seen; threshold, above 0.5; "
    "none, grey values as they are, which is all that other likelihoods take",
    "flip": "mirror each training image, left to right, every other time it is seen: the model's images are then both",
    "shift": "move each training image by up to so many pixels, down or up and right or left, each time it is seen",
    "objective": "iwae: importance weighted bound with DReG gradients; elbo: evidence lower bound, analytic KL",
    "num_samples": "latent samples an image in training",
    "first_samples": "where the number of samples begins, which then doubles until --num-samples, each number having "
    "as many decoder rows: many cheap epochs, then few dear ones",
    "kl_warm_up_epochs": "elbo: epochs over which the KL term's weight rises from 0 to 1",
    "free_bits": "elbo: nats of each latent dimension's KL term that cost nothing",
    "epochs": "passes over the training images",
    "batch_size": "images a step, over all processes; of a resnet in patches fewer, at least 8, where an epoch would "
    "have less than 100 steps",
    "learning_rate": "Adam's, after the warm-up; falls to 0 along a cosine",
    "warm_up_epochs": "epochs of linear warm-up",
    "max_gradient_norm": "a longer gradient is shortened to this; 0: never",
    "ema_decay": "decay a step of the averaged weights that are validated and exported; 0: no averaging",
    "patience": "end after so many epochs without a better validation bound, and keep the best epoch; 0: never",
    "seed": "of the splits, the weights and all noise",
    "num_validation": "held-out images that watch training",
    "num_calibration": "held-out images that calibrate anomaly scores",
    "max_memory": "GiB of decoded pixels up to which image files and Parquet are loaded whole; larger data streams",
    "skip_corrupt": "leave out images that cannot be decoded, instead of refusing the data",
    "num_test": "held-out test images where the data has none of its own",
}
_UNSET = {
    "preset": "auto, an mlp up to 64×64 numbers an image, a resnet for larger ones",
    "likelihood": f"{GREY} for 8-bit images of which more than a fifth is grey, else {BLACK_AND_WHITE}",
    "binarisation": "dynamic, or none",
    "first_samples": "--num-samples throughout",
    "warm_up_epochs": "1, or as many as have 100 steps, but at most a tenth of all",
    "num_validation": "2000, at most a tenth of the images",
    "num_calibration": "3000, at most a tenth",
    "num_test": "10000, at most a tenth",
} | {name: option.unset for kind in LIKELIHOODS.values() for name, option in kind.configured.items()}
"""What an option is where it is not given, if the data or another option decides."""


def add_configuration_options(parser: argparse.ArgumentParser) -> None:
    """One option for each of the configuration's fields. What is not given is left out: the recipes see to it."""
    hints = get_type_hints(Configuration, include_extras=True)
    for field in fields(Configuration):
        option, words, hint = "--" + field.name.replace("_", "-"), _HELP[field.name], hints[field.name]
        unset = _UNSET.get(field.name) or _default_by_preset(field.name, field.default)
        if hint is bool:
            parser.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=words)
        elif get_origin(hint) is Literal:
            choices = (AUTO, *get_args(Preset)) if field.name == "preset" else get_args(hint)
            words = f"{words} (default: {unset})"
            parser.add_argument(option, choices=choices, default=argparse.SUPPRESS, help=words)
        else:
            add_number(parser, option, hint, help=words, unset=unset)


def _default_by_preset(name: str, default: object) -> str:
    by_preset = [f"{recipe[name]} for {preset}" for preset, recipe in RECIPES.items() if name in recipe]
    return "; ".join([str(default), *by_preset])
