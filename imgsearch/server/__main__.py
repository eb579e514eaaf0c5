"""Start the server: ``python -m imgsearch.server``."""

from __future__ import annotations

import argparse
import logging
import secrets
import socket
import sys

import uvicorn

from imgsearch.config import collection_name, load_settings
from imgsearch.errors import ConfigError, ImgSearchError
from imgsearch.io import absolute
from imgsearch.server.app import create_app
from imgsearch.server.observing import JsonLines
from imgsearch.server.security import is_loopback, visitor_token
from imgsearch.server.service import Options

CONNECTIONS = 1000
"""Connections at a time."""


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal arrives."""
    given = _parser().parse_args(arguments)
    if given.no_auth and not is_loopback(given.host):
        sys.exit("--no-auth is accepted on loopback only: leave out --host, or --no-auth.")
    try:
        options = _options(given)
        with _listen(given.host, given.port) as listening:
            _serve(options, listening, given.host)
    except ImgSearchError as error:
        sys.exit(str(error))


def _listen(host: str, port: int) -> socket.socket:
    """Listen at once, so that a client of the printed address has to wait, but is answered."""
    ipv6 = ":" in host
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=ipv6)
    except (OSError, OverflowError, ValueError) as error:
        where = f"{host}, port {port}"
        sys.exit(f"Cannot listen on {where} ({error}); choose another --host or --port.")


def _serve(options: Options, listening: socket.socket, host: str) -> None:
    app = create_app(options)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("imgsearch.server", "uvicorn.error"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("imgsearch.server").setLevel(logging.INFO)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    _greet(host, listening.getsockname()[1], options.token)
    uvicorn.Server(config).run([listening])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m imgsearch.server", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; loopback if left out")
    add("--port", type=int, default=5000, help="port to listen on: 5000; 0 takes a free one")
    add("--token", help="the administrator's; IMGSEARCH_TOKEN or a new one if left out")
    add("--no-auth", action="store_true", help="ask for no token; on loopback only")
    add("--collection", metavar="NAME", help="to begin with; DEFAULT_TABLE if left out")
    add("--fetch-urls", action="store_true", help="fetch pictures from public addresses")
    add("--rate", type=float, default=50, help="requests per second of a client: 50; 0: any")
    for name, metavar, text in (
        ("--root", "DIR", "folder below which folders may be loaded"),
        ("--cors-origin", "ORIGIN", "site whose pages may use the server"),
        ("--allowed-host", "NAME", "name by which the server may be addressed"),
    ):
        add(name, metavar=metavar, action="append", default=[], help=f"{text}; may be repeated")
    return parser


def _options(given: argparse.Namespace) -> Options:
    if given.rate < 0:
        raise ConfigError("--rate", f"is {given.rate:g}: give a number from 0, which is no limit")
    roots = tuple(map(absolute, given.root))
    for root in roots:
        if not root.is_dir():
            raise ConfigError("--root", f"{root} is not a folder")
    settings = load_settings()
    secret = settings.imgsearch_token
    token = given.token or (secret.get_secret_value() if secret else secrets.token_urlsafe(24))
    return Options(
        settings=settings,
        token="" if given.no_auth else token,
        collection=collection_name(given.collection or settings.default_table),
        roots=roots,
        origins=tuple(given.cors_origin),
        hosts=tuple(given.allowed_host),
        fetch_urls=given.fetch_urls,
        rate=given.rate,
    )


def _greet(host: str, port: int, token: str) -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    if not token:
        print(f"Serving {address} without a token: everybody on this machine may do everything.")
    else:
        print(f"For administrators:        {address}?token={token}")
        print(f"For visitors, who only search: {address}?token={visitor_token(token)}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
