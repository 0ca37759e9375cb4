"""`ferryman top`: what a running server does now, from its metrics."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ferryman.commands.console import make_table, out, print_json, print_table
from ferryman.errors import UnavailableError

_TIMEOUT_S = 10.0
_SHED = "RESOURCE_EXHAUSTED"
_NO_ERRORS = {"OK", "CANCELLED", _SHED}
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """What a server's metrics said. at: in seconds of `time.monotonic`"""

    at: float
    values: Mapping[tuple[str, Labels], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of that name with these labels."""
        wanted = set(labels.items())
        return sum(value for (found, having), value in self.values.items() if found == name and wanted <= having)

    def label_values(self, name: str, label: str, **labels: str) -> list[str]:
        """Of a label, in all series of that name with these labels."""
        wanted = set(labels.items())
        return sorted({dict(having)[label] for found, having in self.values if found == name and wanted <= having})


@dataclass(frozen=True)
class ModelRow:
    """Of one loaded version, between two samples: per second, milliseconds; None where no request was answered.

    errors: neither answered, cancelled nor shed; waiting, inside: images now
    """

    model: str
    version: str
    variant: str
    requests: float
    errors: float
    shed: float
    p50_ms: float | None
    p99_ms: float | None
    queue_ms: float | None
    batch: float | None
    waiting: int
    inside: int


@dataclass(frozen=True)
class ServerFacts:
    """refused: as NAME/VERSION; followed: whether the repository is; cpu: processors kept busy"""

    version: str
    ready: bool
    followed: bool
    refused: list[str]
    calls_in_flight: int
    memory_mb: float
    cpu: float
    models: list[ModelRow]


def run_top(address: str, interval_s: float, json_output: bool) -> None:
    """Until Ctrl-C on a terminal, once elsewhere. Raises UnavailableError when the server can't be read."""
    before = read_sample(address)
    time.sleep(interval_s)
    after = read_sample(address)
    if json_output:
        print_json(asdict(facts_from_samples(before, after)))
        return
    if not out.is_terminal:
        facts = facts_from_samples(before, after)
        out.print(_summary(address, facts))
        print_table(_table(facts))
        return
    with Live(console=out, auto_refresh=False) as live:
        try:
            while True:
                facts = facts_from_samples(before, after)
                live.update(Group(Text(_summary(address, facts)), _table(facts)), refresh=True)
                time.sleep(interval_s)
                before, after = after, read_sample(address)
        except KeyboardInterrupt:
            return


def read_sample(address: str) -> Sample:
    try:
        with urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as response:
            text = response.read().decode()
        families = list(text_string_to_metric_families(text))
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise UnavailableError(
            f"can't read the metrics of {address}: {getattr(error, 'reason', error)}; give the server's metrics_address"
        ) from error
    values = {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}
    return Sample(time.monotonic(), values)


def facts_from_samples(before: Sample, after: Sample) -> ServerFacts:
    """What the server did in between, and how it is at the second."""
    seconds = max(after.at - before.at, 1e-9)
    models = [
        _row(before, after, seconds, {"model": model, "version": version})
        for model in after.label_values("ferryman_images_inside", "model")
        for version in after.label_values("ferryman_images_inside", "version", model=model)
    ]
    refused = [
        f"{model}/{version}"
        for model in after.label_values("ferryman_model_refused", "model")
        for version in after.label_values("ferryman_model_refused", "version", model=model)
    ]
    cpu = after.total("process_cpu_seconds_total") - before.total("process_cpu_seconds_total")
    return ServerFacts(
        version=", ".join(after.label_values("ferryman_build_info", "version")),
        ready=bool(after.total("ferryman_ready")),
        followed=bool(after.total("ferryman_repository_followed")),
        refused=refused,
        calls_in_flight=int(after.total("ferryman_calls_in_flight")),
        memory_mb=after.total("process_resident_memory_bytes") / 1e6,
        cpu=cpu / seconds,
        models=models,
    )


def _row(before: Sample, after: Sample, seconds: float, labels: dict[str, str]) -> ModelRow:
    def grown(name: str, **more: str) -> float:
        # a version that was freed and loaded again counts from nothing
        return max(0.0, after.total(name, **labels, **more) - before.total(name, **labels, **more))

    codes = after.label_values("ferryman_requests_total", "code", **labels)
    by_code = {code: grown("ferryman_requests_total", code=code) for code in codes}
    answered = grown("ferryman_request_seconds_count")
    batches = grown("ferryman_batch_images_count")
    bounds = sorted(after.label_values("ferryman_request_seconds_bucket", "le", **labels), key=float)
    buckets = [(float(bound), grown("ferryman_request_seconds_bucket", le=bound)) for bound in bounds]
    return ModelRow(
        model=labels["model"],
        version=labels["version"],
        variant=", ".join(after.label_values("ferryman_images_inside", "variant", **labels)),
        requests=sum(by_code.values()) / seconds,
        errors=sum(count for code, count in by_code.items() if code not in _NO_ERRORS) / seconds,
        shed=by_code.get(_SHED, 0.0) / seconds,
        p50_ms=_quantile(buckets, 0.5),
        p99_ms=_quantile(buckets, 0.99),
        queue_ms=grown("ferryman_stage_seconds_sum", stage="queue") / answered * 1e3 if answered else None,
        batch=grown("ferryman_batch_images_sum") / batches if batches else None,
        waiting=int(after.total("ferryman_images_waiting", **labels)),
        inside=int(after.total("ferryman_images_inside", **labels)),
    )


def _quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """In milliseconds, spread evenly in its bucket as Prometheus does. buckets: of (seconds, count up to them)"""
    if not buckets or not buckets[-1][1]:
        return None
    rank = share * buckets[-1][1]
    lower_s = below = 0.0
    for bound_s, count in buckets:
        if count >= rank:
            if bound_s == float("inf"):
                break
            return (lower_s + (bound_s - lower_s) * (rank - below) / (count - below)) * 1e3
        lower_s, below = bound_s, count
    return lower_s * 1e3


def _summary(address: str, facts: ServerFacts) -> str:
    parts = [
        f"{address} ferryman {facts.version}",
        "ready" if facts.ready else "NOT READY",
        f"{facts.calls_in_flight} calls in flight",
        f"{facts.memory_mb:.0f} MB",
        f"{facts.cpu:.2f} processors",
    ]
    if facts.refused:
        parts.append(f"refused: {', '.join(facts.refused)}")
    if not facts.followed:
        parts.append("the repository can't be followed, see the server's log")
    return " · ".join(parts)


def _table(facts: ServerFacts) -> Table:
    columns = (
        "model",
        "variant",
        "req/s",
        "err/s",
        "shed/s",
        "p50 ms",
        "p99 ms",
        "queue ms",
        "batch",
        "waiting",
        "inside",
    )
    table = make_table(*columns, numbers=tuple(range(2, len(columns))))
    for one in facts.models:
        table.add_row(
            f"{one.model}/{one.version}",
            one.variant,
            *(f"{value:.1f}" for value in (one.requests, one.errors, one.shed)),
            *("-" if value is None else f"{value:.1f}" for value in (one.p50_ms, one.p99_ms, one.queue_ms, one.batch)),
            str(one.waiting),
            str(one.inside),
        )
    return table
