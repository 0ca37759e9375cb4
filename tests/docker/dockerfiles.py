"""What Dockerfiles say, for those who run what they build without an engine."""

from pathlib import Path

DOCKER = Path(__file__).parents[2] / "docker"


def environment_of(dockerfile: str) -> dict[str, str]:
    """Of its ENV, the only one."""
    text = (DOCKER / dockerfile).read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ENV ")]
    return dict(word.split("=", 1) for word in line.split()[1:])
