"""`ferryman health`: a probe for whoever starts servers; the exit status is the answer."""

from ferryman.client import Client, Security
from ferryman.commands.console import out, print_json
from ferryman.errors import FerrymanError


def run_health(address: str, model: str, timeout_s: float, security: Security | None, json_output: bool) -> None:
    """model: "" for the server as a whole. SystemExit 1 when it doesn't answer requests now, or nothing is there."""
    with Client(address, security=security) as client:
        ready = client.is_ready(model, timeout=timeout_s)
    if json_output:
        print_json({"address": address, "model": model, "ready": ready})
    else:
        out.print(f"{model or address} {'is ready' if ready else 'is not ready'}", markup=False)
    if not ready:
        raise SystemExit(FerrymanError.exit_status)
