"""The ONNX exporter: names, dynamic batch, opset, metadata, and the checks on what came out."""

import hashlib
import json
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto

from ferryman.errors import ExportError
from ferryman.golden import Tensors
from ferryman.specs import ModelSpec
from ferryman_export.wrappers import ExportModule

# 17 brings LayerNormalization whole; 18 is what the exporter writes natively and all runtimes read.
OPSET = 18
# Protocol buffers end at 2 GB; above this the weights go to a file beside the graph.
EXTERNAL_DATA_BYTES = 1_500_000_000


def export_onnx(module: ExportModule, example: Tensors, path: Path, metadata: dict[str, str]) -> onnx.ModelProto:
    """Writes `module` to `path` with a dynamic batch and checks the graph.

    example: inputs of a batch of 2 or more, so that no size of 1 is taken for a constant
    metadata: goes into metadata_props beside task, labels and preprocessing
    Returns the graph (without weights when those are stored beside it). Raises ExportError.
    """
    spec = module.spec
    arguments = tuple(torch.from_numpy(example[name]) for name in spec.input_names)
    batch = torch.export.Dim("batch")
    dynamic_shapes = tuple({0: batch} for _ in arguments)
    # The exporter talks to the log about operators of torchvision, which is not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # Deprecations inside PyTorch's exporter; what matters is checked on the graph below.
            warnings.simplefilter("ignore")
            captured = module
            if module.strict:
                captured = torch.export.export(module, arguments, dynamic_shapes=dynamic_shapes, strict=True)
            program = torch.onnx.export(
                captured,
                arguments,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(spec.input_names),
                output_names=list(spec.output_names),
                dynamic_shapes=dynamic_shapes,
                custom_translation_table={torch.ops.aten._is_all_true.default: _is_all_true},
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"PyTorch can't export this model to ONNX: {error}") from error
    if program is None:
        raise ExportError("PyTorch's exporter gave no program")
    for key, value in (graph_metadata(spec) | metadata).items():
        program.model.metadata_props[key] = value
    keep_constants(program)
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)
    check_graph(path, spec)
    return onnx.load(path, load_external_data=False)


def _is_all_true(values: Any) -> Any:
    """What torch.export leaves of a check inside a model; PyTorch 2.13 has no translation of it."""
    from onnxscript import opset18

    op: Any = opset18  # its types are those of ONNX's tensors, not of the exporter's values
    return op.Cast(op.ReduceMin(op.Cast(values, to=TensorProto.INT32), keepdims=0), to=TensorProto.BOOL)


def keep_constants(program: torch.onnx.ONNXProgram) -> None:
    """Puts constants that the optimiser made and forgot into the graph.

    onnxscript 0.7 names the bounds of a Clip that it makes of Min and Max after their input. Where one input gets two
    of them (DETR's inverse sigmoid), the second's are renamed and nowhere stored.
    """
    graph = program.model.graph
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.producer() is None:
                graph.initializers.setdefault(str(value.name), value)


def graph_metadata(spec: ModelSpec) -> dict[str, str]:
    """What the graph itself says of its use, for tools that see only the ONNX file."""
    return {
        "ferryman.task": spec.task,
        "ferryman.labels": json.dumps(spec.labels),
        "ferryman.preprocess": spec.preprocess.model_dump_json(),
    }


def check_graph(path: Path, spec: ModelSpec) -> None:
    """Raises ExportError unless the file passes ONNX's checker and shape inference and has the spec's interface."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        inferred = onnx.shape_inference.infer_shapes(
            onnx.load(path, load_external_data=False), check_type=True, strict_mode=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ExportError(f"the exported graph is not valid: {error}") from error
    for values, tensors in ((inferred.graph.input, spec.inputs), (inferred.graph.output, spec.outputs)):
        found = [_describe(value) for value in values]
        wanted = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
        if found != wanted:
            raise ExportError(f"the exported graph breaks the graph contract: it has {found}, expected {wanted}")


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return value.name, dtype, shape


def count_operators(graph: onnx.ModelProto) -> dict[str, int]:
    """Number of nodes of each operator type, functions' bodies not opened."""
    return dict(sorted(Counter(node.op_type for node in graph.graph.node).items()))


def digest_structure(model: onnx.ModelProto) -> str:
    """SHA-256 of a graph without what its weights hold, and without what is not computed with.

    Integers stay, for they are shapes and places; those of 8 bits are weights.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for tensor in graph.initializer:
        if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
            bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(bare)
    opsets = sorted((one.domain, one.version) for one in model.opset_import)
    return hashlib.sha256(repr(opsets).encode() + graph.SerializeToString(deterministic=True)).hexdigest()


def save_graph(model: onnx.ModelProto, path: Path) -> Path:
    """Writes a changed graph, its weights beside it when they are too large for one file. Gives the path back."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=size > EXTERNAL_DATA_BYTES, location=f"{path.name}.data")
    return path
