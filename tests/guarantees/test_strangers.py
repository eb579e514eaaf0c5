"""Hostile names and files: nothing of them runs, nothing is written elsewhere or leaks."""

from __future__ import annotations

import ast
import io
import logging
import os
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from imgsearch import batch
from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, ImgSearchError
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.maintenance import repair, verify
from imgsearch.stores.metadata import MetadataStore
from imgsearch.stores.vectors import IndexSpec, VectorStore
from tests.conftest import ROOT
from tests.helpers import paint

PASSWORD = "pl4nted-S3cret"

HOSTILE = [
    "", " ", ".", "..", "../up", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\n", "x" * 65, "1st",
    "a b", "a;b", "a'b", 'a"b', "a`b", "a--", "a%s", "a{0}", "ä", "_default;", "a' OR '1'='1",
    "images; DROP TABLE imgsearch_images", "$(touch x)", "`touch x`", "a|b", "con\x00", "🐈",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(4):
        paint(tmp_path / "photos" / f"{i}.png", seed=i)
    return tmp_path / "photos"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_collection_names_are_refused_at_every_door(name, encoder, photos, tmp_path):
    """Before any store is asked, so that there is nothing to inject into."""
    home = tmp_path / "home"
    settings = load_settings(imgsearch_home=home)
    with MetadataStore.open(settings) as metadata:
        doors = [
            lambda: VectorStore(settings).create(name, 4, IndexSpec.parse("auto")),
            lambda: VectorStore(settings).drop(name),
        ]
        if name:  # nothing at all means the default collection
            doors += [
                lambda: Gallery.open(name, encoder=encoder, create=True, settings=settings),
                lambda: ingest(photos, name, encoder=encoder, settings=settings),
                lambda: repair(name, settings=settings),
                lambda: load_settings(default_table=name),
            ]
        for door in doors:
            with pytest.raises(ConfigError):
                door()
        assert metadata.collections() == []
    assert {path.name for path in home.iterdir()} <= {
        *("metadata.sqlite", "metadata.sqlite-wal", "metadata.sqlite-shm", "embedded"),
    }


def test_text_never_becomes_a_command_or_sql():
    """No shell, no evaluated text, no pickle, and SQL by text only without any of a user."""
    plain = {"eval", "exec", "__import__", "text", "literal_column"}
    methods = {"system", "popen", "mktemp", "extractall", "exec_driver_sql", "literal_column"}
    found = set()
    for file in sorted((ROOT / "imgsearch").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not {"pickle", "shelve", "marshal"} & names, file
            if not isinstance(node, ast.Call):
                continue
            owner = getattr(getattr(node.func, "value", None), "id", "")
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            asked = {
                keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords
            }
            assert asked.get("shell") is not True, file
            assert (owner, called) != ("torch", "load") or asked["weights_only"] is True, file
            sql = (owner, called) == ("sa", "text")
            if sql or called in (plain if isinstance(node.func, ast.Name) else methods):
                found.add((file.name, called))
    allowed = {("sql.py", "exec_driver_sql"), ("metadata.py", "literal_column")}
    allowed.add(("schema.py", "exec_driver_sql"))  # a migration adds columns of its own tables
    assert found == allowed, "a new way for text to become code: argue for it here"


def test_no_query_holds_a_value_of_the_user(stores, encoder, photos, collection):
    """What reaches the database beside its parameters is never made of paths or names."""
    import sqlalchemy as sa

    evil = photos / "'; DROP TABLE imgsearch_images; --.png"
    (photos / "0.png").rename(evil)
    seen = []

    def listen(conn, cursor, statement, parameters, context, executemany):
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        ingest(photos, collection, encoder=encoder, settings=stores)
        with Gallery.open(collection, settings=stores) as gallery:
            gallery.search(evil, 2)
            gallery.metadata.browse(collection, like="'; DROP")
            verify(gallery, files=True)
            gallery.delete([evil])
            gallery.drop()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)
    assert len(seen) > 10
    assert not [s for s in seen if "DROP TABLE" in s or collection in s or str(photos) in s]


WRITES = """
import os, sys
written = set()
def hook(event, args):
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & writing:
        written.add(os.fsdecode(args[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.truncate"):
        written.update(os.fsdecode(a) for a in args[:2] if isinstance(a, (str, bytes)))
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn"):
        written.add("started " + str(args[0]))
sys.addaudithook(hook)
from imgsearch import batch
from imgsearch.export import export_collection, import_collection
from imgsearch.gallery import Gallery
out = arguments["out"]
batch.ingest_folder(arguments["folder"], "kept", encoder="mini", output_dir=out)
batch.search_image(arguments["query"], "kept", output_dir=out)
batch.status(out, files=True)
with Gallery.open("kept") as gallery:
    export_collection(gallery, out + "/kept.parquet")
import_collection(out + "/kept.parquet", "again")
report(written=sorted(written))
"""


def test_nothing_is_written_outside_the_home_and_the_output_folder(forkserver, photos, tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    env = {"HOME": str(user), "IMGSEARCH_HOME": str(tmp_path / "home"), "TMPDIR": str(user)}
    out = tmp_path / "out"
    child = forkserver.run(
        WRITES, env, folder=str(photos), query=str(photos / "0.png"), out=str(out)
    )
    assert child.wait()["end"] == "done", child.reports
    allowed = (str(tmp_path / "home"), str(out), "/dev/null")
    strays = [
        path
        for path in child.reported("written")[0]
        if not path.startswith(allowed)
        # Libraries' own caches: of fonts, and of compiled Python.
        and "__pycache__" not in path
        and "matplotlib" not in path
        and path not in (str(user / ".cache"), str(user / ".config"))
    ]
    assert strays == []
    left = {str(path.relative_to(user)) for path in user.rglob("*")}
    assert {name for name in left if "matplotlib" not in name} <= {".cache", ".config"}
    assert sorted(path.name for path in photos.iterdir()) == [f"{i}.png" for i in range(4)]


def test_a_planted_password_is_found_nowhere(
    mariadb, milvus_server, photos, encoder, tmp_path, monkeypatch, caplog, collection
):
    """Not in logs, reports, rows, printed things, errors or tracebacks with local variables."""
    caplog.set_level(logging.DEBUG)
    mariadb.sql(
        f"CREATE OR REPLACE USER planted@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
        "GRANT ALL ON *.* TO planted@'127.0.0.1'",
    )
    here = f"127.0.0.1:{mariadb.port}"
    host = {"mysql_host": "127.0.0.1", "mysql_port": mariadb.port, "mysql_user": "planted"}
    host["mysql_db"] = collection
    token = {"milvus_token": f"root:{PASSWORD}"}
    kinds = [
        load_settings(milvus_uri=milvus_server.uri, mysql_password=PASSWORD, **host, **token),
        load_settings(database_url=f"mysql+pymysql://planted:{PASSWORD}@{here}/{collection}"),
        load_settings(database_url=f"mysql+pymysql://planted:{PASSWORD}x@{here}/{collection}"),
        load_settings(database_url=f"mysql+pymysql://planted:{PASSWORD}@127.0.0.1:1/{collection}"),
        load_settings(database_url=f"mysql+pymysql://planted:{PASSWORD}@{here}/mysql_nope`;"),
        load_settings(database_url=f"postgres://planted:{PASSWORD}@{here}/x"),
        load_settings(database_url=f"://planted:{PASSWORD}@"),
        load_settings(milvus_uri=f"http://root:{PASSWORD}@127.0.0.1:1", **token),
        load_settings(milvus_uri=f"root:{PASSWORD}@nowhere", **token),
        load_settings(milvus_uri=milvus_server.uri.replace("//", f"//root:{PASSWORD}@"), **token),
    ]  # fmt: skip
    said = io.StringIO()
    failed = 0
    with redirect_stdout(said), redirect_stderr(said):
        for number, kind in enumerate(kinds):
            print(kind, repr(kind), kind.model_dump_json())
            try:
                name = f"{collection}_{number}"
                report = ingest(photos, name, encoder=encoder, settings=kind)
                print(report, report.to_dict())
                with Gallery.open(name, settings=kind) as gallery:
                    print(gallery.search(photos / "0.png").to_dict(), verify(gallery))
                    print(gallery.metadata.where, gallery.vectors.where, gallery.metadata.runs())
                    print(vars(gallery), vars(gallery.metadata))
                    gallery.drop()
            except ImgSearchError as error:
                failed += 1
                print(error, repr(error), vars(error))
                traceback.print_exception(error)
                # What IPython shows of our frames with %xmode Verbose.
                stack = traceback.TracebackException.from_exception(error, capture_locals=True)
                print(*(f.locals for f in stack.stack if "/imgsearch/" in f.filename))
    mariadb.sql("DROP DATABASE IF EXISTS `mysql_nope``;`")
    assert failed == 6
    places = {"printed": said.getvalue(), "logged": caplog.text}
    for file in [*tmp_path.rglob("*.log"), *tmp_path.rglob("*.err"), *tmp_path.rglob("*.json")]:
        places[str(file)] = file.read_text(errors="replace")
    for file in tmp_path.rglob("*.sqlite*"):
        places[str(file)] = file.read_bytes().decode("latin-1")
    for place, content in places.items():
        found = content.find(PASSWORD)
        assert found < 0, f"{place}: …{content[max(0, found - 300) : found + 40]}"


def test_a_batch_report_shows_no_secret(mariadb, photos, tmp_path, monkeypatch, collection):
    """The environment as a notebook has it; the report and the message of a failure."""
    mariadb.sql(
        f"CREATE OR REPLACE USER planted@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
        "GRANT ALL ON *.* TO planted@'127.0.0.1'",
    )
    for name, value in {
        "MYSQL_HOST": "127.0.0.1", "MYSQL_PORT": str(mariadb.port), "MYSQL_USER": "planted",
        "MYSQL_PASSWORD": PASSWORD, "MYSQL_DB": collection,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    batch.ingest_folder(str(photos), collection, encoder="mini", output_dir=str(out))
    batch.search_image(str(photos / "0.png"), collection, output_dir=str(out))
    batch.status(str(out), files=True)
    reports = list(out.rglob("*.json"))
    assert len(reports) >= 3
    for report in reports:
        assert PASSWORD not in report.read_text()
    assert os.environ["MYSQL_PASSWORD"] == PASSWORD
