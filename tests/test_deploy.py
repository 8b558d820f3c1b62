"""deploy/: the chart's values against their schema and the service's settings, KServe, nginx, and one version for all.

deploy/check.py renders the chart with Helm and compares what comes out with the schemas of Kubernetes; this does not.
"""

import doctest
import json
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from service.web.operations.settings import Settings

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "logpx"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SETS = sorted((CHART / "ci").glob("*-values.yaml"))
TEMPLATES = {file.name: file.read_text() for file in (CHART / "templates").iterdir()}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CHECK = runpy.run_path(str(ROOT / "deploy" / "check.py"))
SETTINGS = runpy.run_path(str(ROOT / "deploy" / "settings_schema.py"))


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm lays a file of values over the chart's own."""
    both = {key: merged(values[key], over[key]) for key in values.keys() & over.keys() if isinstance(values[key], dict)}
    return {**values, **over, **both}


def refusals(over: dict[str, Any]) -> list[str]:
    """What the schema has against these values, laid over the chart's own."""
    return [error.message for error in jsonschema_rs.validator_for(SCHEMA).iter_errors(merged(VALUES, over))]


def test_every_setting_can_be_passed_within_its_own_bounds() -> None:
    """After a change of the settings: `python deploy/settings_schema.py`."""
    assert SCHEMA["properties"]["settings"] == SETTINGS["settings_schema"]()
    passed = {name.removeprefix("LOGPX_").lower() for name in SCHEMA["properties"]["settings"]["properties"]}
    assert passed == Settings.model_fields.keys() - SETTINGS["OF_SECRETS"]


@pytest.mark.parametrize("file", SETS, ids=lambda file: file.stem)
def test_the_sets_of_values_fit_the_schema(file: Path) -> None:
    assert refusals(yaml.safe_load(file.read_text())) == []


def test_there_are_six_sets_and_they_use_every_kind_of_store() -> None:
    used = [merged(VALUES, yaml.safe_load(file.read_text())) for file in SETS]
    assert len(used) == 6
    assert {values["modelStore"]["type"] for values in used} == set(
        SCHEMA["properties"]["modelStore"]["properties"]["type"]["enum"]
    )
    assert {values["gpu"]["enabled"] for values in used} == {True, False}


def test_every_misspelt_key_is_refused() -> None:
    wrong = dict(CHECK["misspelt"](VALUES))
    assert len(wrong) > 70
    for path, values in wrong.items():
        assert any("Additional properties" in told for told in refusals(values)), path


@pytest.mark.parametrize(
    "values",
    [
        {"settings": {"LOGPX_PROT": 9000}},
        {"settings": {"LOGPX_API_KEYS": "0123456789abcdef"}},
        {"settings": {"LOGPX_PORT": 0}},
        {"settings": {"LOGPX_MAX_ROWS": 0}},
        {"settings": {"LOGPX_LOG_LEVEL": "loud"}},
        {"settings": {"LOGPX_EXECUTION_PROVIDER": "tpu"}},
        {"replicas": 0},
        {"replicas": "2"},
        {"image": {"digest": "sha256:0"}},
        {"modelStore": {"type": "pvc"}},
        {"modelStore": {"type": "imageVolume"}},
        {"modelStore": {"type": "initContainer"}},
        {"modelStore": {"type": "claim"}},
        {"keys": {"secret": "", "adminItem": "admin-keys"}},
        {"keys": {"secret": "keys", "apiItem": ""}},
        {"rollout": {"maxSurge": 0}},
        {"ingress": {"enabled": True}},
        {"ingress": {"enabled": True, "host": "lab.example", "path": "logpx"}},
        {"autoscaling": {"enabled": True}},
        {"autoscaling": {"minReplicas": 0}},
        {"gpu": {"resource": "gpu"}},
        {"extraEnv": [{"name": "LOGPX_PORT", "value": "1"}]},
        {"serviceMonitor": {"credentials": {"name": "metrics"}}},
        {"affinity": {"nodeAfinity": {}}},
        {"topologySpread": [{"topologyKey": "zone"}]},
    ],
    ids=str,
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    assert refusals(values)


def test_templates_use_every_value_and_no_other() -> None:
    def leaves(values: dict[str, Any], *path: str) -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, *path, key)
            else:
                yield ".".join((*path, key))

    text = "\n".join(TEMPLATES.values())
    text = text.replace("$store.", ".Values.modelStore.").replace("$scaling.", ".Values.autoscaling.")
    named = set(re.findall(r"\.Values\.([A-Za-z]+(?:\.[A-Za-z]+)*)", text))
    known = set(leaves(VALUES))
    whole = {path for path in named if any(leaf.startswith(f"{path}.") for leaf in known)}
    assert named - whole <= known
    used_by_key = {"modelStore.pvc.subPath", "modelStore.imageVolume.subPath"}  # get (get $store $store.type) "subPath"
    covered = {
        leaf for leaf in known if leaf in named or any(leaf.startswith(f"{path}.") for path in whole - {"modelStore"})
    }
    assert known - covered == used_by_key


