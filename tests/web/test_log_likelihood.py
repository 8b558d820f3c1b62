"""`POST /v1/log-likelihood`: which proposal was used, whether an estimate is reliable, and why it is not."""

from collections import Counter
from typing import Any, get_args

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from service.engine.posterior.estimate import REASONS, LogLikelihood
from service.engine.proposal import DEFAULT_PROPOSAL, IMPORTANCE_PROPOSALS, PROPOSALS
from service.web import schemas
from service.web.answer_size import log_likelihoods_bytes
from service.web.responses import estimate_rows, json_reply
from tests.toys import LinearGaussian
from tests.web.conftest import GAUSSIAN_SHAPE, Serve
from tests.web.forms import npy

ROUTE, NPY = "/v1/log-likelihood", {"content-type": "application/x-npy"}
OF_WEIGHTS = {"effective_sample_size", "pareto_k"}
"""Fields that tell of importance weights, and are null where there are none."""


def ask(client: TestClient, images: Any, query: str = "") -> dict[str, Any]:
    answer = client.post(f"{ROUTE}?{query}", content=npy(images), headers=NPY)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    validated = schemas.LogLikelihoods.model_validate(found).model_dump()
    assert validated.keys() == found.keys()
    for shown, result in zip(validated["results"], found["results"], strict=True):
        assert shown.keys() == result.keys()
    return found


def nulls(result: dict[str, Any]) -> set[str]:
    return {name for name, value in result.items() if value is None}


def test_the_vocabulary_is_the_engines() -> None:
    assert get_args(schemas.Reason) == REASONS


@pytest.mark.parametrize("proposal", [None, *PROPOSALS])
def test_an_answer_names_the_proposal_asked_for_and_each_result_the_one_used(
    client: TestClient, linear_gaussian: LinearGaussian, digits: Any, proposal: str | None
) -> None:
    """Familiar images, of a Gaussian posterior, and digits that a toy which was never trained finds strange."""
    query = "" if proposal is None else f"proposal={proposal}"
    familiar = ask(client, linear_gaussian.draw(3, GAUSSIAN_SHAPE, seed=5), f"{query}&model=linear-gaussian")
    strange = ask(client, digits, f"{query}&num_samples=40")
    asked = proposal or DEFAULT_PROPOSAL
    assert DEFAULT_PROPOSAL == "auto"
    possible = {"auto": {"laplace", "annealed"}, "laplace": {"laplace", "encoder"}}.get(asked, {asked})
    for answer in (familiar, strange):
        assert answer["proposal"] == asked
        assert {result["proposal"] for result in answer["results"]} <= possible
    for result in familiar["results"] + strange["results"]:
        assert result["reliable"] is (result["reason"] is None)
        importance = result["proposal"] in IMPORTANCE_PROPOSALS
        assert OF_WEIGHTS - nulls(result) == (OF_WEIGHTS if importance else set())
        assert nulls(result) <= {*OF_WEIGHTS, "reason"}
    if asked != "prior":
        assert all(result["reliable"] for result in familiar["results"])
    if asked == "annealed":
        assert all(result["num_samples"] >= 400 for result in strange["results"])


def test_the_default_takes_importance_samples_where_they_do(
    client: TestClient, linear_gaussian: LinearGaussian
) -> None:
    """To the byte what `laplace` answers, but for the name of what was asked."""
    x = linear_gaussian.draw(6, GAUSSIAN_SHAPE, seed=31)
    by_default, by_laplace = (ask(client, x, f"model=linear-gaussian{query}") for query in ("", "&proposal=laplace"))
    used = np.array([result["proposal"] == "laplace" for result in by_default["results"]])
    assert used.any()
    for index in np.flatnonzero(used):
        assert by_default["results"][index] == by_laplace["results"][index]


@pytest.mark.parametrize("proposal", ["annealed", "auto"])
def test_alone_and_in_any_order_an_answer_is_the_same_to_the_bit(
    client: TestClient, linear_gaussian: LinearGaussian, proposal: str
) -> None:
    """Images drawn from the model, and some that it would never draw."""
    x = linear_gaussian.draw(4, GAUSSIAN_SHAPE, seed=32)
    x[2:] = 1 - np.round(x[2:])
    query = f"model=linear-gaussian&proposal={proposal}&seed=3"
    together = ask(client, x, query)["results"]
    assert ask(client, x[::-1], query)["results"] == together[::-1]
    assert [ask(client, one[None], query)["results"][0] for one in x] == together


@pytest.mark.parametrize("proposal", ["annealed", "auto"])
def test_max_std_error_is_met_by_annealing_too(
    client: TestClient, linear_gaussian: LinearGaussian, proposal: str
) -> None:
    x = linear_gaussian.draw(4, GAUSSIAN_SHAPE, seed=33)
    x[2:] = 1 - np.round(x[2:])
    query = f"model=linear-gaussian&proposal={proposal}"
    at_once, further = (ask(client, x, query + more)["results"] for more in ("", "&max_std_error=0.002"))
    exact = linear_gaussian.log_likelihood(x)
    for before, after, truth in zip(at_once, further, exact, strict=True):
        assert after["reliable"]
        assert after["std_error"] <= 0.002
        assert after["num_samples"] > before["num_samples"]
        assert abs(after["log_likelihood"] - truth) < 4 * after["std_error"] + 1e-3


