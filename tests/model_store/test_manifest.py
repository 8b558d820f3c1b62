import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import model_store
from model_store import FORMAT_VERSION, ImageShape, Manifest
from tests.likelihoods import gaussian
from tests.toys import describe

README = Path(model_store.__file__).parent / "README.md"


def manifest_fields() -> dict[str, Any]:
    description = describe("toy-1.a_b", ImageShape(channels=3, height=4, width=5), 2, gaussian(0.5), num_images=9)
    hashes = dict.fromkeys(("encoder.onnx", "decoder.onnx", "likelihood.onnx", "calibration.npz"), "0" * 64)
    manifest = Manifest(
        **dict(description), version=7, created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), sha256=hashes
    )
    fields: dict[str, Any] = json.loads(manifest.model_dump_json())
    return fields


def test_a_manifest_survives_json_unchanged() -> None:
    manifest = Manifest.model_validate(manifest_fields())
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert (manifest.format_version, manifest.version, manifest.likelihood) == (2, 7, gaussian(0.5))
    assert (manifest.image.chw, manifest.image.size) == ((3, 4, 5), 60)


def test_a_manifest_cannot_be_changed() -> None:
    manifest = Manifest.model_validate(manifest_fields())
    with pytest.raises(ValidationError, match="frozen"):
        setattr(manifest, "version", 8)  # noqa: B010


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (["format_version"], FORMAT_VERSION + 1, "format_version"),
        (["version"], 0, "version"),
        (["name"], "..", "name"),
        (["name"], "a/b", "name"),
        (["name"], ".hidden", "name"),
        (["name"], "MNIST", "name"),
        (["name"], "a\n", "name"),
        (["name"], "a" * 65, "name"),
        (["surprise"], 1, "surprise"),
        (["image", "surprise"], 1, "image.surprise"),
        (["image", "channels"], 0, "image.channels"),
        (["latent_dim"], -1, "latent_dim"),
        (["preparation", "scale"], 0.0, "preparation.scale"),
        (["preparation", "binarisation"], "sometimes", "preparation.binarisation"),
        (["likelihood"], {}, "likelihood.kind"),
        (["likelihood"], {"kind": "Gaussian"}, "likelihood.kind"),
        (["likelihood"], {"kind": "bernoulli", "scale": 1.0}, "likelihood.scale"),
        (["likelihood", "levels"], 1, "likelihood.levels"),
        (["preparation", "size"], [28], "preparation.size.1"),
        (["preparation", "size"], [0, 28], "preparation.size.0"),
        (["preparation", "fit"], "cover", "preparation.fit"),
        (["preparation", "fit"], "crop", "preparation"),  # by what, it must say
        (["preparation", "colour"], "blue", "preparation.colour"),
        (["preparation", "resampler"], 4, "preparation.resampler"),
        (["sha256", "features.onnx"], "0" * 64, "sha256"),
        (["calibration", "num_images"], 0, "calibration.num_images"),
        (["sha256", "encoder.onnx"], "0" * 63, "sha256.encoder.onnx"),
        (
            ["metrics"],
            [{"name": "m", "value": "nan", "unit": "nats", "num_images": 1, "protocol": "p"}],
            "metrics.0.value",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_name(path: list[str], value: Any, problem: str) -> None:
    fields = manifest_fields()
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate(fields)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [problem]


@pytest.mark.parametrize("field", [name for name, field in Manifest.model_fields.items() if field.is_required()])
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    fields = manifest_fields()
    del fields[field]
    with pytest.raises(ValidationError, match=rf"(?m)^{field}$"):
        Manifest.model_validate(fields)


def records_of(record: type[BaseModel]) -> set[type[BaseModel]]:
    """The record and every record inside it."""
    inside = {value for value in vars(model_store.manifest).values() if isinstance(value, type)}
    named = {name for field in record.model_fields.values() for name in re.findall(r"\w+", str(field.annotation))}
    found = {kind for kind in inside if issubclass(kind, BaseModel) and kind.__name__ in named}
    return {record}.union(*(records_of(kind) for kind in found))


def test_the_readme_names_every_field_of_the_manifest() -> None:
    text = README.read_text()
    records = records_of(Manifest)
    assert {kind.__name__ for kind in records} > {"Manifest", "ImageShape", "LikelihoodSpec", "Metric", "Provenance"}
    fields = {name for kind in records for name in kind.model_fields}
    assert sorted(name for name in fields if f"`{name}`" not in text) == []


def test_a_manifest_of_before_there_were_other_sizes_means_what_it_meant() -> None:
    fields = manifest_fields()
    fields["preparation"] = {"scale": 1.0, "binarisation": "dynamic", "binarisation_seed": 3}
    preparation = Manifest.model_validate(fields).preparation
    assert (preparation.fit, preparation.size, preparation.colour, preparation.invert) == ("exact", None, None, False)
    assert preparation.resampler is None


@pytest.mark.parametrize(
    ("preparation", "problem"),
    [
        ({"size": [5, 4]}, "preparation.size is not the image's height and width, 4 and 5"),
        ({"colour": "grey"}, "preparation.colour is grey, but image.channels 3"),
    ],
)
def test_a_preparation_that_makes_other_images_is_refused(preparation: dict[str, Any], problem: str) -> None:
    fields = manifest_fields() | {"preparation": preparation}
    with pytest.raises(ValidationError, match=problem):
        Manifest.model_validate(fields)
    agreeing = {"preparation": {"size": [4, 5], "colour": "rgb"}}
    assert Manifest.model_validate(fields | agreeing).preparation.size == (4, 5)
