"""`ferryman bench report` and `schema`: measurements shown again, without measuring."""

from collections.abc import Sequence
from pathlib import Path

from ferryman.bench.page import write_page
from ferryman.bench.record import BenchRecord, read_records
from ferryman.bench.tables import render_csv, render_markdown
from ferryman.commands.bench.tables import print_record
from ferryman.commands.console import out, print_json
from ferryman.errors import UsageError


def run_report(files: Sequence[Path], markdown: bool, csv: bool, html: Path | None, json_output: bool) -> None:
    """html: a page to write too, and nothing else is shown

    Raises UsageError for several ways of showing at once, and for a file that holds no record.
    """
    if markdown + csv + json_output > 1:
        raise UsageError("--markdown, --csv and --json are ways to show the same: give one of them")
    records = read_records(files)
    if html is not None:
        write_page(records, html)
        if not (markdown or csv or json_output):
            out.print(f"written: {html}")
            return
    if json_output:
        print_json([record.model_dump(mode="json") for record in records])
    elif markdown or csv:
        out.print((render_markdown if markdown else render_csv)(records), end="")
    else:
        for number, record in enumerate(records):
            if number:
                out.print()
            print_record(record)


def run_schema() -> None:
    print_json(BenchRecord.model_json_schema())
