"""`ferryman export`: the pipeline behind the command line."""

from pathlib import Path

from ferryman.commands.console import out, print_json, show_stages
from ferryman.commands.inspect import read_parity
from ferryman.commands.verify import print_report
from ferryman.errors import UsageError
from ferryman_export.pipeline import TARGET, ExportRequest, export


def run_export(
    source: str,
    repository: Path,
    name: str | None,
    size: tuple[int, int] | None,
    targets: list[str],
    samples: Path | None,
    tolerance: float | None,
    arch: str | None,
    labels: Path | None,
    head: Path | None,
    json_output: bool,
) -> None:
    """Raises what `pipeline.export` raises; nothing is left in the repository then."""
    for target in targets:
        if target != str(TARGET):
            raise UsageError(f"target {target} can't be built by this version; it builds {TARGET}")
    with show_stages() as progress:
        request = ExportRequest(source, repository, name, samples, size, tolerance, arch, labels, head)
        bundle = export(request, progress)
    reports = read_parity(bundle).reports
    if json_output:
        document = {
            "bundle": str(bundle.path),
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest,
        }
        print_json(document | {"parity": [report.model_dump(mode="json") for report in reports]})
        return
    for report in reports:
        print_report(report)
    out.print(f"{bundle.path}: written; the comparison is shown in {bundle.path / 'parity.html'}", markup=False)
