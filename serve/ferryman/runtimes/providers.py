"""ONNX Runtime's execution providers, each driven as a device. A new one is a row below."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ferryman.engines import digest_graph
from ferryman.specs import ModelSpec, Target

# The wheels of ONNX Runtime hold one module: of two that are installed, files of both are mixed, and removing one takes
# them from the other.
_GPU = "pip install 'ferryman[gpu]' && pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps "
_OTHER = "pip uninstall -y onnxruntime && pip install "
Tune = Callable[[Path, Target, ModelSpec], Mapping[str, str]]


@dataclass(frozen=True)
class Provider:
    """How ONNX Runtime's provider `name` is driven.

    precisions: that it runs; install: what brings it
    options: its own, as its page of ONNX Runtime's documentation names them; tune: more of them, by the variant's file
    machines: the only processors, as `platform.machine` names them, none for all; nvidia: it wants a GPU of theirs
    apart: it runs on another device than the processor, which only ONNX Runtime can name
    batch: pictures in one run, of which more go in parts: a fixed number is a static shape; None for any number
    threads: the option that takes their number, where it has threads of its own
    memory: where inputs and answers are bound, for runs that copy each once; empty for the processor's
    compiles: whole subgraphs become one kernel, in which no operator is seen
    whole: it can take all operators, so that loading fails where it leaves one to the processor
    environment: of the process, where an option is missing
    """

    name: str
    precisions: tuple[str, ...]
    install: str = "pip install onnxruntime"
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    tune: Tune = lambda path, target, spec: {}
    machines: tuple[str, ...] = ()
    nvidia: bool = False
    apart: bool = False
    batch: int | None = None
    threads: str = ""
    memory: str = ""
    compiles: bool = False
    whole: bool = False
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


TENSORRT_BATCH = 8


def cache_folder() -> Path:
    """Of what a device makes of variants, for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ferryman" / "engines"


def tune_tensorrt(path: Path, target: Target, spec: ModelSpec) -> Mapping[str, str]:
    """One profile, so that no request waits for a build; and where engines are kept.

    No precision is asked for: without `trt_fp16_enable` and its like the network is strongly typed, and computes in
    what the graph says (onnxruntime#19695). ONNX Runtime names an engine by the graph's nodes, its own version and
    TensorRT's, and the GPU's compute capability; the folder adds what it leaves out, the weights.
    """
    shapes = {
        f"trt_profile_{word}_shapes": ",".join(
            f"{tensor.name}:{'x'.join(str(size) if isinstance(size, int) else str(batch) for size in tensor.shape)}"
            for tensor in spec.inputs
        )
        for word, batch in (("min", 1), ("opt", TENSORRT_BATCH), ("max", TENSORRT_BATCH))
    }
    key = hashlib.sha256("\n".join((digest_graph(path), str(target), *shapes.values())).encode()).hexdigest()[:16]
    folder = cache_folder()
    return shapes | {"trt_engine_cache_path": str(folder / key), "trt_timing_cache_path": str(folder)}


PROVIDERS: dict[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", ("fp32", "int8")),
    "arm64": Provider("CPUExecutionProvider", ("int8",), machines=("aarch64", "arm64")),
    "xnnpack": Provider(
        "XnnpackExecutionProvider",
        ("fp32",),
        install="no wheel has it: build ONNX Runtime with --use_xnnpack",
        batch=1,  # its MatMul was read to step over the second picture by rows and not by numbers
        threads="intra_op_num_threads",
    ),
    "cuda": Provider(
        "CUDAExecutionProvider",
        ("fp32", "fp16", "bf16"),
        install=f"{_GPU}onnxruntime-gpu",
        options={"use_tf32": "0"},
        nvidia=True,
        memory="cuda",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        ("fp32", "fp16", "bf16", "int8"),
        install=f"{_GPU}onnxruntime-gpu, and the libraries of the TensorRT that it names on LD_LIBRARY_PATH",
        options={
            "trt_fp16_enable": "0",  # see `tune_tensorrt`
            "trt_int8_enable": "0",
            "trt_engine_cache_enable": "1",
            "trt_timing_cache_enable": "1",
        },
        tune=tune_tensorrt,
        nvidia=True,
        batch=TENSORRT_BATCH,
        compiles=True,
        whole=True,
        environment={"NVIDIA_TF32_OVERRIDE": "0"},
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        ("fp32", "int8"),
        install=f"{_OTHER}onnxruntime-openvino",
        options={"device_type": "CPU", "precision": "FP32"},  # else bf16 where the processor has it
        batch=1,
        threads="num_of_threads",
        compiles=True,
        whole=True,
    ),
    "qnn": Provider(
        "QNNExecutionProvider",
        ("fp16", "int8"),
        install=f"{_OTHER}'onnxruntime-qnn<2' (version 2 is a plugin, which this version does not drive)",
        options={"backend_type": "htp", "htp_performance_mode": "burst"},
        apart=True,
        batch=1,
        compiles=True,
    ),
    "coreml": Provider(
        "CoreMLExecutionProvider",
        ("fp32", "fp16"),
        install="ONNX Runtime's wheels for macOS have it",
        options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1"},
        apart=True,
        batch=1,
        compiles=True,
    ),
    "webgpu": Provider("WebGpuExecutionProvider", ("fp32", "fp16"), install=f"{_OTHER}onnxruntime-webgpu", apart=True),
}
