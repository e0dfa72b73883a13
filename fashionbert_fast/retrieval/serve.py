"""A local page to search by words or a photo, and the JSON behind it.

    GET /              the page
    GET /about         {"products": N, "categories": [...]}
    GET /search        ?text=...&category=...&top=...&rerank=1: {"hits": [...]}; or POST, with a photo as the body
    GET /photo/ROW     a small JPEG of the photo of that row of the index

What asks may be any page in the user's browser, what is asked for comes from anywhere: requests under other names than
this machine's are refused (a name elsewhere could be made to point here), no path comes from a request, photos are
decoded within the limits of `features.photo` and go out encoded anew, and the page may load nothing but its own files.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.photo import MOST_BYTES, thumbnail
from fashionbert_fast.retrieval import TOP, optional
from fashionbert_fast.retrieval.search import Searcher

MOST_TOP = 100
SIDE, KEPT = 360, 2000  # pixels of a photo on the page, and photos kept in memory
UPLOADS, UPLOAD_SECONDS = 4, 30  # at once, and for one
CONNECTIONS = 64
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Refused(Exception):
    """What was asked cannot be answered: a status and a line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before anything is loaded. InputError where the port is taken or the host is none of here."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port}: must lie in [0, 65535]; 0 takes any that is free")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)  # pyright: ignore[reportArgumentType]
    except (OSError, UnicodeError) as error:
        named = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno
        reason = os.strerror(named) if named else getattr(error, "strerror", None) or str(error)
        raise InputError(f"--host {host} --port {port}: cannot be listened at ({reason}); stop what runs there, or "
                         "give another --port") from error  # fmt: skip


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(searcher: Searcher, listening: socket.socket, host: str, ready: Callable[[], None]) -> None:
    """Answer until SIGINT or SIGTERM. ``ready()`` is called once both end the server in order.

    Raises KeyboardInterrupt after SIGINT. Before ``ready`` it may be raised while a module is imported; where that
    module runs a string (a namedtuple does), Python kills itself with SIGINT at its end even though it was caught.
    """
    uvicorn = optional("uvicorn")

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        make_app(searcher, host), log_level=logging.WARNING, access_log=False, server_header=False, lifespan="off",
        limit_concurrency=CONNECTIONS, timeout_keep_alive=5, timeout_graceful_shutdown=2,
    )  # fmt: skip
    Server(config).run(sockets=[listening])


def make_app(searcher: Searcher, host: str = "127.0.0.1") -> Any:
    """The Starlette application. host: what it listens at, whose name requests may bear."""
    optional("starlette")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    one_at_a_time = ThreadPoolExecutor(1, "search")  # one search has all the cores
    uploads, photos = asyncio.Semaphore(UPLOADS), _Photos(searcher)

    async def page(request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        return Response(files(__package__).joinpath("page", name).read_bytes(), media_type=kind)

    async def about(request: Request) -> Response:
        return JSONResponse({"products": len(searcher.index), "categories": searcher.categories})

    async def search(request: Request) -> Response:
        photo = None
        if request.method == "POST":
            async with uploads:
                photo = await asyncio.wait_for(_body(request), UPLOAD_SECONDS)
        loop = asyncio.get_running_loop()
        return JSONResponse(await loop.run_in_executor(one_at_a_time, answer, searcher, request.query_params, photo))

    async def photo(request: Request) -> Response:
        small = await asyncio.get_running_loop().run_in_executor(None, photos, request.path_params["row"])
        return Response(small, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, _Refused) else 408 if isinstance(error, TimeoutError) else 400
        return JSONResponse({"error": str(error) or "the photo took too long to arrive"}, status)

    routes = [*(Route(path, page) for path in PAGE), Route("/about", about), Route("/photo/{row:int}", photo),
              Route("/search", search, methods=["GET", "POST"])]  # fmt: skip
    handlers = dict.fromkeys((InputError, _Refused, TimeoutError), refuse)
    return Starlette(routes=routes, middleware=[Middleware(_Guard, host=host)], exception_handlers=handlers)


def answer(searcher: Searcher, asked: Any, photo: bytes | None) -> dict[str, Any]:
    """The JSON of an answer to ``asked`` (text, category, top, rerank: all texts)."""
    top = asked.get("top", str(TOP))
    if not (top.isascii() and top.isdigit() and 1 <= int(top[:9]) <= MOST_TOP):
        raise _Refused(400, f"top {top[:20]}: must be a number from 1 to {MOST_TOP}")
    text = asked.get("text") or None
    if text is None and not photo:
        raise _Refused(400, "nothing to search for: type some words, or choose a photo")
    hits = searcher.search(
        text, io.BytesIO(photo) if photo else None, top=int(top), rerank=asked.get("rerank", "") in ("1", "true"),
        category=asked.get("category") or None,
    )  # fmt: skip
    return {"hits": [asdict(hit) | {"image": f"/photo/{hit.row}"} for hit in hits]}


async def _body(request: Any) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise _Refused(413, f"the photo has more than {MOST_BYTES:,} bytes; give a smaller one")
        parts.append(part)
    return b"".join(parts)


class _Photos:
    """Small JPEGs of an index's photos, by row; the last ones are kept."""

    def __init__(self, searcher: Searcher) -> None:
        self.images = searcher.index.products.images
        self.small = lru_cache(KEPT)(lambda row: thumbnail(Path(self.images[row]), SIDE))

    def __call__(self, row: int) -> bytes:
        if row >= len(self.images):
            raise _Refused(404, f"row {row}: the index has {len(self.images)}")
        try:
            return self.small(row)
        except Exception as error:  # a broken file can make Pillow raise nearly anything
            gone = isinstance(error, FileNotFoundError)
            raise _Refused(404, "photo not here" if gone else "photo unreadable") from error


class _Guard:
    """Requests under another name than this machine's are refused; every answer has `HEADERS`, unless it says so."""

    def __init__(self, app: Any, host: str) -> None:
        self.app = app
        self.names = {*LOOPBACK, host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import JSONResponse

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        own = scope["type"] == "http" and self._is_own(Headers(scope=scope).get("host", ""))
        refusal = JSONResponse({"error": "asked under a name that is not this machine's"}, 421)
        await (self.app if own else refusal)(scope, receive, send_guarded)

    def _is_own(self, host: str) -> bool:
        """An address is no name that somebody else could point here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False
