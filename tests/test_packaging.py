"""What no import checks: pins against ranges, the Makefile, the images' description and the compose file."""

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from model_store import BUNDLED
from model_store.manifest import NAME_PATTERN
from service.web.operations.settings import Settings

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def _requirements() -> Iterator[Requirement]:
    for line in PROJECT["project"]["dependencies"]:
        yield Requirement(line)
    for lines in PROJECT["project"]["optional-dependencies"].values():
        yield from map(Requirement, lines)


@pytest.mark.parametrize("requirement", list(_requirements()), ids=lambda requirement: requirement.name)
def test_every_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert _pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_are_plain_versions_in_one_spelling() -> None:
    # A local version (2.13.0+cpu), an index or a path would hold on one machine only.
    for name, version in _pins().items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)*(b[0-9]+)?", version), f"{name}=={version}"


def test_both_runtimes_are_one_version() -> None:
    assert _pins()["onnxruntime"] == _pins()["onnxruntime-gpu"]


def test_the_base_install_is_the_client() -> None:
    assert {Requirement(line).name for line in PROJECT["project"]["dependencies"]} == {"httpx2", "numpy"}


def test_torch_comes_with_training_only() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    with_torch = {
        extra
        for extra, lines in extras.items()
        if any(Requirement(line).name in {"torch", "onnxscript"} for line in lines)
    }
    assert with_torch == {"training"}
    assert not {Requirement(line).name for line in PROJECT["project"]["dependencies"]} & {"torch", "onnxscript"}


def test_every_package_and_bundled_file_is_distributed() -> None:
    packages = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for top in ("logpx", "model_store", "service", "training")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert packages == found
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["model_store"]
    for file in BUNDLED.rglob("*"):
        name = file.relative_to(BUNDLED.parent).as_posix()
        assert file.is_dir() or file.name.startswith(".") or any(fnmatch(name, pattern) for pattern in patterns), name


def test_every_file_of_the_page_is_distributed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["service"]
    files = [file.relative_to(ROOT / "service").as_posix() for file in (ROOT / "service" / "web" / "page").iterdir()]
    assert "web/page/index.html" in files
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def _make(*arguments: str) -> str:
    """What make would run."""
    make = shutil.which("make")
    assert make is not None
    command = [make, "--dry-run", *arguments]
    # `make test` runs this too, and hands its own flags and level down.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)  # noqa: S603 (our own)
    return done.stdout


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
@pytest.mark.parametrize(
    "target", ["help", "serve", "test", "coverage", "format", "train", "audit", "lock", "check-deploy", "image"]
)
def test_make_knows_its_targets(target: str, extra: str) -> None:
    assert _make(target, f"EXTRA={extra}")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("mnist", "mnist"),
        ("path/to/digits.npz", "digits"),
        ("path/to/Shoes.v2/", "shoes.v2"),
        ("my pictures/it's Öl & Wasser (2)", "it-s---l---wasser--2-"),
        ("a" * 80, "a" * 64),
    ],
)
def test_make_train_names_the_model_after_its_data(data: str, name: str) -> None:
    fit, publish = (shlex.split(line) for line in _make("train", f"DATA={data}").splitlines() if " training " in line)
    assert re.fullmatch(NAME_PATTERN, name)
    assert fit[2:] == ["training", "fit", "--data", data, "--out", f"runs/{name}", *fit[8:]]
    assert publish[2:] == ["training", "publish", f"runs/{name}", "--name", name]


def test_make_train_passes_a_size_on() -> None:
    (fit,) = (shlex.split(line) for line in _make("train", "DATA=photos", "SIZE=64x48").splitlines() if " fit " in line)
    assert fit[6:10] == ["--out", "runs/photos", "--size", "64x48"]


def test_make_train_takes_a_folder_of_any_sizes_and_a_time(tmp_path: Path) -> None:
    def fit(*arguments: str) -> list[str]:
        (line,) = (line for line in _make("train", *arguments).splitlines() if " fit " in line)
        return shlex.split(line)[8:]

    folder, file = tmp_path / "it's a folder", tmp_path / "images.npy"
    folder.mkdir()
    file.touch()
    assert fit(f"DATA={folder}") == ["--size", "auto"]
    assert fit(f"DATA={folder}", "SIZE=") == fit(f"DATA={file}") == fit() == []
    assert fit(f"DATA={folder}", "SIZE=64", "MINUTES=5") == ["--size", "64", "--minutes", "5"]


def test_make_train_goes_on_with_the_options_that_a_run_began_with(tmp_path: Path) -> None:
    """Also with a run that was begun before folders had `--size auto`."""
    name = f"begun-{tmp_path.name.lower()}"[:64]
    begun = ROOT / "runs" / name / "run.json"
    begun.parent.mkdir(parents=True)
    try:
        begun.touch()
        for size, options in ((), []), (("SIZE=64",), ["--size", "64"]):
            lines = _make("train", f"DATA={tmp_path}", f"NAME={name}", "MINUTES=5", *size).splitlines()
            (line,) = (line for line in lines if " fit " in line)
            assert shlex.split(line)[8:] == [*options, "--resume"]
    finally:
        begun.unlink()
        begun.parent.rmdir()


