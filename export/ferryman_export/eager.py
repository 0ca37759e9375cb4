"""A checkpoint in PyTorch itself, eager and in fp32, as a session: what variants are measured against."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ferryman.attest import Attestation
from ferryman.bundle import Bundle
from ferryman.errors import EngineError, UsageError
from ferryman.runtimes.base import Arrays, Session, Settings
from ferryman.specs import ModelSpec
from ferryman_export.sources import open_source
from ferryman_export.wrappers import choose_module
from ferryman_models.attention import attend_fused, set_attend

_MOST_SHAPES = 64
VERSION = f"torch {torch.__version__}"


class EagerSession(Session):
    """The graph contract, answered by the module that was exported, with PyTorch's own fused attention."""

    def __init__(self, module: nn.Module, spec: ModelSpec, compiled: bool = False) -> None:
        super().__init__(spec)
        self._module = choose_module(spec)(module, spec)
        if not spec.explains:  # whose weights the fused one does not give
            set_attend(self._module, attend_fused)
        self._compiled, self._call = compiled, self._module
        if compiled:
            import torch._dynamo.config as dynamo

            dynamo.recompile_limit = _MOST_SHAPES  # beyond it a shape is eager without a word
            self._call = torch.compile(self._module, dynamic=False)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        # PyTorch wants arrays that it might write to, and decoded pictures are not
        tensors = [torch.from_numpy(np.require(inputs[name], requirements="W")) for name in self.spec.input_names]
        try:
            with torch.inference_mode():
                answers = self._call(*tensors)
        except RuntimeError as error:  # as its compiler's are, whose class has no public name
            if not self._compiled:
                raise
            raise EngineError(f"torch.compile does not work here: {str(error).strip().splitlines()[0]}") from error
        return {name: answer.numpy() for name, answer in zip(self.spec.output_names, answers, strict=True)}

    def attest(self, inputs: Arrays) -> Attestation:
        raise EngineError("PyTorch runs what it is given, in fp32: there is no artefact to look into")

    def _close(self) -> None: ...


def open_eager(bundle: Bundle, source: str, settings: Settings, compiled: bool = False) -> tuple[EagerSession, ...]:
    """A session a size of the bundle. Sets the threads of all PyTorch in this process.

    compiled: by `torch.compile`, at the first run of each shape

    Raises UsageError for a source that the bundle was not made from, and what `open_source` raises.
    """
    checkpoint = open_source(source)
    if checkpoint.sha256 != bundle.manifest.source.sha256:
        made = bundle.manifest.source.source
        raise UsageError(f"{source} is not what {bundle.path} was made from: that was {made}")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return tuple(EagerSession(checkpoint.module, spec, compiled) for spec in bundle.manifest.specs)
