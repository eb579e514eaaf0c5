from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgsearch import export
from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, DatasetError, StoreDamaged, StoreError
from imgsearch.export import export_collection, import_collection
from imgsearch.gallery import Gallery
from imgsearch.maintenance import verify
from imgsearch.stores.metadata import MetadataStore
from imgsearch.stores.vectors import VectorStore
from tests.helpers import rows_and_vectors

ODD = "/other/emoji 🐈, backslashes \\ \\xe4 and \udce4 no UTF-8.jpg"


@pytest.fixture
def filled(stores, encoder, collection):
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        rows, vectors = rows_and_vectors(gallery.row.dim, 25)
        odd = rows[0]._replace(path=ODD, camera="Camera", date_taken=datetime(2026, 5, 1))
        odd = odd._replace(attributes={"label": "cät", "tags": ["a", 1.5, True]})
        gallery.store([*rows, odd], vectors)
        yield gallery


@pytest.fixture
def exported(filled, tmp_path) -> Path:
    return export_collection(filled, tmp_path / "out" / "mine.parquet")


def test_a_collection_survives_a_round_trip(filled, exported, stores, collection, monkeypatch):
    monkeypatch.setattr(export, "GROUP_BYTES", 4 * filled.row.dim * 7)  # four row groups
    export_collection(filled, exported)
    assert pq.ParquetFile(exported).num_row_groups > 3
    assert import_collection(exported, f"{collection}_2", settings=stores) == 26
    with Gallery.open(f"{collection}_2", settings=stores) as again:
        assert again.row._replace(name="", created_at=None, id=None) == filled.row._replace(
            name="", created_at=None, id=None
        )
        for one, other in zip(filled.embeddings(), again.embeddings(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert again.metadata.known(again.name) == filled.metadata.known(filled.name)
        one, other = (g.metadata.by_path(g.name, [ODD])[ODD] for g in (filled, again))
        assert one._replace(added_at=other.added_at) == other
        assert verify(again).sound


def test_pandas_and_pyarrow_open_the_file(filled, exported):
    table = pq.read_table(exported)
    frame = pd.read_parquet(exported)
    ids, vectors = filled.embeddings()
    assert frame.image_id.drop_duplicates().tolist() == table["image_id"].unique().to_pylist()
    assert frame.image_id.drop_duplicates().tolist() == ids.tolist()
    np.testing.assert_array_equal(np.stack(frame.drop_duplicates("image_id").vector), vectors)
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    assert set(frame.path) == {*filled.metadata.known(filled.name)} - {ODD} | {
        "/other/emoji 🐈, backslashes \\\\ \\\\xe4 and \\xe4 no UTF-8.jpg"
    }
    assert frame.added_at.dt.tz is not None
    header = json.loads(pq.read_metadata(exported).metadata[b"imgsearch"])
    assert header["identity"] == filled.row.identity
    assert (header["images"], header["paths"], header["dim"]) == (25, 26, filled.row.dim)


def test_an_existing_collection_is_never_overwritten(filled, exported, stores, collection):
    """Neither a collection of the metadata nor one that only the vector store has."""
    with pytest.raises(ConfigError, match="already exists"):
        import_collection(exported, settings=stores)
    assert filled.count()[:2] == (25, 26)
    filled.vectors.create(f"{collection}_2", filled.row.dim, export.IndexSpec.parse("FLAT"))
    with pytest.raises(ConfigError, match="already exists"):
        import_collection(exported, f"{collection}_2", settings=stores)
    assert len(filled.vectors.ids(f"{collection}_2")) == 0
    filled.vectors.drop(f"{collection}_2")


# ---------------------------------------------------------------- hostile files


class Refusals:
    """Stores with one collection, and files that must not add another."""

    def __init__(self, settings, exported: bytes):
        self.settings, self._exported = settings, exported

    def file(self, folder: Path) -> Path:
        path = folder / "mine.parquet"
        path.write_bytes(self._exported)
        return path

    def check(self, path: Path, reason: str, name: str | None = "again") -> None:
        """Import a file, which must be refused for this reason before anything is stored."""
        with pytest.raises((DatasetError, ConfigError), match=reason):
            import_collection(path, name, settings=self.settings)
        with MetadataStore.open(self.settings) as metadata:
            assert [row.name for row in metadata.collections()] == ["hostile"]
        with VectorStore.open(self.settings) as vectors:
            assert "again" not in vectors.collections()


@pytest.fixture(scope="module")
def refusals(shared_home, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    database = f"sqlite:///{folder / 'metadata.sqlite'}"
    settings = load_settings(imgsearch_home=shared_home, database_url=database)
    with Gallery.open("hostile", encoder=encoder, create=True, settings=settings) as gallery:
        rows, vectors = rows_and_vectors(gallery.row.dim, 25)
        gallery.store([*rows, rows[0]._replace(path=ODD)], vectors)
        path = export_collection(gallery, folder / "mine.parquet")
        yield Refusals(settings, path.read_bytes())
        gallery.drop()


def rewrite(path: Path, change=None, how=None, **header) -> None:
    """Write a file anew, with changed rows and metadata but a correct checksum."""
    parquet = pq.ParquetFile(path)
    rows = parquet.read().to_pylist()
    document = json.loads(parquet.metadata.metadata[b"imgsearch"]) | header
    schema, dim = parquet.schema_arrow, parquet.schema_arrow.field("vector").type.list_size
    parquet.close()
    if change is not None:
        change(rows)
        digest = hashlib.sha256()
        for row in rows:
            values = [str(row[name]) for name in schema.names if name != "vector"]
            vector = np.array(row["vector"], "<f4").tobytes()
            digest.update(json.dumps(values).encode() + vector)
        document["sha256"] = digest.hexdigest()
    columns = [
        pa.array([row[field.name] for row in rows], field.type) for field in list(schema)[:-1]
    ]
    vectors = pa.array(np.array([row["vector"] for row in rows], np.float32).ravel())
    kind = pa.list_(schema.field("vector").type.value_field, dim)
    columns.append(pa.FixedSizeListArray.from_arrays(vectors, type=kind))
    how = {"compression": "none", "use_dictionary": False} | (how or {})
    with pq.ParquetWriter(path, schema, **how) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
        writer.add_key_value_metadata({"imgsearch": json.dumps(document)})


def set_first(**values):
    def change(rows):
        rows[0] |= values

    return change


def same_path_twice(rows):
    rows[5]["path"] = rows[0]["path"]


def two_vectors_of_one_image(rows):
    (twin,) = (row for row in rows if "emoji" in row["path"])
    twin["vector"] = np.roll(twin["vector"], 1)


def two_contents_of_one_image(rows):
    (twin,) = (row for row in rows if "emoji" in row["path"])
    last = twin["sha256"][-1]
    twin["sha256"] = twin["sha256"][:-1] + ("0" if last != "0" else "1")


def other_sha256(rows):
    rows[3]["sha256"] = hashlib.sha256(b"another").hexdigest()


def other_image_id(rows):
    rows[3]["image_id"] += 1


def long_vector(rows):
    rows[3]["vector"] = np.array(rows[3]["vector"]) * 2


def vector_with(value):
    def change(rows):
        rows[3]["vector"] = [value, *rows[3]["vector"][1:]]

    return change


def reversed_order(rows):
    rows.reverse()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_sha256, "does not match its sha256"),
        (other_image_id, "does not match its sha256"),
        (set_first(sha256="x" * 64), "does not match its sha256"),
        (set_first(path=""), "path"),
        (set_first(path="../../etc/passwd"), "not absolute and normalized"),
        (set_first(path="photos/a.jpg"), "not absolute and normalized"),
        (set_first(path="/photos/a/../b.jpg"), "not absolute and normalized"),
        (set_first(path="/photos//b.jpg"), "not absolute and normalized"),
        (set_first(path="~/b.jpg"), "not absolute and normalized"),
        (set_first(path="/photos/a\0.jpg"), "NUL"),
        (set_first(path="/photos/a\\q.jpg"), "not absolute and normalized"),
        (set_first(path="/photos/\\xc3\\xa4.jpg"), "not absolute and normalized"),
        (same_path_twice, "a path occurs more than once"),
        (two_vectors_of_one_image, "contradict each other"),
        (two_contents_of_one_image, "contradict each other"),
        (reversed_order, "not sorted"),
        (set_first(width=0), "size or the format"),
        (set_first(size=-1), "size or the format"),
        (set_first(format="'; DROP"), "size or the format"),
        (set_first(orientation=9), "Exif data"),
        (set_first(camera="x" * 201), "Exif data"),
        (set_first(attributes="{"), "cannot be imported"),
        (set_first(attributes="[" * 10_000), "cannot be imported: maximum recursion depth"),
        (set_first(attributes='{"width": 1}'), "property of the file"),
        (set_first(attributes='{"a": {"b": 1}}'), "a text, a number"),
        (long_vector, "length 1"),
        (vector_with(float("nan")), "length 1"),
        (vector_with(float("inf")), "length 1"),
        (vector_with(3e38), "length 1"),
    ],
)
def test_rows_are_checked_before_anything_is_stored(refusals, tmp_path, change, reason):
    """Attack row 3 and review 8.13: ids, paths and vectors of an import were not checked."""
    path = refusals.file(tmp_path)
    rewrite(path, change)
    refusals.check(path, reason)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"fingerprint": "0" * 16}, "fingerprint"),
        ({"identity": {}}, "fingerprint"),
        ({"index": "NONSENSE"}, "NONSENSE"),
        ({"index": "HNSW:M=1"}, "M=1"),
        ({"dim": 10**9}, "32768"),
        ({"dim": 4}, "dimension"),
        ({"version": 1}, "version: Input should be 2"),
        ({"paths": "many"}, "integer"),
        ({"paths": 1}, "number of rows"),
        ({"images": 7}, "checksum"),
        ({"sha256": "0" * 64}, "checksum"),
        ({"surprise": 1}, "not permitted"),
        ({"encoder": "mini\ud800"}, "."),
        ({"encoder": "a\0b"}, "pattern"),
        ({"collection": "no name"}, "."),
    ],
)
def test_metadata_are_checked_before_anything_is_stored(refusals, tmp_path, header, reason):
    """Review 8.13: the fingerprint was not checked against the identity, the index not at all."""
    path = refusals.file(tmp_path)
    rewrite(path, **header)
    refusals.check(path, reason, None if "collection" in header else "again")


