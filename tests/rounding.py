"""How far rounding alone can move a number: what the tests' tolerances are made of.

A tolerance that was found by trying holds for one processor: another adds in another order, or fuses a product with a
sum. These bounds hold for every order (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
"""

FLOAT32 = 2.0**-24
"""Unit roundoff: the largest relative error of one operation."""
FLOAT64 = 2.0**-53


def gamma(num_operations: int, unit: float = FLOAT32) -> float:
    """Relative error of so many roundings one after another, n·u / (1 − n·u).

    >>> gamma(1, FLOAT64) < 1.2e-16
    True
    """
    return num_operations * unit / (1 - num_operations * unit)


def sum_error(num_terms: int, magnitude: float, unit: float = FLOAT32, *, roundings_of_a_term: int = 8) -> float:
    """The largest error of a sum of so many terms whose absolute values add up to `magnitude`, in any order.

    Each term may have been rounded itself: a product once, an exponential or a logarithm by a few units in the last
    place, which is what `roundings_of_a_term` counts.

    >>> sum_error(784, 100) < 0.005  # nats of a log P(x) over 784 pixels
    True
    """
    return gamma(num_terms + roundings_of_a_term, unit) * magnitude


def density_error(num_pixels: int, nats: float) -> float:
    """Of a float32 log density over so many pixels, or a log weight made of one, of up to `nats` in absolute value.

    Its terms add up, in absolute value, to more than it: those of a Bernoulli density are x·l and softplus(l), which
    cancel in part, and a weight has the prior and the proposal, too. Four times as much holds for the tests' models.
    """
    return sum_error(num_pixels, 4 * nats)
