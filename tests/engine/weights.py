"""What an estimate's figures make of errors in its log weights."""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from service.engine.posterior.estimate import LogLikelihood, estimate
from tests.toys import AnyArray

_STEP = 1e-5
_COUNTED = ("num_samples", "proposal", "reliable", "reason")


def figure_errors(log_weight: AnyArray, error: float, num_pixels: int) -> dict[str, AnyArray]:
    """How far the figures of log weights [B, K] may move where each of these, and the ELBO's, moves by `error`: [B].

    error·Σ_k |∂figure/∂log_weight_k|, by differences in float64; twice as much, for what is beyond the first order.
    Where one is NaN, so is its error.
    """
    errors: dict[str, AnyArray] = {}
    for row in np.asarray(log_weight, np.float64):
        rows = np.concatenate([row[None], row + _STEP * np.eye(len(row))])
        record = estimate(rows, np.zeros(len(rows)), num_pixels)
        for field in fields(LogLikelihood):
            if field.name not in _COUNTED:
                values = getattr(record, field.name)
                with np.errstate(invalid="ignore"):  # −∞ less itself
                    slope = np.abs(values[1:] - values[0]).sum() / _STEP
                errors[field.name] = np.append(errors.get(field.name, []), 2 * error * slope)
    errors["elbo"] = np.full(len(log_weight), error)
    errors["posterior_gap"] = errors["log_likelihood"] + error
    return errors


def assert_near(first: LogLikelihood, second: LogLikelihood, errors: Mapping[str, AnyArray]) -> None:
    """Every figure differs by its error at most, [B]; what is counted or named, not at all."""
    for field in fields(LogLikelihood):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name in _COUNTED:
            np.testing.assert_array_equal(one, other, err_msg=field.name)
            continue
        exact = (one == other) | (np.isnan(one) & np.isnan(other))
        assert (exact | (np.abs(np.where(exact, 0, one) - np.where(exact, 0, other)) <= errors[field.name])).all(), (
            field
        )


def assert_same(first: LogLikelihood, second: LogLikelihood) -> None:
    """Every figure is the same to the last bit."""
    for field in fields(LogLikelihood):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)
