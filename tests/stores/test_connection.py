from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from concurrent import futures

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, StoreError, StoreUnavailable
from imgsearch.stores import connection
from imgsearch.stores.connection import Connection
from imgsearch.stores.index import IndexSpec
from imgsearch.stores.vectors import VectorStore
from tests.conftest import ROOT
from tests.servers import free_port

DIM = 16
HNSW = IndexSpec.parse("HNSW")


def test_a_refused_connection_names_the_address_and_what_to_check():
    port = free_port()
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}.*MILVUS_PORT"):
        VectorStore.open(load_settings(milvus_host="127.0.0.1", milvus_port=port))


def test_an_unresponsive_port_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=f":{port}"):
            VectorStore.open(
                load_settings(milvus_uri=f"http://127.0.0.1:{port}", imgsearch_timeout=0.5)
            )


@pytest.mark.parametrize("uri", ["localhost:19530", "./milvus.db", "ftp://host", "http://"])
def test_an_invalid_address_is_refused_before_connecting(uri):
    with pytest.raises(ConfigError, match="MILVUS_URI"):
        VectorStore.open(load_settings(milvus_uri=uri))


class Fake:
    """A server of no more than a few answers."""

    def __init__(self, *, raw=None, **answers):
        import grpc
        from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

        self.status, self.codes = common_pb2.Status, grpc.StatusCode
        given = {
            "Connect": lambda *_: milvus_pb2.ConnectResponse(status=self.status(), identifier=1),
            "GetVersion": lambda *_: milvus_pb2.GetVersionResponse(
                status=self.status(), version="v2.6.0"
            ),
        }
        names = {n: (lambda self, *a, call=c: call(*a)) for n, c in {**given, **answers}.items()}
        servicer = type("Servicer", (milvus_pb2_grpc.MilvusServiceServicer,), names)

        class Raw(grpc.ServerInterceptor):
            def intercept_service(self, continuation, details):
                return (raw or {}).get(details.method.rsplit("/", 1)[-1]) or continuation(details)

        self.server = grpc.server(
            futures.ThreadPoolExecutor(4),
            interceptors=[Raw()],
            options=[("grpc.http2.max_ping_strikes", 0)],
        )
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(servicer(), self.server)
        self.uri = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None).wait()


def test_credentials_are_never_shown():
    def refuse(request, context):
        given = dict(context.invocation_metadata()).get("authorization")
        assert given
        context.abort(server.codes.UNAUTHENTICATED, "unauthenticated")

    with Fake(Connect=refuse) as server:
        address = server.uri.replace("http://", "http://root:hunter2@")
        with pytest.raises(StoreError, match="MILVUS_TOKEN") as caught:
            VectorStore.open(load_settings(milvus_uri=address, milvus_token="root:hunter3"))
        assert "hunter" not in str(caught.value)
        assert "hunter" not in caught.value.where


def test_a_slow_server_that_answers_pings_is_waited_for():
    """Review 8.19: pings must not make a server close the connection."""
    from pymilvus.grpc_gen import milvus_pb2

    def slowly(request, context):
        time.sleep(4)  # longer than IMGSEARCH_TIMEOUT
        return milvus_pb2.ShowCollectionsResponse(status=server.status(), collection_names=["c"])

    with (
        Fake(ShowCollections=slowly) as server,
        pytest.MonkeyPatch.context() as patch,
        VectorStore.open(load_settings(milvus_uri=server.uri, imgsearch_timeout=3)) as store,
    ):
        patch.setattr(connection, "LEAST_PING", 0.1)
        store.close()
        assert store.collections() == ["c"]


def test_an_unreadable_response_is_not_a_lost_connection(monkeypatch):
    """Attack row 1: a truncated answer is no damage."""
    import grpc

    monkeypatch.setitem(Connection.call.__kwdefaults__, "limit", 1.0)
    cut = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x0a\xff\xff")
    with Fake(raw={"ShowCollections": cut}) as server:
        store = VectorStore.open(load_settings(milvus_uri=server.uri))
        with store, pytest.raises(StoreError, match="deserializ") as caught:
            store.collections()
        assert type(caught.value) is StoreError


def test_too_old_a_server_is_refused():
    from pymilvus.grpc_gen import milvus_pb2

    def version(request, context):
        return milvus_pb2.GetVersionResponse(status=server.status(), version="v2.2.16")

    with (
        Fake(GetVersion=version) as server,
        pytest.raises(StoreError, match=r"v2\.2\.16.*2\.3 or newer"),
    ):
        VectorStore.open(load_settings(milvus_uri=server.uri))


def test_importing_milvus_leaves_environment_and_logging_alone(tmp_path):
    """Review 8.9: variables that other threads set meanwhile were deleted, a logger silenced."""
    # In a notebook pymilvus would load a .env of the working folder as it is imported.
    (tmp_path / ".env").write_text("MILVUS_URI=http://elsewhere:1\n")
    code = """
import logging, os, threading
from imgsearch.stores import connection
thread = threading.Thread(target=connection.import_pymilvus)
thread.start()
os.environ["MEANWHILE"] = "kept"
thread.join()
assert os.environ.get("MEANWHILE") == "kept"
assert "MILVUS_URI" not in os.environ and "PYTHON_DOTENV_DISABLED" not in os.environ
assert logging.getLogger("pymilvus").getEffectiveLevel() <= logging.ERROR
records = []
handler = logging.Handler(); handler.emit = records.append
log = logging.getLogger("pymilvus.decorators"); log.addHandler(handler)
log.error("of the user")
with connection.quietly(): log.error("of ours")
assert [record.getMessage() for record in records] == ["of the user"]
"""
    env = {name: value for name, value in os.environ.items() if "DOTENV" not in name}
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT)},
        check=True,
    )


@pytest.mark.parametrize("why", ["channel not available[channel=c]", "unrecoverable error"])
def test_a_starting_server_is_waited_for_within_the_timeout(
    milvus_server, collection, monkeypatch, tmp_path, why
):
    from pymilvus import MilvusException

    config = load_settings(
        imgsearch_home=tmp_path, milvus_uri=milvus_server.uri, imgsearch_timeout=4
    )
    with VectorStore.open(config) as store:
        store.create(collection, DIM, HNSW)
        client, refusals = store.connection.client(), [2]
        search = client.search

        def refusing(*args, **others):
            refusals[0] -= 1
            if refusals[0] >= 0:
                raise MilvusException(code=503, message=why)
            return search(*args, **others)

        monkeypatch.setattr(client, "search", refusing)
        assert len(store.search(collection, np.ones((1, DIM), np.float32), 1)) == 1
        refusals[0] = 10**6
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match=rf"not ready .*{re.escape(why)}"):
            store.search(collection, np.ones((1, DIM), np.float32), 1)
        assert time.monotonic() - start < 30
        store.drop(collection)
