"""Charts as SVG to be put into a page: they take their colours from its style sheet, light or dark."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that nothing else has stand for the page's own.
_TEXT, _FIRST, _SECOND, _THIRD = "#010101", "#010102", "#010103", "#010104"
_ON_THE_PAGE = {_TEXT: "currentColor", _FIRST: "var(--first)", _SECOND: "var(--second)", _THIRD: "var(--third)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _TEXT,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
}


def curves_chart(metrics: Sequence[Mapping[str, float]]) -> str:
    """Bounds of log P(x) over the epochs; the first tenth may lie below the picture.

    A line says from where on the encoder alone was trained.
    """

    def draw(axes: "Axes") -> None:
        epochs = [line["epoch"] for line in metrics]
        colours = {"train_bound": _THIRD, "validation_bound": _FIRST, "validation_elbo": _SECOND}
        for key, colour in colours.items():
            label = key.replace("_", " ").replace("elbo", "ELBO")
            axes.plot(epochs, [line[key] for line in metrics], color=colour, label=label, linewidth=1.4)
        if alone := [line["epoch"] for line in metrics if line.get("encoder_epoch")]:
            axes.axvline(alone[0] - 0.5, color=_TEXT, label="from here the encoder alone", linewidth=0.8, linestyle=":")
        settled = [line[key] for line in metrics[len(metrics) // 10 :] for key in colours]
        margin = 0.05 * (max(settled) - min(settled)) + 0.1
        axes.set_ylim(min(settled) - margin, max(settled) + margin)
        axes.set(xlabel="epoch", ylabel="nats an image")
        axes.legend()

    return _draw("curves", draw)


def units_chart(kl: NDArray[np.float64], active: NDArray[np.bool_]) -> str:
    """KL a latent unit [D], largest first; units that are not active in another colour."""

    def draw(axes: "Axes") -> None:
        order = np.argsort(-kl, kind="stable")
        places = np.arange(len(kl))
        for chosen, colour, label in ((active[order], _FIRST, "active"), (~active[order], _THIRD, "not active")):
            if chosen.any():
                axes.bar(places[chosen], kl[order][chosen], color=colour, label=label, width=0.8)
        axes.set(xlabel="latent units, by their KL", ylabel="KL, nats an image", xlim=(-0.7, len(kl) - 0.3))
        axes.set_xticks(places[:: max(1, len(kl) // 10)])
        axes.legend()

    return _draw("units", draw)


def histogram_chart(values: NDArray[np.float64]) -> str:
    """How log P(x) is spread over the images [N]."""

    def draw(axes: "Axes") -> None:
        bins = int(np.clip(np.sqrt(len(values)), 5, 60))
        axes.hist(values, bins=bins, color=_FIRST)
        axes.axvline(float(values.mean()), color=_SECOND, linewidth=1.4, label="mean")
        axes.set(xlabel="log P(x), nats", ylabel="images")
        axes.legend()

    return _draw("histogram", draw)


def _draw(name: str, draw: Callable[["Axes"], None]) -> str:
    # Imported only where something is drawn: that takes as long as all else that a command imports but PyTorch.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Names inside a drawing are made from the salt: of two drawings in one page they must differ.
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, colour in _ON_THE_PAGE.items():
        text = text.replace(stand_in, colour)
    return text
