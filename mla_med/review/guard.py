"""Every request before any page sees it, and every answer before it leaves: hosts, origins, sizes, headers.

Pure ASGI, as it runs for each of a hundred requests a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from mla_med.review.settings import LOOPBACK_NAMES, ReviewSettings

MAX_BODY = 64 * 1024
"""Bytes of a form: a report is short."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""CSP Level 3: no script or style but from our files, no other host, no frame."""
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # no-referrer would make the Origin of our own forms "null", and every browser would be refused
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Guard:
    def __init__(self, app: Callable[..., Awaitable[None]], settings: ReviewSettings):
        self._app = app
        self._hosts = {*LOOPBACK_NAMES, settings.host}
        if settings.public_url:
            self._hosts.add(urlsplit(settings.public_url).hostname or "")
        self._headers = list(HEADERS)
        if settings.is_encrypted:
            self._headers.append((b"strict-transport-security", b"max-age=31536000"))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self._problem(scope["method"], given):
            await _refuse(send, *problem, self._headers)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                there = {name.lower() for name, _ in headers}
                headers.extend(one for one in self._headers if one[0] not in there)
                if b"cache-control" not in there:
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        await self._app(scope, receive, guarded)

    def _problem(self, method: str, given: dict[bytes, str]) -> tuple[int, str] | None:
        host = given.get(b"host", "")
        if _name_of(host) not in self._hosts:
            # a page elsewhere whose name was made to mean this machine (DNS rebinding)
            return 421, "HOST_UNKNOWN"
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405, "METHOD"
        if given.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "ORIGIN"
        origin = given.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "ORIGIN"
        length = given.get(b"content-length", "")
        # in chunks, a body is as long as its sender likes, whatever else is said of it
        if not length.isdecimal() or b"transfer-encoding" in given:
            return 411, "LENGTH"
        return (413, "TOO_LARGE") if int(length) > MAX_BODY else None


def _name_of(host: str) -> str:
    """Without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


async def _refuse(send: Send, status: int, code: str, headers: list[tuple[bytes, bytes]]) -> None:
    start = [*headers, (b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": code.encode()})
