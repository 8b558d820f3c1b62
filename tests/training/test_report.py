import base64
import io
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from tests.rounding import sum_error
from tests.training.test_streams import STREAM, streamed
from training.configuration import Configuration
from training.data.splits import DataSplits, evenly_spaced, take
from training.fit.loaded_model import load_model
from training.fit.run import Run
from training.publish.evaluation import Protocol, evaluate, fresh_batches, in_unit_interval
from training.publish.export import export
from training.publish.publication import describe, load_engine
from training.publish.units import LatentUnits, latent_units
from training.report.page import Measured, in_words, write_report
from training.report.verdict import Verdict

LAPLACE, ENCODER = Protocol("laplace", num_samples=8, seed=0), Protocol("encoder", num_samples=20, seed=0)


@pytest.fixture(scope="module")
def model(finished_run: Run, runtime: Runtime) -> Model:
    return load_engine(
        describe(finished_run.description, "tiny", LAPLACE), export(load_model(finished_run)[0]), runtime=runtime
    )


@pytest.fixture(scope="module")
def measured(model: Model, splits: DataSplits) -> Measured:
    evaluations = [evaluate(model, splits.test, protocol) for protocol in (LAPLACE, ENCODER)]
    units = latent_units(model, splits.test, seed=0)
    verdict = Verdict(["it overfits"], ["active latent units: 6 of 6"], ["a smaller code", "epochs < 9", "more images"])
    return Measured("a<b", "digits & more", splits.test, evaluations, units, seed=0, verdict=verdict)


