from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgsearch import sources
from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, ImageError, ImgSearchError
from imgsearch.gallery import Gallery
from imgsearch.hits import Hit
from tests.helpers import paint

PIXELS = np.zeros((4, 4, 3), np.uint8)
HIT = Hit(1, 0.5, 7, "/a.jpg", ("/a.jpg",), 4, 4)


@pytest.fixture
def gallery(tmp_path, encoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(imgsearch_home=tmp_path / "home")
    with Gallery.open("c", encoder=encoder, create=True, settings=settings) as gallery:
        yield gallery


@pytest.mark.parametrize(
    "source",
    ["a.jpg", b"x", io.BytesIO(), Image.new("L", (2, 2)), PIXELS, PIXELS[:, :, 0], HIT, 7,
     np.int64(7), np.ones(5, np.float16), {"a": 1}],
)  # fmt: skip
def test_a_single_source_is_no_list(source):
    assert sources.several(source) is None


@pytest.mark.parametrize(
    ("given", "count"),
    [([HIT], 1), ((), 0), ({"a.jpg", "b.jpg"}, 2), (iter("ab"), 2), (np.ones((3, 5)), 3),
     (np.arange(4), 4), (np.array(["a", "b"]), 2)],
)  # fmt: skip
def test_anything_else_that_can_be_iterated_over_is_a_list(given, count):
    assert len(sources.several(given)) == count


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere.jpg", r"nowhere\.jpg: no such file"),
        ("a brown horse in a field", "give them as `text`"),
        ("https://example.org/cat.jpg", "URLs are not fetched"),
        ({"image": 1}, r"dict\)?: is not an image: give a path, bytes, .* or a vector"),
        (np.ones(7, np.float32), "vector"),
        (np.zeros((4, 4, 3)), "float64: convert them to uint8"),
        (b"not a picture", "bytes"),
        (io.StringIO("text"), "mode 'rb'"),
        (12345, "does not contain image 12345"),
        ("photos/*.jpg", "glob.glob"),
        (np.zeros((3, 8, 8), np.uint8), r"\(height, width, 3\) for RGB, is needed"),
    ],
)
def test_what_cannot_be_used_is_refused_by_add_and_search_alike(gallery, source, reason):
    with pytest.raises(ImgSearchError, match=reason):
        gallery.add([paint(Path("1.png"), 1), source])
    assert len(gallery) == 0
    with pytest.raises(ImgSearchError, match=reason):
        gallery.search(source)


@pytest.mark.parametrize(
    ("source", "name", "reason"),
    [
        (PIXELS, 17, "is 17; give a text, or a list"),
        (PIXELS, [17], "'17' is not the name of a file"),
        (PIXELS, "~a", "'~a' is not the name of a file"),
        (PIXELS, "x" * 252, "is longer than the name of a file may be"),
        ([PIXELS, PIXELS + 1], ["a", "a.png"], "'a.png' is taken by another picture"),
        (PIXELS, "a/b", "'a/b' is not the name of a file"),
        (PIXELS, "", "not the name of a file"),
        (PIXELS, "..", "not the name of a file"),
        (PIXELS, ".hidden", "not the name of a file"),
        (PIXELS, ["a", "b"], "2 names for 1 images"),
        ("a.png", "a", "name: is for a picture without a file"),
    ],
)
def test_a_name_is_that_of_a_file_to_be(gallery, source, name, reason):
    paint(Path("a.png"), 1)
    with pytest.raises(ConfigError, match=reason):
        gallery.add(source, name=name)


@pytest.mark.parametrize("bad", [None, b"not a picture", np.zeros((4, 4, 2), np.uint8)])
def test_what_has_no_path_is_named_by_its_place_in_the_list(gallery, bad):
    good = [PIXELS, PIXELS + 1]
    with pytest.raises(ImageError, match=r"^images\[2\] \(.*\): .*not an? "):
        gallery.add([*good, bad])
    with pytest.raises(ImageError, match=r"^query\[1\] \("):
        gallery.search([good[0], bad, good[1]])
    with pytest.raises(ImageError, match=r"^unlike\[1\] \("):
        gallery.search(good[0], like=good, unlike=[good[0], bad])
    with pytest.raises(ConfigError, match=r"^query\[1\]: is a vector of 3 numbers"):
        gallery.search([good[0], np.ones(3)])


def test_an_open_file_is_read_from_its_start(gallery):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")  # it is at its end now, as a file often is
    assert gallery.add(buffer, name="a").encoded == 1
    assert gallery.search(buffer)[0].score == pytest.approx(1)


def test_a_picture_is_searched_with_by_its_name(gallery):
    gallery.add([PIXELS, PIXELS + 200], name=["black", "grey"])
    for name in ("black", "grey"):
        assert gallery.search(name)[0].path == gallery[name].path
        assert gallery.search([name, name], box=(0, 0, 3, 3))[1][0].path == gallery[name].path
    Path("black").write_bytes(b"a file comes before a name")
    with pytest.raises(ImageError, match="not an image in a supported format"):
        gallery.search("black")
