"""`ferryman inspect`: what a bundle holds."""

from pathlib import Path

from ferryman.bundle import Bundle
from ferryman.commands.console import make_table, out, print_json, print_table
from ferryman.commands.verify import print_report
from ferryman.errors import BundleCorruptError
from ferryman.manifest import ONNX_ARCHITECTURE
from ferryman.parity import ParityReports


def read_parity(bundle: Bundle) -> ParityReports:
    """The reports measured at export. Raises BundleCorruptError when they can't be read."""
    try:
        return ParityReports.model_validate_json(bundle.file("parity.json").read_bytes())
    except ValueError as error:
        raise BundleCorruptError(f"{bundle.path}: parity.json holds no parity reports; export it again") from error


def run_inspect(path: Path, json_output: bool) -> None:
    """Opens the bundle, so every digest is checked, and prints its facts."""
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    parity = read_parity(bundle)
    if json_output:
        document = {
            "path": str(bundle.path),
            "digest": bundle.digest,
            "manifest": manifest.model_dump(mode="json"),
        }
        print_json(document | {"parity": parity.model_dump(mode="json")["reports"]})
        return
    spec = bundle.spec
    table = make_table("", "")
    table.show_header = False
    table.add_row("bundle", f"{bundle.name}, version {bundle.version}, {manifest.created}")
    table.add_row("digest", bundle.digest)
    kind = ", ".join(part for part in (manifest.source.format, manifest.source.architecture) if part)
    table.add_row("checkpoint", f"{manifest.source.source} ({kind})")
    table.add_row("its digest", manifest.source.sha256)
    for note in manifest.source.notes:
        table.add_row("note", note)
    foreign = manifest.source.architecture == ONNX_ARCHITECTURE
    if foreign:
        table.add_row("its reference", "the ONNX file itself in ONNX Runtime; its PyTorch source was not seen")
    table.add_row("task", f"{spec.task}, {len(spec.labels)} labels")
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            table.add_row(kind, f"{tensor.name}: {tensor.dtype} ({', '.join(str(size) for size in tensor.shape)})")
    sizes = " or ".join("x".join(map(str, one.preprocess.size)) for one in manifest.specs)
    table.add_row("preprocessing", f"{spec.preprocess.fit} to {sizes}, {spec.preprocess.interpolation}")
    for variant in manifest.variants:
        size = manifest.size_bytes(variant)
        table.add_row(
            "variant",
            f"{variant.target}: {variant.path}, {size / 1e6:.1f} MB, {sum(variant.operators.values())} nodes",
        )
    table.add_row("made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items()))
    print_table(table)
    reference = "the ONNX file" if foreign else "PyTorch fp32"
    out.print(f"\nAt export, against {reference} ({len(manifest.files)} files, every digest right):")
    for report in parity.reports:
        print_report(report)
