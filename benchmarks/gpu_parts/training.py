"""(g) Images a second of `fit`, by precision and compilation, and whether bfloat16 trains to the same bounds."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from gpu_parts import models
from gpu_parts.record import Case, Options, Record

ROOT = Path(__file__).parents[2]
WAYS = (("float32", "off"), ("bfloat16", "off"), ("float32", "on"), ("bfloat16", "on"))
NUM_IMAGES, EPOCHS = {"mlp": 60_000, "resnet": 12_000}, {"mlp": 5, "resnet": 4}
MOST_NATS = 1.0
"""That a validation bound may be off in bfloat16 after a few epochs; the bound itself is about −100."""


def cases(_: Options) -> dict[str, Case]:
    """Each preset, in every way."""
    return {preset: partial(fit, preset) for preset in ("mlp", "resnet")} | {"one decoder's outputs": outputs}


def fit(preset: str, record: Record, options: Options) -> None:
    """Train for a few epochs on noisy digits; the first epoch, which compiles, does not count for speed."""
    bounds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        pixels = models.digits(options.size(NUM_IMAGES[preset], 300))
        np.savez(data, train=(255 * pixels[:, 0]).astype(np.uint8))
        for precision, compiled in WAYS[:2] if options.quick else WAYS:
            with record.attempt(f"{precision}, compile {compiled}"):
                run = Path(folder) / f"{precision}-{compiled}"
                command = [sys.executable, "-m", "training", "fit", "--data", str(data), "--out", str(run)]
                command += ["--device", options.device, "--precision", precision, "--compile", compiled]
                command += ["--preset", preset, "--epochs", str(options.size(EPOCHS[preset], 2))]
                command += ["--width", "4", "--latent-dim", "3"] if options.quick else []
                command += ["--likelihood", "bernoulli"]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                if done.returncode:
                    record.fail(" ".join(command[1:]), (done.stdout + done.stderr)[-4000:])
                    continue
                epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                speeds = [epoch["images_per_second"] for epoch in epochs]
                bounds[f"{precision} {compiled}"] = epochs[-1]["validation_bound"]
                record.row(
                    "training",
                    preset=preset,
                    precision=precision,
                    compiled=compiled,
                    images_a_second=float(np.median(speeds[1:])),
                    first_epoch=speeds[0],
                    validation_bound=epochs[-1]["validation_bound"],
                    train_bound=epochs[-1]["train_bound"],
                )
    plain = bounds.get("float32 off")
    for way, bound in bounds.items():
        if plain is not None:
            record.expect(f"{way}: the bound is float32's", abs(bound - plain) <= MOST_NATS, nats=bound - plain)


def outputs(record: Record, options: Options) -> None:
    """log p(x|z) of the same latent codes, the decoder in bfloat16 and in float32, in nats."""
    import torch

    from gpu_parts.presets import PRESETS, SMALL, exported

    device = torch.device(options.device)
    images = (255 * models.digits(64)).astype(np.uint8)
    for preset in PRESETS:
        vae = exported(preset, "bernoulli", images, **(SMALL if options.quick else {})).vae.to(device)
        x = (torch.from_numpy(images).to(device) > 127).float()
        z = torch.randn(64, 8, vae.latent_dim, device=device)
        with torch.no_grad():
            plain = vae.conditional_log_likelihood(x, z)
            with torch.autocast(device.type, torch.bfloat16):
                low = vae.conditional_log_likelihood(x, z)
        off = (low - plain).abs()
        record.row("bfloat16, nats", preset=preset, largest=off.max().item(), mean=(low - plain).mean().item())
        record.expect(f"{preset}: a density is float32", low.dtype == torch.float32, dtype=str(low.dtype))
