"""pythae's `get_nll`, and the same estimate in plain batched PyTorch, on weights that the parent process hands over.

Runs in an environment of its own; `benchmarks/fused_graph.py` starts it and says how to make that. It reads one way's
name a line and answers with `{"seconds", "samples", "log_likelihood"}`, the mean over images in nats.
"""

import json
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn
from torch.nn import functional as F

Weights = dict[str, Tensor]


def linear(weights: Weights, name: str) -> nn.Linear:
    """A layer with the exported weights."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def body(weights: Weights) -> nn.Sequential:
    """The two hidden layers."""
    return nn.Sequential(nn.Flatten(), linear(weights, "hidden1"), nn.SiLU(), linear(weights, "hidden2"), nn.SiLU())


class Encoder(BaseEncoder):  # type: ignore[misc]  # the peer is not installed where types are checked
    """784-512-512-D, as training/networks/vae.py has it."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.body, self.mean, self.log_var = body(weights), linear(weights, "mean"), linear(weights, "log_var")

    def forward(self, x: Tensor) -> ModelOutput:
        """What pythae wants of an encoder."""
        hidden = self.body(x)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))


class Decoder(BaseDecoder):  # type: ignore[misc]
    """D-512-512-784; pythae wants probabilities, and takes their logarithms again."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.body, self.logits = body(weights), linear(weights, "logits")

    def forward(self, z: Tensor) -> ModelOutput:
        """What pythae wants of a decoder."""
        return ModelOutput(reconstruction=torch.sigmoid(self.logits(self.body(z))))


def batched(vae: VAE, x: Tensor, num_samples: int) -> float:
    """The encoder once, all samples of an image as one batch, the likelihood from logits."""
    estimates = []
    with torch.inference_mode():
        for image in x:
            posterior = vae.encoder(image[None])
            mean, log_var = posterior.embedding, posterior.log_covariance  # [1, D]
            noise = torch.randn(num_samples, mean.shape[1])
            z = mean + torch.exp(log_var / 2) * noise  # [K, D]
            logits = vae.decoder.logits(vae.decoder.body(z))  # [K, P]
            log_likelihood = logits @ image.flatten() - F.softplus(logits).sum(1)
            log_weight = log_likelihood + 0.5 * (noise**2 + log_var - z**2).sum(1)
            estimates.append(float(torch.logsumexp(log_weight, 0)) - math.log(num_samples))
    return float(np.mean(estimates))


def main() -> None:
    """Answer one line after another until the parent closes the pipe."""
    file, threads, num_samples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    x = arrays["x"]

    def part(prefix: str) -> Weights:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    latent_dim = len(arrays["encoder.mean.bias"])
    vae = VAE(
        VAEConfig(input_dim=tuple(x.shape[1:]), latent_dim=latent_dim, reconstruction_loss="bce"),
        encoder=Encoder(part("encoder.")),
        decoder=Decoder(part("decoder.")),
    ).eval()

    def get_nll(batch_size: int, grad: bool) -> Callable[[], float]:
        def run() -> float:
            with torch.set_grad_enabled(grad):
                return float(vae.get_nll(x, n_samples=num_samples, batch_size=batch_size))

        return run

    ways: dict[str, Callable[[], float]] = {
        "pythae get_nll": get_nll(100, grad=True),  # its own default batch
        "pythae get_nll, no_grad": get_nll(100, grad=False),
        "pythae get_nll, no_grad, batch 500": get_nll(500, grad=False),
        "PyTorch, batched": lambda: batched(vae, x, num_samples),
    }
    print(json.dumps(list(ways)), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        log_likelihood = ways[line.strip()]()  # pythae's get_nll returns mean log p, not its negative
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "log_likelihood": log_likelihood}), flush=True)


if __name__ == "__main__":
    main()
