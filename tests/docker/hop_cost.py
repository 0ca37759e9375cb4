"""What the hop through Envoy costs, and what 1, 2 and 3 servers give: -m tests.docker.hop_cost REPOSITORY MODEL.

All in turn in one run: clients in a process of their own ask the same requests of a server, of Envoy before it, in
plaintext and with TLS on both sides as it is shipped, and of Envoy before two and three. Each server has one thread.
Processor time is of Envoy and of all servers, a request.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from ferryman.bench.load import Closed
from ferryman.bench.serving import LoadGenerator, make_request
from ferryman.bench.turns import run_in_turn
from ferryman.bundle import Bundle
from ferryman.commands.console import make_table, print_table, show_stages

from .fleet import Envoy, Member, make_certificates
from .places import places

# requests, seconds, processor seconds of Envoy and of servers, latencies
Block = tuple[int, float, float, float, Sequence[float]]


def cpu_s(pids: Sequence[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def measure(
    load: LoadGenerator, envoy: Sequence[int], servers: Sequence[int], clients: int, seconds: float
) -> list[Block]:
    before = cpu_s(envoy), cpu_s(servers)
    found = load(Closed(clients=clients, seconds=seconds))
    assert set(found.codes) == {"OK"}, found.codes
    own, theirs = cpu_s(envoy) - before[0], cpu_s(servers) - before[1]
    return [(len(found.latencies_ms), found.seconds, own, theirs, found.latencies_ms)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10, help="of each row")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.repository / arguments.model)
    request, _ = make_request(bundle, arguments.model)
    with ExitStack() as opened, show_stages() as show:
        show("start", 0, 1)
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        certificates = make_certificates(folder / "certificates")
        names = ("a server", "Envoy, 1 server", "Envoy, 2 servers", "Envoy, 3 servers", "Envoy, 1 server, TLS")
        loads = {name: opened.enter_context(LoadGenerator()) for name in names}
        members: list[Member] = []
        for number, place in enumerate(opened.enter_context(places(4))):
            tls = certificates if number == 3 else None
            members.append(Member(place, arguments.repository, tls, folder, certify="true"))
            opened.callback(members[-1].end)
        for member in members:
            member.wait_ready()
        behind = {name: members[: int(name[7])] for name in names[1:4]} | {names[4]: members[3:]}
        measures: dict[str, Callable[[float], list[Block]]] = {}
        for name in names:
            servers, envoys, address, ca = members[:1], list[int](), members[0].address, None
            if name in behind:
                servers, own = behind[name], folder / name.replace(" ", "-").replace(",", "")
                own.mkdir()
                ca = certificates / "ca.pem" if servers is behind[names[4]] else None
                envoy = Envoy([one.address for one in servers], certificates if ca else None, own, account=False)
                opened.callback(envoy.end)
                envoy.wait_ready()
                envoys, address = [envoy.process.pid], envoy.address
            loads[name].connect(address, request, ca)
            pids = [one.process.pid for one in servers]
            measures[name] = partial(measure, loads[name], envoys, pids, arguments.clients)
        blocks = run_in_turn(measures, arguments.seconds, arguments.rounds, partial(show, "measure"))
    print_figures({name: [one for found in rows for one in found] for name, rows in blocks.items()})


def print_figures(blocks: dict[str, list[Block]]) -> None:
    columns = ("", "requests/s", "of the first", "p50 ms", "p99 ms", "Envoy CPU ms", "servers CPU ms")
    table = make_table(*columns, numbers=tuple(range(1, 7)))
    base = [count / seconds for count, seconds, *_ in next(iter(blocks.values()))]
    for name, rows in blocks.items():
        counts, seconds, envoy, servers, latencies = zip(*rows, strict=True)
        rates = np.divide(counts, seconds)
        p50, p99 = np.percentile(np.concatenate(latencies), (50, 99))
        figures = (f"{np.median(rates):.1f}", f"{np.median(rates / base):.0%}", f"{p50:.2f}", f"{p99:.2f}")
        table.add_row(name, *figures, *(f"{1e3 * sum(one) / sum(counts):.3f}" for one in (envoy, servers)))
    print_table(table)


if __name__ == "__main__":
    main()
