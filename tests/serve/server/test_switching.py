"""Versions come, go and are chosen while a server is under load: no request is lost, none is answered wrong."""

import shutil
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ferryman.client import Client
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import grpc_service_pb2_grpc

from ..toy import add_toy_bundle, flip_a_byte, make_picture
from .loading import LoadProcess, Report
from .process import ServerProcess, free_address
from .test_observing import get
from .test_process import wait_until

MODEL = "toy-classifier"


class Watched:
    """A server that looks at `folder` all the time, and what it tells of it."""

    def __init__(self, server: ServerProcess, folder: Path, channel: grpc.Channel) -> None:
        self.server = server
        self.folder = folder
        self._channel = channel
        self._inference: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    def states(self, name: str = MODEL) -> dict[int, str]:
        """States by version; UNAVAILABLE with its reason."""
        index = self._inference.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=60)
        return {
            int(one.version): one.state if one.state == "READY" else one.reason
            for one in index.models
            if one.name == name
        }

    def wait_for(self, states: dict[int, str], name: str = MODEL) -> None:
        """states: what they begin with"""

        def there() -> bool:
            found = self.states(name)
            return found.keys() == states.keys() and all(found[key].startswith(states[key]) for key in states)

        wait_until(there)

    def is_serving(self, name: str) -> bool:
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def answers(self, name: str) -> int:
        """The version that answers."""
        with Client(self.server.address, timeout=60) as client:
            return client.classify([make_picture((250, 10, 10))], model=name).answerer.version

    def publish(self, broken: bool = False) -> Path:
        """One more version, whole at once as an export leaves it."""
        elsewhere = self.folder.parent / "elsewhere"
        shutil.copytree(self.folder, elsewhere)
        bundle = add_toy_bundle(elsewhere, MODEL, samples=3)
        if broken:
            flip_a_byte(bundle.path / "model.onnx")
        place = self.folder / MODEL / bundle.path.name
        bundle.path.rename(place)
        shutil.rmtree(elsewhere)
        return place

    def choose(self, text: str) -> None:
        new = self.folder / ".versions.new"
        new.write_text(text, encoding="utf-8")
        new.rename(self.folder / "versions.toml")


@contextmanager
def watched(folder: Path, **settings: object) -> Generator[Watched]:
    admin = free_address()
    facts = {"repository": str(folder), "threads": 1, "watch_seconds": 0.05, "admin_address": admin} | settings
    with ServerProcess(facts) as server, grpc.insecure_channel(admin) as channel:
        yield Watched(server, folder, channel)


