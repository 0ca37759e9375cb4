"""`ferryman bench report` and `schema`: measurements shown again, without measuring."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ferryman.bench.page import write_page
from ferryman.bench.record import BenchRecord, read_records
from ferryman.bench.tables import render_csv, render_markdown
from ferryman.commands.bench.tables import print_record
from ferryman.commands.console import out, print_json
from ferryman.errors import UsageError

Show = Literal["text", "markdown", "csv", "json"]


def choose_show(markdown: bool, csv: bool, json_output: bool) -> Show:
    """Raises UsageError for several ways of showing at once."""
    if markdown + csv + json_output > 1:
        raise UsageError("--markdown, --csv and --json are ways to show the same: give one of them")
    return "markdown" if markdown else "csv" if csv else "json" if json_output else "text"


def run_report(files: Sequence[Path], show: Show, html: Path | None) -> None:
    """html: a page to write too, and no text is shown

    Raises UsageError for a file that holds no record, FileAccessError.
    """
    records = read_records(files)
    if html is not None:
        write_page(records, html)
    if show == "json":
        print_json([record.model_dump(mode="json") for record in records])
    elif html is not None and show == "text":
        out.print(f"written: {html}")
    else:
        show_records(records, show)


def show_records(records: Sequence[BenchRecord], show: Show) -> None:
    """For people and spreadsheets; JSON is of one or of many, which its caller knows."""
    if show in ("markdown", "csv"):
        out.print((render_markdown if show == "markdown" else render_csv)(records), end="", soft_wrap=True)
        return
    for number, record in enumerate(records):
        if number:
            out.print()
        print_record(record)


def run_schema() -> None:
    print_json(BenchRecord.model_json_schema())
