"""What a model is like, on one page: figures with their protocols, and pictures of what it makes of images."""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.engine.chunks import complete
from service.engine.model import Model
from training.data.originals import Example
from training.data.splits import PARTS, Images, evenly_spaced, take
from training.files import write_atomically
from training.fit.encoder_phase import default_epochs
from training.likelihoods import LIKELIHOODS
from training.publish.detection import Detection
from training.publish.evaluation import Evaluation, fresh_batches, in_unit_interval
from training.publish.held_out import TRAINING_IMAGES
from training.publish.provenance import FINISHED_ENCODER
from training.publish.units import ACTIVE_VARIANCE, LatentUnits
from training.report.charts import curves_chart, histogram_chart, units_chart
from training.report.elements import PAGE, data_uri, figure, section, table
from training.report.figures import grid_png
from training.report.verdict import Verdict

REPORT = "report.html"
_COLUMNS = 16
_ROWS = 8
_THUMBNAIL = 160  # pixels
_TRAVERSED, _REACH = 10, 3.0  # units, and standard deviations of the prior


@dataclass(frozen=True)
class Measured:
    """What is reported of a model.

    Attributes:
        title: what the model is called.
        data: what the images are, in words.
        images: that were scored, [N, C, H, W].
        evaluations: the estimates of log P(x), the most trusted first.
        units: of the latent code.
        seed: of the binarisation, and of the samples that are drawn.
        verdict: on the model, which the page begins with; None where its training is not at hand.
        detection: how well scores tell images of defects apart, where there are some.
        examples: training images as their files have them and as they are prepared, where they are.
    """

    title: str
    data: str
    images: Images
    evaluations: Sequence[Evaluation]
    units: LatentUnits
    seed: int
    verdict: Verdict | None = None
    detection: Detection | None = None
    examples: Sequence[Example] = ()


def write_report(file: Path, model: Model, measured: Measured, curves: Sequence[Mapping[str, float]] = ()) -> None:
    """Write the page: one HTML file that needs no other, in light and in dark.

    Args:
        file: to write, atomically.
        model: that was measured; the pictures are what it serves.
        measured: figures and images.
        curves: the lines of the run's metrics.jsonl, or nothing.
    """
    description = model.description
    image = description.image
    sections = [
        section("How likely the images are", _figures(measured)),
        section("The latent code", _units(measured.units)),
        *(_pictures(model, measured) if description.features is None else []),
        section("The most and the least likely images", _extremes(measured)),
    ]
    if measured.detection:
        sections.insert(1, section("Defects", _detection(measured.detection)))
    if curves:
        sections.insert(1, section("Training", figure(curves_chart(curves), _training(model))))
    if measured.verdict:
        sections.insert(0, section("Verdict", _verdict(measured.verdict)))
    if measured.examples:
        sections.append(section("How images are prepared", _prepared(measured.examples)))
    sections.append(section("How it was made", _provenance(model)))
    shape = f"{image.channels} × {image.height} × {image.width}"
    intro = (
        f"{measured.evaluations[0].num_images} images of {shape}: {measured.data}. Likelihood "
        f"{description.likelihood.kind.replace('_', ' ')}, {description.latent_dim} latent units, prior N(0, I). "
        "Measured through the serving engine on the exported graphs."
    )
    page = PAGE.format(title=html.escape(measured.title), intro=html.escape(intro), sections="\n".join(sections))
    write_atomically(file, lambda stream: stream.write(page.encode(errors="backslashreplace")))


def _pictures(model: Model, measured: Measured) -> list[str]:
    """What the model makes of images, and of codes; a model of features makes no images."""
    return [
        section("Reconstructions", _reconstructions(model, measured)),
        section("Samples", _samples(model, measured.seed)),
        section("What single units do", _traversals(model, measured.units)),
    ]


def _verdict(verdict: Verdict) -> str:
    items = "".join(f"<li>{html.escape(line)}.</li>" for line in verdict.evidence)
    summary = html.escape(verdict.summary)
    openings = ["To try next", *["Then"] * len(verdict.advice)]
    advice = "".join(
        f"<p>{opening}: {html.escape(line)}.</p>" for opening, line in zip(openings, verdict.advice, strict=False)
    )
    return f"<p><b>{summary[0].upper()}{summary[1:]}.</b></p><ul>{items}</ul>{advice}"


