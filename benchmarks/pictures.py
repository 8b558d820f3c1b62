"""The README's two pictures, and the numbers behind them: error by decoder rows, and estimated against true log P(x).

python benchmarks/pictures.py benchmarks/truth.npz docs    # the truth as benchmarks/truth.py wrote it; some minutes

Writes error-by-rows and estimated-against-true, each .png and .csv.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from truth import Truth, load

from model_store import BUNDLED, open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.proposal import DEFAULT_NUM_SAMPLES
from service.engine.runtime import Runtime

COLOURS = {
    "annealed": "#009E73",
    "laplace": "#0072B2",
    "encoder": "#D55E00",
    "prior": "#666666",
}  # of Okabe and Ito: told apart by all
MARKERS = {"simulated": "o", "test digits": "^", "upside down": "v", "thresholded elsewhere": "s", "noise": "D"}
NUM_SAMPLES = {
    "annealed": (400, 1000, 3000, 10_000),
    "laplace": (4, 16, 64, 200, 400, 1000, 3000, 10_000, 30_000),
    "encoder": (16, 64, 250, 1000, 5000, 30_000),
    "prior": (16, 64, 250, 1000, 5000, 30_000),
}
HALF_OF_A_GAUSSIAN = 0.6745
"""Of its numbers are within this many standard deviations."""
FEW, MANY, COSTLY = 1, 4, 3000
"""Seeds from COSTLY samples on, and below."""
PANELS = {"test digits": "test digits", "thresholded elsewhere": "clothes, thresholded"}
"""Familiar images and strange ones, with their names in the picture."""


def measure_rows(model: Model, sets: Mapping[str, Truth]) -> list[dict[str, Any]]:
    """Errors by set, proposal and sample count, over images × seeds."""
    table = []
    for (name, truth), (proposal, counts) in product(sets.items(), NUM_SAMPLES.items()):
        for num_samples in counts:
            before = model.decoder_rows
            seeds = range(1, 1 + (MANY if num_samples < COSTLY else FEW))
            runs = [
                complete(model.log_likelihood(truth.images, proposal=proposal, num_samples=num_samples, seed=seed))
                for seed in seeds
            ]
            error = np.array([run.log_likelihood for run in runs]) - truth.log_likelihood  # [seeds, N]
            rows = (model.decoder_rows - before) / error.size
            if proposal == "prior":
                rows /= 2  # the other half went into the ELBO, which takes the encoder
            low, median, high = np.quantile(np.abs(error), (0.25, 0.5, 0.75))
            table.append(
                {
                    "set": name,
                    "proposal": proposal,
                    "samples": num_samples,
                    "rows": round(rows),
                    "median_error": median,
                    "quarter_below": low,
                    "quarter_above": high,
                    "rmse": np.sqrt((error**2).mean()),
                    "bias": error.mean(),
                }
            )
            line = (f"{value:>8.3f}" if isinstance(value, float) else f"{value:>8}" for value in table[-1].values())
            print(" ".join(line), flush=True)
    return table


def draw_rows(file: Path, table: Sequence[Mapping[str, Any]], floors: Mapping[str, float]) -> None:
    """Median error with its middle half, a panel a set; below its floor the truth's own error hides the rest."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    for axes, name in zip(_panel(figure, len(floors)), floors, strict=True):
        here = [line for line in table if line["set"] == name]
        for proposal, colour in COLOURS.items():
            _draw_proposal(axes, [line for line in here if line["proposal"] == proposal], proposal, colour)
        axes.axhline(floors[name], color="black", linewidth=0.8, linestyle=":")
        axes.annotate(
            "median error of the truth itself",
            (0.01, floors[name]),
            xycoords=("axes fraction", "data"),
            xytext=(0, -10),
            textcoords="offset points",
            fontsize=8,
        )
        axes.set(xscale="log", yscale="log", xlabel="decoder rows an image", title=PANELS[name])
        axes.set_xlim(right=9 * max(line["rows"] for line in here))
        axes.set_ylim(bottom=0.4 * min(floors[name], *(line["median_error"] for line in here)))
        axes.title.set_fontsize(10)
    figure.axes[0].set_ylabel("|estimate − true log P(x)|, nats: median, middle half", fontsize=9)
    _save(figure, file)


def _draw_proposal(axes: Axes, lines: Sequence[Mapping[str, Any]], proposal: str, colour: str) -> None:
    """A line, and a ring at the default number of samples."""
    rows = [line["rows"] for line in lines]
    below, above = ([line[key] for line in lines] for key in ("quarter_below", "quarter_above"))
    axes.fill_between(rows, below, above, color=colour, alpha=0.18, linewidth=0)
    axes.plot(rows, [line["median_error"] for line in lines], "o-", color=colour, markersize=4)
    axes.annotate(
        proposal,
        (rows[-1], lines[-1]["median_error"]),
        xytext=(7, {"prior": 8, "annealed": -6}.get(proposal, 0)),
        textcoords="offset points",
        va="center",
        color=colour,
        fontweight="bold",
    )
    if proposal != "prior":
        default = next(line for line in lines if line["samples"] == DEFAULT_NUM_SAMPLES[proposal])
        axes.plot(default["rows"], default["median_error"], "o", color=colour, markersize=9, fillstyle="none")


