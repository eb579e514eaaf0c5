"""Who may send a request: tokens, hosts and origins."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from fastapi import HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

SAFE = {"GET", "HEAD", "OPTIONS"}
PUBLIC = ("/healthz", "/readyz", "/static/")
"""Paths that need no token."""

HEADERS = {
    "cache-control": "private, no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
PAGE = Path(__file__).parent / "static" / "index.html"
"""Holds nothing secret: it asks for the token itself if the API refuses it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def visitor_token(token: str) -> str:
    """Derive the token of visitors, who may only read, from that of the administrator."""
    return hmac.new(token.encode(), b"imgsearch visitor", hashlib.sha256).hexdigest()[:40]


async def admin_only(request: Request) -> None:
    """Refuse a visitor; a dependency of the routes that change something."""
    if not request.state.admin:
        raise HTTPException(403, "This needs the administrator's token; yours is a visitor's.")


class Security:
    """Checks of one server. An empty `token` makes everybody an administrator."""

    def __init__(self, token: str, hosts: Sequence[str], origins: Sequence[str]):
        self._tokens = {"admin": token, "visitor": visitor_token(token)} if token else {}
        self._hosts = {"localhost", *hosts}
        self._origins = set(origins)
        shared = "cross-origin" if origins else "same-origin"
        self.headers = HEADERS | {"cross-origin-resource-policy": shared}

    def admit(self, request: Request) -> Response | None:
        """Set ``state.admin``; refuse by HTTPException, or answer a visitor who logs in."""
        host = request.headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        # Any other name may belong to a foreign page that resolves to this address (DNS rebinding).
        if name not in self._hosts and not _is_address(name):
            text = f"Unknown host name {host[:80]!r}: allow it with --allowed-host."
            raise HTTPException(400, text)
        origin = request.headers.get("origin")
        own = origin is None or urlsplit(origin).netloc == host
        if request.method not in SAFE and not own and not self._origins & {origin, "*"}:
            text = f"Requests from pages of {origin[:80]!r} are refused: see --cors-origin."
            raise HTTPException(403, text)
        token = _given_token(request)
        scope = self._scope(token) if self._tokens else "admin"
        request.state.admin = scope == "admin"
        path = request.scope["path"]
        page = request.method == "GET" and path == "/"
        if scope is None and not path.startswith(PUBLIC):
            if page:
                return FileResponse(PAGE, 401)
            text = "This is not a token of the server." if token else "A token is needed."
            text += " Send 'Authorization: Bearer TOKEN' with the one printed at its start."
            raise HTTPException(401, text, {"WWW-Authenticate": "Bearer"})
        if page and "token" in request.query_params:
            return self._logged_in(request)
        return None

    def _scope(self, given: str) -> str | None:
        # Compare with every token, so that the time taken reveals nothing.
        found = [
            scope
            for scope, token in self._tokens.items()
            if hmac.compare_digest(given.encode(), token.encode())
        ]
        return found[0] if found else None

    def _logged_in(self, request: Request) -> Response:
        """Keep the token in a cookie and out of the address."""
        rest = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
        answer = RedirectResponse(f"/?{urlencode(rest)}" if rest else "/", 303)
        answer.set_cookie(
            _cookie(request),
            request.query_params["token"],
            httponly=True,
            samesite="lax",  # it is also sent when a link in a mail or chat leads here
            secure=request.url.scheme == "https",
        )
        return answer


def _given_token(request: Request) -> str:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return given
    return request.query_params.get("token", request.cookies.get(_cookie(request), ""))


def _cookie(request: Request) -> str:
    """Name of the cookie with the port: browsers share cookies between all ports of a host."""
    return f"imgsearch-{re.sub(r'[^0-9]', '', request.headers['host'].rpartition(':')[2])}"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
