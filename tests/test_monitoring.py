"""The monitoring profile: its files parse, name one another rightly, and ask for metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from service.web.operations.metrics import Metrics
from service.web.operations.series import Counter, Histogram

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROVISIONING = ROOT / "monitoring" / "provisioning"
DASHBOARD: dict[str, Any] = json.loads((PROVISIONING / "dashboards" / "logpx.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def described(metric: Any) -> tuple[str, str, set[str]]:
    """Its name without a suffix, its type and its labels: of prometheus_client's, or of ours."""
    if isinstance(metric, Counter | Histogram):
        name, _, labels = metric._named
        return name.removesuffix("_total"), type(metric).__name__.lower(), set(labels)
    return metric._name, metric._type, set(metric._labelnames)


def exposed() -> dict[str, set[str]]:
    """Every series of ours and of the process, with its labels; nothing has been counted yet."""
    series: dict[str, set[str]] = {}
    for name, metric in vars(Metrics()).items():
        if name != "registry":
            base, _, labels = described(metric)
            series.update({base: labels, f"{base}_total": labels, f"{base}_sum": labels, f"{base}_count": labels})
            series[f"{base}_bucket"] = labels | {"le"}
    for metric in Metrics().registry.collect():
        series.update({sample.name: set() for sample in metric.samples if sample.name.startswith("process_")})
    return series


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    series = exposed()
    asked = set()
    for expression in EXPRESSIONS:
        for name, matchers in re.findall(r"((?:logpx|process)_\w+)(?:\{([^}]*)\})?", expression):
            assert name in series, expression
            asked.add(name)
            labels = set(re.findall(r"(\w+) *[=!]~?", matchers)) | set(
                re.findall(r"\w+", " ".join(re.findall(r" by \(([^)]*)\)", expression)))
            )
            assert labels <= series[name] | {"job", "instance"}, expression
    metrics = {name for name in vars(Metrics()) if name != "registry"}
    shown = {name for name in metrics if any(described(getattr(Metrics(), name))[0] in series for series in asked)}
    assert shown == metrics  # and none is left out


def test_counters_are_asked_for_with_their_suffix() -> None:
    every = [described(metric) for name, metric in vars(Metrics()).items() if name != "registry"]
    kinds = {base: kind for base, kind, _ in every}
    for expression in EXPRESSIONS:
        for name in re.findall(r"logpx_\w+", expression):
            base = re.sub(r"_(total|bucket|sum|count)$", "", name)
            wanted = {"counter": f"{base}_total", "gauge": base}.get(kinds[base])
            assert wanted in (None, name), expression


def test_panels_have_a_place_a_title_and_the_provisioned_source() -> None:
    sources = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert [source["uid"] for source in sources] == ["prometheus"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "prometheus"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_parts_find_one_another() -> None:
    services = COMPOSE["services"]
    scrape = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"] == [{"targets": ["service:8000"]}]
    assert scrape["job_name"] == "logpx"
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "logpx.yml").read_text())["providers"][0]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == provider["options"]["path"] + "/logpx.json"
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            source_path = volume.split(":")[0]
            assert (ROOT / source_path).exists() if source_path.startswith(".") else source_path in COMPOSE["volumes"]