def test_a_file_that_was_rewritten_without_a_change_is_accepted(refusals, tmp_path):
    path = refusals.file(tmp_path)
    rewrite(path, lambda rows: None)
    assert import_collection(path, "again", settings=refusals.settings) == 26
    with Gallery.open("again", settings=refusals.settings) as gallery:
        gallery.drop()


@pytest.mark.parametrize(
    "how",
    [{"compression": "zstd"}, {"use_dictionary": True}, {"use_byte_stream_split": ["image_id"]}],
)
def test_files_that_could_expand_in_memory_are_refused(refusals, tmp_path, how):
    """Attack row 3: a small file must not become a large one in memory."""
    path = refusals.file(tmp_path)
    rewrite(path, how=how)
    refusals.check(path, "compressed, or larger")


def test_row_groups_that_are_too_large_are_refused(refusals, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(export, "GROUP_BYTES", 4 * encoder.dim * 10)
    refusals.check(refusals.file(tmp_path), "larger than those of an export")


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_detected(refusals, tmp_path, where):
    path = refusals.file(tmp_path)
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    refusals.check(path, "cannot be imported")


@pytest.mark.parametrize("length", [0, 4, 100, -20_000, -1])
def test_a_truncated_file_is_named(refusals, tmp_path, length):
    path = refusals.file(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    refusals.check(path, r"mine\.parquet: cannot be imported")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"plain text"])
