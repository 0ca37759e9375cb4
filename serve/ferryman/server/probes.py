"""The HTTP port beside the gRPC one: /livez, /readyz and /metrics, and nothing else."""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

log = logging.getLogger(__name__)
_LONGEST_HEAD = 8 * 1024  # of a request
_PATIENCE_S = 5.0  # with a reader or writer that is slow
_MOST_CONNECTIONS = 128  # silent ones among them, which others may hold for as long
Page = Callable[[str], tuple[HTTPStatus, bytes, str]]  # from the header Accept to status, text and content type


class Probes:
    """Answers GET for a few pages, one a connection; it runs on the event loop, and so tells whether that lives.

    pages: by their path; each is made in a moment
    """

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, host: str, port: int) -> int:
        """Listens, and returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_LONGEST_HEAD)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def stop(self) -> None:
        """Listens no more; what is being answered is left to its end."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= _MOST_CONNECTIONS:
            writer.close()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(_PATIENCE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                writer.write(self._answer(head))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it asked for nothing, or does not want to know
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: str) -> bytes:
        first, *lines = head.split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, _, rest = first.partition(" ")
        page = self._pages.get(rest.partition(" ")[0].partition("?")[0])
        if method not in {"GET", "HEAD"}:
            status, body, kind = HTTPStatus.METHOD_NOT_ALLOWED, b"", "text/plain"
        elif page is None:
            status, body, kind = HTTPStatus.NOT_FOUND, f"there is {', '.join(self._pages)}\n".encode(), "text/plain"
        else:
            try:
                status, body, kind = page(headers.get("accept", ""))
            except Exception:
                log.exception("a page can't be made")
                status, body, kind = HTTPStatus.INTERNAL_SERVER_ERROR, b"", "text/plain"
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body)


def text_page(is_well: Callable[[], bool]) -> Page:
    """`ok` where all is well, 503 else."""

    def page(_accept: str) -> tuple[HTTPStatus, bytes, str]:
        if is_well():
            return HTTPStatus.OK, b"ok\n", "text/plain"
        return HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n", "text/plain"

    return page
