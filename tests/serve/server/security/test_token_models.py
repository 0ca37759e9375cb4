"""Which models a token of some alone may ask, under which names, over every call of both protocols that names one."""

import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from ferryman.inference import grpc_service_pb2 as oip
from ferryman.server.security.access import MODEL_OF
from ferryman.server.security.tokens import make_token
from ferryman.v1 import vision_pb2 as pb

from ...toy import add_toy_bundle, make_pictures
from ..inference.asking import bearer, infer_pictures, status_of
from ..inside import Caller, calling, running

MODEL = "toy-classifier"
PICTURES = make_pictures(1)
# Two versions, of which the first answers; `new` is one of the second, `now` follows the model.
CHOICES = f"""[serve]
{MODEL} = 1
[aliases]
new = "{MODEL}/2"
now = "{MODEL}"
other = "toy-detector"
"""
TOKENS = {
    "every": (),
    "model": (MODEL,),
    "fixed": ("new",),
    "following": ("now",),
    "another": ("other",),
    "version": (f"{MODEL}/2",),
    "ghost": ("ghost",),
}
FORBIDDEN, MISSING = "PERMISSION_DENIED", "NOT_FOUND"

# token, name, version -> the version that answers, or the code
CASES: dict[str, tuple[str, str, int, int | str]] = {
    "its model": ("model", MODEL, 0, 1),
    "each version of its model": ("model", MODEL, 2, 2),
    "no version of its model": ("model", MODEL, 9, MISSING),
    "an alias of its model": ("model", "now", 0, 1),
    "an alias of one version of its model": ("model", "new", 0, 2),
    "that alias with its version": ("model", "new", 2, 2),
    "that alias with another": ("model", "new", 1, MISSING),
    "an alias of another model": ("model", "other", 0, FORBIDDEN),
    "another model": ("model", "toy-detector", 0, FORBIDDEN),
    "no such model": ("model", "ghost", 0, FORBIDDEN),
    "its model as a path": ("model", f"{MODEL}/2", 0, FORBIDDEN),
    "its model in capitals": ("model", MODEL.upper(), 0, FORBIDDEN),
    "its alias": ("fixed", "new", 0, 2),
    "its alias's version": ("fixed", "new", 2, 2),
    "another version by its alias": ("fixed", "new", 1, MISSING),
    "what its alias stands for": ("fixed", MODEL, 2, FORBIDDEN),
    "another alias of it": ("fixed", "now", 0, FORBIDDEN),
    "an alias that follows": ("following", "now", 0, 1),
    "the version that it follows to": ("following", "now", 1, 1),
    "another than it follows to": ("following", "now", 2, MISSING),
    "what it follows": ("following", MODEL, 0, FORBIDDEN),
    "a version is no name": ("version", f"{MODEL}/2", 0, MISSING),
    "nor does it open the version": ("version", MODEL, 2, FORBIDDEN),
    "nor an alias of it": ("version", "new", 0, FORBIDDEN),
    "what is not there": ("ghost", "ghost", 0, MISSING),
    "any alias": ("every", "new", 0, 2),
    "any alias with another version": ("every", "new", 1, MISSING),
    "any name": ("every", "nobody", 0, MISSING),
}


def ref(name: str, version: int) -> pb.ModelRef:
    return pb.ModelRef(name=name, version=version)


async def classify(caller: Caller, name: str, version: int, metadata: Any) -> int:
    request = pb.ClassifyRequest(model=ref(name, version), images=PICTURES)
    return (await caller.vision.Classify(request, metadata=metadata)).answerer.model.version


async def stream_classify(caller: Caller, name: str, version: int, metadata: Any) -> int | str:
    frame = pb.StreamClassifyRequest(request=pb.ClassifyRequest(model=ref(name, version), images=PICTURES))
    answer = await caller.vision.StreamClassify(iter([frame]), metadata=metadata).read()
    if answer.HasField("error"):
        return MISSING if answer.error.reason == "ModelNotFoundError" else answer.error.reason
    return answer.response.answerer.model.version


async def info(caller: Caller, name: str, version: int, metadata: Any) -> int:
    request = pb.ModelInfoRequest(model=ref(name, version))
    return (await caller.vision.ModelInfo(request, metadata=metadata)).model.version


async def infer(caller: Caller, name: str, version: int, metadata: Any) -> int:
    request = infer_pictures(name, PICTURES, model_version=str(version or ""))
    return int((await caller.inference.ModelInfer(request, metadata=metadata)).model_version)


async def stream_infer(caller: Caller, name: str, version: int, metadata: Any) -> int | str:
    request = infer_pictures(name, PICTURES, model_version=str(version or ""))
    answer = await caller.inference.ModelStreamInfer(iter([request]), metadata=metadata).read()
    if answer.error_message:
        return MISSING if "there is no model" in answer.error_message or "version" in answer.error_message else "?"
    return int(answer.infer_response.model_version)


