"""Models on processors of their own, and the rest of a server on the others, or giving way to them."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ferryman.client import Client
from ferryman.errors import UsageError
from ferryman.server.app import ServerConfig, VisionServer
from ferryman.server.placement import AS_IT_COMES, Place, Placement, parse_placement, place_threads
from ferryman.v1 import vision_pb2 as pb

from ..toy import make_pictures
from .inside import calling, running
from .process import ServerProcess

if not hasattr(os, "sched_getaffinity"):
    pytest.skip("this system can't hold threads to processors", allow_module_level=True)
USABLE = sorted(os.sched_getaffinity(0))
if len(USABLE) < 2:
    pytest.skip("needs two processors", allow_module_level=True)
FIRST, REST = USABLE[0], USABLE[1:]


def _cpus_by_thread(process: int) -> dict[int, tuple[str, set[int]]]:
    """Names and processors of a process's threads, as the kernel tells them; its first thread has its own number."""
    found: dict[int, tuple[str, set[int]]] = {}
    for folder in Path(f"/proc/{process}/task").iterdir():
        lines = dict(line.split(":", 1) for line in (folder / "status").read_text(encoding="ascii").splitlines())
        found[int(folder.name)] = lines["Name"].strip(), _numbers(lines["Cpus_allowed_list"])
    return found


def _numbers(text: str) -> set[int]:
    """From the kernel's own writing, such as 1 or 1-3."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def test_nothing_else_runs_where_the_models_do(toy_repository: Path) -> None:
    settings = {"repository": str(toy_repository), "model_cpus": str(FIRST)}
    with ServerProcess(settings) as server, Client(server.address, timeout=240) as client:
        assert len(client.classify(make_pictures(2), model="toy-classifier").results) == 2
        threads = _cpus_by_thread(server.process.pid)
    assert threads.pop(server.process.pid)[1] == set(REST)  # the event loop's
    of_grpc = [cpus for name, cpus in threads.values() if name == "event_engine"]
    assert of_grpc
    assert all(cpus == set(REST) for cpus in of_grpc)
    assert {FIRST} in [cpus for _, cpus in threads.values()]  # what runs the batches


async def test_a_server_that_is_stopped_leaves_its_thread_as_it_was(toy_repository: Path) -> None:
    server = VisionServer(
        ServerConfig(repository=toy_repository, address="127.0.0.1:0", model_cpus=str(FIRST), threads=1)
    )
    assert os.sched_getaffinity(0) == set(USABLE)
    await server.start()
    assert os.sched_getaffinity(0) == set(REST)
    await server.stop()
    assert os.sched_getaffinity(0) == set(USABLE)


async def _ask(repository: Path, **settings: Any) -> tuple[int, int, int]:
    """Policies of a server's event loop, of what decodes and of what runs batches, once a picture was answered."""
    async with running(repository, **settings) as server, calling(server.address) as caller:
        model = pb.ModelRef(name="toy-classifier")
        await caller.vision.Classify(pb.ClassifyRequest(model=model, images=make_pictures(1)))
        threads = {one.name: one.native_id or 0 for one in threading.enumerate()}
        decodes, runs = (threads[f"batcher-{name}_0"] for name in ("images", "toy-classifier-1"))
        return os.sched_getscheduler(0), os.sched_getscheduler(decodes), os.sched_getscheduler(runs)


async def test_all_else_gives_way_to_the_models(toy_repository: Path) -> None:
    """Where those leave a processor free; else it would wait for their slices to end."""
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert await _ask(toy_repository) == (os.SCHED_BATCH, os.SCHED_BATCH, os.SCHED_OTHER)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert await _ask(toy_repository, concurrency=len(USABLE)) == (os.SCHED_OTHER,) * 3


def test_where_nothing_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where models take all processors, somebody chose otherwise, or the system knows no such thing."""
    assert place_threads(None, None) == place_threads(None, len(USABLE)) == AS_IT_COMES
    assert place_threads(None, 1) != AS_IT_COMES
    monkeypatch.setattr(os, "sched_getscheduler", lambda thread: os.SCHED_IDLE)
    assert place_threads(None, 1) == AS_IT_COMES
    monkeypatch.setattr(os, "sched_getscheduler", _refuse(errno.ENOSYS))
    assert place_threads(None, 1) == AS_IT_COMES


async def test_a_sandbox_that_forbids_it(toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setscheduler", _refuse(errno.EPERM))
    assert await _ask(toy_repository) == (os.SCHED_OTHER,) * 3


def _refuse(number: int) -> Any:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_what_is_written() -> None:
    assert parse_placement(f" {FIRST} ") == Placement(Place(frozenset({FIRST})), Place(frozenset(REST)))
    assert parse_placement(f"{USABLE[-1]}-{USABLE[-1]}").models.cpus == {USABLE[-1]}


WRONG = {
    "": "is no list of processors such as 0,2-3",
    "first": "is no list of processors",
    "1-": "is no list of processors",
    "1-0": "is not within",
    "9999": "is not within",
    ",".join(map(str, USABLE)): "leaves no processor of",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_wrong_processors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"model_cpus: .*{message}"):
        ServerConfig.from_settings({"repository": "models", "model_cpus": text})