def _prepared(examples: Sequence[Example]) -> str:
    """The originals, made smaller, in one row, and below each what the model sees of it."""
    pictures = []
    for example in examples:
        pixels = example.original
        original = Image.fromarray(np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels[0])
        original.thumbnail((_THUMBNAIL, _THUMBNAIL))
        stream = io.BytesIO()
        original.save(stream, "PNG")
        prepared = grid_png([in_unit_interval(example.prepared)[None]])
        alternatives = {"original": stream.getvalue(), "prepared": prepared}
        pictures.append("".join(f'<img alt="{alt}" src="{data_uri(png)}">' for alt, png in alternatives.items()))
    content = "".join(f"<span>{picture}</span>" for picture in pictures)
    caption = "Evenly spaced training images, above as their files show them, made smaller; below what the model sees."
    return figure(f"<div class=prepared>{content}</div>", caption)


def _detection(detection: Detection) -> str:
    rows = [
        [html.escape(name), str(count), *(f"{100 * value:.1f} %" for value in detection.auroc[name].values())]
        for name, count in detection.num_defects.items()
    ]
    methods = [method.replace("_", " ") for method in detection.methods]
    note = (
        f"<p>AUROC: how often an image of the defect has a higher score than one of the {detection.num_ordinary} "
        "ordinary test images. 50 % is chance; below, the score is lower for defects.</p>"
    )
    return table(["defect", "images", *methods], rows) + note


def _training(model: Model) -> str:
    """The caption of the curves."""
    caption = "Bounds of log P(x) over the epochs."
    finished = model.description.provenance.configuration.get(FINISHED_ENCODER)
    if finished is None:
        return caption
    before, after = finished["elbo_before"], finished["elbo_after"]
    return (
        f"{caption} The last {finished['epochs']} trained the encoder alone, by the ELBO, and kept "
        f"{'the best of them' if finished['kept_epoch'] else 'none of them'}: validation ELBO {_number(before, 2)} → "
        f"{_number(after, 2)} nats, +{after - before:.2f}."
    )


def _figures(measured: Measured) -> str:
    rows = [
        [
            f"{evaluation.proposal}, K = {evaluation.num_samples}",
            f"<b>{_number(evaluation.log_likelihood, 2)}</b> ± {evaluation.std_error:.2f}",
            f"{_number(evaluation.bits_per_dim, 4)} ± {evaluation.bits_per_dim_std_error:.4f}",
            f"{_number(evaluation.elbo, 2)} ± {evaluation.elbo_std_error:.2f}",
            _number(evaluation.log_likelihood - evaluation.elbo, 2),
            f"{100 * evaluation.reliable:.1f} %",
        ]
        for evaluation in measured.evaluations
    ]
    head = ["proposal", "log P(x), nats", "bits / dim", "ELBO, nats", "gap, nats", "reliable"]
    protocols = "".join(f"<li>{html.escape(evaluation.protocol)}.</li>" for evaluation in measured.evaluations)
    note = (
        "<p>± is the standard error over images. The gap is log P(x) − ELBO, what the encoder's posterior misses. "
        "K samples are drawn of each image to begin with. Reliable are images whose own estimate and error bar the "
        "engine vouches for.</p>"
    )
    chart = histogram_chart(measured.evaluations[0].record.log_likelihood)
    caption = f"log P(x) of each image, {measured.evaluations[0].proposal} proposal."
    return table(head, rows) + note + f"<ul>{protocols}</ul>" + figure(chart, caption)


def _units(units: LatentUnits) -> str:
    active = units.variance_of_mean > ACTIVE_VARIANCE
    text = (
        f"<p><b>{units.num_active} of {len(active)}</b> units are active: over the images, the variance of their "
        f"posterior mean is above {ACTIVE_VARIANCE} (Burda et al. 2016). The code carries {units.kl.sum():.2f} nats "
        f"an image, of which the active units {units.kl[active].sum():.2f}.</p>"
    )
    return text + figure(units_chart(units.kl, active), "KL[q(z_d|x) ‖ N(0, 1)] of each unit, mean over the images.")


