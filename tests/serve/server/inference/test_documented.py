"""docs/serving.md: its code runs, and its defaults are those of the server."""

import re
import subprocess
import sys
from pathlib import Path

from ferryman.server.app import ServerConfig
from ferryman.server.inference.infer import InferLimits

from ...toy import make_picture

TEXT = (Path(__file__).parents[4] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_code_runs(toy_server: str, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "street.png").write_bytes(make_picture((240, 20, 10)))
    code = code.replace("127.0.0.1:8001", toy_server).replace("detr-digits", "toy-detector")
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\[\[\d \d \d\]\] \[\[\[0\.\d+", done.stdout)


def test_every_setting_has_its_default() -> None:
    table = TEXT.split("## Settings")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \| .+ \|$", table, re.MULTILINE))
    schema = ServerConfig.model_json_schema()
    assert schema["required"] == ["repository"]
    names = [name for name in schema["properties"] if name != "repository"]
    assert rows == {name: str(ServerConfig.model_fields[name].default) for name in names}
    assert f"stream are inside at a time, {InferLimits().stream_window} unless set otherwise" in TEXT
