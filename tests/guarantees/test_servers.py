"""Servers that refuse, vanish, freeze or forget: an error in time that says what to do."""

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
from imgsearch.ingest import ingest
from imgsearch.maintenance import verify
from imgsearch.stores.vectors import VectorStore
from tests.guarantees.common import agree, environment, opened, server_pid
from tests.helpers import paint, rows_and_vectors

soak = pytest.mark.soak
LIMIT = 10.0  # seconds that DESIGN promises, and that IMGSEARCH_TIMEOUT is by default
SPARE = 3.0  # seconds for two busy processors


@contextmanager
def frozen(pid: int):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def in_time(limit: float, *named: str):
    start = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        yield
    assert time.monotonic() - start < limit + SPARE
    for part in (*named, "check"):
        assert part in str(caught.value)


@pytest.fixture
def sql(tmp_path, mariadb, collection):
    """Metadata in MariaDB, vectors embedded."""
    yield load_settings(imgsearch_home=tmp_path / "home", **mariadb.settings(collection))
    mariadb.sql(f"DROP DATABASE IF EXISTS {collection}")


@pytest.mark.parametrize(
    "limit", [pytest.param(4.0, id="quick"), pytest.param(LIMIT, id="soak", marks=[soak])]
)
def test_a_frozen_mariadb_is_an_error_in_time_and_its_waking_up_is_noticed(
    sql, mariadb, encoder, limit
):
    patient = sql.model_copy(update={"imgsearch_timeout": limit})
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with Gallery.open("kept", encoder=encoder, create=True, settings=patient) as gallery:
        gallery.add(rows[:2], vectors)
        where = f"127.0.0.1:{mariadb.port}"
        with frozen(mariadb.process.pid):
            for call in (
                gallery.count,  # over a connection that was good
                gallery.count,  # over a new one
                lambda: gallery.add(rows, vectors),
                lambda: gallery.search(vectors[rows[0].image_id]),
                lambda: Gallery.open("kept", settings=patient),
            ):
                with in_time(limit, where):
                    call()
        assert gallery.count().paths == 2
        gallery.recover()
        gallery.add(rows, vectors)
        agree(gallery)


def test_mariadb_that_ends_under_an_ingest_is_an_error_in_time(sql, mariadb, encoder, tmp_path):
    for i in range(8):
        paint(tmp_path / "photos" / f"{i}.png", seed=i)

    def end(report):
        if report.encoded == 4:
            mariadb.stop()

    with in_time(LIMIT, f"127.0.0.1:{mariadb.port}"):
        ingest(
            tmp_path / "photos", "kept", encoder=encoder, settings=sql, batch_size=4, progress=end
        )
    mariadb.start()
    with opened("kept", sql) as gallery:
        assert gallery.count().paths == 4
        agree(gallery)
    ingest(tmp_path / "photos", "kept", encoder=encoder, settings=sql)
    with opened("kept", sql) as gallery:
        agree(gallery, {str(path) for path in (tmp_path / "photos").iterdir()})


def test_a_notebook_that_was_left_overnight_goes_on(sql, mariadb, encoder):
    """Every connection was ended by the server, or the server itself was restarted."""
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with Gallery.open("kept", encoder=encoder, create=True, settings=sql) as gallery:
        gallery.add(rows[:2], vectors)
        gallery.count()
        links = mariadb.sql("SELECT id FROM information_schema.processlist WHERE user = 'tester'")
        assert links
        mariadb.sql(*(f"KILL {number}" for (number,) in links))
        assert len(gallery.search(vectors[rows[0].image_id])) == 2
        mariadb.restart()
        gallery.add(rows[2:], vectors)
        assert len(gallery.search(vectors[rows[0].image_id])) == 4