def _reconstructions(model: Model, measured: Measured) -> str:
    images = evenly_spaced(measured.images, _COLUMNS * _ROWS // 2)
    images = images[: len(images) // _COLUMNS * _COLUMNS or len(images)]  # whole rows
    x = next(fresh_batches(model, images, seed=measured.seed))
    decoded = complete(model.decode(complete(model.encode(x)).mean))
    rows = []
    for start in range(0, len(x), _COLUMNS):
        rows += [x[start : start + _COLUMNS], decoded[start : start + _COLUMNS]]
    caption = "Evenly spaced test images, and below each E[x|z] at the mean of its posterior."
    return _grid(rows, caption)


def _samples(model: Model, seed: int) -> str:
    images = complete(model.sample(_COLUMNS * _ROWS, seed=seed)).images
    return _grid(np.split(images, _ROWS), f"E[x|z] at z drawn from the prior, seed {seed}.")


def _traversals(model: Model, units: LatentUnits) -> str:
    chosen = np.argsort(-units.kl, kind="stable")[:_TRAVERSED]
    latents = np.zeros((len(chosen), _COLUMNS, len(units.kl)), np.float32)
    for row, unit in enumerate(chosen):
        latents[row, :, unit] = np.linspace(-_REACH, _REACH, _COLUMNS)
    images = complete(model.decode(latents.reshape(-1, len(units.kl))))
    caption = (
        f"A row a unit, the {len(chosen)} with the largest KL ({', '.join(map(str, chosen))}): z_d from "
        f"−{_REACH:g} to {_REACH:g}, all others 0."
    )
    return _grid(np.split(images, len(chosen)), caption)


def _extremes(measured: Measured) -> str:
    log_likelihood = measured.evaluations[0].record.log_likelihood
    order = np.argsort(-log_likelihood, kind="stable")
    pictures = []
    for places, word in ((order[:_COLUMNS], "most"), (order[::-1][:_COLUMNS], "least")):
        ascending = np.sort(places)
        images = in_unit_interval(take(measured.images, ascending))[np.searchsorted(ascending, places)]
        values = log_likelihood[places]
        span = f"from {_number(values[0], 1)} to {_number(values[-1], 1)} nats"
        caption = f"The {word} likely, {span}, as they are in the data set."
        pictures.append(_grid([images], caption))
    return "".join(pictures)


def _provenance(model: Model) -> str:
    provenance = model.description.provenance
    configuration: dict[str, Any] = {"data": provenance.data_set, "seed": provenance.seed}
    configuration |= {name: value for name, value in provenance.configuration.items() if name != "seed"}
    configuration |= {f"{name} version": version for name, version in provenance.library_versions.items()}
    rows = [
        [html.escape(name.replace("_", " ")), html.escape(in_words(name, configuration))]
        for name in configuration
        if name != TRAINING_IMAGES
    ]
    return f"<details><summary>Data, configuration and library versions</summary>{table(None, rows)}</details>"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def in_words(name: str, configuration: Mapping[str, Any]) -> str:
    """The value of a field; of one that was left open, what came of that.

    >>> in_words("first_samples", {"first_samples": None, "num_samples": 8})
    '8: as num samples, throughout'
    """
    value = configuration[name]
    if value is None:
        return _left_open(name, configuration)
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {in_words(inner, value)}" for inner in value)
    return str(value)


def _left_open(name: str, configuration: Mapping[str, Any]) -> str:
    if name == "first_samples":
        return f"{configuration.get('num_samples')}: as num samples, throughout"
    if name in ("size", "colour"):
        return "the images' own"
    if name == "group":
        return "a table's column group; else each image is a thing by itself"
    if name == "finish_epochs":
        return f"{default_epochs(configuration['epochs'])}: a quarter of epochs, at least 10 or as many"
    for kind, likelihood in LIKELIHOODS.items():
        if option := likelihood.configured.get(name):
            own = configuration.get("likelihood") == kind
            return option.unset if own else f"none: the likelihood is not {kind.replace('_', ' ')}"
    part = name.removeprefix("num_")
    if part in PARTS and part in (counts := configuration.get("num_images", {})):
        return f"{counts[part]}: by default, or the data set's own part"
    return "not set"


def _grid(rows: Sequence[NDArray[np.float32]], caption: str) -> str:
    columns, _, height, width = rows[0].shape
    size = f'width="{columns * width}" height="{len(rows) * height}"'
    picture = f'<img class=grid style="width: {100 * columns / _COLUMNS:.4g}%" src="{data_uri(grid_png(rows))}" '
    return figure(f'{picture} {size} alt="{html.escape(caption)}">', caption)
