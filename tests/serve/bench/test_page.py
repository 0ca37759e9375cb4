"""The page of measurements: whole in itself, and looked at in a real browser where there is one."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman.bench import page
from ferryman.bench.curve import Point, draw_curve
from ferryman.bench.page import render_page, write_page
from ferryman.bench.record import BenchRecord, Check
from ferryman.bench.search import Bound, Trial

from ..commands.outcome import Cli
from .records import make_record
from .synthetic import constant, stalling, two_modes

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def record() -> BenchRecord:
    return make_record(
        {"fp32": stalling(10, 0.01, 8), "bf16": constant(5), "int8": two_modes(2, 4, 0.3)},
        unreliable=("somebody <b>else</b> worked here",),
    )


class Strict(HTMLParser):
    """Every tag that is opened is closed, in order; keeps what lies elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_whole_in_itself(record: BenchRecord) -> None:
    text = render_page([record])
    strict = Strict()
    strict.feed(text)
    assert strict.open == []
    assert all(link.startswith("#") for link in strict.links), strict.links
    assert "<script" not in text
    assert "unreliable: somebody &lt;b&gt;else&lt;/b&gt; worked here" in text
    for title in ("Percentiles", "Distribution", "Stages", "Over time"):
        assert f"<h3>{title}</h3>" in text
    assert "Throughput by batch" not in text
    for name in ("fp32", "bf16", "int8"):
        assert name in text
    colours = set(re.findall(r"#0[1-5]0[0-9]{3}\b", text.partition("</style>")[2]))
    assert colours == set()  # each became a variable
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_what_a_record_has_is_drawn(record: BenchRecord) -> None:
    trials = tuple(
        Trial(rate=rate, kept=rate < 60, percentile_ms=rate if rate < 80 else None, requests=200, missed=0, late_ms=1)
        for rate in (40.0, 80.0, 56.0, 63.0, 56.0)
    )
    run = record.runs[0].model_copy(update={"trials": trials})
    server = record.model_copy(
        update={"scenario": "server", "bound": Bound(percentile=99, ms=60), "runs": (run,), "ratios": {}}
    )
    text = render_page([server])
    assert "The rate that keeps the bound" in text
    assert "Trials of the search" in text
    assert "fp32: 56 requests a second keep p99 at most 60.00 ms" in text
    points = [
        Point(name=str(at), at=at, median_ms=8 + 2 * at, images_per_s=1e3 * at / (8 + 2 * at)) for at in (1, 2, 4)
    ]
    curve = draw_curve("batch", points, "4 was the most")
    text = render_page([record.model_copy(update={"curves": {"fp32": curve}})])
    assert "Throughput curve" in text
    assert "Latency against throughput" in text
    by_threads = {"fp32": draw_curve("threads", points, "4 was the most")}
    assert "Latency against throughput" not in render_page([record.model_copy(update={"curves": by_threads})])
    wrong = Check(when="after", passed=False, error=1, failures=("x",))
    none = record.model_copy(update={"runs": (record.runs[0].model_copy(update={"checks": (wrong,)}),), "ratios": {}})
    text = render_page([none])
    assert "wrong answers" in text
    assert "<h3>Percentiles</h3>" not in text  # a fast wrong answer is no result


def test_many_devices_on_one_page(record: BenchRecord) -> None:
    machine = record.machine.model_copy(
        update={"device": record.machine.device.model_copy(update={"cpu": "Cortex-A78AE"})}
    )
    text = render_page([record, record.model_copy(update={"machine": machine})])
    assert "<h1>2 measurements</h1>" in text
    assert text.count("<h2>") == 2
    assert "Cortex-A78AE" in text
    assert "<h1>1 measurements" not in render_page([record])


def test_the_command(cli: Cli, record: BenchRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, html = tmp_path / "a.json", tmp_path / "a.html"
    file.write_text(record.model_dump_json(), encoding="utf-8")
    assert cli("bench", "report", file, file, "--html", html).stdout == f"written: {html}\n"
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "can't write" in cli("bench", "report", file, "--html", file / "x.html").complaint
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    outcome = cli("bench", "report", file, "--html", html)
    assert (outcome.status, outcome.complaint.endswith("pip install 'ferryman[plot]'")) == (1, True)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "colour"), [("light", (255, 255, 255)), ("dark", (22, 24, 28))])
def test_a_browser_shows_it(record: BenchRecord, tmp_path: Path, scheme: str, colour: tuple[int, int, int]) -> None:
    """In both schemes: the page's own colour, and every series in a colour of its own that differs from it."""
    write_page([record], tmp_path / "page.html")
    assert BROWSER is not None
    shot = tmp_path / f"{scheme}.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1060,2600"]
    options += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", f"--user-data-dir={tmp_path}"]
    command = [BROWSER, *options, f"--screenshot={shot}", (tmp_path / "page.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert tuple(pixels[2, 2]) == colour
    (style,) = re.findall(r"<style>(.*?)</style>", (tmp_path / "page.html").read_text(encoding="utf-8"), re.DOTALL)
    light, dark, _printed = re.findall(r"--series-0: (#\w{6}); --series-1: (#\w{6}); --series-2: (#\w{6});", style)
    for text in light if scheme == "light" else dark:
        wanted = tuple(int(text[start : start + 2], 16) for start in (1, 3, 5))
        assert (pixels == wanted).all(axis=-1).sum() > 50, text


def test_scenarios_side_by_side_are_told_apart(record: BenchRecord) -> None:
    server = record.model_copy(update={"scenario": "offline"})
    text = render_page([record, server])
    assert all(f"toy/1, {scenario}, fp32, " in text for scenario in ("single-stream", "offline"))
    assert "toy/1, fp32, " in render_page([record, record])  # where they don't differ there is nothing to tell