def test_a_file_of_another_format_is_named(tmp_path, content):
    path = tmp_path / "no.parquet"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"no\.parquet"):
        import_collection(path, "x")


def test_a_parquet_file_of_another_program_is_named(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DatasetError, match="have no entry 'imgsearch'"):
        import_collection(tmp_path / "other.parquet", "x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        import_collection(tmp_path / "none.parquet", "x")


# ---------------------------------------------------------------- failures


def test_an_error_of_a_store_is_not_reported_as_one_of_the_file(
    exported, stores, collection, monkeypatch
):
    """Review 8.8: any OSError or RuntimeError of the import was called an unreadable archive."""

    def full(*_):
        raise StoreError("here", "the disk is full")

    monkeypatch.setattr(VectorStore, "upsert", full)
    with pytest.raises(StoreError, match="disk is full"):
        import_collection(exported, f"{collection}_2", settings=stores)
    with pytest.raises(LookupError):
        Gallery.open(f"{collection}_2", settings=stores)


@pytest.mark.parametrize("stage", ["checking", "storing"])
def test_an_import_that_is_stopped_leaves_nothing(exported, stores, collection, filled, stage):
    def stop(stored: int, of: int) -> None:
        assert of == 26
        if stage == "checking" or stored:
            raise OSError("stopped by the user")

    with pytest.raises(OSError, match="stopped by the user"):
        import_collection(exported, f"{collection}_2", progress=stop, settings=stores)
    with MetadataStore.open(stores) as metadata:
        assert [row.name for row in metadata.collections()] == [filled.name]


@pytest.mark.parametrize("fault", ["missing", "changed"])
def test_an_export_of_a_damaged_collection_leaves_the_old_file(filled, exported, fault):
    before = exported.read_bytes()
    victim = filled.metadata.ids(filled.name)[:1]
    if fault == "missing":
        filled.vectors.delete(filled.name, victim)
        with pytest.raises(StoreDamaged, match=r"Gallery.delete.*prune=True"):
            filled.embeddings()
    else:
        filled.vectors.upsert(filled.name, victim, np.ones((1, filled.row.dim), np.float32))
    with pytest.raises(StoreDamaged, match=r"run `repair`.*Gallery.delete.*prune=True"):
        export_collection(filled, exported)
    assert exported.read_bytes() == before
    assert [p.name for p in exported.parent.iterdir()] == ["mine.parquet"]


def test_an_export_that_is_stopped_leaves_the_old_file(filled, exported):
    before = exported.read_bytes()

    def stop(*_):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        export_collection(filled, exported, progress=stop)
    assert exported.read_bytes() == before


def test_an_empty_collection_can_be_exported(stores, encoder, collection, tmp_path):
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        path = export_collection(gallery, tmp_path / "empty.parquet")
    assert import_collection(path, f"{collection}_2", settings=stores) == 0
