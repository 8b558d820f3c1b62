"""Pixels and latents that are numbers, and not those of an image: infinite, denormal, beyond [0, 1], beyond float32."""

from collections.abc import Iterator

import numpy as np

from tests.hostile.attacks.attack import ANOMALY, AS_JSON, DECODE, ENCODE, NPY, SCORE, Attack, asks
from tests.web.forms import npy

ROUTES = (ENCODE, SCORE, ANOMALY)
WRONG = {"not a number": np.nan, "infinite": np.inf, "minus infinite": -np.inf, "above 1": 1.5, "below 0": -1e-3}
RIGHT = {"denormal": 1e-45, "minus zero": -0.0, "nearly 1": np.nextafter(np.float32(1), np.float32(0))}


def image_of(value: float, *, everywhere: bool) -> bytes:
    """A float32 digit that has this value in one place or in all."""
    image = np.full((1, 28, 28), value if everywhere else 0.5, np.float32)
    image[0, 27, 27] = value
    return npy(image)


def pixel_attacks() -> Iterator[Attack]:
    """Each one request."""
    for route in ROUTES:
        for what, value in WRONG.items():
            yield asks(f"one pixel {what} to {route}", 422, "POST", route, image_of(value, everywhere=False), NPY)
            yield asks(f"every pixel {what} to {route}", 422, "POST", route, image_of(value, everywhere=True), NPY)
        for what, value in RIGHT.items():
            yield asks(f"every pixel {what} to {route}", 200, "POST", route, image_of(value, everywhere=True), NPY)
    for what, value in {"not a number": np.nan, "infinite": np.inf, "too large": 1e39, "the largest": 1e308}.items():
        latents = np.array([[value, 0, 0]], np.float64)
        yield asks(f"a latent {what}", 422, "POST", DECODE, npy(latents), NPY)
    for what, value in {"denormal": 1e-45, "the largest float32": 3e38, "minus zero": -0.0}.items():
        latents = np.full((1, 3), value, np.float32)
        yield asks(f"a latent {what}", 200, "POST", DECODE, npy(latents), NPY)
    for text in ("NaN", "Infinity", "1e999", "-1e999", "0x10", "01", "1.", ".5", "+1", "1e", "--1", "\uff11"):
        yield asks(f"the JSON number {text!a}", 422, "POST", DECODE, f'{{"latents":[[{text},0,0]]}}'.encode(), AS_JSON)
