"""The models of the parts: the bundled ones, and one of every preset and likelihood, small and at real size."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_parts.record import Options, Record
from model_store import BUNDLED, DECODER, ENCODER, LIKELIHOOD, Description, list_versions, open_version
from service.engine.format1 import likelihood_graph_of
from service.engine.model import Model, Pixels
from service.engine.runtime import Runtime

DESCRIPTION = "description.json"
DIGITS = Path(__file__).parents[2] / "tests" / "data" / "digits.npz"
SMALL_IMAGE, REAL_IMAGE = (2, 12, 10), (1, 28, 28)


@dataclass(frozen=True)
class Graphs:
    """A model that the engine can open on any runtime."""

    name: str
    description: Description
    encoder: bytes
    decoder: bytes
    likelihood: bytes
    calibration: Mapping[str, NDArray[np.float64]] | None = None

    def open(self, runtime: Runtime, **keywords: Any) -> Model:
        """The engine's model."""
        return Model(
            self.description,
            self.encoder,
            self.decoder,
            self.likelihood,
            runtime=runtime,
            calibration=self.calibration,
            **keywords,
        )


def names(options: Options) -> list[str]:
    """Of every model: the bundled ones, then `small, PRESET, LIKELIHOOD` and `real, …`."""
    bundled = list(list_versions(BUNDLED))
    if options.models is not None:
        return bundled + sorted(path.name for path in options.models.iterdir())
    from gpu_parts.presets import EVERY

    return bundled + [f"{size}, {preset}, {likelihood}" for size in ("small", "real") for preset, likelihood in EVERY]


def groups(options: Options) -> dict[str, list[str]]:
    """Models that share a case: each bundled one alone, of the others those of one size and preset."""
    found: dict[str, list[str]] = {}
    for name in names(options):
        found.setdefault(", ".join(name.split(", ")[:2]), []).append(name)
    return dict(list(found.items())[:4]) if options.quick else found


def load(name: str, options: Options) -> Graphs:
    """A model by its name."""
    if name in list_versions(BUNDLED):
        stored = open_version(BUNDLED, name)
        return Graphs(
            name, stored.manifest, stored.encoder, stored.decoder, likelihood_graph_of(stored), stored.calibration
        )
    if options.models is not None:
        return _read(options.models / name)
    return exported(name)


def exported(name: str) -> Graphs:
    """An untrained model of a preset and a likelihood; real sizes are the preset's own, but in quick trials."""
    from gpu_parts.presets import PRESETS, SMALL
    from gpu_parts.presets import exported as export

    size, preset, likelihood = name.split(", ", 2)
    shape = SMALL_IMAGE if size == "small" else REAL_IMAGE
    images = np.random.default_rng(11).integers(0, 256, (64, *shape), np.uint8)
    found = export(PRESETS[PRESETS.index(preset)], likelihood, images, **(SMALL if size == "small" else {}))
    return Graphs(name, found.description, found.graphs.encoder, found.graphs.decoder, found.graphs.likelihood)


def digits(count: int) -> Pixels:
    """Test digits [N, 1, 28, 28] in [0, 1]; beyond a hundred they come again, some pixels lighter or darker."""
    with np.load(DIGITS, allow_pickle=False) as archive:
        images: NDArray[np.uint8] = archive["test"]
    rng = np.random.default_rng(5)
    chosen = images[np.arange(count) % len(images), None] / np.float32(255)
    noise = rng.uniform(-0.2, 0.2, chosen.shape).astype(np.float32)
    noise[: len(images)] = 0
    return np.clip(chosen + noise, 0, 1)


def strange(count: int, shape: tuple[int, ...]) -> Pixels:
    """Images unlike any the models know: bands of noise, [N, C, H, W]."""
    rng = np.random.default_rng(6)
    images = rng.uniform(0, 1, (count, *shape)).astype(np.float32)
    images[:, :, ::3] = rng.uniform(0, 1, (count, 1, 1, 1)).astype(np.float32)
    return images


def export_all(record: Record, options: Options) -> None:
    """Write every model but the bundled ones to the folder of results, for machines without PyTorch."""
    for name in names(options):
        if name in list_versions(BUNDLED):
            continue
        with record.attempt(name):
            graphs = exported(name)
            folder = options.out / "models" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ENCODER).write_bytes(graphs.encoder)
            (folder / DECODER).write_bytes(graphs.decoder)
            (folder / LIKELIHOOD).write_bytes(graphs.likelihood)
            (folder / DESCRIPTION).write_text(graphs.description.model_dump_json())
            record.row("models", model=name, bytes=len(graphs.encoder) + len(graphs.decoder))


def _read(folder: Path) -> Graphs:
    description = Description.model_validate_json((folder / DESCRIPTION).read_text())
    encoder, decoder, likelihood = ((folder / file).read_bytes() for file in (ENCODER, DECODER, LIKELIHOOD))
    return Graphs(folder.name, description, encoder, decoder, likelihood)