async def describe(caller: Caller, name: str, version: int, metadata: Any) -> int | None:
    """What is told of versions that can be asked for holds, whichever of them answers."""
    fields = {"name": name, "version": str(version or "")}
    metadata_of = await caller.inference.ModelMetadata(oip.ModelMetadataRequest(**fields), metadata=metadata)
    configured = await caller.inference.ModelConfig(oip.ModelConfigRequest(**fields), metadata=metadata)
    versions = list(map(int, metadata_of.versions))
    assert versions == list(configured.config.version_policy.specific.versions)
    assert metadata_of.name == MODEL
    for one in versions:
        await caller.inference.ModelMetadata(oip.ModelMetadataRequest(name=name, version=str(one)), metadata=metadata)
    assert versions == {MODEL: [1, 2], "new": [2], "now": [1]}[name]
    return None  # not which of them answers


async def count(caller: Caller, name: str, version: int, metadata: Any) -> int | str | None:
    request = oip.ModelStatisticsRequest(name=name, version=str(version or ""))
    found = (await caller.inference.ModelStatistics(request, metadata=metadata)).model_stats
    versions = {int(one.version) for one in found}
    if not found:
        return MISSING  # of a version that is not there
    assert {one.name for one in found} == {MODEL}
    assert versions == ({version} if version else {"new": {2}, "now": {1}}.get(name, {1, 2}))
    return None


async def ready(caller: Caller, name: str, version: int, metadata: Any) -> str | None:
    request = oip.ModelReadyRequest(name=name, version=str(version or ""))
    return None if (await caller.inference.ModelReady(request, metadata=metadata)).ready else MISSING


CALLS: Mapping[str, Callable[[Caller, str, int, Any], Awaitable[int | str | None]]] = {
    "Classify": classify,
    "StreamClassify": stream_classify,
    "ModelInfo": info,
    "ModelInfer": infer,
    "ModelStreamInfer": stream_infer,
    "ModelMetadata and ModelConfig": describe,
    "ModelStatistics": count,
    "ModelReady": ready,
}


@pytest.fixture
async def caller(toy_repository: Path, tmp_path: Path) -> AsyncGenerator[Caller]:
    repository = shutil.copytree(toy_repository, tmp_path / "models")
    add_toy_bundle(repository, MODEL, samples=3)
    (repository / "versions.toml").write_text(CHOICES, encoding="utf-8")
    tokens = tmp_path / "tokens"
    lines = [make_token(name, f"fm_{name}", models=models).line for name, models in TOKENS.items()]
    tokens.write_text("\n".join(lines), encoding="utf-8")
    async with running(repository, tokens=tokens, watch_seconds=0) as server, calling(server.address) as one:
        yield one


def of(token: str) -> Any:
    return bearer(f"fm_{token}")


async def test_what_a_token_may_ask(caller: Caller) -> None:
    wrong: list[Any] = []
    for case, (token, name, version, expected) in CASES.items():
        for call, ask in CALLS.items():
            text = ""
            try:
                found = await ask(caller, name, version, of(token))
            except grpc.aio.AioRpcError as error:
                found, text = error.code().name, error.details() or ""
            if found is None and isinstance(expected, int):
                continue  # answered, and by what is not said
            # Of a model that the token may not ask nothing is said, whether it is there or not.
            if found != expected or (token != "every" and "toy-embedder" in text):
                wrong.append((case, call, found, expected, text))
    assert wrong == []


async def test_a_token_does_not_find_out_which_models_there_are(caller: Caller) -> None:
    """One that is there and one that is not are refused alike, and nothing that lists models answers."""

    async def refusal(token: str, name: str) -> tuple[str, str]:
        status = await status_of(caller.inference.ModelReady(oip.ModelReadyRequest(name=name), metadata=of(token)))
        return status[0], status[1].replace(name, "NAME")

    for token in TOKENS.keys() - {"every"}:
        assert await refusal(token, "toy-embedder") == await refusal(token, "toy-embedding")
        for request in (
            caller.inference.ModelStatistics(oip.ModelStatisticsRequest(), metadata=of(token)),
            caller.inference.RepositoryIndex(oip.RepositoryIndexRequest(), metadata=of(token)),
            caller.vision.Classify(pb.ClassifyRequest(images=PICTURES), metadata=of(token)),
            caller.inference.ModelInfer(infer_pictures("", PICTURES), metadata=of(token)),
        ):
            code, text = await status_of(request)
            assert (code, "toy-embedder" in text) == (FORBIDDEN, False)
    # errors of single frames tell as little as those of calls
    frame = pb.StreamClassifyRequest(request=pb.ClassifyRequest(model=ref("ghost", 0), images=PICTURES))
    answer = await caller.vision.StreamClassify(iter([frame]), metadata=of("ghost")).read()
    assert answer.error.message == "there is no model 'ghost'"
    for token, text in (("ghost", ""), ("every", "; this server has toy-classifier, toy-detector, toy-embedder")):
        stream = caller.inference.ModelStreamInfer(iter([infer_pictures("ghost", PICTURES)]), metadata=of(token))
        assert (await stream.read()).error_message == f"there is no model 'ghost'{text}"


def test_every_call_that_names_a_model_is_in_the_table() -> None:
    like_classify = {"Detect", "Embed", "Segment", "StreamDetect"}
    assert {path.rpartition("/")[2] for path in MODEL_OF} - like_classify == set(" and ".join(CALLS).split(" and "))
