"""8-bit pixels: a proper probability for each of the 256 values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.builder import GraphBuilder
from service.engine.likelihood.base import Curvature, Likelihood, Parameters

_FAR = np.float32(1e38)


class DiscretisedLogistic(Likelihood):
    """A logistic density integrated over each level's bin (Kingma et al. 2016, arXiv 1606.04934; PixelCNN++).

    x lies on L levels k/(L − 1) in [0, 1]; a bin reaches half a step δ = ½/(L − 1) to either side, the first and the
    last one to infinity. With a = (x + δ − loc)/s, b = (x − δ − loc)/s and s = exp(log_scale):

        P(x) = sigmoid(a) − sigmoid(b) = sigmoid(a)·sigmoid(−b)·(1 − exp(−2δ/s))

    The product form loses no digit however far x is from loc; the first level keeps only sigmoid(a), the last only
    sigmoid(−b).

    >>> levels = (np.arange(4) / 3).reshape(4, 1, 1, 1)
    >>> parameters = {"loc": np.full((1, 1, 1), 0.4), "log_scale": np.full((1, 1, 1), -2.0)}
    >>> bool(np.isclose(np.exp(DiscretisedLogistic(4).log_prob(levels, parameters)).sum(), 1))
    True
    """

    outputs = ("loc", "log_scale")

    def __init__(self, levels: int = 256) -> None:
        self.levels = levels
        self._top = levels - 1
        self._half_step = 0.5 / (levels - 1)

    def pixel_log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """log P(x), in the product form."""
        loc, log_scale = (np.asarray(parameters[name], np.float64) for name in self.outputs)
        inverse = np.exp(-log_scale)
        above = -np.logaddexp(0, -(x + self._half_step - loc) * inverse)  # log sigmoid(a)
        below = -np.logaddexp(0, (x - self._half_step - loc) * inverse)  # log sigmoid(−b)
        with np.errstate(divide="ignore"):
            width = np.log(-np.expm1(-2 * self._half_step * inverse))
        first, last = x < self._half_step, x > 1 - self._half_step
        inner = ~(first | last)
        return np.asarray(np.where(last, 0, above) + np.where(first, 0, below) + np.where(inner, width, 0))

    def pixel_entropy(self, parameters: Parameters) -> NDArray[np.float64]:
        """−Σ P(level)·log P(level); a P too small to be told as a difference of sigmoids adds nothing."""
        loc, log_scale = (np.asarray(parameters[name], np.float64) for name in self.outputs)
        half_inverse = 0.5 * np.exp(-log_scale)
        entropy, below = np.zeros_like(loc), np.zeros_like(loc)
        for level in range(self._top + 1):
            edge = (level + 0.5) / self._top
            above = 0.5 + 0.5 * np.tanh((edge - loc) * half_inverse) if level < self._top else np.ones_like(loc)
            probability = above - below
            entropy -= probability * np.log(np.maximum(probability, np.finfo(np.float64).tiny))
            below = above
        return entropy

    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """The decoder's `loc`: the mean of the logistic before it is binned and cut off at 0 and 1."""
        return parameters["loc"]

    def sample(self, parameters: Parameters, rng: np.random.Generator) -> NDArray[np.float32]:
        """loc + s·logit(U), moved to the nearest level."""
        uniform = rng.uniform(np.finfo(np.float64).tiny, 1, parameters["loc"].shape)
        logistic = np.log(uniform) - np.log1p(-uniform)
        value = parameters["loc"] + np.exp(parameters["log_scale"]) * logistic
        return np.asarray(np.rint(np.clip(value, 0, 1) * self._top) / self._top, np.float32)

    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """−log P(x) = max(−a, 0) + max(b, 0) + log [(1 + exp(−|a|))·(1 + exp(−|b|)) / (1 − exp(−2δ/s))].

        The first level's b and the last one's a are moved out of reach, to where their terms vanish, as is the width of
        both. A bracket is at most 4 / (1 − exp(−2δ/s)): four of them are multiplied before one logarithm is taken,
        which stays within float32 up to s = 10⁶.
        """
        upper, lower, half = self._bounds(builder, x)
        inverse = builder.add("Exp", builder.add("Neg", parameters["log_scale"]))  # [B, K, P]
        above = builder.add("Mul", builder.add("Sub", upper, parameters["loc"]), inverse)
        below = builder.add("Mul", builder.add("Sub", lower, parameters["loc"]), inverse)
        one = builder.constant(np.float32(1))
        h = builder.add("Tanh", builder.add("Mul", half, inverse))  # exact for the widest s: 1 − exp(−t) = 2h/(1 + h)
        bracket = builder.add("Div", builder.add("Add", h, one), builder.add("Add", h, h))
        for bound in (above, below):
            decay = builder.add("Exp", builder.add("Neg", builder.add("Abs", bound)))
            bracket = builder.add("Mul", bracket, builder.add("Add", decay, one))
        group = builder.group(num_pixels, 4)
        groups = builder.constant(np.array([0, 0, group, num_pixels // group], np.int64))
        grouped = builder.add("Reshape", bracket, groups)  # [B, K, group, P/group]
        product = builder.add("ReduceProd", grouped, builder.constant(np.array([2], np.int64)), keepdims=0)
        outside = builder.add("Add", builder.add("Relu", builder.add("Neg", above)), builder.add("Relu", below))
        cost = builder.add(
            "Add",
            builder.sum_double(builder.log(product), num_pixels // group),
            builder.sum_pixels(outside, num_pixels),
        )
        return builder.add("Neg", cost)

    def curvature(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str]) -> Curvature:
        """Scores and information, exact; the outer two levels lack what stems from the edge that they do not have.

        With up = sigmoid(−a), down = sigmoid(b), p = up·(1 − up), q = down·(1 − down), t = 2δ/s and
        r = t/(exp(t) − 1), scores are (down − up)/s and b·down − a·up − r. Information is (p + q)/s² in loc,
        (down − up + a·p + b·q)/s between the two, and b·down − a·up + a²·p + b²·q + r·(r + t − 1) in log_scale.
        """
        above, below, width, first, last = self._terms(builder, x, parameters)
        zero, one = builder.constant(np.float32(0)), builder.constant(np.float32(1))
        inverse = builder.add("Exp", builder.add("Neg", parameters["log_scale"]))
        up = builder.add("Where", last, zero, builder.add("Sigmoid", builder.add("Neg", above)))
        down = builder.add("Where", first, zero, builder.add("Sigmoid", below))
        opposite_up, opposite_down = (builder.add("Sub", one, sigmoid) for sigmoid in (up, down))
        slope = builder.add("Sub", down, up)
        above_up, below_down = builder.add("Mul", above, up), builder.add("Mul", below, down)
        pull = builder.add("Sub", below_down, above_up)
        p, q = builder.add("Mul", up, opposite_up), builder.add("Mul", down, opposite_down)
        above_p, below_q = builder.add("Mul", above_up, opposite_up), builder.add("Mul", below_down, opposite_down)

        h = builder.add("Tanh", builder.add("Mul", width, builder.constant(np.float32(0.5))))
        ratio = builder.add("Div", builder.add("Sub", one, h), builder.add("Add", h, h))  # 1/(exp(t) − 1)
        spread = builder.add("Where", builder.add("Or", first, last), zero, builder.add("Mul", width, ratio))
        change = builder.add("Sub", builder.add("Add", spread, width), one)

        # a²·p as (a·sigmoid(−a))·(a·sigmoid(a)): the square of a alone may be beyond float32.
        squares = builder.add(
            "Add",
            builder.add("Mul", above_up, builder.add("Mul", above, opposite_up)),
            builder.add("Mul", below_down, builder.add("Mul", below, opposite_down)),
        )
        in_scale = builder.add("Add", builder.add("Add", pull, squares), builder.add("Mul", spread, change))
        in_both = builder.add("Add", slope, builder.add("Add", above_p, below_q))
        in_loc = builder.add("Mul", builder.add("Mul", builder.add("Add", p, q), inverse), inverse)
        return Curvature(
            {"loc": builder.add("Mul", slope, inverse), "log_scale": builder.add("Sub", pull, spread)},
            {
                ("loc", "loc"): in_loc,
                ("loc", "log_scale"): builder.add("Mul", in_both, inverse),
                ("log_scale", "log_scale"): in_scale,
            },
        )

    def _bounds(self, builder: GraphBuilder, x: str) -> tuple[str, str, str]:
        """x + δ, x − δ and δ, those out of reach that have no term: [B, 1, P] each."""
        half_step, far = builder.constant(np.float32(self._half_step)), builder.constant(_FAR)
        first = builder.add("Less", x, half_step)
        last = builder.add("Greater", x, builder.constant(np.float32(1 - self._half_step)))
        upper = builder.add("Where", last, far, builder.add("Add", x, half_step))
        lower = builder.add("Where", first, builder.add("Neg", far), builder.add("Sub", x, half_step))
        return upper, lower, builder.add("Where", builder.add("Or", first, last), far, half_step)

    def _terms(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str]) -> tuple[str, str, str, str, str]:
        """a, b, t = 2δ/s, and whether x is the first or the last level; [B, K, P] or, for the last two, [B, 1, P]."""
        half_step = builder.constant(np.float32(self._half_step))
        inverse = builder.add("Exp", builder.add("Neg", parameters["log_scale"]))
        difference = builder.add("Sub", x, parameters["loc"])
        above = builder.add("Mul", builder.add("Add", difference, half_step), inverse)
        below = builder.add("Mul", builder.add("Sub", difference, half_step), inverse)
        width = builder.add("Mul", inverse, builder.constant(np.float32(2 * self._half_step)))
        first = builder.add("Less", x, half_step)
        last = builder.add("Greater", x, builder.constant(np.float32(1 - self._half_step)))
        return above, below, width, first, last
