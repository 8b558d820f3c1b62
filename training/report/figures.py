"""Pictures of a training run: its curves, what it makes of validation images, and what it dreams up."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.data.splits import binarise, derive_seed, unit_pixels
from training.files import write_atomically
from training.fit.memory import images_a_batch
from training.fit.run import Run
from training.networks.precision import full_float32
from training.networks.vae import Vae

CURVES, RECONSTRUCTIONS, SAMPLES = "curves.png", "reconstructions.png", "samples.png"
_COLUMNS = 16
_FIGURES = 3  # a stream of random numbers


@full_float32()
def draw_figures(run: Run, model: Vae, validation: NDArray[np.generic]) -> None:
    """Draw all three pictures into the run's folder; `validation` [N, C, H, W] gives the images to reconstruct.

    Of a run of features, the curves alone.
    """
    draw_curves(run.folder / CURVES, run.read_metrics())
    if run.description.features is not None:
        return  # there are no images to draw
    configuration = run.description.configuration
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(derive_seed(configuration.seed, _FIGURES))
    images = unit_pixels(torch.from_numpy(validation[: 4 * _COLUMNS]).to(device))
    with torch.no_grad():
        x = binarise(images, configuration.binarisation, generator=generator)
        batch = images_a_batch(8 * _COLUMNS, model.image_shape)
        reconstructed = torch.cat([model.expected_image(model.encode(part)[0]) for part in torch.split(x, batch)])
        z = torch.randn((8 * _COLUMNS, model.latent_dim), generator=generator, device=device)
        samples = torch.cat([model.expected_image(part) for part in torch.split(z, batch)])
    rows = [
        row for pair in zip(torch.split(x, _COLUMNS), torch.split(reconstructed, _COLUMNS), strict=True) for row in pair
    ]
    draw_grid(run.folder / RECONSTRUCTIONS, rows)
    draw_grid(run.folder / SAMPLES, torch.split(samples, _COLUMNS))


def draw_curves(file: Path, metrics: Sequence[dict[str, float]]) -> None:
    """Bounds of log P(x) over the epochs; the first epochs may lie below the picture, the last ones set its range."""
    # Imported only where something is drawn: that takes as long as all else that a command imports but PyTorch.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    epochs = [line["epoch"] for line in metrics]
    for key in ("train_bound", "validation_bound", "validation_elbo"):
        axes.plot(epochs, [line[key] for line in metrics], label=key.replace("_", " "))
    if alone := [line["epoch"] for line in metrics if line.get("encoder_epoch")]:
        axes.axvline(alone[0] - 0.5, color="grey", label="from here the encoder alone", linestyle=":")
    settled = [line["validation_elbo"] for line in metrics[len(metrics) // 10 :]]
    axes.set_ylim(bottom=min(settled) - 1)
    axes.set(xlabel="epoch", ylabel="bound of log P(x), nats an image")
    axes.grid(alpha=0.3)
    axes.legend()

    def write(stream: IO[bytes]) -> None:
        figure.savefig(stream, format="png", dpi=110)

    write_atomically(file, write)


def draw_grid(file: Path, rows: Sequence[Tensor]) -> None:
    """Rows of images into a PNG file, see `grid_png`."""
    content = grid_png([row.cpu().numpy() for row in rows])
    write_atomically(file, lambda stream: stream.write(content))


def grid_png(rows: Sequence[NDArray[np.float32]]) -> bytes:
    """Rows of images, each [N, C, H, W] in [0, 1] with at most as many images as the first; C = 1 is drawn grey.

    Of other numbers of channels than 1 and 3, the first is drawn.
    """
    columns, channels, height, width = rows[0].shape
    sheet = np.zeros((3 if channels == 3 else 1, len(rows) * height, columns * width), dtype=np.uint8)  # [C, H, W]
    for line, row in enumerate(rows):
        pixels = np.rint(row[:, : len(sheet)].clip(0, 1) * 255).astype(np.uint8)
        for column, image in enumerate(pixels):
            sheet[:, line * height : (line + 1) * height, column * width : (column + 1) * width] = image
    stream = io.BytesIO()
    Image.fromarray(np.moveaxis(sheet, 0, -1).squeeze()).save(stream, format="png")
    return stream.getvalue()
