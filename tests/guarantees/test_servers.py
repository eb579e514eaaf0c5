"""Servers that refuse, vanish, freeze or restart: an error in time that says what to do."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from imgsearch.config import load_settings
from imgsearch.errors import StoreBusy, StoreError, StoreUnavailable
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.maintenance import verify
from imgsearch.stores.vectors import VectorStore
from tests.guarantees.common import assert_consistent, environment, freeze, server_pid, soak
from tests.helpers import paint, rows_and_vectors

LIMIT = 10.0  # seconds that the guarantees promise, and that IMGSEARCH_TIMEOUT is by default
MARGIN = 20.0  # seconds for a busy machine; what hangs would need much more


@contextmanager
def frozen(pid: int):
    freeze(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def fails_within(limit: float, *named: str):
    start = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        yield
    assert time.monotonic() - start < limit + MARGIN
    for part in (*named, "check"):
        assert part in str(caught.value)


@pytest.fixture
def sql(tmp_path, own_mariadb, collection):
    """Metadata in MariaDB, vectors embedded."""
    yield load_settings(imgsearch_home=tmp_path / "home", **own_mariadb.settings(collection))
    own_mariadb.sql(f"DROP DATABASE IF EXISTS {collection}")


@pytest.mark.parametrize(
    "limit", [pytest.param(4.0, id="quick"), pytest.param(LIMIT, id="soak", marks=[soak])]
)
def test_a_frozen_mariadb_is_an_error_in_time_and_is_used_again_when_it_goes_on(
    sql, own_mariadb, encoder, limit
):
    limited = sql.model_copy(update={"imgsearch_timeout": limit})
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with Gallery.open("kept", encoder=encoder, create=True, settings=limited) as gallery:
        gallery.store(rows[:2], vectors)
        where = f"127.0.0.1:{own_mariadb.port}"
        with frozen(own_mariadb.process.pid):
            for call in (
                gallery.count,  # over a connection that was good
                gallery.count,  # over a new one
                lambda: gallery.store(rows, vectors),
                lambda: gallery.search(vectors[rows[0].image_id]),
                lambda: Gallery.open("kept", settings=limited),
            ):
                with fails_within(limit, where):
                    call()
        assert gallery.count().paths == 2
        gallery.recover()
        gallery.store(rows, vectors)
        assert_consistent(gallery)


def test_mariadb_that_ends_under_an_ingest_is_an_error_in_time(sql, own_mariadb, encoder, tmp_path):
    for i in range(8):
        paint(tmp_path / "photos" / f"{i}.png", seed=i)

    def end(report):
        if report.encoded == 4:
            own_mariadb.stop()

    with fails_within(LIMIT, f"127.0.0.1:{own_mariadb.port}"):
        ingest(
            tmp_path / "photos", "kept", encoder=encoder, settings=sql, batch_size=4, progress=end
        )
    own_mariadb.start()
    with Gallery.open("kept", settings=sql) as gallery:
        assert gallery.count().paths == 4
        assert_consistent(gallery)
    ingest(tmp_path / "photos", "kept", encoder=encoder, settings=sql)
    with Gallery.open("kept", settings=sql) as gallery:
        assert_consistent(gallery, {str(path) for path in (tmp_path / "photos").iterdir()})


def test_a_notebook_that_was_left_overnight_goes_on(sql, own_mariadb, encoder):
    """Every connection was ended by the server, or the server itself was restarted."""
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with Gallery.open("kept", encoder=encoder, create=True, settings=sql) as gallery:
        gallery.store(rows[:2], vectors)
        gallery.count()
        links = own_mariadb.sql(
            "SELECT id FROM information_schema.processlist WHERE user = 'tester'"
        )
        assert links
        own_mariadb.sql(*(f"KILL {number}" for (number,) in links))
        assert len(gallery.search(vectors[rows[0].image_id])) == 2
        own_mariadb.restart()
        gallery.store(rows[2:], vectors)
        assert len(gallery.search(vectors[rows[0].image_id])) == 4


@pytest.mark.parametrize("step", ["before the vectors", "before the confirmation"])
def test_a_lock_that_is_lost_stops_its_writer_and_nothing_is_doubled_or_lost(
    sql, own_mariadb, encoder, step, monkeypatch
):
    """The server cuts the connection that holds the collection; another writer comes in between."""
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with (
        Gallery.open("kept", encoder=encoder, create=True, settings=sql) as gallery,
        Gallery.open("kept", encoder=encoder, settings=sql) as other,
    ):
        gallery.store(rows[:2], vectors)
        upsert = gallery.vectors.upsert

        def meanwhile(*args):
            if step == "before the confirmation":
                upsert(*args)
            links = own_mariadb.sql(
                "SELECT id FROM information_schema.processlist WHERE user = 'tester'"
            )
            own_mariadb.sql(*(f"KILL {number}" for (number,) in links))
            thread = threading.Thread(
                target=lambda: (other.recover(), other.delete([rows[0].path]))
            )
            thread.start()
            thread.join()
            if step == "before the vectors":
                upsert(*args)

        monkeypatch.setattr(gallery.vectors, "upsert", meanwhile)
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{own_mariadb.port}"):
            gallery.store(rows[2:], vectors)
        monkeypatch.undo()
        # What was not acknowledged is there or not, but never half.
        account = verify(gallery)
        assert (account.missing_vectors, account.wrong_vectors, account.unfinished) == ((), (), 0)
        gallery.recover()
        gallery.store(rows[2:], vectors)
        assert_consistent(gallery)
        assert gallery.count().paths == 3


def test_who_holds_a_collection_on_a_server_is_named(sql, encoder):
    with (
        Gallery.open("kept", encoder=encoder, create=True, settings=sql) as gallery,
        Gallery.open("kept", encoder=encoder, settings=sql) as other,
        gallery.exclusive(),
    ):
        refused = []

        def wait():
            try:
                with other.metadata.exclusive("kept", timeout=0.1):
                    pass
            except StoreBusy as error:
                refused.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(30)
        assert refused
        assert refused[0].holder.startswith("connection ")


def test_an_ingest_that_holds_a_collection_is_named_with_its_process(sql, encoder, forkserver):
    code = """
