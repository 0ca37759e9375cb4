"""The accuracy of a bundle's variants as the commands that measure it show it."""

from ferryman.accuracy import AccuracyReport
from ferryman.commands.console import make_table, out, print_table


def print_accuracy(report: AccuracyReport) -> None:
    """A row a variant: how often it is right, and how often it answers as the canonical one."""
    first, *_ = report.variants
    table = make_table("variant", *first.scores.figures, f"as {first.target}", numbers=(1, 2, 3, 4))
    for one in report.variants:
        figures = ["-" if value is None else f"{value:.3f}" for value in one.scores.figures.values()]
        table.add_row(one.target, *figures, "-" if one.agreement is None else f"{one.agreement:.2%}")
    print_table(table)
    print_pictures(report)


def print_pictures(report: AccuracyReport) -> None:
    """What the figures were measured on."""
    out.print(f"{report.figure} of the {report.pictures} labelled pictures of {report.data}")
    for note in report.notes:
        out.print(f"note: {note}")