class Page(HTMLParser):
    """The tags of a page, what pictures are in it, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[Image.Image] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src" and value is not None and value.startswith("data:image/png;base64,"):
                picture = Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2])))
                self.pictures.append(picture)
            elif name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {value}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def text(model: Model, measured: Measured, finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    write_report(file, model, measured, finished_run.read_metrics(25))
    return file.read_text()


def test_the_page_needs_no_other_file(text: str) -> None:
    page = Page(text)
    assert page.fetched == []
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert re.findall(r"url\((?!#)", text) == []
    assert "prefers-color-scheme: dark" in text


def test_the_page_tells_the_figures_and_their_protocols(text: str, measured: Measured) -> None:
    words = " ".join("".join(Page(text).words).split())
    for evaluation in measured.evaluations:
        shown = f"{evaluation.log_likelihood:.2f} ± {evaluation.std_error:.2f}".replace("-", "−")
        assert shown in words
        assert f"{evaluation.bits_per_dim:.4f} ± {evaluation.bits_per_dim_std_error:.4f}" in words
        assert evaluation.protocol in words
    assert "Not good yet: it overfits.active latent units: 6 of 6.To try next: a smaller code." in words
    assert "a smaller code.Then: epochs < 9.Then: more images." in words
    assert "laplace, K = 8" in words
    assert "encoder, K = 20" in words
    assert f"{measured.units.num_active} of 6 units are active" in words
    assert "a<b" in words
    assert "digits & more" in words
    assert "pixels SHA-256" in words


def test_each_field_that_was_left_open_says_what_came_of_it(model: Model, text: str) -> None:
    configuration = asdict(Configuration()) | {
        "num_images": {"train": 80, "validation": 9, "calibration": 8, "test": 7}
    }
    open_fields = {name: in_words(name, configuration) for name, value in configuration.items() if value is None}
    assert open_fields == {
        "size": "the images' own",
        "colour": "the images' own",
        "gaussian_scale": "none: the likelihood is not gaussian",
        "num_components": "none: the likelihood is not discretised logistic mixture",
        "group": "a table's column group; else each image is a thing by itself",
        "first_samples": "8: as num samples, throughout",
        "finish_epochs": "30: a quarter of epochs, at least 10 or as many",
        "num_validation": "9: by default, or the data set's own part",
        "num_calibration": "8: by default, or the data set's own part",
        "num_test": "7: by default, or the data set's own part",
    }
    gaussian = configuration | {"likelihood": "gaussian"}
    assert in_words("gaussian_scale", gaussian) == "learned, one for each pixel"
    assert in_words("gaussian_scale", gaussian | {"gaussian_scale": 0.1}) == "0.1"
    assert in_words("num_images", configuration) == "train 80, validation 9, calibration 8, test 7"
    rows = dict(re.findall(r"<th scope=row>([^<]+)</th><td>([^<]*)</td>", text))
    assert {"first samples", "num test", "width", "data"} < set(rows)
    assert rows["first samples"] == "4: as num samples, throughout"
    assert not {"not set", "None", "by the data"} & set(rows.values())


def test_pictures_and_charts(text: str, model: Model, measured: Measured) -> None:
    page = Page(text)
    sizes = [picture.size for picture in page.pictures]
    assert sizes == [(16 * 28, 8 * 28), (16 * 28, 8 * 28), (16 * 28, 6 * 28), (16 * 28, 28), (16 * 28, 28)]
    assert page.tags.count("svg") == 3
    assert not re.search("#01010[1-4]", text)  # the page's colours took their places
    identifiers = re.findall(r'<clipPath id="(\w+)"', text)
    assert len(set(identifiers)) == len(identifiers)
    reconstructions = np.asarray(page.pictures[0]) / 255
    x = next(fresh_batches(model, evenly_spaced(measured.images, 64), seed=0))
    decoded = complete(model.decode(complete(model.encode(x)).mean))
    assert np.abs(reconstructions[:28, 28:56] - x[1, 0]).max() < 0.003
    assert np.abs(reconstructions[28:56, 28:56] - decoded[1, 0]).max() < 0.003
    best = int(np.argmax(measured.evaluations[0].record.log_likelihood))
    expected = in_unit_interval(take(measured.images, np.array([best])))[0, 0]
    assert np.abs(np.asarray(page.pictures[3])[:, :28] / 255 - expected).max() < 0.003


def test_a_page_without_curves_and_of_few_images(model: Model, splits: DataSplits, tmp_path: Path) -> None:
    few = splits.test[:3]
    measured = Measured(
        "few", "3 digits", few, [evaluate(model, few, ENCODER)], latent_units(model, few, seed=0), seed=0
    )
    write_report(tmp_path / "report.html", model, measured)
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("svg") == 2
    assert page.pictures[0].size == (3 * 28, 2 * 28)


def test_active_units_and_kl(model: Model, splits: DataSplits) -> None:
    units = LatentUnits(np.zeros(3), np.array([0.0099, 0.0101, 2.0]), num_images=4, prepared="binarised at a half")
    assert units.num_active == 2
    metric = units.as_metric()
    assert (metric.name, metric.value, metric.unit, metric.num_images) == ("active_units", 2, "latent units", 4)
    assert "variance over the images above 0.01 (Burda et al. 2016); images binarised at a half" in metric.protocol
    units = latent_units(model, splits.test, seed=4)
    (x,) = fresh_batches(model, splits.test, seed=4)
    posterior = complete(model.encode(x))
    variance = np.exp(posterior.log_var.astype(np.float64))
    by_hand = 0.5 * (variance + posterior.mean.astype(np.float64) ** 2 - 1 - np.log(variance))
    # By hand over one batch: a code is a sum over the pixels, and codes are of the order of 1.
    error = sum_error(28 * 28, 10)
    assert units.kl == pytest.approx(by_hand.mean(0), rel=0, abs=10 * error)
    assert units.variance_of_mean == pytest.approx(posterior.mean.astype(np.float64).var(0), rel=0, abs=10 * error)


def test_a_stream_is_evaluated_to_the_same_figures(model: Model, splits: DataSplits, tmp_path: Path) -> None:
    for index, image in enumerate(splits.test):
        Image.fromarray(image[0]).save(tmp_path / f"{index:03}.png")
    stream = streamed(tmp_path, STREAM).train
    first, second = (evaluate(model, images, ENCODER) for images in (splits.test, stream))
    assert first == second
    assert (first.record.log_likelihood == second.record.log_likelihood).all()
    assert np.array_equal(latent_units(model, stream, seed=1).kl, latent_units(model, splits.test, seed=1).kl)
