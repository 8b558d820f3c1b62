"""The images' labels and the environment of compose's containers; tests/test_packaging.py has the rest of both."""

import shlex
from itertools import pairwise

import pytest

from service.web.operations.settings import Settings
from tests.test_packaging import PROJECT, SERVICES, _make, _stages


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_compose_passes_every_setting_as_its_own_environment_has_it(name: str) -> None:
    environment: dict[str, str | None] = SERVICES[name]["environment"]
    ours = {variable for variable in environment if variable.startswith("LOGPX_")}
    assert ours == {f"LOGPX_{setting.upper()}" for setting in Settings.model_fields}
    fixed = {variable: value for variable, value in environment.items() if value is not None}
    (volume,) = SERVICES[name]["volumes"]
    within = {"LOGPX_HOST": "0.0.0.0", "LOGPX_PORT": 8000, "LOGPX_MODEL_STORE": volume.split(":")[1]}  # noqa: S104 (of the container)
    of_gpu = {"LOGPX_EXECUTION_PROVIDER": "cuda", "CUDA_CACHE_PATH": "/tmp/cuda"}  # noqa: S108 (of the container)
    assert fixed == within | (of_gpu if name == "service-gpu" else {})
    (mapping,) = SERVICES[name]["ports"]
    assert mapping.endswith(f"}}:{within['LOGPX_PORT']}")


def test_make_image_says_which_version_and_revision_it_is() -> None:
    (line,) = (
        line
        for line in _make("image", "SOURCE=https://git.example/it's").replace("\\\n", "").splitlines()
        if " build " in line
    )
    words = shlex.split(line)
    arguments = dict(word.split("=", 1) for before, word in pairwise(words) if before == "--build-arg")
    version = PROJECT["project"]["version"]
    assert (arguments["VERSION"], arguments["RUNTIME"]) == (version, "cpu")
    assert arguments["SOURCE"] == "https://git.example/it's"
    assert words[-3:] == ["--tag", f"logpx:{version}", "."]
    assert f"logpx:{version}-gpu" in _make("image", "EXTRA=gpu")


@pytest.mark.parametrize("stage", ["service", "training"])
def test_images_are_labelled(stage: str) -> None:
    (line,) = (line for line in _stages()[stage] if line.startswith("LABEL"))
    labels = dict(word.split("=", 1) for word in shlex.split(line)[1:])
    named = {"title", "description", "version", "revision", "source", "licenses", "base.name"}
    assert labels.keys() == {f"org.opencontainers.image.{name}" for name in named} | {"logpx.sbom"}
    assert labels["org.opencontainers.image.licenses"] == PROJECT["project"]["license"]
    assert any(
        f"COPY --from=sbom{'' if stage == 'service' else '-training'} {labels['logpx.sbom']}" in one
        for one in _stages()[stage]
    )
