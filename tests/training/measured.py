"""What float32 makes of a network, measured."""

import copy

import torch
from torch import Tensor

from tests.rounding import FUNCTION, gamma
from training.networks.vae import Vae


def network_rounding(vae: Vae, x: Tensor) -> float:
    """How far two float32 evaluations of a network may differ: images [B, C, H, W], by any of its outputs.

    Bounds for every order of adding, layer by layer, are far too wide for networks of many layers. What one evaluation
    really loses against float64 is a draw of the same rounding errors: the largest over all outputs tells their size,
    which another order, or another processor's, does not exceed many times. Each exponential may add its own.
    """
    double = copy.deepcopy(vae).double()
    with torch.no_grad():
        mean, log_var = vae.encode(x)
        found = [mean, log_var, *vae.decoder(mean)]
        exact_mean, exact_log_var = double.encode(x.double())
        exact = [exact_mean, exact_log_var, *double.decoder(mean.double())]
    lost = max((one - other).abs().max().item() for one, other in zip(found, exact, strict=True))
    return float(16 * lost + gamma(FUNCTION) * max(one.abs().max().item() for one in found))
