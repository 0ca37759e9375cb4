"""`ferryman export`, and `ferryman inspect` of a checkpoint: what is behind the command line."""

import resource
import sys
import time
from pathlib import Path
from typing import Literal

from ferryman.accuracy import read_accuracy
from ferryman.commands.accuracy import print_accuracy
from ferryman.commands.console import make_table, out, print_json, print_table, show_stages
from ferryman.commands.inspect import describe_specs
from ferryman.commands.verify import print_report
from ferryman.proof import read_reports
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.sources import SourceOptions, open_source
from ferryman_export.variants import choose_targets, left_out


def run_export(
    source: str,
    repository: Path,
    name: str | None,
    sizes: tuple[tuple[int, int], ...] | Literal["auto"],
    targets: list[str],
    samples: Path | None,
    tolerance: float | None,
    options: SourceOptions,
    onnx_spec: Path | None,
    bisect: bool,
    explain: bool,
    calibration: Path | None,
    accuracy: Path | None,
    json_output: bool,
) -> None:
    """Raises what `pipeline.export` raises; nothing but finished variants is left in the repository then."""
    chosen = choose_targets(targets)
    start = time.monotonic()
    found: list[str] = []
    with show_stages() as progress:
        for name_left, why in left_out(targets).items():
            progress(f"{name_left} is left out: {why}", 1, 1)
        tell = found.append if bisect else None
        request = ExportRequest(
            source,
            repository,
            name,
            samples,
            sizes,
            tolerance,
            options,
            onnx_spec,
            tell,
            explain=explain,
            targets=chosen,
            calibration=calibration,
            accuracy=accuracy,
        )
        bundle = export(request, progress)
    seconds, peak_bytes = time.monotonic() - start, peak_memory_bytes()
    reports, counted = read_reports(bundle), read_accuracy(bundle)
    if json_output:
        document = {
            "bundle": str(bundle.path),
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_bytes,
            "notes": bundle.manifest.source.notes,
        }
        findings: dict[str, object] = {"bisect": found} if bisect else {}
        if counted is not None:
            findings["accuracy"] = counted.model_dump(mode="json")
        print_json(document | findings | {"parity": [report.model_dump(mode="json") for report in reports]})
        return
    notes = [f"note: {note}" for note in bundle.manifest.source.notes]
    notes += [f"note: {one.target}: {note}" for one in bundle.manifest.variants for note in one.notes]
    for note in notes:
        out.print(note)
    for report in reports:
        print_report(report)
    if counted is not None:
        print_accuracy(counted)
    for line in found:
        out.print(line)
    out.print(f"{bundle.path}: written in {seconds:.0f} s with at most {peak_bytes / 1e9:.1f} GB of memory")
    out.print(f"the comparison is shown in {bundle.path / 'parity.html'}")


def run_inspect_source(source: str, options: SourceOptions, json_output: bool) -> None:
    """Loads the checkpoint, which is how anything that is wrong with it is found, and prints its facts."""
    with show_stages() as progress:
        progress("load the checkpoint", 0, 1)
        checkpoint = open_source(source, options, progress)
    spec = checkpoint.spec
    parameters = sum(parameter.numel() for parameter in checkpoint.module.parameters())
    if json_output:
        document = {
            "source": checkpoint.source,
            "format": checkpoint.format,
            "architecture": checkpoint.architecture,
            "sha256": checkpoint.sha256,
            "parameters": parameters,
            "stored_as": checkpoint.dtypes,
            "spec": spec.model_dump(mode="json"),
            "notes": checkpoint.notes,
        }
        print_json(document)
        return
    table = make_table("", "")
    table.show_header = False
    table.add_row("checkpoint", checkpoint.source)
    table.add_row("format", checkpoint.format)
    table.add_row("architecture", checkpoint.architecture)
    stored = ", ".join(checkpoint.dtypes)
    table.add_row("size", f"{parameters:,} parameters, stored as {stored}, {parameters * 4 / 1e6:.1f} MB as float32")
    table.add_row("digest", checkpoint.sha256)
    for row in describe_specs([spec]):
        table.add_row(*row)
    for note in checkpoint.notes:
        table.add_row("note", note)
    print_table(table)


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes
