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
from ferryman.specs import Target


def choose_targets(bundle: Bundle, names: Sequence[str]) -> list[Target]:
    """Those named, or all of a bundle's that run an engine. Raises UsageError for others, and when there are none."""
    have = [one for one in bundle.targets if isinstance(RUNTIMES.get(one.runtime), TensorRt)]
    chosen = [bundle.variants(name)[0].target for name in dict.fromkeys(names)]
    for one in chosen:
        if one not in have:
            raise UsageError(f"{one} runs the bundle's file as it is: there is nothing to build")
    if not have:
        raise UsageError(f"{bundle.path} has no variant that needs building; export one: --target tensorrt-gpu-fp16")
    return chosen or have


def run_build(path: Path, names: Sequence[str], batch: int, json_output: bool) -> None:
    """An engine a target and size; one that is there already is not built again.

    Raises EngineError when the runtime is missing or refuses, FileAccessError when an engine can't be written.
    """
    bundle = Bundle.open(path)
    built: list[tuple[Engine, bool]] = []
    with show_stages() as show:
        for target in choose_targets(bundle, names):
            runtime = RUNTIMES[target.runtime]
            assert isinstance(runtime, TensorRt)
            why = runtime.missing()
            if why is not None:
                raise EngineError(f"{target} can't be built here: {why}")
            for variant, spec in zip(bundle.variants(str(target)), bundle.manifest.specs, strict=True):
                onnx = bundle.file(variant.path)
                height, width = variant.size

                def tell(stage: str, done: int, total: int, what: str = f"{target} at {height}x{width}") -> None:
                    show(f"{what}: {stage}", done, total)

                built.append(build_engine(runtime, onnx, target, spec, batch, tell))
    if json_output:
        documents = [
            {"path": str(engine.path), "there_already": there, **engine.facts.model_dump(mode="json")}
            for engine, there in built
        ]
        print_json({"engines": documents})
        return
    for engine, there in built:
        facts = engine.facts
        products = ", ".join(f"{count} in {name}" for name, count in sorted(Counter(facts.products.values()).items()))
        how = "was there already" if there else f"built in {facts.seconds:.1f} s"
        out.print(
            f"{facts.key.target}: {engine.path} {how}, {facts.size_bytes / 1e6:.1f} MB, {facts.key.host.runtime}, "
            f"compute capability {facts.key.host.capability}, batches to {facts.key.batch}; matrix products with "
            f"weights: {products}"
        )
