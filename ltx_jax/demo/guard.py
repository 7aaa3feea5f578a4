"""The guard before the page: requests that the page itself does not make never reach Gradio.

Gradio answers under any host name, takes posts from other sites, opens files and fetches addresses
that a request names, and serves many routes that this page does not use.
"""

import collections
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

MAX_UPLOAD = 10_000_000  # bytes of one uploaded file
_MAX_BODY = 100_000  # bytes of any other request, and of the form around a file
_MAX_STORED = 1_000_000_000  # bytes of all pictures and videos in the page's folder
_BLOCK = 4096  # what an empty file takes on most file systems
_API = "/gradio_api"
_FILE, _UPLOAD, _EVENTS = f"{_API}/file=", f"{_API}/upload", f"{_API}/queue/data"
# What the page loads: its own files and settings, then the progress of its requests.
_READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.+"
    rf"|{_API}/(info|app_id|startup-events|theme\.css|queue/data|upload_progress|heartbeat/\w+)"
)
_SENT = (_UPLOAD, f"{_API}/queue/join", f"{_API}/cancel", f"{_API}/reset")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class RefusedError(Exception):
    """A request that gets no answer but a status and a line of text."""

    def __init__(self, status: HTTPStatus, text: str):
        super().__init__(text)
        self.status = status


class Listeners:
    """How many streams of events each session of the page has open."""

    def __init__(self) -> None:
        self._streams: collections.Counter[str] = collections.Counter()

    def waits(self, session: str | None) -> bool:
        """Whether anybody waits for the results of a session."""
        return self._streams[session or ""] > 0

    def add(self, session: str) -> None:
        """Counts a stream that opens."""
        self._streams[session] += 1

    def remove(self, session: str) -> None:
        """Counts a stream that closes."""
        self._streams[session] -= 1
        if not self._streams[session]:
            del self._streams[session]


class Guard:
    """ASGI middleware that refuses requests which the page itself does not make:

    - A `Host` that is neither an IP address nor a name of the page: the name of another site may
      lead to this machine (DNS rebinding).
    - Requests from other sites, by `Origin` and `Sec-Fetch-Site`.
    - Routes that the page does not use, and files outside its folder.
    - Bodies of unknown length or above a limit, and uploads once the folder is full.

    Args:
      app: the application behind it.
      folder: the folder of uploads and videos.
      names: host names of the page besides localhost and this machine's name.
      listeners: counts the streams of events that are open.
    """

    def __init__(self, app: Any, folder: Path, names: Collection[str], listeners: Listeners):
        self._app, self._folder, self._listeners = app, folder.resolve(), listeners
        self._public = {name.lower() for name in names}
        machine = socket.gethostname().lower()
        self._names = self._public | {"localhost", machine, f"{machine}.local"}
        self._arriving = 0  # bytes of the uploads in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        try:
            if scope["type"] != "http":
                raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")
            headers = {key.decode("latin-1"): x.decode("latin-1") for key, x in scope["headers"]}
            self._check_site(headers, scope["path"])
            self._check_route(scope["method"], scope["path"])
            size = _body_size(scope, headers)
            if scope["path"] == _UPLOAD:
                self._check_room(size)
        except RefusedError as refusal:
            return await _answer(send, refusal)
        if scope["path"] == _EVENTS:
            return await self._listen(scope, receive, send)
        self._arriving += size
        try:
            await self._app(scope, receive, send)
        finally:
            self._arriving -= size

    def _check_site(self, headers: Mapping[str, str], path: str) -> None:
        """Refuses requests that a browser sends for another site."""
        host = headers.get("host", "").lower()
        name = _host_name(host)
        if name not in self._names and not _is_address(name):
            raise RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this page is not called {name!r}: start ltx-demo with --names {name}",
            )
        origin = headers.get("origin")
        if origin is not None:
            site = urlsplit(origin.lower()).netloc
            if site != host and _host_name(site) not in self._public:
                raise RefusedError(HTTPStatus.FORBIDDEN, "this request comes from another site")
        opened = path == "/" and headers.get("sec-fetch-dest") == "document"  # a link to the page
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opened:
            raise RefusedError(HTTPStatus.FORBIDDEN, "this request comes from another site")

    def _check_route(self, method: str, path: str) -> None:
        if method == "POST":
            allowed = path in _SENT
        elif method in ("GET", "HEAD") and path.startswith(_FILE):
            allowed = contains(self._folder, path.removeprefix(_FILE))
        else:
            allowed = method in ("GET", "HEAD") and bool(_READ.fullmatch(path))
        if not allowed or ".." in path.split("/"):
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")

    def _check_room(self, size: int) -> None:
        files = (path for path in self._folder.rglob("*") if path.is_file())
        stored = sum(path.stat().st_size + _BLOCK for path in files)
        if stored + self._arriving + size > _MAX_STORED:
            raise RefusedError(
                HTTPStatus.INSUFFICIENT_STORAGE, "there is no room for uploads: try again later"
            )

    async def _listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        session = query.get("session_hash", [""])[0]
        self._listeners.add(session)
        try:
            await self._app(scope, receive, send)
        finally:
            self._listeners.remove(session)


def contains(folder: Path, path: str) -> bool:
    """Whether a path is a regular file in a folder (resolved), also after links are followed."""
    try:
        resolved = Path(path).resolve()
        return resolved.is_relative_to(folder) and resolved.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _body_size(scope: Scope, headers: Mapping[str, str]) -> int:
    """The length of a request's body in bytes, which the server holds it to."""
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdecimal()):
        raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "a request has to say its length")
    limit = _MAX_BODY + (MAX_UPLOAD if scope["path"] == _UPLOAD else 0)
    if len(length) > 20 or int(length) > limit:
        raise RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request may have {limit} bytes here"
        )
    return int(length)


def _host_name(host: str) -> str:
    """A host without its port."""
    return re.sub(r":\d*$", "", host)


def _is_address(name: str) -> bool:
    """Whether a host name is an IP address, which no other site can claim."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


async def _answer(send: Send, refusal: RefusedError) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{refusal}\n".encode()})
