"""Weights put into a TensorRT engine that is there, instead of a build. Never tried on a GPU: see docs/tensorrt.md."""

import shlex
import time
from pathlib import Path
from typing import Any

from ferryman.engines import Engine, EngineFacts, EngineKey, digest_graph, find_engines, make_key, mismatch, read_engine
from ferryman.errors import EngineError
from ferryman.runtimes.tensorrt import TensorRt
from ferryman.runtimes.tensorrt_build import BATCH, Show, keep_engine, make_facts, make_logger
from ferryman.specs import ModelSpec, Target


def refit_engine(
    runtime: TensorRt,
    onnx: Path,
    target: Target,
    spec: ModelSpec,
    donor: Path,
    batch: int = BATCH,
    show: Show = lambda *_: None,
) -> tuple[Engine, bool]:
    """The engine of an ONNX file, made by putting its weights into one that was built refittable of another, in
    seconds; and whether it was there already.

    donor: an ONNX file of the same structure, see `VariantFacts.structure`: who calls has compared them
    The runtime checks names and sizes of weights alone: only `verify` tells whether the engine answers right.
    Raises EngineError when the donor has no such engine or the runtime refuses, FileAccessError when it can't be
    written; nothing is left then.
    """
    trt = runtime.open()
    key = make_key(onnx, target, spec, batch, runtime.host())
    wanted = key.model_copy(update={"sha256": digest_graph(donor), "refittable": True})

    engine = _find_donor(donor, wanted)

    def make() -> tuple[bytes, EngineFacts]:
        show("put the weights in", 0, 1)
        start, facts = time.monotonic(), engine.facts
        data = _refit(trt, read_engine(engine.path, facts), onnx)
        return data, make_facts(key, data, facts.products, time.monotonic() - start, refitted=facts.sha256)

    return keep_engine(onnx, key, show, make, refitted=engine.facts.sha256)


def _find_donor(donor: Path, wanted: EngineKey) -> Engine:
    """The engine of that key. Raises EngineError that says what those that take weights are for."""
    facts = [(one, one.facts.key) for one in find_engines(donor)]
    engines = [one for one, key in facts if key.refittable and key.target == wanted.target]
    for engine in engines:
        if engine.facts.key == wanted:
            return engine
    told = ""
    for engine in engines:
        why = mismatch(engine.facts, wanted.sha256, wanted.host) or f"for batches to {engine.facts.key.batch}"
        told += f"; {engine.path.name} is {why}"
    bundle = shlex.quote(str(donor.parents[2]))
    raise EngineError(
        f"{donor} has no engine for this machine and batches to {wanted.batch} that takes other weights{told}; "
        f"build it with: ferryman build {bundle} --target {wanted.target} --batch {wanted.batch} --refittable"
    )


def _refit(trt: Any, data: bytes, onnx: Path) -> bytes:
    """The engine with the weights of an ONNX file in the place of its own."""
    logger = make_logger(trt)
    told: list[str] = []
    refitted = None
    try:
        loader = trt.Runtime(logger)  # must outlive the engine
        engine = loader.deserialize_cuda_engine(data)
        if engine is not None and engine.refittable:
            refitter = trt.Refitter(engine, logger)
            parser = trt.OnnxParserRefitter(refitter, logger)
            # True only when every weight of the engine was found in the file.
            if parser.refit_from_file(str(onnx)) and refitter.refit_cuda_engine():
                refitted = engine.serialize()
            told = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    except (TypeError, RuntimeError) as error:  # where there is no driver, or no memory
        told = [str(error)]
    if refitted is None:
        why = " ".join("; ".join(told).split()) or logger.last or "it does not say why"
        raise EngineError(f"TensorRT can't put the weights of {onnx} into another engine: {why}; build it")
    return bytes(refitted)
