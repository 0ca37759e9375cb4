"""Three servers behind Envoy, under load, with the files that are shipped: one hangs, one stops, one is killed.

Who repeats what: Envoy only what no server began, so that it never makes a server do anything twice; ferryman.Client
what it got no answer to, since answers change nothing. So clients that repeat nothing see no error while a server hangs
for a moment or is stopped, and those that repeat see none either when one is killed with requests inside.
"""

import json
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..serve.toy import make_picture, make_toy_repository
from .fleet import Envoy, Member, envoy_binary, fleet, make_certificates
from .fleet_load import TIMEOUT_S, Report

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "dark": (15, 15, 15)}
PAIRS = [(make_picture(colour, seed=seed), label) for seed, (label, colour) in enumerate(COLOURS.items())]
ROOT = Path(__file__).parents[2]
LOAD = Path(__file__).with_name("fleet_load.py")
HANG_S = 1.5  # shorter than Envoy's patience with a silent server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        envoy_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_repository(tmp_path_factory.mktemp("fleet"), ["toy-classifier"])


class Load:
    """See fleet_load.py."""

    def __init__(self, envoy: Envoy, certificates: Path) -> None:
        command = [sys.executable, str(LOAD), envoy.address, str(certificates / "ca.pem")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump(PAIRS, self.process.stdin)
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"asking\n"

    def calm(self) -> None:
        """Only clients that repeat calls go on."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"calm\n"

    def stop(self) -> Report:
        out, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0
        return Report(**json.loads(out))


@contextmanager
def loading(envoy: Envoy, certificates: Path) -> Generator[Load]:
    load = Load(envoy, certificates)
    try:
        yield load
    finally:
        load.process.kill()
        load.process.communicate()


def hang(member: Member) -> tuple[float, float]:
    """For a moment; returns from when to when."""
    start = time.time()
    member.signal(signal.SIGSTOP)
    time.sleep(HANG_S)
    member.signal(signal.SIGCONT)
    return start, time.time()


def test_nothing_is_lost_and_nothing_done_twice(repository: Path, certificates: Path, tmp_path: Path) -> None:
    with fleet(repository, tmp_path, certificates, log_requests="true") as (members, envoy):
        killed, stopped, left = members
        if left.place.command:
            assert left.probe(certificates) == 0
        with loading(envoy, certificates) as load:
            time.sleep(1)
            start, end = hang(left)
            stopped.signal(signal.SIGTERM)
            assert stopped.process.wait(timeout=120) == 0
            time.sleep(0.5)
            load.calm()
            killed.signal(signal.SIGSTOP)  # so that requests are inside
            time.sleep(0.5)
            killed.signal(signal.SIGKILL)
            time.sleep(1)
            report = load.stop()
        counted = left.counted()
        envoy.end()
    calls = [call for call in envoy.calls() if call["path"].endswith("/Classify")]
    answered = [call for call in calls if call["status"] == 0]
    broken = [call for call in calls if call["status"] != 0]

    # Nothing is lost, late or wrong; whoever repeats nothing saw the hang and the stop, and no error.
    assert report.errors == {}
    assert (report.answered, report.wrong) == (report.asked, 0)
    assert report.slowest_s < TIMEOUT_S
    assert len(answered) == report.answered > 100

    # Only what was inside the killed server broke off: each once, and its client sent it again.
    assert {(call["server"], call["status"], call["flags"], call["attempts"]) for call in broken} == {
        (killed.address, 14, "UC", 1)
    }

    # Envoy did send calls again, those that the stopping server had refused; and no request was answered twice.
    assert sum(call["attempts"] > 1 for call in answered) >= 1
    executed = {member.address: member.executed() for member in members}
    assert all(executed[call["server"]][call["id"]] == 1 for call in answered)
    everything = sum(executed.values(), Counter[str]())
    assert max(everything.values()) == 1
    # What the killed one had done, and could not say any more.
    untold = set(everything) - {call["id"] for call in answered}
    assert untold <= {call["id"] for call in broken}
    assert counted == len(executed[left.address])

    # The one that hung got less meanwhile.
    given = Counter(call["server"] for call in calls if start < float(call["start"]) < end)
    assert given[left.address] < min(given[killed.address], given[stopped.address])


@pytest.mark.nightly
@pytest.mark.parametrize("what", ["hangs", "is cut off"])
def test_a_server_that_is_gone_without_a_word_gives_its_calls_back(
    repository: Path, certificates: Path, tmp_path: Path, what: str
) -> None:
    """Envoy's pings find out, and clients ask again within their deadline."""
    with fleet(repository, tmp_path, certificates) as (members, envoy):
        gone = members[0]
        with loading(envoy, certificates) as load:
            load.calm()
            time.sleep(1)  # until Envoy has connections to all
            if what == "hangs":
                gone.signal(signal.SIGSTOP)
            elif gone.place.command:
                gone.place.cut()
            else:
                pytest.skip("no network namespace can be made here")
            time.sleep(16)
            report = load.stop()
        envoy.end()
    assert report.errors == {}
    assert (report.answered, report.wrong) == (report.asked, 0)
    broken = [call for call in envoy.calls() if call["path"].endswith("/Classify") and call["status"] != 0]
    assert {call["server"] for call in broken} == {gone.address}
    assert 4 < report.slowest_s < TIMEOUT_S


@pytest.mark.nightly
def test_the_cost_of_the_hop_is_measured(repository: Path, certificates: Path) -> None:
    del certificates  # it makes its own, but needs what they need
    options = [str(repository), "toy-classifier", "--seconds", "0.4", "--rounds", "2"]
    line = [sys.executable, "-m", "tests.docker.hop_cost", *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("a server", "Envoy, "))]
    assert len(rows) == 5