@pytest.fixture
def copy(toy_repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own."""
    return shutil.copytree(toy_repository, tmp_path / "copy")


def nothing_lost(report: Report) -> bool:
    return (report.errors, report.wrong, report.gone) == ({}, 0, 0)


def test_a_new_version_takes_over(copy: Path) -> None:
    with watched(copy) as seen, LoadProcess(seen.server.address, [MODEL]) as load:
        assert seen.states() == {1: "READY"}
        seen.publish()
        seen.wait_for({1: "loaded when", 2: "READY"})  # the old one is freed
        bad = seen.publish(broken=True)
        seen.wait_for({1: "loaded when", 2: "READY", 3: f"{MODEL}/{bad.name}: model.onnx is not the file"})
        assert seen.is_serving(MODEL)
        assert seen.answers(MODEL) == 2
        flip_a_byte(bad / "model.onnx")  # back
        seen.wait_for({1: "loaded when", 2: "loaded when", 3: "READY"})
        report = load.stop()
        assert nothing_lost(report), report
        assert report.versions(MODEL) == ["1", "2", "3"]
        assert report.backwards == 0
        seen.server.signal(signal.SIGTERM)
        assert seen.server.wait() == 0
    assert seen.server.stderr.count("model failed: name=toy-classifier version=3") == 1  # not with each look
    assert "model answers: name=toy-classifier version=2 instead=1" in seen.server.stderr
    assert "Traceback" not in seen.server.stderr


def test_versions_are_chosen_by_a_file(copy: Path) -> None:
    add_toy_bundle(copy, MODEL, samples=3)
    (copy / "versions.toml").write_text(f'[serve]\n{MODEL} = 1\n[aliases]\nchampion = "{MODEL}/2"\nnow = "{MODEL}"\n')
    with watched(copy) as seen:
        names = [MODEL, "champion", "now"]
        assert seen.server.models == ["toy-classifier", "toy-detector", "toy-embedder", "champion", "now"]
        with LoadProcess(seen.server.address, names, askers=1) as load:
            assert list(map(seen.answers, names)) == [1, 2, 1]
            seen.publish()  # pinned: nobody asks for it
            seen.wait_for({1: "READY", 2: "READY", 3: "loaded when"})
            seen.choose(f'[aliases]\nchampion = "{MODEL}/1"\n"the best" = "{MODEL}/3"\nnow = "{MODEL}"\n')
            seen.wait_for({1: "READY", 2: "loaded when", 3: "READY"})
            wait_until(lambda: seen.is_serving("the best"))
            assert list(map(seen.answers, [*names, "the best"])) == [3, 1, 3, 3]
            for wrong in (
                "[serve",
                f"[serve]\n{MODEL} = 7\n",
                '[aliases]\nchampion = "vit"\n',
                f'[aliases]\n{MODEL} = "toy-detector"\n',
            ):
                seen.choose(wrong)
            seen.choose("[serv]\n")
            time.sleep(1)  # twenty looks; only the log tells that a file was looked at and refused
            newest = seen.publish()  # not followed: whether it may be served is not known
            seen.wait_for({1: "READY", 2: "loaded when", 3: "READY"})
            assert list(map(seen.answers, names)) == [3, 1, 3]
            seen.choose(f'[serve]\n{MODEL} = "newest"\n[aliases]\nchampion = "{MODEL}/1"\nnow = "{MODEL}"\n')
            seen.wait_for({1: "READY", 2: "loaded when", 3: "loaded when", int(newest.name): "READY"})
            assert not seen.is_serving("the best")
            report = load.stop()
        assert nothing_lost(report), report
        assert (report.versions("champion"), report.versions("now")) == (["1", "2"], ["1", "3", "4"])
        seen.server.kill()
    assert "versions.toml: serv: Extra inputs are not permitted" in seen.server.stderr


def test_what_is_taken_away(copy: Path) -> None:
    add_toy_bundle(copy, MODEL, samples=3)
    metrics_address = free_address()
    with (
        watched(copy, metrics_address=metrics_address) as seen,
        LoadProcess(seen.server.address, [MODEL]) as load,
    ):
        shutil.rmtree(copy / MODEL / "2")  # the next newest takes over
        seen.wait_for({1: "READY"})
        assert seen.answers(MODEL) == 1
        seen.choose(f"[serve]\n{MODEL} = 1\n")
        shutil.rmtree(copy / MODEL)  # pinned: it stays
        (copy / "toy-embedder").rename(copy / "another")
        seen.wait_for({1: "READY"}, "another")
        seen.wait_for({}, "toy-embedder")
        assert seen.states() == {1: "READY"}
        assert (seen.is_serving("another"), seen.is_serving("toy-embedder")) == (True, False)
        away = copy.with_name("away")
        copy.rename(away)  # as a disk that is not mounted: nothing is taken out of service
        copy.mkdir()
        (copy / "lost+found").mkdir()
        wait_until(lambda: "ferryman_repository_followed 0.0" in get(metrics_address, "/metrics")[1])
        assert seen.answers(MODEL) == 1
        report = load.stop()
        assert nothing_lost(report), report
        shutil.rmtree(copy)
        away.rename(copy)
        (copy / "versions.toml").unlink()
        seen.wait_for({})
        seen.server.kill()
    assert "repository is followed again" in seen.server.stderr


def test_a_server_that_is_told_to_end_answers_what_it_took(copy: Path) -> None:
    settings = {"repository": str(copy), "threads": 1}
    with ServerProcess(settings) as server, LoadProcess(server.address, [MODEL], askers=8) as load:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        report = load.stop()
    # Each asker got all its answers, and was then refused or found nobody.
    assert (report.errors, report.wrong, report.gone) == ({}, 0, 16), report
    assert "cancelled=0" in server.stderr
    assert "Traceback" not in server.stderr


def test_a_server_that_is_killed_leaves_all_as_it_was(copy: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()}
    for _ in range(2):
        with ServerProcess({"repository": str(copy), "threads": 1}) as server:
            with LoadProcess(server.address, [MODEL]) as load:
                server.signal(signal.SIGKILL)
                server.process.wait()
                report = load.stop()
            assert report.wrong == 0
            assert report.answers
    assert {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()} == before
    with watched(copy) as seen:
        assert (seen.states(), seen.answers(MODEL)) == ({1: "READY"}, 1)
