"""A record in words and tables: for the terminal, a page, Markdown, CSV."""

import csv
import io
from collections.abc import Callable, Sequence

from ferryman.accuracy.report import AccuracyReport
from ferryman.bench.alone import SessionCost
from ferryman.bench.gpu import GpuState
from ferryman.bench.percentiles import count_needed, name_percentile
from ferryman.bench.record import BenchRecord, RunRecord
from ferryman.bench.report import report_latency, sort_stages

_CSV = ("model", "scenario", "machine", "name", "requests", "seconds", "images_per_s", "mean_ms", "min_ms", "max_ms")


def describe_record(record: BenchRecord) -> str:
    """What was measured, how and on what."""
    device = record.machine.device
    where = f" at {record.address}" if record.address else ""
    turns, each = " in turn" if record.ratios else "", "a curve" if record.curves else "each"
    return (
        f"{record.model}{where}, {record.scenario}, {record.seconds:g} s {each}{turns}, {record.images};\n"
        f"on {device.cpu} ({device.cores} processors), Ferryman {record.ferryman}, {record.created}"
    )


def tabulate(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    """A row a run: percentiles that any of them carries, in ms, and throughput."""
    names = list(dict.fromkeys(name for run in record.runs for name in run.figures.percentiles_ms))
    names.sort(key=lambda name: float(name[1:]))
    counted = record.accuracy
    header = ["variant", "requests", *(f"{name} ms" for name in names), "mean ms", "images/s"]
    header += [counted.figure] if counted else []
    devices = list(dict.fromkeys(name for run in record.runs for name in run.figures.joules_per_image))
    header += [f"J/image, {name}" for name in devices]
    rows: list[list[str]] = []
    for run in record.runs:
        if not run.right:
            rows.append([run.name, f"{run.figures.requests:,}", "wrong answers", *[""] * (len(header) - 3)])
            continue
        found = run.figures.percentiles_ms
        values = [format_ms(found[name]) if name in found else "-" for name in names]
        rate = f"{run.figures.images_per_s:.4g}"
        known = {one.target: one.scores.main[1] for one in counted.variants} if counted else {}
        accuracy = [f"{known[run.name]:.3f}" if run.name in known else "-"] if counted else []
        joules = run.figures.joules_per_image
        energy = [f"{joules[device]:.3g}" if device in joules else "-" for device in devices]
        mean = format_ms(run.figures.mean_ms)
        rows.append([run.name, f"{run.figures.requests:,}", *values, mean, rate, *accuracy, *energy])
    return header, rows


STAGES_TITLE = "median of each stage in ms, and below it its share of the mean"


def tabulate_stages(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    """Two rows a run, so that all stages fit beside each other; what a run has not is a dash.

    Shares are those of the means, which add up to the whole as medians need not.
    """
    names = sort_stages(name for run in record.runs for name in run.figures.stages_ms)
    rows: list[list[str]] = []
    for run in record.runs:
        medians, mean = run.figures.stages_ms, run.figures.mean_ms
        # older records have no means: they are made again
        means = run.figures.stages_mean_ms or report_latency(run.unpack()).stages_mean_ms
        rows.append([run.name, *(format_ms(medians[name]) if name in medians else "-" for name in names)])
        rows.append(["", *(f"{means[name] / mean:.0%}" if name in medians else "" for name in names)])
    return ["variant", *names], rows


def describe_reading(record: BenchRecord) -> list[str]:
    """How long it took to read pictures, which is no part of a request; empty where they came from no files."""
    if record.read_ms is None:
        return []
    return [f"read: {format_ms(record.read_ms)} ms a picture from its file, before anything was timed"]


def tabulate_costs(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    """Without the columns that no variant has a figure for."""
    runs = {run.contender: run for run in record.runs}  # the points of a curve are all of one variant
    costs = [run.cost for run in runs.values() if run.cost is not None]
    kinds: dict[str, Callable[[SessionCost], str | None]] = {
        "build s": lambda cost: _format(cost.build_s, ".1f"),
        "load s": lambda cost: _format(cost.load_s, ".2f"),
        "first ms": lambda cost: _format(cost.first_ms, ".2f"),
        "memory MB": lambda cost: _megabytes(cost.memory_bytes),
        "GPU MB": lambda cost: _megabytes(cost.gpu_bytes),
        "size MB": lambda cost: _megabytes(cost.weights_bytes),
    }
    kinds = {kind: tell for kind, tell in kinds.items() if any(tell(cost) is not None for cost in costs)}
    header = ["variant", *kinds, "worst error", "answers"]
    rows: list[list[str]] = []
    for name, run in runs.items():
        figures = ["-" if run.cost is None else tell(run.cost) or "-" for tell in kinds.values()]
        errors = [check.error for check in run.checks if check.error is not None]
        error = f"{max(errors):.1e}" if errors else "-"
        rows.append([name, *figures, error, describe_checks(run)])
    return header, rows


def _format(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _megabytes(size: int | None) -> str | None:
    return None if size is None else f"{size / 1e6:.1f}"


def tabulate_trials(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    """A row a trial, in order of rates; what was confirmed stands twice."""
    name = name_percentile(record.bound.percentile) if record.bound else ""
    rows = [
        [run.name, f"{one.rate:.4g}", "-" if one.percentile_ms is None else format_ms(one.percentile_ms),
         f"{one.requests:,}", f"{one.missed:,}", format_ms(one.late_ms), "kept" if one.kept else "broken"]
        for run in record.runs
        for one in sorted(run.trials, key=lambda trial: trial.rate)
    ]  # fmt: skip
    return ["variant", "requests/s", f"{name} ms", "answered", "missed", "sent late ms", "bound"], rows


def describe_load(record: BenchRecord) -> list[str]:
    """What the scenario was for: the rate that keeps the bound, the batch that pays, what others say; and notes."""
    lines: list[str] = []
    if record.accuracy is not None:
        lines.append(
            f"{record.accuracy.figure} of {record.accuracy.pictures} labelled pictures of {record.accuracy.data}"
        )
        lines += describe_accuracy(record.accuracy)
    if record.bound is not None:
        kept = f"{name_percentile(record.bound.percentile)} at most {format_ms(record.bound.ms)} ms"
        for run in record.runs:
            if record.ended is not None and run.ended is None:
                lines.append(f"{run.name}: the search for the highest rate that keeps {kept} was broken off")
                continue
            found = f"{run.rate:.4g} requests a second keep" if run.rate is not None else "no rate was found that keeps"
            lines.append(f"{run.name}: {found} {kept}{f'; ended: {run.ended}' if run.ended else ''}")
    lines += [f"{name}: {curve}" for name, curve in record.curves.items()]
    return lines + [str(one) for one in record.compared] + list(record.notes)


def describe_accuracy(counted: AccuracyReport) -> list[str]:
    """The figures beside the one that has a column: top-5, mAP at one IoU; a line each."""
    lines: list[str] = []
    for figure in [name for name in counted.variants[0].scores.figures if name != counted.figure]:
        known = [(one.target, one.scores.figures[figure]) for one in counted.variants]
        told = [f"{name} {value:.3f}" for name, value in known if value is not None]
        lines += [f"{figure}: {', '.join(told)}"] if told else []
    return lines


def tabulate_machine(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    """What measured, a row a fact; what the machine does not tell is left out."""
    machine, device = record.machine, record.machine.device
    found = record.disturbance
    frequency = (record.before.frequency_mhz, record.after.frequency_mhz)
    heat = {name: record.after.temperatures_c.get(name) for name in record.before.temperatures_c}
    facts: list[tuple[str, str | None]] = [
        ("processor", f"{device.cpu}, {device.cores} processors{', a virtual machine' if machine.virtual else ''}"),
        ("features", " ".join(device.cpu_features) or None),
        ("memory", None if device.memory_bytes is None else f"{device.memory_bytes / 1e9:.1f} GB"),
        ("system", f"{device.system}, Python {device.python}"),
        ("governor", machine.governor),
        ("power mode", machine.power_mode),
        ("quota of the control group", None if machine.quota is None else f"{machine.quota:g} processors"),
        ("frequency before, after", _pair(frequency, "{:.0f} MHz")),
        ("load before, after", _pair((record.before.load, record.after.load), "{:.2f}")),
        *(
            (f"temperature of {name} before, after", _pair((record.before.temperatures_c[name], after), "{:.0f} °C"))
            for name, after in heat.items()
        ),
        *((f"{gpu.name} after", _describe_gpu(gpu)) for gpu in record.after.gpus),
        ("steal", _share(found.steal)),
        ("waited for a processor", _share(found.waiting)),
        ("busy with others", None if found.others is None else f"{found.others:.2f} processors"),
        ("clock", str(record.clock).removeprefix("clock: ")),
        ("settings", ", ".join(f"{name} {value}" for name, value in record.settings.items() if value is not None)),
        ("libraries", ", ".join(f"{name} {number}" for name, number in machine.versions.items())),
        ("bundle", record.bundle_digest[:16] or None),
    ]
    for run in {run.contender: run for run in record.runs}.values():
        if run.proven is not None:
            proven = run.proven
            certified = f"certified {proven.certificate}" if proven.certificate else "not certified"
            facts.append((proven.target, f"{proven.runtime_version}, {certified} {proven.digest[:16]}".strip()))
    return ["", ""], [[name, text] for name, text in facts if text]


def _describe_gpu(gpu: GpuState) -> str:
    parts = [
        f"{value:g} {unit}"
        for value, unit in ((gpu.clock_mhz, "MHz"), (gpu.temperature_c, "°C"), (gpu.power_w, "W"))
        if value is not None
    ]
    held = f", held down: {', '.join(gpu.throttled)}" if gpu.throttled else ""
    return f"driver {gpu.driver}, {', '.join(parts)}{held}"


def _pair(values: tuple[float | None, float | None], form: str) -> str | None:
    known = [form.format(value) for value in values if value is not None]
    return ", ".join(known) if len(known) == len(values) else None


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%} of the time"


def describe_left_out(record: BenchRecord) -> list[str]:
    """A line for each percentile that a run has too few requests for."""
    names = dict.fromkeys(name for run in record.runs for name in run.figures.left_out)
    lines: list[str] = []
    for name in names:
        found = [run for run in record.runs if name in run.figures.left_out]
        if len(record.runs) == 1:
            lines.append(f"left out: {found[0].figures.left_out[name]}")
        else:
            whose = ", ".join(f"{run.name} {run.figures.requests:,}" for run in found)
            lines.append(f"left out: {name} needs {count_needed(float(name[1:])):,} requests, and there were {whose}")
    return lines


def describe_checks(run: RunRecord) -> str:
    """Whether it answered right, and when that was looked at."""
    if not run.checks:
        return "not checked"
    wrong = [check.when for check in run.checks if not check.passed]
    return f"wrong {' and '.join(wrong)}" if wrong else f"right {' and '.join(check.when for check in run.checks)}"


def describe_ratios(record: BenchRecord) -> list[str]:
    """A line for each run but the first, against it."""
    lines: list[str] = []
    for name, ratio in record.ratios.items():
        text = f"{name} is {ratio} as {record.runs[0].name}"
        lines.append(text if ratio.differs else f"{text}: no difference")
    return lines


def format_ms(value: float) -> str:
    """Three digits, or hundredths where there are more."""
    return f"{value:.3g}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def render_markdown(records: Sequence[BenchRecord]) -> str:
    """A heading line and a table a record, as a README takes it."""
    parts: list[str] = []
    for record in records:
        header, rows = tabulate(record)
        lines = [describe_record(record), "", _row(header), _row(["---", *["--:"] * (len(header) - 1)])]
        lines += [_row(row) for row in rows]
        notes = [f"* {line}" for line in [*describe_load(record), *describe_ratios(record)]]
        notes += [f"* left out: {line}" for line in record.broken]
        notes += [f"* **{name} was not measured:** {'; '.join(why)}" for name, why in record.refused.items()]
        notes += [f"* **unreliable:** {line}" for line in record.reasons]
        notes += [f"* **ended early:** {record.ended}"] if record.ended else []
        notes += [f"* with {', '.join(f'{name} {number}' for name, number in record.machine.versions.items())}"]
        parts.append("\n".join([*lines, "", *notes]))
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def render_csv(records: Sequence[BenchRecord]) -> str:
    """A line a run, numbers in full; percentiles that it does not carry are empty."""
    names = {name for record in records for run in record.runs for name in run.figures.percentiles_ms}
    percentiles = [name_percentile(value) for value in sorted(float(name[1:]) for name in names)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV, *(f"{name}_ms" for name in percentiles), "right", "unreliable", "ended"])
    for record in records:
        for run in record.runs:
            figures = run.figures
            start = [record.model, record.scenario, record.machine.device.cpu, run.name, figures.requests]
            start += [figures.seconds, figures.images_per_s, figures.mean_ms, figures.min_ms, figures.max_ms]
            values = [figures.percentiles_ms.get(name, "") for name in percentiles]
            reasons = "; ".join([*record.unreliable, *run.unreliable])
            writer.writerow([*start, *values, run.right, reasons, record.ended or ""])
    return text.getvalue()