from imgsearch.gallery import Gallery
import time
with Gallery.open("kept") as gallery:
    gallery.metadata.start_run("kept", "/photos")
    with gallery.exclusive():
        report(begins=True)
        time.sleep(60)
"""
    with Gallery.open("kept", encoder=encoder, create=True, settings=sql) as gallery:
        holder = forkserver.run(code, environment(sql))
        holder.wait_for("begins")
        with (
            pytest.raises(StoreBusy, match=f"process {holder.pid} of "),
            gallery.metadata.exclusive("kept", timeout=0.1),
        ):
            pass
        holder.kill()
        with gallery.exclusive():  # the lock went with its holder
            assert [run.state for run in gallery.metadata.runs("kept")] == ["stale"]


def test_a_server_that_speaks_another_language_is_named():
    """What a Milvus of the far future, or something else on its port, might answer."""
    from concurrent import futures

    import grpc
    from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

    class Future(milvus_pb2_grpc.MilvusServiceServicer):
        def Connect(self, request, context):
            return milvus_pb2.ConnectResponse(status=common_pb2.Status(), identifier=1)

        def GetVersion(self, request, context):
            return milvus_pb2.GetVersionResponse(status=common_pb2.Status(), version="v9.0.0")

    server = grpc.server(futures.ThreadPoolExecutor(2))
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(Future(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        config = load_settings(milvus_host="127.0.0.1", milvus_port=port)
        start = time.monotonic()
        with pytest.raises(StoreError, match=f"127.0.0.1:{port}.*v9.0.0") as caught:
            VectorStore.open(config).collections()
        assert time.monotonic() - start < LIMIT + MARGIN
        assert "imgsearch" in str(caught.value)
    finally:
        server.stop(None).wait()


def test_something_else_on_the_port_is_named(own_mariadb):
    config = load_settings(milvus_host="127.0.0.1", milvus_port=own_mariadb.port)
    with fails_within(LIMIT, f"127.0.0.1:{own_mariadb.port}", "MILVUS_PORT"):
        VectorStore.open(config)


def once_awake(server, call):
    """Return what a call gives once its server goes on; an embedded one answers at once."""
    until = time.monotonic() + 90
    while True:
        # A Milvus that stood still for long loses its session and ends by itself.
        if server is not None and server.process.poll() is not None:
            server.start()
        try:
            return call()
        except StoreUnavailable:
            if server is None or time.monotonic() > until:
                raise


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        pytest.param("embedded", 5.0, id="embedded-quick"),
        pytest.param("embedded", LIMIT, id="embedded-soak", marks=[soak]),
        pytest.param("servers", LIMIT, id="servers-soak", marks=[soak]),
    ],
)
def test_a_frozen_milvus_is_an_error_in_time_and_is_used_again_when_it_goes_on(
    kind, limit, encoder, collection, request, tmp_path
):
    server, settings = None, load_settings(imgsearch_home=tmp_path / "home")
    where = str(settings.imgsearch_home)
    if kind == "servers":
        server = request.getfixturevalue("own_milvus")
        settings = settings.model_copy(update={"milvus_uri": server.uri})
        where = server.uri.removeprefix("http://")
    limited = settings.model_copy(update={"imgsearch_timeout": limit})
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with Gallery.open(collection, encoder=encoder, create=True, settings=limited) as gallery:
        gallery.store(rows[:2], vectors)
        query = vectors[rows[0].image_id]
        gallery.search(query)
        for call in (
            lambda: gallery.search(query),
            lambda: gallery.search(query),
            lambda: gallery.store(rows, vectors),
        ):
            with frozen(server.process.pid if server else server_pid(settings.imgsearch_home)):
                start = time.monotonic()
                with pytest.raises(StoreUnavailable) as caught:
                    call()
                assert time.monotonic() - start < limit + MARGIN
                assert where in str(caught.value)
            assert len(once_awake(server, lambda: gallery.search(query))) == 2
        gallery.recover()
        gallery.store(rows, vectors)
        assert_consistent(gallery)
        gallery.drop()


@soak
def test_a_notebook_survives_a_restart_of_milvus(
    tmp_path, own_milvus, own_mariadb, encoder, collection
):
    config = load_settings(
        imgsearch_home=tmp_path, milvus_uri=own_milvus.uri, **own_mariadb.settings(collection)
    )
    rows, vectors = rows_and_vectors(encoder.dim, 40)
    with Gallery.open(collection, encoder=encoder, create=True, settings=config) as gallery:
        gallery.store(rows[:20], vectors)
        own_milvus.kill()
        with fails_within(LIMIT, f"127.0.0.1:{own_milvus.port}"):
            gallery.search(vectors[rows[0].image_id])
        own_milvus.start()
        assert gallery.search(vectors[rows[0].image_id], 1)[0].image_id == rows[0].image_id
        gallery.store(rows[20:], vectors)
        assert_consistent(gallery)
        gallery.drop()
