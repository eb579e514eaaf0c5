from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from imgsearch import plots
from imgsearch.errors import ImageError
from imgsearch.hits import Hit
from tests.helpers import paint


def drawn(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


@pytest.fixture
def hits(tmp_path):
    names = ["a.png", "$cost$ is_high^2.png", "a very long name, far too long for a caption.png"]
    paths = [paint(tmp_path / name, seed=i) for i, name in enumerate(names)]
    return [
        Hit(i, 1 - i / 10, i, str(path), (str(path),), 64, 48) for i, path in enumerate(paths, 1)
    ]


def test_a_grid_names_rank_score_and_file(hits, tmp_path):
    figure = plots.result_grid(paint(tmp_path / "q.png", 9), hits, title="sample · mini · HNSW")
    texts = [axis.get_xlabel() for axis in figure.axes]
    assert texts[0] == "query\nq.png"
    assert texts[1] == "1 · 0.900\na.png"
    assert "$cost$" in texts[2]
    assert "…" in texts[3]
    assert drawn(figure).std() > 10


def test_a_hit_that_cannot_be_read_becomes_a_tile_that_says_why(hits, tmp_path):
    (tmp_path / "a.png").unlink()
    figure = plots.result_grid(paint(tmp_path / "q.png", 9), hits)
    (text,) = figure.axes[1].texts
    assert text.get_text()
    drawn(figure)


def test_a_query_that_cannot_be_read_is_an_error(hits, tmp_path):
    with pytest.raises(ImageError, match="nowhere"):
        plots.result_grid(tmp_path / "nowhere.png", hits)


def test_a_box_is_drawn_where_it_lies(tmp_path):
    query = paint(tmp_path / "q.png", 3)
    figure = plots.result_grid(query, [], box=(10, 5, 30, 25))
    (patch,) = figure.axes[0].patches
    assert (patch.get_xy(), patch.get_width(), patch.get_height()) == ((10, 5), 20, 20)


def test_thumbnails_are_small_and_upright(tmp_path):
    picture = Image.new("RGB", (400, 200), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert plots.thumbnail(tmp_path / "turned.jpg", 100).size == (50, 100)
