"""Variants for devices that this machine has not: proved in a stand-in on its CPU, and by `verify` on the device."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from ferryman.attest import Attestation, attestation
from ferryman.runtimes import find_runtime, why_not
from ferryman.runtimes.base import Arrays, Session
from ferryman.specs import ModelSpec, Target
from ferryman_export.graph_edit import GraphEditor
from ferryman_export.onnx import save_graph
from ferryman_export.variants.base import CANONICAL, Artefact

# Runtimes whose variants are ONNX files that their device makes an engine of: rehearsed with a GPU at hand too.
ELSEWHERE = ("tensorrt", "tensorrtrtx")
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


def is_rehearsed(target: Target) -> bool:
    """Whether a target's variants are proved in a stand-in, since this machine can't run them."""
    return target.runtime in ELSEWHERE or (target.device != "cpu" and why_not(target) is not None)


def run_as(target: Target) -> Target:
    """The target that candidates for `target` are run as on this machine: itself, or the nearest that the CPU has."""
    if not is_rehearsed(target):
        return target
    if target.runtime == "openvino" and target.precision in ("fp32", "int8"):
        return target.model_copy(update={"device": "cpu"})
    return CANONICAL


def find_version(target: Target) -> str:
    """Of what ran, for the report."""
    ran = run_as(target)
    version = find_runtime(ran).version()
    return f"emulated in {_RUNTIMES[ran.runtime]} {version}" if is_rehearsed(target) else version


@contextmanager
def load_artefact(artefact: Artefact, target: Target, spec: ModelSpec) -> Generator[Session, None, None]:
    """The artefact in its runtime, or what stands for it here."""
    ran = run_as(target)
    if ran.runtime == target.runtime and ran.precision == target.precision:
        with find_runtime(ran).load(artefact.path, ran, spec) as session:
            yield session
        return
    with tempfile.TemporaryDirectory() as folder:
        path = artefact.path
        if artefact.stand_in is not None:
            path = save_graph(artefact.stand_in, Path(folder) / "stand-in.onnx")
        told = attest_graph(artefact.typed or onnx.load(artefact.path))
        with find_runtime(ran).load(path, ran, spec) as session, Rehearsal(session, told) as rehearsal:
            yield rehearsal


class Rehearsal(Session):
    """Answers as `session`, and tells what the artefact that it stands for computes in."""

    def __init__(self, session: Session, told: Attestation) -> None:
        super().__init__(session.spec)
        self._session, self._told = session, told

    def attest(self, inputs: Arrays) -> Attestation:
        return self._told

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return self._session.run(inputs)

    def _close(self) -> None:
        self._session.close()


def attest_graph(model: onnx.ModelProto) -> Attestation:
    """What a typed graph says that its operators compute in: a strongly typed network computes in nothing else.

    A product whose operands both come out of DequantizeLinear runs in what they were.
    """
    graph = GraphEditor(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}

    def stored(name: str) -> str:
        """What holds a value: behind a DequantizeLinear, its input."""
        producer = graph.producers.get(name)
        return producer.input[0] if producer is not None and producer.op_type == "DequantizeLinear" else name

    found: list[tuple[str, str, bool]] = []
    for node in graph.nodes:
        operands = [stored(name) for name in node.input[:2]] if node.op_type in ("MatMul", "Gemm", "Conv") else []
        product = bool(operands) and graph.is_constant(operands[1])
        names = operands if product else (*node.input, *node.output)
        known = [name for one in names if (name := _NAMES.get(types.get(one, 0))) is not None]
        # A product of operands of two precisions runs in the wider one.
        widest = next((name for name in ("fp32", "bf16", "fp16", "fp8", "int8") if name in known), "none")
        found.append((str(node.op_type), widest if product else next(iter(known), "none"), product))
    return attestation(found)
