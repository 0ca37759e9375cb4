"""build.html: what its pictures show is what build.json holds."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from ferryman.specs import Target
from ferryman_export.build_html import MOST_BARS, describe_error, render_build
from ferryman_export.islands import BlockError, CurvePoint, IslandReport
from ferryman_export.quantize import QuantizationPlan
from ferryman_export.variants.base import BuildReport, Trial

TARGET = str(Target.parse("openvino-cpu-int8"))
CURVE = (
    CurvePoint(islands=0, error=float("inf"), passed=False),
    CurvePoint(islands=1, error=0.2, passed=False),
    CurvePoint(islands=2, error=0.04, passed=True),
)
NONE = (CurvePoint(islands=0, error=0.04, passed=True),)


def report(islands: IslandReport | None, trials: tuple[Trial, ...] = (), plan: QuantizationPlan | None = None) -> str:
    return render_build("it", BuildReport(target=TARGET, size=(32, 48), islands=islands, trials=trials, plan=plan))


def charts(page: str) -> dict[str, ET.Element]:
    """The pictures, by what they are called; each is well-formed XML."""
    found = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {chart.attrib["aria-label"]: chart for chart in found}


def bars(chart: ET.Element) -> dict[str, tuple[str, float]]:
    """Class and width of each bar, by what it is called when pointed at, from the top."""
    found = [(group, rect) for group in chart.findall("g") for rect in group.findall("rect")]
    return {
        str(group.findtext("title")): (rect.attrib["class"], float(rect.attrib["width"]))
        for group, rect in sorted(found, key=lambda pair: float(pair[1].attrib["y"]))
    }


class TextReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def words(page: str) -> str:
    """The text, without the pictures' and the style's."""
    reader = TextReader()
    reader.feed(re.sub(r"<(svg|style).*?</\1>", "", page, flags=re.DOTALL))
    return " ".join(" ".join(reader.parts).split())


def test_bars_tell_the_errors_apart() -> None:
    errors = {"head": 0.1, "down": 0.01, "query": 0.001, "up": float("inf"), "still": 0.0}
    ranked = tuple(BlockError(block=name, error=error) for name, error in errors.items())
    page = report(IslandReport(blocks=ranked, islands=("query", "up", "unable"), free=1, curve=CURVE))
    (blocks,) = [chart for name, chart in charts(page).items() if name.startswith("Error that each block")]
    shown = bars(blocks)
    assert list(shown) == ["up: overflow", "head: 0.1", "down: 0.01", "query: 0.001", "still: 0"]
    assert [kind for kind, _ in shown.values()] == ["island", "low", "low", "free", "low"]
    up, head, down, query, still = (width for _, width in shown.values())
    assert head - down == pytest.approx(down - query, abs=0.2)  # ten times the error is as far everywhere
    assert up == head  # beyond the end
    assert query > 0
    assert still == 0
    told = words(page)
    assert "3 blocks stay in floating point: query : costs next to nothing" in told
    assert "up : the search gave it back unable : the search gave it back" in told


def test_the_curve_tells_what_held() -> None:
    blocks = (BlockError(block="a", error=0.3), BlockError(block="b", error=0.2))
    page = report(IslandReport(blocks=blocks, islands=("a", "b"), curve=CURVE))
    curve = charts(page)["Error against the number of islands"]
    titles = [str(group.findtext("title")) for group in curve.findall("g")]
    assert titles == [
        "0 islands: error overflow, out of tolerance",
        "1 islands: error 0.2, out of tolerance",
        "2 islands: error 0.04, within tolerance",
    ]
    assert [[mark.tag for mark in group][1] for group in curve.findall("g")] == ["path", "path", "circle"]
    line = curve.find("polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points[1][0] - points[0][0] == points[2][0] - points[1][0] > 0
    assert points[0][1] == points[1][1] < points[2][1]  # the overflow stands at the top, where the worst finite one is


@pytest.mark.parametrize(("free", "said"), [(0, "Without any island"), (1, "With the islands that cost next to")])
def test_that_nothing_had_to_be_searched_is_said(free: int, said: str) -> None:
    islands = ("head",) if free else ()
    page = report(IslandReport(islands=islands, free=free, curve=NONE))
    assert charts(page) == {}
    told = words(page)
    assert said in told
    assert "within tolerance at once, with an error of 0.04: no other had to be searched, and no block to be" in told
    assert ("None: every block that can be is in int8" in told) is not free
    ranked = report(IslandReport(blocks=(BlockError(block="head", error=0.1),), islands=islands, free=free, curve=NONE))
    assert "and no block" not in words(ranked)
    assert len(charts(ranked)) == 1


def test_a_graph_of_many_blocks_stays_legible() -> None:
    ranked = tuple(BlockError(block=f"model.blocks.{n}.{'x' * 90}.out", error=1 / (n + 1)) for n in range(400))
    page = report(IslandReport(blocks=ranked, islands=(ranked[300].block,), free=1, curve=NONE))
    (chart,) = charts(page).values()
    shown = bars(chart)
    assert len(shown) == MOST_BARS + 1
    assert list(shown)[-1] == f"{ranked[300].block}: {describe_error(1 / 301)}"
    assert "The 299 other blocks add less." in words(page)
    tops = [float(rect.attrib["y"]) for rect in chart.iter("rect")]
    assert min(later - earlier for earlier, later in pairwise(tops)) >= 15  # pixels, of which letters take 11
    _, _, width, height = map(float, chart.attrib["viewBox"].split())
    assert width < 950  # what the page shows at once
    assert tops[-1] + 16 < height
    assert all(len(str(text.text)) < 60 for text in chart.iter("text"))


def test_the_plan_that_was_taken_stands_out() -> None:
    plans = [QuantizationPlan(method="mean", smooth=0.5, rounding="gptq"), QuantizationPlan(method="minmax")]
    trials = tuple(Trial(plan=plan, error=error) for plan, error in zip(plans, (0.01, 0.02), strict=True))
    (chart,) = charts(report(None, trials, plans[1])).values()
    shown = bars(chart)
    assert list(shown) == ["mean, SmoothQuant 0.5, GPTQ: 0.01", "minmax: 0.02"]
    assert [kind for kind, _ in shown.values()] == ["low", "best"]


def test_the_page_needs_nothing_beside_it() -> None:
    page = report(IslandReport(blocks=(BlockError(block="<b>&", error=1.0),), islands=("<b>&",), curve=CURVE))
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert not re.search(r"(src|href)=|url\(|@import", page)
    used = set(re.findall(r"var\((--\w+)\)", page))
    palettes = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert len(palettes) == 3  # light, dark, printed
    assert all(used == set(re.findall(r"(--\w+):", palette)) for palette in palettes)
