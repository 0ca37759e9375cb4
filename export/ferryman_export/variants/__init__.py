"""The variants that there are: a target a row. A new one is a row, and a file beside this one for how to build it."""

from pathlib import Path

from ferryman.errors import UsageError, propose
from ferryman.runtimes import RUNTIMES, find_runtime, why_not
from ferryman.specs import Target
from ferryman_export.calibration import LEAST_PICTURES, MAX_PICTURES
from ferryman_export.samples import find_pictures
from ferryman_export.variants import onnxruntime, openvino, typed
from ferryman_export.variants.base import CANONICAL, Recipe, no_calibration
from ferryman_export.variants.rehearsal import run_as

RECIPES: dict[str, Recipe] = {
    "onnxruntime-cpu-int8": onnxruntime.build_int8,
    "onnxruntime-arm64-int8": typed.build_eight,
    "onnxruntime-xnnpack-fp32": onnxruntime.reuse_fp32,
    "onnxruntime-cuda-fp32": onnxruntime.reuse_fp32,
    "onnxruntime-cuda-fp16": typed.build_half,
    "onnxruntime-cuda-bf16": typed.build_half,
    "onnxruntime-tensorrt-fp32": onnxruntime.reuse_fp32,
    "onnxruntime-tensorrt-fp16": typed.build_half,
    "onnxruntime-tensorrt-bf16": typed.build_half,
    "onnxruntime-tensorrt-int8": typed.build_eight,
    "onnxruntime-openvino-fp32": onnxruntime.reuse_fp32,
    "onnxruntime-openvino-int8": onnxruntime.build_plain_int8,
    "onnxruntime-qnn-fp16": typed.build_half,
    "onnxruntime-qnn-int8": onnxruntime.build_plain_int8,
    "onnxruntime-coreml-fp32": onnxruntime.reuse_fp32,
    "onnxruntime-coreml-fp16": typed.build_half,
    "onnxruntime-webgpu-fp32": onnxruntime.reuse_fp32,
    "onnxruntime-webgpu-fp16": typed.build_half,
    "openvino-cpu-fp32": openvino.build_float,
    "openvino-cpu-bf16": openvino.build_bf16,
    "openvino-cpu-int8": openvino.build_int8,
    "openvino-gpu-fp32": openvino.build_float,
    "openvino-gpu-fp16": openvino.build_half,
    "openvino-gpu-int8": openvino.build_int8,
    "openvino-npu-fp16": openvino.build_half,
    "openvino-npu-int8": openvino.build_int8,
    "tensorrt-gpu-fp32": typed.build_fp32,
    "tensorrt-gpu-fp16": typed.build_half,
    "tensorrt-gpu-bf16": typed.build_half,
    "tensorrt-gpu-int8": typed.build_eight,
    "tensorrt-gpu-fp8": typed.build_eight,
    "tensorrtrtx-gpu-fp32": typed.build_fp32,
    "tensorrtrtx-gpu-fp16": typed.build_half,
    "tensorrtrtx-gpu-bf16": typed.build_half,
    "tensorrtrtx-gpu-int8": typed.build_eight,
    "tensorrtrtx-gpu-fp8": typed.build_eight,
}
CALIBRATED = ("int8", "fp8")
GROUPS = {"all-cpu": tuple(name for name in RECIPES if "-cpu-" in name)}


def is_beyond(target: Target) -> bool:
    """Whether this machine can never run a target whose runtime it has, such as bf16 on a processor without.

    A runtime that is missing is another matter: that can be mended, and the command that does so is told.
    """
    return RUNTIMES[target.runtime].missing() is None and why_not(run_as(target)) is not None


def choose_targets(names: list[str]) -> tuple[Target, ...]:
    """What to build beside the canonical variant; of a group, without what is beyond this machine.

    Raises UsageError for a name that is neither a target nor a group.
    """
    chosen: dict[str, None] = {}
    groups = {
        group: [name for name in members if not is_beyond(Target.parse(name))] for group, members in GROUPS.items()
    }
    for name in names:
        if name not in RECIPES and name not in GROUPS and name != str(CANONICAL):
            known = [str(CANONICAL), *RECIPES, *GROUPS]
            near = propose(name, known) or f"; it builds {', '.join(known)}"
            raise UsageError(f"target {name} can't be built by this version{near}")
        chosen.update(dict.fromkeys(groups.get(name, (name,))))
    return tuple(Target.parse(name) for name in chosen if name != str(CANONICAL))


def left_out(names: list[str]) -> dict[str, str]:
    """Of the groups among the names, the targets that are beyond this machine, and why."""
    members = [Target.parse(member) for name in names for member in GROUPS.get(name, ()) if member not in names]
    return {str(target): why_not(run_as(target)) or "" for target in members if is_beyond(target)}


def check_targets(targets: tuple[Target, ...], calibration: Path | None) -> None:
    """Before anything that takes time: whether the runtimes are here, and the pictures that int8 needs.

    Raises EngineError, UsageError.
    """
    for target in targets:
        find_runtime(run_as(target))
        if target.precision in CALIBRATED and calibration is None:
            raise no_calibration(target)
    if calibration is not None:
        count = len(find_pictures(calibration, MAX_PICTURES))
        if count < LEAST_PICTURES:
            raise UsageError(
                f"{calibration} holds {count} pictures, too few to calibrate with: give {LEAST_PICTURES} or more, "
                f"better {MAX_PICTURES}, of the kind that the model will see"
            )
