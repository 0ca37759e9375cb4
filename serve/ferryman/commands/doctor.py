"""`ferryman doctor`: what this machine has, and what is missing."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

from ferryman import __version__
from ferryman.commands.console import make_table, out, print_json, print_table
from ferryman.device import read_device
from ferryman.runtimes import RUNTIMES

# What an extra is for, and the packages that tell whether it is there.
_EXTRAS = {
    "export": (
        "export checkpoints, run the demo",
        ("torch", "onnx", "onnxscript", "safetensors", "jinja2", "matplotlib"),
    ),
    "quantize": ("export variants in int8 and fp8", ("torch", "onnx", "onnxscript", "openvino")),
    "plot": ("draw what `ferryman advise` measured", ("matplotlib",)),
    "train": ("train the embedded models", ("torch", "sklearn", "scipy", "pycocotools")),
}


def find_wheels() -> dict[str, str]:
    """Of the packages that the server needs and that are compiled: version, and the platform that its wheel is for.

    What was built here instead says so, as a wheel for this machine was missing then.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    names = ["ferryman"]
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another platform or Python
            continue
        names += [_name_of(line) for line in package.requires or () if "extra ==" not in line]
        platforms = _platforms_of(package)
        if platforms - {"any"}:
            built = platforms & {"linux_x86_64", "linux_aarch64"}
            found[name] = f"{package.version}, {'built here, ' if built else ''}{', '.join(sorted(platforms))}"
    return dict(sorted(found.items()))


def _name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _platforms_of(package: Distribution) -> set[str]:
    """By its wheel's tags, such as `cp311-cp311-manylinux_2_28_aarch64`; empty where it tells none."""
    tags = re.findall(r"^Tag: (\S+)$", package.read_text("WHEEL") or "", re.MULTILINE)
    return {tag.rpartition("-")[2] for tag in tags}


def run_doctor(json_output: bool) -> None:
    """Prints facts of the machine, its packages, every runtime, what keeps targets from running here, the extras."""
    device = read_device()
    runtimes: list[dict[str, Any]] = []
    for name, runtime in RUNTIMES.items():
        why = runtime.missing()
        facts = {"version": runtime.version(), "devices": list(runtime.devices())} if why is None else {"missing": why}
        targets = {str(target): runtime.why_not(target) for target in runtime.targets()}  # None for one that can run
        runtimes.append({"runtime": name, **facts, "targets": targets})
    extras: list[dict[str, Any]] = []
    for extra, (purpose, packages) in _EXTRAS.items():
        absent = [package for package in packages if find_spec(package) is None]
        fix = f"pip install 'ferryman[{extra}]'" if absent else None
        extras.append({"extra": extra, "purpose": purpose, "missing": absent, "install": fix})
    if json_output:
        machine = device.model_dump(mode="json")
        document = {"ferryman": __version__, "device": machine, "runtimes": runtimes, "extras": extras}
        print_json(document | {"wheels": find_wheels()})
        return
    table = make_table("", "")
    table.show_header = False
    table.add_row("ferryman", f"{__version__}, Python {device.python}, {device.system}, {device.machine}")
    table.add_row(
        "processor",
        f"{device.cpu}, {device.cores} cores usable, {', '.join(device.cpu_features) or 'no known features'}",
    )
    if device.memory_bytes is not None:
        table.add_row("memory", f"{device.memory_bytes / 2**30:.1f} GiB")
    for name, wheel in find_wheels().items():
        table.add_row(f"wheel {name}", wheel)
    for facts in runtimes:
        state = facts.get("missing") or f"{facts['version']} on {', '.join(facts['devices']) or 'no device'}"
        table.add_row(f"runtime {facts['runtime']}", str(state))
        for target, why in facts["targets"].items():
            table.add_row(f"  {target}", "can run here" if why is None else f"can't run here: {why}")
    for facts in extras:
        state = (
            f"missing, to {facts['purpose']}: {facts['install']}"
            if facts["missing"]
            else f"there, to {facts['purpose']}"
        )
        table.add_row(f"extra {facts['extra']}", state)
    print_table(table)
    if not any("version" in facts for facts in runtimes):
        out.print("no runtime can be used here")
