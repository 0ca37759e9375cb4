"""A process with no memory to spare: `python starved.py ONNX TARGET SPEC BATCH` prints what becomes of a run.

Loads a variant, runs one picture, takes away all memory that is not in use yet, runs a large batch, and gives it back.
"""

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferryman.errors import EngineError
from ferryman.runtimes import RUNTIMES
from ferryman.runtimes.base import Settings
from ferryman.specs import ModelSpec, Target

onnx, name, spec_json, batch = sys.argv[1:]
target, spec = Target.parse(name), ModelSpec.model_validate_json(spec_json)
height, width = spec.preprocess.size


def make_inputs(count: int) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {"image": np.full((count, height, width, 3), 100, np.uint8)}
    if "valid_size" in spec.input_names:
        inputs["valid_size"] = np.tile(np.array([[height, width]], np.int32), (count, 1))
    return inputs


with RUNTIMES[target.runtime].load(Path(onnx), target, spec, Settings(threads=1)) as session:
    one, many = make_inputs(1), make_inputs(int(batch))
    right = session.run(one)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), most))
    try:
        answers = session.run(many)
        outcome = "answered"
    except EngineError as error:
        answers, outcome = None, f"EngineError: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for found in (answers, session.run(many), session.run(one)):
        for key, array in (found or {}).items():
            assert np.allclose(array, right[key], atol=1e-5), key
sys.stdout.write(outcome)
