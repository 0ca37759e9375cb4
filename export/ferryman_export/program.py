"""Exported programs: a `.pt2` of `torch.export.save`, with a file that says what the model is for."""

import hashlib
import io
import logging
import warnings
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ferryman.errors import CheckpointError, UsageError
from ferryman.specs import Facts, PreprocessSpec, Task
from ferryman_export.own import OwnDetector, derive_spec
from ferryman_export.program_archive import check_archive
from ferryman_export.spec_file import read_spec_file
from ferryman_models.checkpoints.base import Checkpoint

SPEC_FILE = '{"task": "classification", "labels": [...], "preprocess": {"size": [height, width], "fit": ...}}'


class ProgramSpec(Facts):
    """What a program is for; see `ferryman.specs.ModelSpec`. What it answers is found by asking it."""

    task: Task
    labels: tuple[str, ...] = ()
    preprocess: PreprocessSpec


class Program(nn.Module):
    """The program's module, whose mode is as it was exported."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.program = module
        self.training = False

    def train(self, mode: bool = True) -> "Program":
        """Programs have one mode; theirs refuses the question."""
        return self

    def forward(self, image: Tensor) -> object:
        """See the contract in `own`."""
        return self.program(image)


class MaskedProgram(Program):
    """One that takes the mask of valid pixels too."""

    def forward(self, image: Tensor, valid: Tensor) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See the contract in `own`."""
        return self.program(image, valid)


def load_program(path: Path, source: str, spec_path: Path) -> Checkpoint:
    """A `.pt2` with a dynamic batch whose program keeps the contract in `own`; its digest is the file's.

    Raises CheckpointError for an archive that is damaged or holds more than a plain model, UsageError for a program
    with a fixed batch or other answers, FileAccessError.
    """
    spec = read_spec_file(spec_path, ProgramSpec, SPEC_FILE)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    check_archive(data, path)
    # It tells its whole traceback to the log before it raises.
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside PyTorch's own loader
            program = torch.export.load(io.BytesIO(data))
    # The loader raises whatever it stumbles over.
    except Exception as error:
        raise CheckpointError(
            f"{path} can't be loaded as an exported program: {' '.join(str(error).split())}"
        ) from error
    masked = _check_inputs(program, spec.task, source)
    # Its guards are source code in the archive, which would be compiled and run; the contract is checked below instead.
    module = (MaskedProgram if masked else Program)(program.module(check_guards=False))
    found = derive_spec(module, spec.task, spec.labels, spec.preprocess)
    adapted = OwnDetector(module) if spec.task == "detection" else module
    return Checkpoint(source, hashlib.sha256(data).hexdigest(), "exported program", adapted, found, format="program")


def _check_inputs(program: torch.export.ExportedProgram, task: Task, source: str) -> bool:
    """Whether the program takes the mask too. Raises UsageError for other inputs and for a fixed batch."""
    names = program.graph_signature.user_inputs
    shapes = [
        cast("Tensor", node.meta["val"]).shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]
    most = 2 if task == "detection" else 1
    if not 1 <= len(names) <= most or len(shapes) != len(names):
        wanted = "image, or image and valid" if most == 2 else "image"
        raise UsageError(f"{source} takes {', '.join(map(str, names)) or 'nothing'}; for {task} it must take {wanted}")
    fixed = [shape for shape in shapes if not isinstance(cast("object", shape[0]), torch.SymInt)]
    if fixed:
        dynamic = ", ".join('{0: torch.export.Dim("batch")}' for _ in names)
        raise UsageError(
            f"{source} was exported for batches of {fixed[0][0]} alone; export it with an example of 2 pictures and "
            f"torch.export.export(module, example, dynamic_shapes=({dynamic},))"
        )
    return len(names) == 2
