"""`ferryman bench --compare`: what is measured here beside what other people's programs say of it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ferryman.bench.tools import TOOLS, Block, Compared, Job, ServedJob, Tool, open_tool
from ferryman.bench.turns import compare_speed, run_in_turn, time_runs
from ferryman.commands.bench.contenders import Contender, LocalContender
from ferryman.commands.bench.options import Places
from ferryman.commands.bench.served import InferContender
from ferryman.commands.console import StageProgress
from ferryman.errors import UsageError
from ferryman.runtimes.base import Arrays

_ROUNDS = 6


def check_tools(names: Sequence[str], places: Places) -> dict[Tool, str]:
    """The tools, each with its version. Raises UsageError for what can't be compared, before anything is measured."""
    found: dict[Tool, str] = {}
    for tool in (TOOLS[name] for name in dict.fromkeys(names)):
        if tool.fits is None and (places.server is None or not places.tensors):
            raise UsageError(f"--compare {tool.name} measures a server: give --address and --via tensors")
        if tool.fits is None and places.server is not None and places.server.security is not None:
            raise UsageError(f"--compare {tool.name} is told of no TLS and no token: measure where neither is needed")
        if tool.fits is not None and places.bundle is None:
            raise UsageError(f"--compare {tool.name} measures a variant's file: give the bundle")
        if places.settings.streams is not None or places.settings.hint != "latency":
            raise UsageError("--compare is of one picture at a time: leave out --streams and --hint")
        found[tool] = tool.version()
    return found


def check_jobs(tools: Mapping[Tool, str], contenders: Sequence[Contender], images: Sequence[bytes]) -> None:
    """Raises UsageError for a tool that fits no contender, before anything is measured."""
    for tool in tools:
        if all(_make_job(tool, one, images) is None for one in contenders):
            raise UsageError(f"--compare {tool.name} measures none of the variants here")


def compare_tools(
    tools: Mapping[Tool, str],
    contenders: Sequence[Contender],
    images: Sequence[bytes],
    seconds: float,
    show: StageProgress,
) -> Iterator[Compared]:
    """Each tool beside every contender that it fits, in rounds of both.

    tools: as `check_tools` found them
    Raises EngineError for one that fails.
    """
    for tool, version in tools.items():
        jobs = [(one, *made) for one in contenders if (made := _make_job(tool, one, images)) is not None]
        for one, job, ours in jobs:
            with open_tool(tool, job) as theirs:
                show(f"compare {one.name} with {tool.name}", 0, 1)
                block_s = max(tool.least_s, seconds / _ROUNDS)
                blocks = run_in_turn({"theirs": theirs, "ours": ours}, block_s * _ROUNDS, _ROUNDS)
            medians = {name: float(np.median([np.median(block) for block in each])) for name, each in blocks.items()}
            ratio = compare_speed(blocks["theirs"], blocks["ours"])
            yield Compared(
                tool=tool.name,
                version=version,
                ours=one.name,
                ours_ms=medians["ours"],
                theirs_ms=medians["theirs"],
                ratio=ratio,
            )


def _make_job(tool: Tool, one: Contender, images: Sequence[bytes]) -> tuple[Job | ServedJob, Block] | None:
    """What the tool is asked, and what does the same here; None where it does not fit."""
    if isinstance(one, LocalContender) and one.target is not None and tool.fits is not None and tool.fits(one.target):
        session, bundle = one.sessions[0], one.bundle
        inputs: Arrays = bundle.golden().batch([0])
        path = bundle.file(bundle.variants(one.name)[0].path)
        return Job(one.target, path, inputs, one.settings), lambda seconds: time_runs(session.run, [inputs], seconds)
    if isinstance(one, InferContender) and one.job is not None and tool.fits is None:
        return one.job, partial(time_runs, one.request(images[:1]), [0])
    return None
