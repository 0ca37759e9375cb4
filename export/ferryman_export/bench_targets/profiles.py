"""Where a model's time goes: by operator, and as a share of what this machine's products reach at their best."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ferryman.golden import Tensors
from ferryman.runtimes.openvino import open_core
from ferryman.specs import Facts

if TYPE_CHECKING:
    from openvino import Model

_WARMUP, _RUNS = 3, 12
_PEAK_SIDES, _PEAK_RUNS = (512, 1024, 2048), 40  # of the matrices whose product is taken for the machine's best
_PRODUCTS = ("FullyConnected", "MatMul")  # how the kinds of products begin
Times = dict[tuple[str, str], float]  # milliseconds of one run, by kind and precision
_NAMES = {"f32": "fp32", "float": "fp32", "i8": "int8", "u8": "int8", "uint8": "int8"}


class OperatorTime(Facts):
    """kind: in the runtime's own words; precision: that it computes in, as far as the runtime tells

    ms: of one picture, all operators of that kind and precision together
    """

    kind: str
    precision: str
    ms: float


class Profile(Facts):
    """operators: the longest first; the runtime's counters slow it down a little
    multiplications: of one picture, in products of matrices and convolutions
    peak: multiplications a second that a large product in OpenVINO reaches in the model's precision, on as many threads
    """

    operators: tuple[OperatorTime, ...]
    multiplications: int
    peak: float

    def peak_share(self, ms: float) -> float:
        """Of the peak, for a picture that takes so long."""
        return self.multiplications / (ms / 1e3) / self.peak


def make_profile(runs: Sequence[Times], multiplications: int, precision: str, threads: int) -> Profile:
    """Of the times of several runs, the median of each kind."""
    operators = [
        OperatorTime(kind=kind, precision=computed_in, ms=median(run.get((kind, computed_in), 0.0) for run in runs))
        for kind, computed_in in dict.fromkeys(key for run in runs for key in run)
    ]
    ranked = sorted(operators, key=lambda one: -one.ms)
    return Profile(operators=tuple(ranked), multiplications=multiplications, peak=measure_peak(precision, threads))


def time_openvino(model: "Model", config: Mapping[str, Any], inputs: Any, count: int = _RUNS) -> list[Times]:
    """Compiled anew, with counters. model: of static shapes; inputs: as `InferRequest.infer` takes them"""
    counting = {**config, "PERF_COUNT": True}
    request = open_core().compile_model(model, "CPU", counting).create_infer_request()
    runs: list[Times] = []
    for number in range(_WARMUP + count):
        request.infer(inputs, share_inputs=True)
        if number >= _WARMUP:
            runs.append({})
            for node in request.profiling_info:
                key = (node.node_type, _name(node.exec_type.rpartition("_")[2].lower()))
                if node.status.name == "EXECUTED":  # by itself, not inside another
                    runs[-1][key] = runs[-1].get(key, 0.0) + node.real_time.total_seconds() * 1e3
    return runs


def _name(precision: str) -> str:
    return _NAMES.get(precision, precision)


def time_onnxruntime(graph: Path, threads: int, inputs: Tensors) -> list[Times]:
    """Loaded anew, with its profiler."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.enable_profiling = 3, threads, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for _ in range(_WARMUP + _RUNS):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[Times] = [{}]
    for event in sorted(events, key=lambda event: event["ts"] + event["dur"]):  # a run ends after all of its nodes
        if event["name"] == "model_run":
            runs.append({})
        elif event["cat"] == "Node" and "op_name" in event["args"]:
            operands = event["args"].get("input_type_shape", [])
            key = (event["args"]["op_name"], _name(next(iter(operands[0]), "")) if operands else "")
            runs[-1][key] = runs[-1].get(key, 0.0) + event["dur"] / 1e3
    return runs[_WARMUP:-1]


def count_multiplications(model: "Model") -> int:
    """In products of matrices, those of two activations too, and convolutions. model: of static shapes"""
    total = 0
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind == "MatMul":
            left = node.get_input_shape(0)
            transposed = len(left) > 1 and node.get_attributes()["transpose_a"]
            total += int(np.prod(node.get_output_shape(0))) * left[-2 if transposed else -1]
        elif kind in ("Convolution", "GroupConvolution"):
            weights = node.get_input_shape(1)  # (out, in, height, width), in groups (groups, out, in, height, width)
            a_value = weights[1:] if kind == "Convolution" else weights[2:]
            total += int(np.prod(node.get_output_shape(0))) * int(np.prod(a_value))
    return total


def read_static(path: Path, inputs: Tensors) -> "Model":
    """A graph, ONNX or IR, in the shapes of one input."""
    model = open_core().read_model(path)
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    return model


@cache
def measure_peak(precision: str, threads: int) -> float:
    """Multiplications a second of the best of large square products in OpenVINO: fp32, bf16, or int8."""
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    speeds: list[float] = []
    for side in _PEAK_SIDES:
        inputs = [np.random.default_rng(0).uniform(0, 1, (side, side)).astype(np.float32)]
        runs = time_openvino(_make_product(side, precision), config, inputs, _PEAK_RUNS)
        ms = min(sum(ms for (kind, _), ms in run.items() if kind.startswith(_PRODUCTS)) for run in runs)
        speeds.append(side**3 / (ms / 1e3))
    return max(speeds)


def _make_product(side: int, precision: str) -> "Model":
    """A product with constant weights, both square; in int8 quantised as its weights are, one scale a channel."""
    import openvino
    from openvino import opset13

    value = opset13.parameter([side, side], np.float32)
    random = np.random.default_rng(1)
    left: Any = value
    right: Any = opset13.constant(random.normal(size=(side, side)).astype(np.float32))
    if precision == "int8":
        low, high = opset13.constant(np.float32(0)), opset13.constant(np.float32(1))
        left = opset13.fake_quantize(value, low, high, low, high, 256)
        weights = opset13.constant(random.integers(-127, 128, (side, side), dtype=np.int8))
        scales = opset13.constant(np.full((side, 1), 0.01, np.float32))
        right = opset13.multiply(opset13.convert(weights, np.float32), scales)
    make_model: Any = openvino.Model  # the stub of its `__init__` takes another class
    return make_model([opset13.matmul(left, right, transpose_a=False, transpose_b=True)], [value], "product")