@pytest.mark.parametrize("step", ["before the vectors", "before the confirmation"])
def test_a_lock_that_is_lost_stops_its_writer_and_nothing_is_doubled_or_lost(
    sql, mariadb, encoder, step, monkeypatch
):
    """The server cuts the connection that holds the collection; another writer comes in between."""
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with (
        Gallery.open("kept", encoder=encoder, create=True, settings=sql) as gallery,
        Gallery.open("kept", encoder=encoder, settings=sql) as other,
    ):
        gallery.add(rows[:2], vectors)
        upsert = gallery.vectors.upsert

        def meanwhile(*args):
            if step == "before the confirmation":
                upsert(*args)
            links = mariadb.sql(
                "SELECT id FROM information_schema.processlist WHERE user = 'tester'"
            )
            mariadb.sql(*(f"KILL {number}" for (number,) in links))
            thread = threading.Thread(
                target=lambda: (other.recover(), other.delete([rows[0].path]))
            )
            thread.start()
            thread.join()
            if step == "before the vectors":
                upsert(*args)

        monkeypatch.setattr(gallery.vectors, "upsert", meanwhile)
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{mariadb.port}"):
            gallery.add(rows[2:], vectors)
        monkeypatch.undo()
        # What was not acknowledged is there or not, but never half.
        account = verify(gallery)
        assert (account.missing_vectors, account.wrong_vectors, account.unfinished) == ((), (), 0)
        gallery.recover()
        gallery.add(rows[2:], vectors)
        agree(gallery)
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


def test_an_ingest_that_holds_a_collection_is_named_with_its_process(sql, encoder, nursery):
    code = """
from imgsearch.gallery import Gallery
import time
with Gallery.open("kept") as gallery:
    gallery.metadata.start_run("kept", "/photos")
    with gallery.exclusive():
        tell(begins=True)
        time.sleep(60)
"""
    with Gallery.open("kept", encoder=encoder, create=True, settings=sql) as gallery:
        holder = nursery.child(code, environment(sql))
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
        assert time.monotonic() - start < LIMIT
        assert "imgsearch" in str(caught.value)
    finally:
        server.stop(None).wait()


def test_something_else_on_the_port_is_named(mariadb):
    config = load_settings(milvus_host="127.0.0.1", milvus_port=mariadb.port)
    with in_time(LIMIT, f"127.0.0.1:{mariadb.port}", "MILVUS_PORT"):
        VectorStore.open(config)


def woken(server, call):
    """What a call gives once its server moves again; an embedded one does so at once."""
    until = time.monotonic() + 90
    while True:
        # A Milvus that stood still for long loses its session, and ends by itself.
        if server is not None and server.process.poll() is not None:
            server.start()
        try:
            return call()
        except StoreUnavailable:
            if server is None or time.monotonic() > until:
                raise


@pytest.mark.parametrize(
    "limit", [pytest.param(4.0, id="quick"), pytest.param(LIMIT, id="soak", marks=[soak])]
)
def test_a_frozen_milvus_is_an_error_in_time_and_its_waking_up_is_noticed(
    stores, encoder, collection, request, limit
):
    server = None
    if stores.embedded_vectors:
        where = str(stores.imgsearch_home)
    else:
        server = request.getfixturevalue("milvus_server")
        where = stores.milvus_uri.removeprefix("http://")
    patient = stores.model_copy(update={"imgsearch_timeout": limit})
    rows, vectors = rows_and_vectors(encoder.dim, 4)
    with Gallery.open(collection, encoder=encoder, create=True, settings=patient) as gallery:
        gallery.add(rows[:2], vectors)
        query = vectors[rows[0].image_id]
        gallery.search(query)
        for call in (
            lambda: gallery.search(query),
            lambda: gallery.search(query),
            lambda: gallery.add(rows, vectors),
        ):
            with frozen(server.process.pid if server else server_pid(stores.imgsearch_home)):
                start = time.monotonic()
                with pytest.raises(StoreUnavailable) as caught:
                    call()
                assert time.monotonic() - start < limit + SPARE
                assert where in str(caught.value)
            assert len(woken(server, lambda: gallery.search(query))) == 2
        gallery.recover()
        gallery.add(rows, vectors)
        agree(gallery)
        gallery.drop()


@soak
def test_a_notebook_survives_a_restart_of_milvus(
    tmp_path, milvus_server, mariadb, encoder, collection
):
    config = load_settings(
        imgsearch_home=tmp_path, milvus_uri=milvus_server.uri, **mariadb.settings(collection)
    )
    rows, vectors = rows_and_vectors(encoder.dim, 40)
    with Gallery.open(collection, encoder=encoder, create=True, settings=config) as gallery:
        gallery.add(rows[:20], vectors)
        milvus_server.process.kill()
        milvus_server.process.wait()
        with in_time(LIMIT, f"127.0.0.1:{milvus_server.port}"):
            gallery.search(vectors[rows[0].image_id])
        milvus_server.start()
        assert gallery.search(vectors[rows[0].image_id], 1)[0].image_id == rows[0].image_id
        gallery.add(rows[20:], vectors)
        agree(gallery)
        gallery.drop()
