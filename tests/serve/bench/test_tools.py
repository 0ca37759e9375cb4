"""Other people's programs: what they print is read, and a program that can't answer says so."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ferryman.bench.tools import TOOLS, Block, Job, ServedJob, find_program, open_tool, read_median
from ferryman.errors import EngineError, UsageError
from ferryman.runtimes.base import Settings
from ferryman.specs import Target

from ..commands.outcome import Cli

BENCHMARK_APP = """#!/bin/sh
echo "$@" > {folder}/asked
echo "[ INFO ] Latency:"
echo "[ INFO ]    Median:        1.52 ms"
echo "[ INFO ]    Average:       1.61 ms"
"""
PERF_ANALYZER = """#!/bin/sh
echo "$@" > {folder}/asked
echo "    Throughput: 161.515 infer/sec"
echo "    p50 latency: 5256 usec"
echo "    p90 latency: 9314 usec"
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in PATH, before all others; nothing is beside this Python."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text.replace("{folder}", str(folder)), encoding="utf-8")
    (folder / name).chmod(0o755)


def make_job(target: str) -> Job:
    return Job(
        Target.parse(target), Path("model.xml"), {"image": np.zeros((1, 4, 4, 3), np.uint8)}, Settings(threads=2)
    )


def test_benchmark_app(program: Path) -> None:
    write(program, "benchmark_app", BENCHMARK_APP.replace("1.52 ms", "435.67 us"))  # as it tells of fast models
    with open_tool(TOOLS["benchmark_app"], make_job("openvino-cpu-bf16")) as block:
        assert block(1) == pytest.approx([0.43567])
        write(program, "benchmark_app", BENCHMARK_APP)
        assert block(1.6) == [1.52]
    asked = (program / "asked").read_text(encoding="utf-8")
    assert re.search(r"-m model.xml .*-infer_precision bf16 .*-nthreads 2 -i image:\S+/image.npy -t 2", asked)


def test_perf_analyzer(program: Path) -> None:
    write(program, "perf_analyzer", PERF_ANALYZER)
    with open_tool(TOOLS["perf_analyzer"], ServedJob("127.0.0.1:8001", "digits", 3)) as block:
        assert block(0.5) == [5.256]
    asked = (program / "asked").read_text(encoding="utf-8")
    assert re.search(r"-m digits -u 127.0.0.1:8001 .*-x 3 -p 500", asked)


def test_programs_that_fail(program: Path) -> None:
    job = make_job("openvino-cpu-int8")
    with pytest.raises(UsageError, match=r"benchmark_app: it is not installed; pip install 'ferryman\[openvino\]'"):
        find_program("benchmark_app", "pip install 'ferryman[openvino]'")
    write(program, "benchmark_app", "#!/bin/sh\necho it is no model >&2; exit 3\n")
    with (
        open_tool(TOOLS["benchmark_app"], job) as block,
        pytest.raises(EngineError, match="benchmark_app failed with 3: it is no model"),
    ):
        block(1)
    write(program, "benchmark_app", "#!/bin/sh\necho Medium: 3 ms\n")
    with (
        open_tool(TOOLS["benchmark_app"], job) as block,
        pytest.raises(EngineError, match="printed no median that this version"),
    ):
        block(1)


def test_a_line_of_trtexec() -> None:
    """As TensorRT 10's documentation shows it."""
    line = "[I] Latency: min = 1.1 ms, max = 2.3 ms, mean = 1.2 ms, median = 1.19 ms, percentile(90%) = 1.2 ms"
    assert read_median(line, r"\[I\] Latency: .*median = ([\d.]+) (ms)", "trtexec") == [1.19]


def test_a_plain_session(cli: Cli, toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file in onnxruntime, by itself and by the command."""
    bundle = toy_repository / "toy-classifier"
    place = ("bench", bundle, "--threads", 1, "--seconds", 0.3)
    document = cli(*place, "--compare", "onnxruntime", "--json").document
    (one,) = document["compared"]
    assert (one["tool"], one["ours"]) == ("onnxruntime", "onnxruntime-cpu-fp32")
    assert 0 < one["ratio"]["low"] <= one["ratio"]["value"] <= one["ratio"]["high"]
    wrong = cli(*place, "--compare", "trtexec")
    assert (wrong.status, "--compare trtexec: it is not installed" in wrong.complaint) == (2, True)
    both = cli(*place, "--compare", "onnxruntime", "--compare", "benchmark_app")
    assert (both.status, both.stdout) == (2, "")  # before anything is measured
    assert both.complaint == "ferryman: --compare benchmark_app measures none of the variants here"

    def fail(job: object, folder: Path) -> Block:
        raise EngineError("it failed")

    failing = replace(TOOLS["onnxruntime"], name="failing", open=fail)
    monkeypatch.setitem(TOOLS, "benchmark_app", failing)
    late = cli(*place, "--compare", "onnxruntime", "--compare", "benchmark_app")
    assert (late.status, late.complaint) == (1, "ferryman: it failed")
    assert "onnxruntime-cpu-fp32 is" in late.stdout  # what was measured before is not lost
