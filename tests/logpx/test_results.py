"""Results: put together of chunks, as tables, and decisions over all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpx import AnomalyScores, Images, Judgements, Latents
from logpx.results import benjamini_hochberg, joined
from service.engine.anomaly import conformal


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9]))
def test_decisions_over_a_list_are_the_service_s(ranks: list[int], fdr: float) -> None:
    p_value = np.array(ranks) / 20
    np.testing.assert_array_equal(benjamini_hochberg(p_value, fdr), conformal.benjamini_hochberg(p_value, fdr))


def scores(p_values: list[float]) -> AnomalyScores:
    p_value = np.array(p_values)
    flags = np.zeros(len(p_value), bool)
    return AnomalyScores(
        model="m",
        version=1,
        method="kl",
        alpha=0.05,
        fdr=None,
        calibration_size=99,
        score=-p_value,
        p_value=p_value,
        is_anomaly=flags,
        log_likelihood=p_value,
        std_error=p_value,
        posterior_gap=p_value,
        num_samples=np.ones(len(p_value), np.int64),
        reliable=~flags,
        scores={"kl": Judgements(-p_value, p_value, flags), "elbo": Judgements(p_value, 1 - p_value, flags)},
        explanation=tuple(None if p > 0.5 else np.full((1, 2, 2), p) for p in p_values),
    )


def test_chunks_are_joined_in_order_and_decided_over_together() -> None:
    whole = joined([scores([0.01, 0.9]), scores([0.06]), scores([0.02, 0.95])])
    assert len(whole) == 5
    assert whole.p_value.tolist() == [0.01, 0.9, 0.06, 0.02, 0.95]
    assert [None if each is None else each[0, 0, 0] for each in whole.explanation] == [0.01, None, 0.06, 0.02, None]
    assert not whole.is_anomaly.any()
    decided = whole.decided(0.1)
    assert decided.is_anomaly.tolist() == [True, False, True, True, False]
    assert decided.scores["kl"].is_anomaly.tolist() == [True, False, True, True, False]
    assert decided.scores["elbo"].is_anomaly.tolist() == [False] * 5  # 1 - 0.95 is more than 0.1 / 5
    assert (decided.alpha, decided.fdr) == (None, 0.1)


def test_tables_have_a_row_an_image() -> None:
    table = scores([0.01, 0.9]).to_pandas()
    assert list(table.columns) == [
        *("score", "p_value", "is_anomaly", "log_likelihood", "std_error", "posterior_gap", "num_samples", "reliable"),
        *(f"scores.{method}.{name}" for method in ("kl", "elbo") for name in ("score", "p_value", "is_anomaly")),
    ]
    assert table["scores.elbo.p_value"].tolist() == pytest.approx([0.99, 0.1])
    latents = Latents("m", 1, np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((2, 3), np.float32)).to_pandas()
    assert list(latents.columns) == ["mean_0", "mean_1", "mean_2", "log_var_0", "log_var_1", "log_var_2"]
    assert latents["mean_1"].tolist() == [1, 4]


def test_images_become_pil_images_of_their_levels() -> None:
    levels = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(np.uint8)
    found = Images("m", 1, (levels / 255).astype(np.float32)).to_pil()
    assert [image.mode for image in found] == ["RGB", "RGB"]
    np.testing.assert_array_equal(np.asarray(found[1]), np.moveaxis(levels[1], 0, -1))
    grey = Images("m", 1, (levels[:, :1] / 255).astype(np.float32)).to_pil()
    np.testing.assert_array_equal(np.asarray(grey[1]), levels[1, 0])