@pytest.mark.parametrize(
    "arguments", [["NAME=Shoes"], ["NAME=my shoes"], ["NAME=../shoes"], ["NAME=it's"], ["DATA=.."]]
)
def test_make_train_refuses_a_name_before_it_trains(arguments: list[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _make("train", *arguments)
    assert caught.value.stdout == ""
    assert caught.value.stderr.count("\n") == 1
    assert "is no name for a model: say NAME=" in caught.value.stderr
    assert _make("help", *arguments)


def test_make_test_runs_every_check() -> None:
    commands = _make("test").splitlines()
    tests = "pytest --numprocesses=2 --dist=worksteal --ignore=tests/page", "pytest tests/page"
    for check in ("ruff format --check .", "ruff check .", "mypy", *tests):
        assert f".venv/bin/python -m {check}" in commands


def _stages() -> dict[str, list[str]]:
    """Instructions of each stage by its name, in order; a continued line is one instruction."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stages: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stages[match[2]] = [*stages.get(match[1], [])]  # what a stage builds on counts as its own
        elif not line.startswith("#") and stages:
            stages[list(stages)[-1]].append(line)
    return stages


def _copied_from(stages: dict[str, list[str]], name: str) -> set[str]:
    return set(re.findall(r"COPY --from=(\S+)", "\n".join(stages[name])))


def test_the_last_stage_is_the_service_without_torch() -> None:
    stages = _stages()
    assert list(stages)[-1] == "service"
    assert _copied_from(stages, "service") == {"build", "build-logpx", "sbom"}
    assert not any("training" in line for line in [*stages["build"], *stages["sbom"], *stages["service"]])
    assert "build-training" in _copied_from(stages, "training")


@pytest.mark.parametrize("stage", ["service", "training"])
def test_images_run_as_a_user_with_a_fixed_id(stage: str) -> None:
    instructions = _stages()[stage]
    assert [line for line in instructions if line.startswith("USER")] == ["USER logpx"]
    assert any(line.startswith("RUN useradd") and "--uid 10001" in line for line in instructions)
    assert any(line.startswith("COPY --from=build-logpx --chown=logpx:logpx /models") for line in instructions)


def test_the_service_image_says_how_it_is_started_probed_and_stopped() -> None:
    instructions = _stages()["service"]
    assert 'CMD ["python", "-m", "service"]' in instructions
    assert "STOPSIGNAL SIGTERM" in instructions
    assert any(line.startswith("HEALTHCHECK") and "/readyz" in line for line in instructions)


@pytest.mark.parametrize(
    ("text", "port"), [("9000", 9000), (" 9000\n", 9000), ("", 8000), ("tcp://10.43.161.118:8000", 8000), (None, 8000)]
)
def test_the_health_check_asks_at_the_port_that_the_service_takes(
    text: str | None, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = [line for line in _stages()["service"] if line.startswith("HEALTHCHECK")]
    program: list[str] = json.loads(line[line.index("[") :])
    asked: list[int] = []

    class Connection(http.client.HTTPConnection):
        def __init__(self, host: str, port: int, timeout: float) -> None:
            asked.append(port)
            raise SystemExit

    monkeypatch.setattr(http.client, "HTTPConnection", Connection)
    monkeypatch.delenv("LOGPX_PORT", raising=False)
    if text is not None:
        monkeypatch.setenv("LOGPX_PORT", text)
    with pytest.raises(SystemExit):
        exec(program[2])  # noqa: S102 (our own)
    assert asked == [port] == [Settings().port]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108 (of the container)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_profiles_do_not_meet_on_a_port_or_an_image() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "service": None,
        "service-gpu": ["gpu"],
        "training": ["training"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }
    for port in ("127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:3000"):
        assert sum(port in mapping for service in SERVICES.values() for mapping in service.get("ports", [])) == 1
    assert len({service["image"] for service in SERVICES.values()}) == len(SERVICES)


def test_training_publishes_where_the_services_read() -> None:
    store = "model-store:/app/model_store/artifacts"
    assert store in SERVICES["training"]["volumes"]
    assert SERVICES["service"]["volumes"] == SERVICES["service-gpu"]["volumes"] == [f"{store}:ro"]
    assert "model-store" in COMPOSE["volumes"]


def test_the_gpu_service_gets_one_device_and_never_falls_back() -> None:
    service = SERVICES["service-gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["count"] == 1
    assert "gpu" in device["capabilities"]
    assert service["build"]["args"] == {"RUNTIME": "gpu"}
    assert service["environment"]["LOGPX_EXECUTION_PROVIDER"] == "cuda"


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_docker_waits_longer_than_the_service_drains(name: str) -> None:
    grace_seconds = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    # Accepted work may take drain_seconds, and open connections that long again.
    assert grace_seconds > 2 * Settings.model_fields["drain_seconds"].default + 1


def test_environment_in_images_and_compose_names_real_settings() -> None:
    text = (ROOT / "Dockerfile").read_text() + yaml.safe_dump(SERVICES)
    names = set(re.findall(r"LOGPX_([A-Z_]+)", text)) - {"PUBLISH", "PUBLISH_GPU", "PUBLISH_GRAFANA"}
    assert names
    assert names <= {name.upper() for name in Settings.model_fields}
