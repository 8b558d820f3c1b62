"""The monitoring profile: its files parse, name one another rightly, and ask for metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from service.web.operations.metrics import Metrics

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROVISIONING = ROOT / "monitoring" / "provisioning"
DASHBOARD: dict[str, Any] = json.loads((PROVISIONING / "dashboards" / "logpx.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exposed() -> dict[str, set[str]]:
    """Every series of ours and of the process, with its labels; nothing has been counted yet."""
    series: dict[str, set[str]] = {}
    for name, metric in vars(Metrics()).items():
        if name != "registry":
            base, labels = metric._name, set(metric._labelnames)
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
    shown = {name for name in metrics if any(getattr(Metrics(), name)._name in series_name for series_name in asked)}
    assert shown == metrics  # and none is left out


def test_counters_are_asked_for_with_their_suffix() -> None:
    kinds = {metric._name: metric._type for name, metric in vars(Metrics()).items() if name != "registry"}
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