def test_one_sample_is_too_few(client: TestClient, digits: Any) -> None:
    (result,) = ask(client, digits[:1], "proposal=encoder&num_samples=1")["results"]
    assert (result["reliable"], result["reason"]) == (False, "budget")
    assert nulls(result) == {"std_error", "pareto_k"}


def test_the_prior_has_a_heavy_tail(client: TestClient, linear_gaussian: LinearGaussian) -> None:
    """Of 100 draws from it hardly one comes near an image at the edge of what the model draws."""
    x = np.ones((1, *GAUSSIAN_SHAPE.chw), np.float32)
    (result,) = ask(client, x, "model=linear-gaussian&proposal=prior&num_samples=100")["results"]
    assert (result["reliable"], result["reason"]) == (False, "tail")


@pytest.mark.parametrize("proposal", ["laplace", "annealed", "auto"])
def test_without_iterations_no_mode_is_found(serve: Serve, digits: Any, proposal: str) -> None:
    client = serve(max_steps=1)
    results = ask(client, digits, f"proposal={proposal}&num_samples=40")["results"]
    assert "mode" in {result["reason"] for result in results}
    assert not any(result["reliable"] for result in results if result["reason"])


def test_every_reason_is_written_and_none_is_null() -> None:
    """A reliable estimate, and one for each reason that an estimate is not."""
    count = len(REASONS) + 1
    nothing, one = np.full(count, np.nan), np.ones(count)
    record = LogLikelihood(
        log_likelihood=-one,
        std_error=np.append(one[1:], np.inf),
        elbo=-2 * one,
        bits_per_dim=one,
        posterior_gap=one,
        effective_sample_size=nothing,
        pareto_k=nothing,
        num_samples=np.full(count, 1000),
        proposal=np.full(count, "annealed"),
        reliable=np.arange(count) == 0,
        reason=np.array(["", *REASONS]),
    )
    results = orjson.loads(json_reply({"results": estimate_rows(record)}).body)["results"]
    assert [result["reason"] for result in results] == [None, *REASONS]
    assert [nulls(result) - OF_WEIGHTS for result in results] == [{"reason"}, set(), set(), set(), {"std_error"}]
    assert [schemas.LogLikelihoodResult.model_validate(result).reason for result in results] == [None, *REASONS]


def test_an_answer_has_no_more_bytes_than_are_told_before() -> None:
    """Numbers as long as they can be."""
    long, count = np.full(200, -2.2250738585072014e-308), 200
    record = LogLikelihood(
        *(long,) * 7,
        num_samples=np.full(count, 2**53 - 1),
        proposal=np.full(count, "annealed"),
        reliable=np.zeros(count, np.bool_),
        reason=np.full(count, "budget"),
    )
    assert len(json_reply({"results": estimate_rows(record)}).body) < log_likelihoods_bytes(count)


def test_the_metrics_count_reliable_estimates_of_every_proposal(serve: Serve, linear_gaussian: LinearGaussian) -> None:
    client = serve(model="linear-gaussian")
    ask(client, linear_gaussian.draw(3, GAUSSIAN_SHAPE, seed=34), "proposal=annealed")
    counted = 'logpx_estimates_total{model="linear-gaussian",reason="",reliable="true",version="1"} 3.0'
    assert counted in client.get("/metrics").text


def test_the_metrics_count_why_estimates_are_not_reliable(serve: Serve, linear_gaussian: LinearGaussian) -> None:
    client = serve(model="linear-gaussian", max_steps=1)
    images = 1 - linear_gaussian.draw(4, GAUSSIAN_SHAPE, seed=34)
    results = ask(client, images, "proposal=laplace&num_samples=4")["results"]
    reasons = Counter(result["reason"] for result in results)
    assert set(reasons) - {None}
    text = client.get("/metrics").text
    for reason, count in reasons.items():
        labels = f'model="linear-gaussian",reason="{reason or ""}",reliable="{str(reason is None).lower()}",version="1"'
        assert f"logpx_estimates_total{{{labels}}} {count}.0" in text


def test_the_documentation_describes_what_a_client_reads(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    shown = document["components"]["schemas"]["LogLikelihoodResult"]
    assert set(shown["properties"]) == set(shown["required"])
    reason = shown["properties"]["reason"]
    assert reason["anyOf"][0]["enum"] == list(REASONS)
    assert all(f"({word})" in reason["description"] for word in REASONS)
    operation = document["paths"]["/v1/log-likelihood"]["post"]
    (proposal,) = [p for p in operation["parameters"] if p["name"] == "proposal"]
    assert proposal["schema"]["enum"] == list(PROPOSALS)
    assert proposal["schema"]["default"] == "auto"
