"""Thumbnails and originals: sizes, caching, and files that are gone."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from imgsearch.hits import Hit
from imgsearch.server.pictures import SIDES, written


@pytest.fixture(scope="module")
def own(server, tmp_path_factory):
    """A collection with large pictures, one of them in a format that no browser shows."""
    folder = server.options.roots[0] / "large"
    folder.mkdir()
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(folder / "a.jpg", quality=70)
    Image.effect_noise((300, 200), 60).convert("RGB").save(folder / "b.tif")
    table = {"File": str(folder), "Table": "large"}
    assert server.admin.post("/img/load", json=table).status_code == 200
    items = server.admin.get("/api/v1/collections/large/images").json()["items"]
    yield {item["name"]: item for item in items}
    server.admin.post("/img/drop", params={"table_name": "large"})


@pytest.mark.parametrize("size", SIDES)
def test_thumbnails_come_in_three_sizes(server, own, size):
    answer = server.visitor.get(own["a.jpg"]["thumbnail"], params={"size": size})
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.format == "JPEG"
    assert max(picture.size) == SIDES[size]
    assert "immutable" in answer.headers["cache-control"]


def test_a_picture_that_the_browser_has_is_not_sent_again(server, own):
    for address in ("thumbnail", "original"):
        first = server.visitor.get(own["a.jpg"][address])
        again = server.visitor.get(
            own["a.jpg"][address], headers={"If-None-Match": f"W/{first.headers['etag']}"}
        )
        assert (again.status_code, again.content) == (304, b"")


def test_an_original_that_browsers_do_not_show_is_sent_as_jpeg(server, own):
    answer = server.visitor.get(own["b.tif"]["original"])
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (300, 200)


def test_a_size_that_does_not_exist_is_refused(server, own):
    answer = server.visitor.get(own["a.jpg"]["thumbnail"], params={"size": "huge"})
    assert answer.status_code == 422


def test_a_file_that_is_gone_or_changed_is_no_picture(start, folder, collection):
    running = start(collection=collection, roots=(folder.parent,))
    running.admin.post("/img/load", json={"File": str(folder)})
    address = f"/api/v1/collections/{collection}/images"
    first, second, *_ = running.admin.get(address).json()["items"]
    (folder / first["name"]).unlink()
    (folder / second["name"]).write_bytes((folder / "5.png").read_bytes())
    for item in (first, second):
        for kind in ("thumbnail", "original"):
            assert running.visitor.get(item[kind]).status_code == 404


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/a/b c.jpg", "/a/b c.jpg"), ("/a/日.jpg", "/a/日.jpg"), ("/a&b", "/a%26b"),
     ("/a%41", "/a%2541"), ("/a\n", "/a%0A"), ("/a\udcff", "7")],
)  # fmt: skip
def test_paths_are_written_as_they_are_unless_that_would_break_an_address(path, shown):
    assert written(Hit(1, 0.5, 7, path, (path,), 1, 1)) == shown
