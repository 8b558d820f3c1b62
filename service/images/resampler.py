"""Which library resamples images here, and whether it gives the bits with which a model was trained."""

import hashlib
from functools import cache

import numpy as np
import PIL

from model_store import PixelPreparation, Resampler
from service.images.fitting import Fit, Fitting

_SHAPES = ((1, 64, 48), (3, 31, 40), (3, 150, 211))
"""Of what the test pattern becomes: grey and colour, smaller and larger."""
_FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")


class ResamplerError(Exception):
    """Images resampled here would not have the bits with which the model was trained."""


@cache
def installed_resampler() -> Resampler:
    """What resamples here, as a manifest records it.

    Its `sha256` is of what becomes of a test pattern (in C order, one result after the other): PCG64(0)'s first bytes
    as one colour image [3, 97, 131] of 8-bit levels, fitted to each of `_SHAPES` in each way.
    """
    raw = np.random.PCG64(0).random_raw(3 * 97 * 131 // 8 + 1).astype("<u8").view(np.uint8)
    pattern = raw[: 3 * 97 * 131].reshape(1, 3, 97, 131)
    digest = hashlib.sha256()
    for shape in _SHAPES:
        for fit in _FITS:
            digest.update(Fitting(fit).levels(pattern, shape).tobytes())
    return Resampler(
        library="pillow", version=PIL.__version__, filter="bilinear", antialiased=True, sha256=digest.hexdigest()
    )


def check_resampler(preparation: PixelPreparation) -> str | None:
    """Compare a model's resampler with the one here; a sentence to warn with where only the version differs.

    Raises:
        ResamplerError: another library or filter is needed, or the test pattern comes out differently here.

    >>> check_resampler(PixelPreparation())
    """
    needed, here = preparation.resampler, installed_resampler()
    if needed is None:
        return None
    if needed.method != here.method:
        raise ResamplerError(f"preparation.resampler is {needed.in_words()}; this service has {here.in_words()}")
    if needed.sha256 is not None and needed.sha256 != here.sha256:
        raise ResamplerError(
            f"its images were resampled by {needed.in_words()}, whose pixels are not those of {here.in_words()} here: "
            "install that version, or train again with this one"
        )
    if needed.version == here.version:
        return None
    checked = "a test pattern has the same bits" if needed.sha256 else "its pixels may differ"
    return f"its images were resampled by {needed.in_words()}, here by version {here.version}; {checked}"
