"""Fetch a picture from the Internet, and from nowhere else.

The host's addresses are checked after its name was looked up, and the connection is made to
an address that was checked, so that a second look-up cannot lead elsewhere. Each redirect
is checked in the same way.
"""

from __future__ import annotations

import ssl
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from ipaddress import IPv6Address, ip_address, ip_network
from socket import SOCK_STREAM, create_connection, getaddrinfo
from string import punctuation
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from imgsearch.errors import ImageError
from imgsearch.server.limits import MAX_BODY

TIMEOUT = 10.0
"""Seconds for the whole fetch, redirects included."""

REDIRECTS = 5
_TRANSLATED = [ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")]
"""Networks whose addresses stand for IPv4 addresses, which may be private."""


def fetch(url: str) -> bytes:
    """Return what an http or https address holds; an ImageError says why that is impossible."""
    name, end = url[:200], time.monotonic() + TIMEOUT
    try:
        for _ in range(REDIRECTS + 1):
            connection, response = _request(url, end)
            try:
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("location", ""))
                    continue
                if response.status != 200:
                    raise ImageError(name, f"the server answers with status {response.status}")
                return _read(response, connection, end)
            finally:
                connection.close()
        raise ImageError(name, f"more than {REDIRECTS} redirects")
    except ImageError as error:
        raise ImageError(name, error.reason) from None
    except (OSError, HTTPException, ValueError):  # ValueError: a host that cannot be written
        raise ImageError(name, "cannot be fetched: check the address") from None


def _request(url: str, end: float) -> tuple[HTTPConnection, HTTPResponse]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ImageError(url, "not an http or https address")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    address = checked_address(parts.hostname, port)
    connection = _connect(parts, port, address, max(0.1, end - time.monotonic()))
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = quote(target, safe=punctuation)  # encodes spaces and what is not ASCII
        agent = {"User-Agent": "imgsearch", "Accept": "image/*", "Connection": "close"}
        connection.request("GET", target, headers=agent)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def _connect(parts: SplitResult, port: int, address: str, timeout: float) -> HTTPConnection:
    """Connect to a checked address; the name stays in the Host header and in the certificate."""
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, port, timeout=timeout)
    connection.sock = create_connection((address, port), timeout)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
    return connection


def checked_address(host: str, port: int) -> str:
    """Look a host up and return an address; refuse it if one of its addresses is not public."""
    found = getaddrinfo(host, port, type=SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ImageError(host, "not a public address of the Internet")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is a public one, also where IPv6 carries an IPv4 address."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in net for net in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast


def _read(response: HTTPResponse, connection: HTTPConnection, end: float) -> bytes:
    data = bytearray()
    while part := response.read1(2**16):
        data += part
        if len(data) > MAX_BODY:
            raise ImageError("", f"too large: more than {MAX_BODY >> 20} MiB")
        if time.monotonic() > end:
            raise ImageError("", f"takes longer than {TIMEOUT:g} s")
    return bytes(data)
