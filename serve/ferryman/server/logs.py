"""The log's lines: text for people, or one JSON object a line for machines; both name the call that they belong to."""

import json
import logging
import time
from typing import Literal

from ferryman.server.request import CALL

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        call = CALL.get()
        return line if call is None else f"{line} request_id={call.id}"


class JsonFormatter(logging.Formatter):
    """time in UTC, level, logger, message; inside a call request_id and trace_id; for errors exception, a traceback."""

    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = CALL.get()
        if call is not None:
            facts["request_id"] = call.id
            if call.trace is not None:
                facts["trace_id"] = call.trace.id
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return json.dumps(facts)


def configure_logs(format: Literal["text", "json"]) -> None:
    """Writes the process' log to stderr, from INFO on, unless it has been configured already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
