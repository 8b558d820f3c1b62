"""The protocols that a command's options ask for."""

import argparse

from service.engine.proposal import DEFAULT_NUM_SAMPLES, check_request
from training.publish.evaluation import Protocol


def protocol_of(parsed: argparse.Namespace, seed: int) -> Protocol:
    """How log P(x) is estimated.

    Raises:
        TooFewSamplesError: the proposal takes more samples than were said.
    """
    num_samples = getattr(parsed, "num_samples", DEFAULT_NUM_SAMPLES[parsed.proposal])
    check_request(parsed.proposal, num_samples)
    return Protocol(parsed.proposal, num_samples, seed)


def scoring_of(parsed: argparse.Namespace, protocol: Protocol) -> Protocol:
    """Of anomaly scores: what was said of them, and for the rest the protocol of the estimates."""
    proposal = getattr(parsed, "score_proposal", protocol.proposal)
    own = protocol.num_samples if proposal == protocol.proposal else DEFAULT_NUM_SAMPLES[proposal]
    num_samples = getattr(parsed, "score_samples", own)
    check_request(proposal, num_samples)
    return Protocol(proposal, num_samples, protocol.seed)
