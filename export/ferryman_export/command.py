"""`ferryman export`: the pipeline behind the command line."""

import resource
import sys
import time
from pathlib import Path
from typing import Literal

from ferryman.commands.console import out, print_json, show_stages
from ferryman.commands.inspect import read_parity
from ferryman.commands.verify import print_report
from ferryman.errors import UsageError
from ferryman_export.pipeline import TARGET, ExportRequest, export


def run_export(
    source: str,
    repository: Path,
    name: str | None,
    sizes: tuple[tuple[int, int], ...] | Literal["auto"],
    targets: list[str],
    samples: Path | None,
    tolerance: float | None,
    arch: str | None,
    labels: Path | None,
    spec: Path | None,
    onnx_spec: Path | None,
    bisect: bool,
    json_output: bool,
) -> None:
    """Raises what `pipeline.export` raises; nothing is left in the repository then."""
    for target in targets:
        if target != str(TARGET):
            raise UsageError(f"target {target} can't be built by this version; it builds {TARGET}")
    start = time.monotonic()
    found: list[str] = []
    tell = found.append if bisect else None
    with show_stages() as progress:
        request = ExportRequest(
            source, repository, name, samples, sizes, tolerance, arch, labels, spec, onnx_spec, tell
        )
        bundle = export(request, progress)
    seconds, peak_bytes = time.monotonic() - start, peak_memory_bytes()
    reports = read_parity(bundle).reports
    if json_output:
        document = {
            "bundle": str(bundle.path),
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_bytes,
        }
        findings = {"bisect": found} if bisect else {}
        print_json(document | findings | {"parity": [report.model_dump(mode="json") for report in reports]})
        return
    for report in reports:
        print_report(report)
    for line in found:
        out.print(line)
    out.print(f"{bundle.path}: written in {seconds:.0f} s with at most {peak_bytes / 1e9:.1f} GB of memory")
    out.print(f"the comparison is shown in {bundle.path / 'parity.html'}")


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes
