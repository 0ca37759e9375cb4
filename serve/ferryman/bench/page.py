"""One self-contained page of measurements: no script, no picture, no font from elsewhere."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ferryman.bench.charts import draw_charts, join_charts
from ferryman.bench.record import BenchRecord
from ferryman.bench.tables import (
    STAGES_TITLE,
    describe_left_out,
    describe_load,
    describe_ratios,
    describe_reading,
    tabulate,
    tabulate_costs,
    tabulate_machine,
    tabulate_stages,
    tabulate_trials,
)
from ferryman.errors import MissingExtraError
from ferryman.files import write_text


def check_page() -> None:
    """Before anything is measured. Raises MissingExtraError."""
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        raise MissingExtraError("a page of measurements", "plot")


def write_page(records: Sequence[BenchRecord], path: Path) -> None:
    """Raises FileAccessError when `path` can't be written, MissingExtraError."""
    check_page()
    page = render_page(records)
    write_text(path, page)


def render_page(records: Sequence[BenchRecord]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ferryman.bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    parts = [
        {
            "record": record,
            "charts": draw_charts(record),
            "figures": tabulate(record),
            "stages": tabulate_stages(record) if any(run.figures.stages_ms for run in record.runs) else None,
            "costs": tabulate_costs(record),
            "trials": tabulate_trials(record) if any(run.trials for run in record.runs) else None,
            "lines": [
                *describe_load(record),
                *describe_ratios(record),
                *describe_reading(record),
                *describe_left_out(record),
            ],
            "machine": tabulate_machine(record),
        }
        for record in records
    ]
    return environment.get_template("bench.html").render(
        parts=parts, overview=join_charts(records), stages_title=STAGES_TITLE
    )
