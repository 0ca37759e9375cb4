"""The dashboard, the alerts, the autoscalers and docs/monitoring.md name what a server has; the last one all of it."""

import json
import re
from pathlib import Path

import pytest
import yaml

from .inside import running
from .test_observing import LOCAL, read_metrics

DOCS = Path(__file__).parents[3] / "docs"
GRAFANA = DOCS / "monitoring" / "grafana.json"
ALERTS = DOCS / "monitoring" / "alerts.yaml"
SCALING = DOCS.parent / "docker" / "kubernetes" / "components"
# What Prometheus adds to each series as it reads it.
ADDED = {"instance", "namespace", "pod"}
NAME = re.compile(r"\b(?:ferryman|process)_[a-z_]+\b")
SUFFIXES = re.compile(r"_(?:bucket|count|sum)$")
EXPRESSION = re.compile(r"([a-z_]+)\{([^}]*)\}")


def expressions() -> list[str]:
    """All that the files ask Prometheus."""
    board = json.loads(GRAFANA.read_text(encoding="utf-8"))
    rules = [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
    assert all({"alert", "expr", "for", "labels", "annotations"} == rule.keys() for rule in rules)
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    adapter = yaml.safe_load((SCALING / "autoscaled" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    for rule in adapter["rules"]["custom"]:
        asked += [rule["seriesQuery"], rule["metricsQuery"]]
    keda = yaml.safe_load((SCALING / "autoscaled-by-keda" / "scaledobject.yaml").read_text(encoding="utf-8"))
    asked += [one["metadata"]["query"] for one in keda["spec"]["triggers"] if one["type"] == "prometheus"]
    return asked + [rule["expr"] for rule in rules]


@pytest.fixture
async def series(toy_repository: Path) -> dict[str, set[str]]:
    """Of a running server: the names of all samples, with those of their labels."""
    async with running(toy_repository, metrics_address=LOCAL) as server:
        server.observer.counts.calls["inference.GRPCInferenceService/ModelInfer", "OK"] += 1
        server.observer.counts.requests["toy-classifier", "1", "onnxruntime-cpu-fp32", "OK"] += 1
        metrics = await read_metrics(server)
    found: dict[str, set[str]] = {"ferryman_model_refused": {"model", "version"}}  # of which a good server has none
    for sample in metrics.samples:
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_files_ask_for_what_there_is(series: dict[str, set[str]]) -> None:
    asked = expressions()
    assert len(asked) > 20
    for expression in asked:
        names = NAME.findall(expression)
        assert names, expression
        assert [name for name in names if name not in series] == [], expression
        for name, matchers in EXPRESSION.findall(expression):
            labels = {matcher.split("=")[0].strip(" !") for matcher in re.split(r",(?=\w+[=!])", matchers)}
            assert labels <= series[name] | ADDED, expression


def test_every_metric_is_documented_and_no_other(series: dict[str, set[str]]) -> None:
    text = (DOCS / "monitoring.md").read_text(encoding="utf-8").split("## Metrics")[1].split("\n## ")[0]
    families = {SUFFIXES.sub("", name) if f"{SUFFIXES.sub('', name)}_bucket" in series else name for name in series}
    documented = {name for name in NAME.findall(text) if name != "process_"}
    assert documented == families
    rows = re.findall(r"^\| `(ferryman_\w+)` \| ([a-z, ]*) \|", text, re.MULTILINE)
    for name, labels in rows:
        if name not in {"ferryman_stage_seconds"}:
            having = series.get(name) or series.get(f"{name}_count") or set()
            assert having == set(filter(None, labels.replace(" ", "").split(","))), name
