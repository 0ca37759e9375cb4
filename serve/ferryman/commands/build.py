"""`ferryman build`: device-bound engines from a bundle's portable files, on the device that will run them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ferryman.bundle import Bundle
from ferryman.commands.console import out, print_json, show_stages
from ferryman.engines import Engine
from ferryman.errors import EngineError, UsageError
from ferryman.runtimes import RUNTIMES
from ferryman.runtimes.tensorrt import TensorRt
from ferryman.runtimes.tensorrt_build import build_engine
from ferryman.runtimes.tensorrt_refit import refit_engine
from ferryman.specs import Target


def choose_targets(bundle: Bundle, names: Sequence[str]) -> tuple[dict[Target, TensorRt], dict[Target, str]]:
    """Those named, or all of a bundle's whose engines can be built here, with what builds them; why others can't be.

    Raises UsageError for one that runs no engine, and when there is none; EngineError for one that is named and can't
    be built here, and when none can.
    """
    have = {one: runtime for one in bundle.targets if isinstance(runtime := RUNTIMES.get(one.runtime), TensorRt)}
    chosen = [bundle.variants(name)[0].target for name in dict.fromkeys(names)]
    for one in chosen:
        if one not in have:
            raise UsageError(f"{one} runs the bundle's file as it is: there is nothing to build")
    if not have:
        raise UsageError(f"{bundle.path} has no variant that needs building; export one: --target tensorrt-gpu-fp16")
    wanted = {one: runtime for one, runtime in have.items() if one in (chosen or have)}
    reasons = {one: why for one, runtime in wanted.items() if (why := runtime.why_not_build()) is not None}
    if reasons and (chosen or len(reasons) == len(wanted)):
        told = "; ".join(f"{one} can't be built here: {why}" for one, why in reasons.items())
        raise EngineError(told)
    return {one: runtime for one, runtime in wanted.items() if one not in reasons}, reasons


def find_donors(bundle: Bundle, donor: Bundle, target: Target) -> list[Path]:
    """The donor's ONNX file for each size of the bundle, of the same structure.

    Raises UsageError when it has none of that target and size, EngineError when it is another graph.
    """
    theirs = {one.size: one for one in donor.variants(str(target))}
    found: list[Path] = []
    for variant in bundle.variants(str(target)):
        other = theirs.get(variant.size)
        if other is None:
            height, width = variant.size
            raise UsageError(f"{donor.path} has no {target} at {height}x{width}, whose engine could take the weights")
        for place, one in ((bundle.path, variant), (donor.path, other)):
            if one.structure is None:
                raise EngineError(f"{place} does not tell the structure of its {target}: export it again")
        if variant.structure != other.structure:
            raise EngineError(
                f"the graph of {target} in {donor.path} is not that of {bundle.path} with other weights: "
                "its engine can't take them; build one"
            )
        found.append(donor.file(other.path))
    return found


def run_build(
    path: Path, names: Sequence[str], batch: int, refittable: bool, refit: Path | None, json_output: bool
) -> None:
    """An engine a target and size; one that is there already is not built again.

    refit: a bundle with engines that take other weights
    Raises EngineError when the runtime is missing or refuses, FileAccessError when an engine can't be written,
    UsageError where what was asked for makes no sense.
    """
    if refit is not None and refittable:
        raise UsageError("--refit makes an engine that is not refittable: leave out --refittable")
    bundle = Bundle.open(path)
    donor = None if refit is None else Bundle.open(refit)
    targets, reasons = choose_targets(bundle, names)
    donors = {} if donor is None else {target: find_donors(bundle, donor, target) for target in targets}
    built: list[tuple[Engine, bool]] = []
    with show_stages() as show:
        for target, runtime in targets.items():
            variants = bundle.variants(str(target))
            for index, (variant, spec) in enumerate(zip(variants, bundle.manifest.specs, strict=True)):
                onnx = bundle.file(variant.path)
                height, width = variant.size

                def tell(stage: str, done: int, total: int, what: str = f"{target} at {height}x{width}") -> None:
                    show(f"{what}: {stage}", done, total)

                if donor is None:
                    built.append(build_engine(runtime, onnx, target, spec, batch, tell, refittable))
                else:
                    built.append(refit_engine(runtime, onnx, target, spec, donors[target][index], batch, tell))
    if json_output:
        documents = [
            {"path": str(engine.path), "there_already": there, **engine.facts.model_dump(mode="json")}
            for engine, there in built
        ]
        print_json({"engines": documents, "can_not_build": {str(one): why for one, why in reasons.items()}})
        return
    for engine, there in built:
        facts = engine.facts
        products = ", ".join(f"{count} in {name}" for name, count in sorted(Counter(facts.products.values()).items()))
        made = "built" if facts.refitted is None else "refitted, to be proved by ferryman verify,"
        how = "was there already" if there else f"{made} in {facts.seconds:.1f} s"
        out.print(
            f"{facts.key.target}: {engine.path} {how}, {facts.size_bytes / 1e6:.1f} MB, {facts.key.host.runtime}, "
            f"compute capability {facts.key.host.capability}, batches to {facts.key.batch}; matrix products with "
            f"weights: {products}"
        )
    for one, why in reasons.items():
        out.print(f"{one} can't be built here: {why}")
