"""Whom `ferryman bench` measures: opened, and closed again."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ferryman.bench.record import Proven
from ferryman.bundle import Bundle
from ferryman.commands.bench.contenders import Contender, EagerContender, LocalContender
from ferryman.commands.bench.options import Places
from ferryman.commands.bench.served import InferContender, ServedContender
from ferryman.commands.verify import choose_targets
from ferryman.errors import MissingExtraError
from ferryman.options import ALL, Via
from ferryman.predictor import Predictor


@dataclass(frozen=True)
class Opened:
    """bundle_digest: of the first; notes: why they may not be comparable, a line each"""

    contenders: tuple[Contender, ...]
    bundle_digest: str
    notes: tuple[str, ...] = ()


@contextmanager
def open_contenders(places: Places, bundle: Bundle | None) -> Generator[Opened, None, None]:
    """PyTorch, then a bundle's targets, by default its first, then a server's model in each way, whichever are wanted.

    `all` for a target: all of the bundle's that can run here

    bundle: that of the places, opened
    Raises EngineError when one can't be loaded, UnavailableError, ModelNotFoundError ... for a server.
    """
    with ExitStack() as opened:
        found: list[Contender] = []
        digests: list[str] = []
        notes: list[str] = []
        if bundle is not None:
            digests.append(bundle.digest)
            found += [opened.enter_context(_open_pytorch(bundle, places, compiled)) for compiled in places.pytorch_ways]
            names = places.targets or [str(bundle.targets[0])]
            if ALL in names:
                names = [str(one) for one in choose_targets(bundle, ())[0]]
            for name in dict.fromkeys(names):
                target = bundle.variants(name)[0].target
                predictor = opened.enter_context(Predictor(bundle, str(target), places.settings))
                found.append(LocalContender(bundle, predictor, target, places.settings, places.tensors))
        if places.server is not None:
            remote = opened.enter_context(places.server.connect())
            facts = remote.facts()
            proven = Proven(
                target=facts.target, runtime_version=facts.runtime_version, digest="", certificate=facts.certified
            )
            digests.append(facts.bundle_digest)
            if found and facts.target not in [one.name for one in found]:
                notes.append(f"the server answers with {facts.target}, which is not measured here")
            for way in places.via:
                if way is Via.TYPED:
                    found.append(ServedContender(remote, places.server, proven))
                else:
                    spec = bundle.spec if bundle is not None and way is Via.TENSORS else None
                    found.append(InferContender(remote, places.server, proven, spec))
        if len(set(digests)) > 1:
            notes.append("the server answers with another bundle than the one here")
        yield Opened(tuple(found), digests[0], tuple(notes))


@contextmanager
def _open_pytorch(bundle: Bundle, places: Places, compiled: bool) -> Generator[Contender, None, None]:
    """Raises MissingExtraError without PyTorch, and what `open_eager` raises."""
    try:
        from ferryman_export.eager import VERSION, open_eager
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"measuring PyTorch ({error.name} is missing)", "export") from error
    assert places.pytorch is not None
    with Predictor(bundle, sessions=open_eager(bundle, places.pytorch, places.settings, compiled)) as predictor:
        yield EagerContender(bundle, predictor, places.settings, VERSION, places.tensors, compiled)
