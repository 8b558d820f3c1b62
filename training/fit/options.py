"""The command line's options for a run's configuration."""

import argparse
from collections.abc import Container
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

from service.arguments import add_number, without_none
from training.configuration import MAX_SIDE, Configuration, Preset
from training.data.preparation import AUTO as AUTO_SIZE
from training.fit.recipes import AUTO, RECIPES
from training.likelihoods import BLACK_AND_WHITE, GREY, LIKELIHOODS

_HELP = {
    "size": "height and width of the model's images, to which images of any size are brought: 64, 64x48 (height x "
    "width), or auto",
    "fit": "how they are brought to that size: crop, the largest centred part; pad, the whole image on black; stretch, "
    "the whole image in another aspect ratio",
    "colour": "with a size: grey or rgb images",
    "invert": "exchange black and white, for dark drawings on white paper; the service then does so with every image",
    "preset": "networks: mlp, hidden layers with SiLU; resnet, residual convolutions without normalisation, on patches "
    "of images larger than 40 pixels; linear, of features alone: one layer each way, its weights computed at once",
    "width": "units of each hidden layer of an mlp; channels of a resnet at the size of the image or its patches",
    "depth": "hidden layers of an mlp; residual blocks of a resnet at each size, which is halved until 8 or fewer",
    "latent_dim": "dimensions of the latent code",
    "likelihood": "of a pixel: " + "; ".join(f"{name}, {kind.pixel}" for name, kind in LIKELIHOODS.items()),
    "gaussian_scale": "standard deviation of a gaussian pixel in [0, 1]",
    "num_components": "number of logistics in a mixture",
    "binarisation": f"how {BLACK_AND_WHITE} pixels become 0 or 1: dynamic, drawn anew each time an image is used; "
    "threshold, 1 above 0.5; none, grey values as they are, the only choice for other likelihoods",
    "flip": "mirror training images, left to right, half of the times they are used; the model then learns both",
    "shift": "move each training image by up to this many pixels, down or up and right or left, each time it is used",
    "objective": "iwae: importance weighted bound with DReG gradients; elbo: evidence lower bound, analytic KL",
    "num_samples": "latent samples per image in training",
    "first_samples": "samples per image at the start; the number then doubles up to --num-samples. Each number "
    "computes as many decoder rows as any other: many cheap epochs, then few expensive ones",
    "kl_warm_up_epochs": "elbo: epochs over which the KL term's weight rises from 0 to 1",
    "free_bits": "elbo: nats of each latent dimension's KL term that are not penalised",
    "epochs": "passes over the training images",
    "batch_size": "images per step, over all processes; for a large mlp and a resnet on patches as many as leave an "
    "epoch 100 steps: 32 to 128, 8 to 32",
    "learning_rate": "Adam's learning rate after the warm-up; it falls to 0 along a cosine",
    "warm_up_epochs": "epochs in which the learning rate rises linearly",
    "max_gradient_norm": "clip the gradient's norm to this; 0: never",
    "ema_decay": "decay per step of the averaged weights, which are validated and exported; 0: no averaging",
    "patience": "end after this many epochs without a better validation bound, and keep the best epoch; 0: never",
    "finish_encoder": "then train the encoder alone by the ELBO, decoder frozen, and keep its best epoch",
    "finish_epochs": "most epochs of that phase; it ends sooner where the validation ELBO no longer improves",
    "seed": "seed of the splits, the weights and all noise",
    "num_validation": "held-out images that validate during training",
    "num_calibration": "held-out images that calibrate anomaly scores",
    "max_memory": "GiB of decoded pixels up to which image files and Parquet are loaded whole; larger data is streamed",
    "skip_corrupt": "leave out images that cannot be decoded, instead of refusing the data",
    "num_test": "held-out test images if the data has no test set",
    "group": "regular expression, searched in each image's path below the data: what its brackets capture names the "
    "thing shown, and all images of a thing are on one side of every division",
}
_UNSET = {
    "size": "all images must have one size",
    "fit": "exact, images as they are; crop with a size",
    "colour": "grey if all images are; auto also looks at pixels",
    "preset": "auto, an mlp up to 64×64 numbers an image, a resnet for larger ones, linear for features",
    "likelihood": f"{GREY} for 8-bit images if more than a fifth of the pixels are grey, else {BLACK_AND_WHITE}",
    "binarisation": "dynamic, or none",
    "first_samples": "--num-samples throughout",
    "epochs": "planned by --minutes: as many as have 12 000 steps, at least 120 and at most 1000, if there is time",
    "patience": "never; a tenth of the epochs, at least 10, where they are planned and there is no --first-samples",
    "finish_epochs": "a quarter of --epochs, at least 10 or as many",
    "warm_up_epochs": "1, or as many as have 100 steps, but at most a tenth of all",
    "num_validation": "2000, at most a tenth of the images",
    "num_calibration": "3000, at most a tenth",
    "num_test": "10000, at most a tenth",
    "group": "a table's column group; else each image is a thing by itself",
} | {name: option.unset for kind in LIKELIHOODS.values() for name, option in kind.configured.items()}
"""The default of an option whose default depends on the data or on another option."""
_CHOICES = {"preset": (AUTO, *get_args(Preset)), "fit": ("crop", "pad", "stretch")}
"""Of an option that takes others than its field."""


def add_configuration_options(parser: argparse.ArgumentParser, names: Container[str] | None = None) -> None:
    """One option for each of the configuration's fields, or for those of these names.

    Options not given are left out: recipes.py fills them in.
    """
    hints = get_type_hints(Configuration, include_extras=True)
    for field in fields(Configuration):
        if names is not None and field.name not in names:
            continue
        option, words = "--" + field.name.replace("_", "-"), _HELP[field.name]
        hint = without_none(hints[field.name])
        unset = _UNSET.get(field.name) or _default_by_preset(field.name, field.default)
        if field.name == "size":
            parser.add_argument(option, type=size_of, default=argparse.SUPPRESS, help=f"{words} (default: {unset})")
        elif hint is bool and field.default:
            words = f"{words} (default: True)"
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=words)
        elif hint is bool:
            parser.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=words)
        elif get_origin(hint) is Literal:
            choices = _CHOICES.get(field.name, get_args(hint))
            words = f"{words} (default: {unset})"
            parser.add_argument(option, choices=choices, default=argparse.SUPPRESS, help=words)
        elif hint is str:
            words = f"{words} (default: {unset})"
            parser.add_argument(option, default=argparse.SUPPRESS, metavar="REGEX", help=words)
        else:
            add_number(parser, option, hint, help=words, unset=unset)


def size_of(text: str) -> tuple[int, int] | Literal["auto"]:
    """A size as it is written.

    >>> size_of("64"), size_of("64x48"), size_of("auto")
    ((64, 64), (64, 48), 'auto')
    """
    if text == AUTO_SIZE:
        return AUTO_SIZE
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() and 1 <= int(side) <= MAX_SIDE for side in sides):
        raise argparse.ArgumentTypeError(
            f"must be auto, or pixels, or height x width, such as 64 or 64x48, each from 1 to {MAX_SIDE}, not {text!r}"
        )
    return int(sides[0]), int(sides[-1])


def _default_by_preset(name: str, default: object) -> str:
    by_preset = [f"{recipe[name]} for {preset}" for preset, recipe in RECIPES.items() if name in recipe]
    return "; ".join([str(default), *by_preset])
