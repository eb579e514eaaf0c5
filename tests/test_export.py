from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from imgsearch.errors import ConfigError, DatasetError
from imgsearch.export import export_collection, import_collection
from imgsearch.gallery import Gallery
from imgsearch.maintenance import verify
from tests.helpers import rows_and_vectors


@pytest.fixture
def filled(stores, encoder, collection):
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        rows, vectors = rows_and_vectors(gallery.row.dim, 25)
        twin = rows[0]._replace(path="/other/emoji 🐈 and \udce4 no UTF-8.jpg")
        gallery.add([*rows, twin], vectors)
        yield gallery


@pytest.fixture
def archive(filled, tmp_path):
    return export_collection(filled, tmp_path / "out" / "mine.zip")


def rewrite(path, change) -> None:
    """Change members of an archive: a function of their dict of name to bytes."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)


def test_a_collection_comes_back_as_it_was(filled, archive, stores, collection):
    assert import_collection(archive, f"{collection}_2", settings=stores) == 26
    with Gallery.open(f"{collection}_2", settings=stores) as again:
        assert again.row._replace(name="", created_at=None) == filled.row._replace(
            name="", created_at=None
        )
        for one, other in zip(filled.embeddings(), again.embeddings(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert again.metadata.known(again.name) == filled.metadata.known(filled.name)
        assert verify(again).sound


def test_a_name_in_use_is_never_written_into(filled, archive, stores):
    with pytest.raises(ConfigError, match="in use"):
        import_collection(archive, settings=stores)
    assert filled.count()[:2] == (25, 26)


def flip(members):
    data = bytearray(members["vectors.f32"])
    data[1000] ^= 1
    members["vectors.f32"] = bytes(data)


def traverse(members):
    members["../../evil"] = b"x"


def more_vectors(members):
    members["vectors.f32"] += b"\0" * 4096


def other_manifest(**changes):
    def change(members):
        members["manifest.json"] = json.dumps(
            json.loads(members["manifest.json"]) | changes
        ).encode()

    return change


def no_manifest(members):
    del members["manifest.json"]


@pytest.mark.parametrize(
    "change",
    [
        flip,
        traverse,
        more_vectors,
        no_manifest,
        other_manifest(dim=10**9),
        other_manifest(version=2),
        other_manifest(images="many"),
        other_manifest(surprise=1),
        other_manifest(paths=1),
    ],
)
def test_what_was_tampered_with_is_refused_and_nothing_is_stored(
    archive, stores, collection, change
):
    rewrite(archive, change)
    with pytest.raises(DatasetError, match="mine"):
        import_collection(archive, f"{collection}_2", settings=stores)
    with pytest.raises(LookupError):
        Gallery.open(f"{collection}_2", settings=stores)


def test_bombs_are_refused_unopened(archive, stores, collection):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in ("manifest.json", "images.jsonl", "vectors.f32"):
            bomb.writestr(name, b"\0" * 50_000_000)
    with pytest.raises(DatasetError, match="compressed"):
        import_collection(archive, f"{collection}_2", settings=stores)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"plain text"])
def test_what_is_no_archive_is_named(tmp_path, stores, content):
    path = tmp_path / "no.zip"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"no\.zip"):
        import_collection(path, "x", settings=stores)


def test_an_export_that_fails_leaves_the_old_file_alone(filled, archive):
    before = archive.read_bytes()
    filled.vectors.delete(filled.name, filled.metadata.ids(filled.name)[:1])
    with pytest.raises(DatasetError, match="repair"):
        export_collection(filled, archive)
    assert archive.read_bytes() == before
    assert [p.name for p in archive.parent.iterdir()] == ["mine.zip"]
