"""(g) Images a second over HTTP, the service on the device, at 1, 8 and 32 connections."""

import asyncio
from functools import partial

import numpy as np
from load import closed_loop, npy, png, post, served

from gpu_parts import models
from gpu_parts.record import Case, Options, Record

CONNECTIONS = (1, 8, 32)
SECONDS = 5.0
BATCH = 64
PATHS = {"encode": "/v1/encode", "log P": "/v1/log-likelihood", "scores": "/v1/anomaly-scores"}


def cases(options: Options) -> dict[str, Case]:
    """One image a request, then batches."""
    batch = options.size(BATCH, 2)
    return {"one PNG a request": partial(load, 1), f"{batch} images a request": partial(load, batch)}


def load(images: int, record: Record, options: Options) -> None:
    """Each operation, then all three mixed, by connections."""
    pixels = (255 * models.digits(100)[:, 0]).astype(np.uint8)  # [100, 28, 28]
    with served(execution_provider=options.device) as port:
        requests = {name: _requests(path, images, pixels) for name, path in PATHS.items()}
        requests["mixed"] = [one for three in zip(*requests.values(), strict=True) for one in three]
        for name, bodies in requests.items():
            for connections in CONNECTIONS[:2] if options.quick else CONNECTIONS:
                with record.attempt(f"{name}, {connections} connections"):
                    seconds = 0.5 if options.quick else SECONDS
                    asyncio.run(closed_loop(port, bodies, connections=connections, seconds=seconds / 5))
                    answers = asyncio.run(closed_loop(port, bodies, connections=connections, seconds=seconds))
                    about = {"operation": name, "images": images, "connections": connections}
                    record.row(
                        "serving",
                        **about,
                        images_a_second=images * answers.rate,
                        p50_ms=answers.milliseconds(0.5),
                        p99_ms=answers.milliseconds(0.99),
                        statuses=str(dict(answers.statuses)),
                    )
                    record.expect(f"{name}: every answer is a 200", set(answers.statuses) == {200}, **about)


def _requests(path: str, images: int, pixels: np.ndarray) -> list[bytes]:
    if images == 1:
        return [post(path, png(image), "image/png") for image in pixels]
    return [post(path, npy(np.roll(pixels, turn, axis=0)[:images]), "application/x-npy") for turn in range(8)]
