"""What the benchmark of serving found: its figures, as a document and as tables."""

from collections.abc import Sequence

import numpy as np

from ferryman.bench.preprocessing import PreprocessingRow, print_preprocessing
from ferryman.commands.console import make_table, out, print_table
from ferryman.device import DeviceFacts
from ferryman.specs import Facts


class Block(Facts):
    """What one block of measuring gave: images, in how many seconds, of how much time of the server's processors.

    run_cpu_s: of that in the session's runs; None where that is not known
    """

    images: int
    seconds: float
    cpu_s: float
    latencies_ms: tuple[float, ...]
    run_cpu_s: float | None = None


class ClosedRow(Facts):
    """So many clients that each ask again once they are answered, or the bare loop.

    ratio: of the bare loop's images a second, the median over the rounds
    extra_cpu_ms: processor time of the server for one request, beyond what the bare loop takes for one: with it what a
        run takes longer since clients, and all else of the server, have been at the processors' caches
    outside_cpu_ms: processor time of the server for one request outside the session's runs, None where not known
    least_outside_cpu_ms: that in the least disturbed round: what else runs on the machine only adds to it
    """

    what: str
    images_per_s: float
    ratio: float
    extra_cpu_ms: float
    outside_cpu_ms: float | None = None
    least_outside_cpu_ms: float | None = None
    p50_ms: float
    p99_ms: float


class PressedRow(Facts):
    """Two clients more than the largest batch that helps, which each allow twice what that batch takes.

    full_batch_ms: what it took when the model was loaded; codes: OK, refused at once, or let in and late all the same
    p99_ms: of those that were let in and answered
    """

    clients: int
    full_batch_ms: float
    seconds: float
    codes: dict[str, int]
    p99_ms: float


class OverloadRow(Facts):
    """times: of the bare loop's rate; goodput: answers in time, as a share of that rate

    refused_p99_ms: until one is refused; recovery_ms: the slowest answer of one client in the second after the flood
    """

    times: float
    seconds: float
    timeout_s: float
    codes: dict[str, int]
    goodput: float
    p99_ms: float
    refused_p99_ms: float
    recovery_ms: float
    sender_late_s: float


class Document(Facts):
    """What `--json` writes. batch_ms: what batches took when the model was loaded; best: the largest that helps

    idle_cpu: share of one processor that the server takes while nobody asks
    """

    device: DeviceFacts
    model: str
    target: str
    threads: int
    rounds: int
    request_bytes: int
    idle_cpu: float
    batch_ms: dict[int, float]
    best: int
    closed: tuple[ClosedRow, ...]
    pressed: PressedRow
    overload: tuple[OverloadRow, ...]
    preprocessing: tuple[PreprocessingRow, ...]


def summarise(what: str, bare: Sequence[Block], blocks: Sequence[Block]) -> ClosedRow:
    """Blocks of the same rounds."""
    rates = [[one.images / one.seconds for one in side] for side in (bare, blocks)]
    cpus = [sum(one.cpu_s for one in side) / sum(one.images for one in side) for side in (bare, blocks)]
    outside = [((one.cpu_s - one.run_cpu_s) * 1e3, one.images) for one in blocks if one.run_cpu_s is not None]
    latencies = [latency for one in blocks for latency in one.latencies_ms]
    return ClosedRow(
        what=what,
        images_per_s=float(np.median(rates[1])),
        ratio=float(np.median(np.divide(rates[1], rates[0]))),
        extra_cpu_ms=(cpus[1] - cpus[0]) * 1e3,
        outside_cpu_ms=sum(cpu_ms for cpu_ms, _ in outside) / sum(images for _, images in outside) if outside else None,
        least_outside_cpu_ms=min((cpu_ms / images for cpu_ms, images in outside), default=None),
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
    )


def print_document(document: Document) -> None:
    out.print(
        f"{document.model}, {document.target}, {document.threads} threads, {document.request_bytes:,} bytes a request"
    )
    batches = ", ".join(f"{size}: {took:.2f}" for size, took in document.batch_ms.items())
    out.print(
        f"ms of a batch when loaded: {batches}; the largest that helps: {document.best}; "
        f"idle it takes {document.idle_cpu:.2%} of a processor"
    )
    heads = ("", "images/s", "of the loop", "CPU ms more", "outside runs", "at best", "p50 ms", "p99 ms")
    table = make_table(*heads, numbers=tuple(range(1, len(heads))))
    for row in document.closed:
        outside = ["" if ms is None else f"{ms:.2f}" for ms in (row.outside_cpu_ms, row.least_outside_cpu_ms)]
        figures = (f"{row.images_per_s:.1f}", f"{row.ratio:.1%}", f"{row.extra_cpu_ms:.2f}", *outside)
        table.add_row(row.what, *figures, f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}")
    print_table(table)
    print_preprocessing(document.preprocessing)
    pressed = document.pressed
    out.print(
        f"{pressed.clients} clients that allow {2 * pressed.full_batch_ms:.1f} ms, {pressed.seconds:g} s: "
        f"{_codes_text(pressed.codes)}; p99 {pressed.p99_ms:.1f} ms"
    )
    for flood in document.overload:
        out.print(
            f"{flood.times:g} times the loop's rate for {flood.seconds:g} s, timeout {flood.timeout_s:g} s: "
            f"{_codes_text(flood.codes)}; "
            f"goodput {flood.goodput:.1%}, p99 {flood.p99_ms:.0f} ms, p99 of refusals {flood.refused_p99_ms:.0f} ms, "
            f"sender late {flood.sender_late_s:.2f} s; slowest in the second after: {flood.recovery_ms:.1f} ms"
        )


def _codes_text(codes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in sorted(codes.items()))
