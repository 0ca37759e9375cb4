"""Our variants of a bundle, each built and proved as `ferryman export` does."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from ferryman.bench.alone import Load
from ferryman.bundle import Bundle
from ferryman.errors import EngineError, ParityError
from ferryman.golden import Tensors
from ferryman.parity import TOLERANCES
from ferryman.runtimes import find_runtime
from ferryman.runtimes.base import Settings
from ferryman.runtimes.openvino import choose_config, open_core
from ferryman.specs import Target
from ferryman_export.bench_targets.contenders import BATCH, Contender
from ferryman_export.bench_targets.profiles import (
    Profile,
    count_multiplications,
    make_profile,
    read_static,
    time_onnxruntime,
    time_openvino,
)
from ferryman_export.calibration import Calibration
from ferryman_export.onnx import save_graph
from ferryman_export.steps import Progress
from ferryman_export.variants import onnxruntime
from ferryman_export.variants.base import Workpiece
from ferryman_export.variants.build import Shelf, build_variant
from ferryman_export.variants.integer import PLAIN
from ferryman_export.variants.ir import save_ir

TARGETS = ("openvino-cpu-fp32", "openvino-cpu-bf16", "openvino-cpu-int8", "onnxruntime-cpu-int8")


class Ours:
    """Builds in `work`. calibration: pictures for int8; search: for the int8 graph that is within tolerance

    Without a search, and where nothing is within tolerance, int8 is every block in 8 bits, to tell its speed alone.
    """

    def __init__(
        self, bundle: Bundle, work: Path, calibration: Calibration, threads: int, search: bool, progress: Progress
    ) -> None:
        graph = bundle.file(bundle.manifest.variants[0].path)
        self.bundle, self.work, self.search = bundle, work, search
        self.threads, self.settings = threads, Settings(threads=threads)
        self.piece = Workpiece(graph, bundle.spec, bundle.golden(), calibration, progress)

    def load(self, target: Target, inputs: list[Tensors], opened: ExitStack) -> Contender:
        """The variant, loaded until `opened` ends. Raises EngineError, ExportError."""
        path, note = self._build(target)
        session = opened.enter_context(find_runtime(target).load(path, target, self.bundle.spec, self.settings))
        return Contender(
            str(target),
            target.precision,
            session.run,
            inputs,
            note,
            batch=_repeat(inputs),
            load=Load(path=path, target=target, spec=self.bundle.spec, threads=self.threads),
            profile=partial(self._profile, path, target),
        )

    def _profile(self, path: Path, target: Target, inputs: Tensors) -> Profile:
        model = read_static(path, inputs)
        if target.runtime == "openvino":
            config = choose_config(open_core(), target.device.upper(), target, self.settings)
            runs = time_openvino(model, config, inputs)
        else:
            runs = time_onnxruntime(path, self.threads, inputs)
        return make_profile(runs, count_multiplications(model), target.precision, self.threads)

    def _build(self, target: Target) -> tuple[Path, str]:
        """The variant's main file, and what is to be known of it."""
        if target.precision == "int8" and not self.search:
            return self._quantize_all(target), "not proved, as no search was asked for; every block in 8 bits"
        folder, tools = self.work / "built", self.bundle.manifest.tools
        try:
            tolerance, shelf = TOLERANCES[target.precision], Shelf(self.work / "shelf")
            _, built = build_variant(self.piece, 0, target, tolerance, folder, self.bundle.name, tools, shelf)
        except ParityError as error:
            why = f"out of tolerance ({error}), for its speed alone"
            if target.precision == "int8":
                return self._quantize_all(target), f"{why}, with every block in 8 bits"
            return self._as_artefact(self.piece.graph, target), why
        islands = built.build.islands
        return folder / built.variant.path, f"{len(islands.islands)} blocks in fp32" if islands else ""

    def _quantize_all(self, target: Target) -> Path:
        """The proved graph with every block in 8 bits, as the target's runtime wants it."""
        style = onnxruntime.STYLES["static"] if target.runtime == "onnxruntime" else PLAIN
        path = self.work / f"every-block-{target.runtime}.onnx"
        if not path.exists():
            save_graph(self.piece.quantizer.quantize(style.plan("minmax")), path)
        return self._as_artefact(path, target)

    def _as_artefact(self, graph: Path, target: Target) -> Path:
        """A graph as the file that a bundle would hold of it."""
        if target.runtime != "openvino":
            return graph
        place = self.work / f"{target}.xml"
        save_ir(graph, self.bundle.spec, place)
        return place


def _repeat(inputs: list[Tensors]) -> Tensors:
    """`BATCH` pictures in one input, the same ones over and over."""
    chosen = [inputs[number % len(inputs)] for number in range(BATCH)]
    return {name: np.concatenate([one[name] for one in chosen]) for name in chosen[0]}


def choose_targets(precisions: tuple[str, ...]) -> list[Target]:
    """Those of the precisions that can run here."""
    chosen: list[Target] = []
    for target in map(Target.parse, TARGETS):
        try:
            find_runtime(target)
        except EngineError:
            continue
        if target.precision in precisions:
            chosen.append(target)
    return chosen
