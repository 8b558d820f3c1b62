"""Linear-Gaussian models, whose log P(x) is exact, as estimates are held against."""

from functools import cache

from model_store import ImageShape
from service.engine.model import Model
from tests import reference
from tests.toys import LinearGaussian

SHAPE = ImageShape(channels=1, height=10, width=13)


@cache
def oracle(latent_dim: int) -> LinearGaussian:
    return LinearGaussian.random(SHAPE, latent_dim, scale=0.3)


@cache
def exact_model(latent_dim: int) -> Model:
    return reference.load(oracle(latent_dim).toy(SHAPE, widen=1.3))
