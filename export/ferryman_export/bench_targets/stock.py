"""The stock recipe: `torch.onnx.export`, OpenVINO's own conversion, NNCF's own quantisation, nothing tuned."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferryman.errors import MissingExtraError
from ferryman.runtimes.openvino import open_core
from ferryman_export.bench_targets.contenders import EAGER, Contender, quiet_library, stock_name
from ferryman_export.bench_targets.profiles import Profile, count_multiplications, make_profile, time_openvino

Pixels = NDArray[np.float32]  # (1, 3, height, width), normalised


class _Answers(nn.Module):
    """The answers that anyone reads, without the hidden states beside them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        found: Any = self.model(pixel_values=pixel_values)
        return (found.logits, found.pred_boxes) if "pred_boxes" in found else (found.logits,)


def check_nncf() -> None:
    """Raises MissingExtraError."""
    if find_spec("nncf") is None:
        raise MissingExtraError("The stock recipe's int8", "bench")


def eager(model: nn.Module, inputs: list[Pixels]) -> Contender:
    """The model as transformers gives it, in fp32."""
    answers = _Answers(model)

    def run(pixels: Pixels) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return answers(torch.from_numpy(pixels))

    return Contender(EAGER, "fp32", run, inputs)


def export_stock(model: nn.Module, pixels: Pixels, path: Path) -> Path:
    """Writes the model to ONNX as PyTorch does by itself, its shape static."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with quiet_library(), torch.inference_mode():
        torch.onnx.export(_Answers(model), (torch.from_numpy(pixels),), path, dynamo=True, verbose=False)
    return path


def stock(
    graph: Path, precision: str, threads: int, inputs: list[Pixels], calibration: Callable[[], Sequence[Pixels]]
) -> Contender:
    """OpenVINO on the exported graph, with the latency hint; bf16 is allowed, as it is by default, but for fp32.

    calibration: pictures for int8. Raises MissingExtraError.
    """
    with quiet_library():
        model = open_core().read_model(graph)
        if precision == "int8":
            model = _quantize(model, calibration())
    return compile_stock(model, stock_name(precision), precision, threads, inputs)


def compile_stock(model: Any, name: str, precision: str, threads: int, inputs: list[Pixels]) -> Contender:
    """OpenVINO's model, whoever made it, as the stock recipe runs it."""
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision == "fp32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    with quiet_library():
        request = open_core().compile_model(model, "CPU", config).create_infer_request()

    def run(pixels: Pixels) -> Any:
        return request.infer({0: pixels}, share_inputs=True)

    def profile(pixels: Pixels) -> Profile:
        return make_profile(time_openvino(model, config, {0: pixels}), count_multiplications(model), precision, threads)

    return Contender(name, precision, run, inputs, profile=profile)


def _quantize(model: Any, calibration: Sequence[Pixels]) -> Any:
    check_nncf()
    os.environ.setdefault("NNCF_CI", "1")  # sends nobody anything
    nncf = importlib.import_module("nncf")
    with redirect_stdout(sys.stderr):  # its bars; the table is what stdout is for
        return nncf.quantize(model, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER)