def test_what_the_chart_sets_are_settings_and_its_pods_have_no_rights() -> None:
    text = TEMPLATES["_helpers.tpl"] + TEMPLATES["deployment.yaml"]
    names = set(re.findall(r"LOGPX_([A-Z_]+)", text))
    assert {"HOST", "PORT", "MODEL_STORE", "API_KEYS_FILE", "ADMIN_KEYS_FILE"} < names
    assert names <= {name.upper() for name in Settings.model_fields}
    for line in (
        "automountServiceAccountToken: false",
        "enableServiceLinks: false",
        "runAsNonRoot: true",
        "type: RuntimeDefault",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "drop: [ALL]",
    ):
        assert line in text
    assert (
        f'get .Values.settings "LOGPX_DRAIN_SECONDS" | default {Settings.model_fields["drain_seconds"].default:g}'
        in text
    )
    assert f'get .Values.settings "LOGPX_PORT" | default {Settings.model_fields["port"].default}' in text


def test_the_user_of_pods_is_the_image_s() -> None:
    assert "--uid 10001" in (ROOT / "Dockerfile").read_text()
    assert "runAsUser: 10001" in TEMPLATES["deployment.yaml"]
    (runtime,) = _kserve("servingruntime.yaml")
    assert runtime["spec"]["containers"][0]["securityContext"]["runAsUser"] == 10001


def test_a_field_that_a_definition_does_not_name_is_an_error() -> None:
    results = doctest.DocTestRunner().summarize(verbose=False)
    for name in ("closed", "misspelt"):
        function = CHECK[name]
        for example in doctest.DocTestFinder().find(function, name, globs=dict(CHECK), module=False):
            results = doctest.DocTestRunner().run(example)
            assert (results.attempted, results.failed) == (1, 0)
    schema = CHECK["closed"]({"properties": {"a": {"items": {"properties": {"enum": {"enum": [1]}}}}}})
    validator = jsonschema_rs.validator_for(schema)
    assert validator.is_valid({"a": [{"enum": 1}]})
    assert not validator.is_valid({"a": [{"enum": 2}]})
    assert not validator.is_valid({"a": [{"b": 1}]})
    assert not validator.is_valid({"b": 1})


def test_a_setting_that_does_not_arrive_is_found() -> None:
    env = [{"name": "LOGPX_PORT", "value": "8000"}, {"name": "LOGPX_MAX_ROWS", "value": "5e+06"}]
    container = {"env": env, "ports": [{"containerPort": 8000}], "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": 50, "containers": [container]}
    objects = [{"kind": "Deployment", "spec": {"replicas": 2, "template": {"spec": pod}}}]
    CHECK["check_settings"]({}, objects)
    with pytest.raises(CHECK["CheckError"], match=r"LOGPX_MAX_ROWS is '5e\+06', not '5000000'"):
        CHECK["check_settings"]({"settings": {"LOGPX_MAX_ROWS": 5000000}}, objects)
    with pytest.raises(CHECK["CheckError"], match="either the chart or KEDA"):
        CHECK["check_settings"]({"autoscaling": {"enabled": True}}, objects)
    pod["terminationGracePeriodSeconds"] = 46
    with pytest.raises(CHECK["CheckError"], match="a pod has 46 s"):
        CHECK["check_settings"]({}, objects)


def _kserve(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "kserve" / name).read_text()))


def test_kserve_s_runtime_reads_the_store_where_kserve_puts_it() -> None:
    (runtime,) = _kserve("servingruntime.yaml")
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert {name.removeprefix("LOGPX_").lower() for name in env} <= Settings.model_fields.keys()
    assert (env["LOGPX_MODEL_STORE"], env["LOGPX_PORT"]) == ("/mnt/models", "8080")
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": 8080}
    assert runtime["spec"]["protocolVersions"] == ["v2"]
    for file in ("inferenceservice.yaml", "inferenceservice-gpu.yaml"):
        (service,) = _kserve(file)
        predictor = service["spec"]["predictor"]
        model = predictor["model"]
        assert model["runtime"] == runtime["metadata"]["name"]
        (form,) = runtime["spec"]["supportedModelFormats"]
        assert model["modelFormat"] == {key: form[key] for key in ("name", "version")}
        slept = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = Settings.model_fields["drain_seconds"].default
        assert predictor["terminationGracePeriodSeconds"] > slept + 2 * drain + 1
    assert {"name": "LOGPX_EXECUTION_PROVIDER", "value": "cuda"} in model["env"]


def test_one_version_is_everywhere() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert f"\nARG VERSION={VERSION}\n" in (ROOT / "Dockerfile").read_text()
    (runtime,) = _kserve("servingruntime.yaml")
    (gpu,) = _kserve("inferenceservice-gpu.yaml")
    assert runtime["spec"]["containers"][0]["image"] == f"logpx:{VERSION}"
    assert gpu["spec"]["predictor"]["model"]["image"] == f"logpx:{VERSION}-gpu"


def test_nginx_waits_longer_than_the_service_and_lets_its_bodies_through() -> None:
    text = (ROOT / "deploy" / "nginx" / "logpx.conf").read_text()
    directives = dict(re.findall(r"^\s*([a-z_]+) ([^;]+);$", text, re.MULTILINE))
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert directives["client_max_body_size"] == f"{defaults['max_body_bytes'] // 2**20}m"
    assert int(directives["proxy_read_timeout"].removesuffix("s")) > defaults["timeout_seconds"]
    assert {"error", "http_503", "non_idempotent"} < set(directives["proxy_next_upstream"].split())
    assert Settings(root_path="/logpx").root_path in text
    assert text.count("max_fails=0") == 3  # a sentence about it, and both replicas
    assert text.count("{") == text.count("}")
