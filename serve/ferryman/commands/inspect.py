"""`ferryman inspect`: what a bundle holds."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ferryman.accuracy import read_accuracy
from ferryman.bundle import Bundle, is_bundle
from ferryman.commands.accuracy import print_accuracy
from ferryman.commands.console import make_table, out, print_json, print_table
from ferryman.commands.verify import describe_products, print_report
from ferryman.errors import BundleNotFoundError, FileAccessError
from ferryman.manifest import ONNX_ARCHITECTURE, sized_name
from ferryman.proof import read_reports
from ferryman.specs import ModelSpec, Target


def run_inspect(path: Path, target: str | None, json_output: bool) -> None:
    """Opens the bundle, so every digest is checked, and prints its facts; of all variants, or of one target's.

    Raises BundleNotFoundError for another folder, and FileAccessError when it can't be read.
    """
    if path.is_dir() and not is_bundle(path):
        try:
            models = sorted(str(child) for child in path.iterdir() if is_bundle(child))
        except OSError as error:
            raise FileAccessError(f"can't read {path}: {error.strerror}") from error
        if models:
            raise BundleNotFoundError(f"{path} is a model repository; inspect one of its models: {', '.join(models)}")
        raise BundleNotFoundError(
            f"{path} is neither a bundle, which has a manifest.json, nor a checkpoint, which has a config.json"
        )
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    shown = bundle.targets if target is None else (bundle.variants(target)[0].target,)
    counted = read_accuracy(bundle)
    reports = [report for one in shown for report in read_reports(bundle, one)]
    if json_output:
        document = {
            "path": str(bundle.path),
            "digest": bundle.digest,
            "manifest": manifest.model_dump(mode="json"),
        }
        if counted is not None:
            document["accuracy"] = counted.model_dump(mode="json")
        print_json(document | {"parity": [report.model_dump(mode="json") for report in reports]})
        return
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
    for row in describe_specs(manifest.specs):
        table.add_row(*row)
    attested = {(report.target, report.size): report.attestation for report in reports}
    for variant in (variant for one in shown for variant in bundle.variants(str(one))):
        at = f"{variant.target} at {'x'.join(map(str, variant.size))}"
        facts = [variant.path, f"{bundle.size_bytes(variant) / 1e6:.1f} MB", f"{sum(variant.operators.values())} nodes"]
        attestation = attested.get((str(variant.target), variant.size))
        if attestation is not None:
            facts.append(f"matrix products with weights: {describe_products(attestation)}")
        table.add_row("variant", f"{at}: {', '.join(facts)}")
    table.add_row("made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items()))
    print_table(table)
    reference = "the ONNX file" if foreign else "PyTorch fp32"
    out.print(f"\nAt export, against {reference} ({len(manifest.files)} files, every digest right):")
    for report in reports:
        print_report(report)
    print_pages(bundle, shown)
    if counted is not None:
        print_accuracy(counted)


def print_pages(bundle: Bundle, targets: Sequence[Target]) -> None:
    """Where it is shown how each variant was built that islands were searched for."""
    for target in targets:
        for index, variant in enumerate(bundle.variants(str(target))):
            name = sized_name("build.html", index, bundle.manifest.specs[index])
            page = PurePosixPath(variant.path).with_name(name).as_posix()
            if page in bundle.manifest.files:
                out.print(f"how {target} was built is shown in {bundle.file(page)}")


def describe_specs(specs: Sequence[ModelSpec]) -> Iterator[tuple[str, str]]:
    """Rows of what a model is for, takes and answers, and how pictures reach it. specs: of its sizes"""
    spec = specs[0]
    labels = f", {len(spec.labels)} labels: {', '.join(spec.labels[:5])}" if spec.labels else ""
    yield "task", f"{spec.task}{labels}{', …' if len(spec.labels) > 5 else ''}"
    for kind in ("inputs", "outputs"):
        for same in zip(*(getattr(one, kind) for one in specs), strict=True):
            shapes = dict.fromkeys(f"({', '.join(map(str, tensor.shape))})" for tensor in same)
            yield kind.removesuffix("s"), f"{same[0].name}: {same[0].dtype} {' or '.join(shapes)}"
    preprocess = spec.preprocess
    sizes = " or ".join("x".join(map(str, one.preprocess.size)) for one in specs)
    edges = " or ".join(str(edge) for edge in dict.fromkeys(one.preprocess.shortest_edge for one in specs))
    how = {"crop": f"shorter side to {edges}, then the middle {sizes}", "pad": f"fitted into {sizes}"}
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (preprocess.mean, preprocess.std))
    yield "preprocessing", f"{how.get(preprocess.fit, f'stretched to {sizes}')}, {preprocess.interpolation}"
    yield "normalising", f"mean {mean}, deviation {std}"