def _first(truth: Truth, count: int) -> Truth:
    """The truth of the first images."""
    return Truth(truth.images[:count], truth.lower[:count], truth.upper[:count], truth.std_error[:count])


def measure_sets(model: Model, sets: Mapping[str, Truth]) -> list[dict[str, Any]]:
    """One line an image and proposal, at the default sample counts."""
    table = []
    for name, truth in sets.items():
        for proposal in ("encoder", "laplace"):
            found = complete(model.log_likelihood(truth.images, proposal=proposal))
            table += [
                {
                    "set": name,
                    "image": image,
                    "proposal": proposal,
                    "lower_bound": truth.lower[image],
                    "upper_bound": truth.upper[image],
                    "estimate": found.log_likelihood[image],
                    "std_error": found.std_error[image],
                    "reliable": int(found.reliable[image]),
                }
                for image in range(len(truth.images))
            ]
    return table


def draw_sets(file: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Left: estimate by truth, with the identity. Right: their difference ± the standard error that was reported."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = _panel(figure, 2)
    for name, marker in MARKERS.items():
        for proposal in ("encoder", "laplace"):
            lines = [line for line in table if line["set"] == name and line["proposal"] == proposal]
            estimate = np.array([line["estimate"] for line in lines])
            bounds = np.array([(line["lower_bound"], line["upper_bound"]) for line in lines])
            true = bounds.mean(axis=1)
            std_error = np.array([line["std_error"] for line in lines])
            style: dict[str, Any] = {
                "fmt": marker,
                "color": COLOURS[proposal],
                "markersize": 4.5,
                "markerfacecolor": "none",
                "markeredgewidth": 0.9,
                "elinewidth": 0.8,
                "alpha": 0.85,
            }
            left.errorbar(-true, -estimate, std_error, **style)
            right.errorbar(-true, estimate - true, std_error, **style)
    ends = [0.9 * min(-line["upper_bound"] for line in table), 1.2 * max(-line["lower_bound"] for line in table)]
    left.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
    right.axhline(0, color="black", linewidth=0.8, zorder=0)
    left.set(yscale="log", ylabel="estimated −log P(x), nats", title="Estimated against true")
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(bottom=2 * min(0, *(line["estimate"] - line["upper_bound"] for line in table)))
    right.set(ylabel="estimate − true log P(x), nats", title="Difference ± reported standard error")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="true −log P(x), nats")
        axes.title.set_fontsize(10)
    proposals = [Line2D([], [], color=COLOURS[name], linewidth=3, label=name) for name in ("laplace", "encoder")]
    kinds = [
        Line2D([], [], color="#444444", marker=marker, linestyle="", markerfacecolor="none", markersize=5, label=name)
        for name, marker in MARKERS.items()
    ]
    figure.legend(handles=[*proposals, *kinds], loc="outside lower center", ncols=7, frameon=False, fontsize=8.5)
    _save(figure, file)


def _panel(figure: Figure, count: int = 1) -> Sequence[Axes]:
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(1, count, index + 1) for index in range(count)]
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return panels


def _save(figure: Figure, file: Path) -> None:
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        axis.set_major_formatter("{x:g}")  # 100, not 10²
    figure.savefig(file, dpi=150, metadata={"Software": None})


def write(file: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Comma-separated, three decimals."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in line.items()}
            for line in table
        )


def main() -> None:
    """Measure and draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=8, help="of each set, for the error by rows")
    parser.add_argument(
        "--only", choices=("rows", "sets"), help="one picture: error by rows, or the estimates of all sets"
    )
    given = parser.parse_args()
    stored = open_version(BUNDLED, "mnist")
    sets = load(given.truth, stored)
    model = Model.open(stored, runtime=Runtime("cpu"))
    if given.only != "rows":
        estimates = measure_sets(model, sets)
        write(given.folder / "estimated-against-true.csv", estimates)
        draw_sets(given.folder / "estimated-against-true.png", estimates)
    if given.only != "sets":
        chosen = {name: _first(sets[name], given.images) for name in PANELS}
        errors = measure_rows(model, chosen)
        write(given.folder / "error-by-rows.csv", errors)
        floors = {name: HALF_OF_A_GAUSSIAN * float(np.median(truth.std_error)) for name, truth in chosen.items()}
        draw_rows(given.folder / "error-by-rows.png", errors, floors)


if __name__ == "__main__":
    main()
