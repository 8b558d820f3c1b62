"""The README's two pictures, and the numbers behind them: error by decoder rows, and estimated against true log P(x).

python benchmarks/pictures.py benchmarks/truth.npz docs    # the truth as benchmarks/truth.py wrote it; some minutes

Writes error-by-rows and estimated-against-true, each .png and .csv.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from truth import Truth, load

from model_store import BUNDLED, open_version
from service.engine import graphs
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.proposal import DEFAULT_NUM_SAMPLES
from service.engine.runtime import Runtime, Session

COLOURS = {"laplace": "#0072B2", "encoder": "#D55E00", "prior": "#666666"}  # of Okabe and Ito: told apart by all
MARKERS = {"simulated": "o", "test digits": "^", "upside down": "v", "thresholded elsewhere": "s", "noise": "D"}
NUM_SAMPLES = {
    "laplace": (4, 16, 64, 200, 400, 1000, 3000, 10_000, 30_000),
    "encoder": (16, 64, 250, 1000, 5000, 30_000),
    "prior": (16, 64, 250, 1000, 5000, 30_000),
}
HALF_OF_A_GAUSSIAN = 0.6745
"""Of its numbers are within this many standard deviations."""
FEW, MANY, COSTLY = 2, 6, 3000
"""Seeds from COSTLY samples on, and below."""


class CountingRuntime(Runtime):
    """Counts the decoder rows of every graph that it opened: images × (samples, or points of a forward difference)."""

    rows = 0

    def open(self, graph: bytes, file: Path) -> Session:
        """A session that counts."""
        return _Counted(super().open(graph, file), self)


class _Counted(Session):
    def __init__(self, session: Session, runtime: CountingRuntime) -> None:
        self._counted = session
        self._runtime = runtime

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Every graph around the decoder is told its shape, [images, rows an image, pixels]."""
        if graphs.SHAPE in inputs:
            self._runtime.rows += int(inputs[graphs.SHAPE][0] * inputs[graphs.SHAPE][1])
        return self._counted.run(inputs)


def measure_rows(model: Model, runtime: CountingRuntime, digits: Truth) -> list[dict[str, Any]]:
    """Errors on test digits by proposal and sample count, over images × seeds."""
    table = []
    for proposal, counts in NUM_SAMPLES.items():
        for num_samples in counts:
            runtime.rows = 0
            seeds = range(1, 1 + (MANY if num_samples < COSTLY else FEW))
            runs = [
                complete(model.log_likelihood(digits.images, proposal=proposal, num_samples=num_samples, seed=seed))
                for seed in seeds
            ]
            error = np.array([run.log_likelihood for run in runs]) - digits.log_likelihood  # [seeds, N]
            rows = runtime.rows / error.size
            if proposal == "prior":
                rows /= 2  # the other half went into the ELBO, which takes the encoder
            low, median, high = np.quantile(np.abs(error), (0.25, 0.5, 0.75))
            table.append(
                {
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
            print(
                " ".join(
                    f"{value:>8.3f}" if isinstance(value, float) else f"{value:>8}" for value in table[-1].values()
                )
            )
    return table


def draw_rows(file: Path, table: Sequence[Mapping[str, Any]], floor: float) -> None:
    """Median error with its middle half; `floor` is where the truth's own error hides the rest."""
    figure = Figure(figsize=(6.6, 4.0), layout="constrained")
    axes = _panel(figure)[0]
    for proposal, colour in COLOURS.items():
        lines = [line for line in table if line["proposal"] == proposal]
        rows = [line["rows"] for line in lines]
        axes.fill_between(
            rows,
            [line["quarter_below"] for line in lines],
            [line["quarter_above"] for line in lines],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(rows, [line["median_error"] for line in lines], "o-", color=colour, markersize=4)
        axes.annotate(
            proposal,
            (rows[-1], lines[-1]["median_error"]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
        )
        if proposal in ("laplace", "encoder"):
            default = next(line for line in lines if line["samples"] == DEFAULT_NUM_SAMPLES[proposal])
            axes.plot(default["rows"], default["median_error"], "o", color=colour, markersize=9, fillstyle="none")
    axes.axhline(floor, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(
        "median error of the truth itself",
        (0.01, floor),
        xycoords=("axes fraction", "data"),
        xytext=(0, -10),
        textcoords="offset points",
        fontsize=8,
    )
    axes.set(xscale="log", yscale="log", xlabel="decoder rows an image", ylabel="|estimate − true log P(x)|, nats")
    axes.set_xlim(right=2.2 * max(line["rows"] for line in table))
    axes.set_ylim(bottom=0.4 * min(floor, *(line["median_error"] for line in table)))
    axes.set_title("Error on test digits: median and middle half; ring: the default number of samples", fontsize=9)
    _save(figure, file)


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
    given = parser.parse_args()
    stored, runtime = open_version(BUNDLED, "mnist"), CountingRuntime("cpu")
    sets = load(given.truth, stored)
    model = Model.open(stored, runtime=runtime)
    estimates = measure_sets(model, sets)
    write(given.folder / "estimated-against-true.csv", estimates)
    draw_sets(given.folder / "estimated-against-true.png", estimates)
    digits = sets["test digits"]
    errors = measure_rows(model, runtime, digits)
    write(given.folder / "error-by-rows.csv", errors)
    draw_rows(given.folder / "error-by-rows.png", errors, HALF_OF_A_GAUSSIAN * float(np.median(digits.std_error)))


if __name__ == "__main__":
    main()
