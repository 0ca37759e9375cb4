"""Clients that ask a fleet without pause: fleet_load.py ADDRESS CA, in a process of their own.

Reads pickled [picture, class] pairs from stdin. Half of the clients repeat calls by ferryman.Client's own policy, half
never. Prints "asking" once each has been answered, then "calm" when a line came, after which only those of the first
half go on; and when stdin ends, what came of it as JSON: see `Report`.
"""

import asyncio
import json
import pickle
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ferryman.client import AsyncClient, RetryPolicy, Security
from ferryman.errors import FerrymanError

CLIENTS = 4  # of each half
TIMEOUT_S = 20.0
MODEL = "toy-classifier"


@dataclass
class Report:
    """asked: calls; answered: of those; wrong: answers unlike the right one; slowest_s: of all calls

    errors: by who saw them, "repeating" or "once", and their text
    """

    asked: int = 0
    answered: int = 0
    wrong: int = 0
    slowest_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter[str])


class Asker:
    def __init__(self, address: str, ca: Path) -> None:
        self.report = Report()
        self._address = address
        self._ca = ca

    async def ask_on(
        self, pairs: list[tuple[bytes, str]], retry: RetryPolicy, first: asyncio.Event, told: asyncio.Event
    ) -> None:
        report, who = self.report, "once" if retry.attempts == 1 else "repeating"
        security = Security(ca=self._ca)
        async with AsyncClient(self._address, timeout=TIMEOUT_S, retry=retry, security=security) as client:
            while not told.is_set():
                picture, right = pairs[report.asked % len(pairs)]
                report.asked += 1
                start = time.monotonic()
                try:
                    answer = await client.classify([picture], model=MODEL)
                except FerrymanError as error:
                    report.errors[f"{who}: {type(error).__name__}: {error}"] += 1
                else:
                    report.answered += 1
                    report.wrong += answer.results[0].predictions[0].label != right
                report.slowest_s = max(report.slowest_s, time.monotonic() - start)
                first.set()


async def main() -> None:
    pairs: list[tuple[bytes, str]] = pickle.load(sys.stdin.buffer)
    asker = Asker(sys.argv[1], Path(sys.argv[2]))
    ends = {"repeating": asyncio.Event(), "once": asyncio.Event()}
    policies = {"repeating": RetryPolicy(), "once": RetryPolicy(attempts=1)}
    firsts = [asyncio.Event() for _ in range(2 * CLIENTS)]
    tasks = [
        asyncio.create_task(asker.ask_on(pairs, policies[who], first, ends[who]))
        for who, first in zip(("repeating", "once") * CLIENTS, firsts, strict=True)
    ]
    await asyncio.gather(*(first.wait() for first in firsts))
    _say("asking")
    await asyncio.to_thread(sys.stdin.buffer.readline)
    ends["once"].set()
    await asyncio.gather(*tasks[1::2])
    _say("calm")
    await asyncio.to_thread(sys.stdin.buffer.read)
    ends["repeating"].set()
    await asyncio.gather(*tasks)
    _say(json.dumps(vars(asker.report)))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
