"""The protocols that a command's options ask for, and of which images `publish` takes its figures."""

import argparse
import math
from collections.abc import Mapping

from service.engine.proposal import DEFAULT_NUM_SAMPLES, check_request
from training.data.image_files import Pixels
from training.data.splits import Images, evenly_spaced
from training.networks.mlp import FULL_RATE_PIXELS
from training.publish.evaluation import Protocol

DEFAULT_ENCODER_SAMPLES = 5000
MOST_IMAGES = 256
"""Test images, and images of defects in all, of which `publish` takes its figures where images are large."""
QUICK_SCORE_SAMPLES = 128
"""For an anomaly score: from the encoder of a large image, by `laplace` of a small one."""
_FEWEST_DEFECTS = 16  # of a kind


def protocol_of(parsed: argparse.Namespace, seed: int) -> Protocol:
    """How log P(x) is estimated.

    Raises:
        TooFewSamplesError: the proposal takes more samples than were said.
    """
    num_samples = getattr(parsed, "num_samples", DEFAULT_NUM_SAMPLES[parsed.proposal])
    check_request(parsed.proposal, num_samples)
    return Protocol(parsed.proposal, num_samples, seed)


def scoring_of(parsed: argparse.Namespace, protocol: Protocol, images: Images) -> Protocol:
    """Of anomaly scores: what was said of them, and for the rest the protocol of the estimates.

    Where these are by `auto`, scores take 128 samples at most: of images [N, C, H, W] of more than 784 numbers from the
    encoder, which is a tenth of the work, and otherwise, as where they are by `laplace`, by that, which is half of it.
    Images are ranked as well (docs/anomaly-scores.md).
    """
    said, large = getattr(parsed, "score_proposal", None), _are_large(images)
    quick = said is None and (protocol.proposal == "auto" or (protocol.proposal == "laplace" and not large))
    proposal = ("encoder" if large else "laplace") if quick else said or protocol.proposal
    own = protocol.num_samples if proposal == protocol.proposal else DEFAULT_NUM_SAMPLES[proposal]
    if quick:
        own = QUICK_SCORE_SAMPLES if large else min(QUICK_SCORE_SAMPLES, protocol.num_samples)
    num_samples = getattr(parsed, "score_samples", own)
    check_request(proposal, num_samples)
    return Protocol(proposal, num_samples, protocol.seed)


def encoder_samples_of(parsed: argparse.Namespace, images: Images) -> int:
    """Of the second estimate: 5000, as in the literature, of images [N, C, H, W] of up to 784 numbers; otherwise 0.

    A decoder row of 64×64 pixels takes five times as long, and from the encoder no number of samples is enough there.
    """
    default = 0 if _are_large(images) else DEFAULT_ENCODER_SAMPLES
    return int(getattr(parsed, "encoder_samples", default))


def measured_images(parsed: argparse.Namespace, images: Images) -> Images:
    """The test images that are measured: as many as said, evenly spaced; by default all, or 256 of large ones."""
    most = getattr(parsed, "images", MOST_IMAGES if _are_large(images) else len(images))
    return images if len(images) <= most else evenly_spaced(images, most)


def measured_defects(parsed: argparse.Namespace, defects: Mapping[str, Pixels]) -> dict[str, Pixels]:
    """The images of defects that are scored, by kind: as many in all as of test images, at least 16 of each kind."""
    if not defects:
        return {}
    large = any(_are_large(images) for images in defects.values())
    most = getattr(parsed, "images", MOST_IMAGES if large else sum(map(len, defects.values())))
    each = max(_FEWEST_DEFECTS, most // len(defects))
    return {kind: evenly_spaced(images, each) for kind, images in defects.items()}


def _are_large(images: Images) -> bool:
    return math.prod(images.shape[1:]) > FULL_RATE_PIXELS
