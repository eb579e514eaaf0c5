from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from imgsearch.errors import ImageError
from imgsearch.hits import SHOWN, SIDE, Hit, Hits
from tests.helpers import paint


def hits(*paths: str | Path) -> Hits:
    found = tuple(
        Hit(rank, 1 / rank, 2**62 + rank, str(path), (str(path),), 640, 480)
        for rank, path in enumerate(paths, 1)
    )
    return Hits(found, "mine", "FLAT", {"name": "mini"}, {"total": 0.01})


def test_ids_survive_json_in_a_browser():
    written = json.loads(json.dumps(hits("/a.jpg", "/b.jpg").to_dict()))
    assert [hit["image_id"] for hit in written["hits"]] == [str(2**62 + 1), str(2**62 + 2)]
    assert written["collection"] == "mine"


def test_hits_are_a_sequence_that_prints_as_a_list_of_files():
    found = hits("/a.jpg", "/b.jpg")
    assert len(found) == 2
    assert found[0].path == "/a.jpg"
    assert found[1:].to_pandas()["rank"].tolist() == [2]
    assert repr(replace(found, matched=1_200)[:0]) == (
        "<Hits: 0 in 'mine', of 1,200 that fulfil the filter>"
    )
    assert repr(found).splitlines()[1:] == ["   1  1.000  /a.jpg", "   2  0.500  /b.jpg"]


def test_a_table_has_a_row_for_each_hit():
    found = hits("/a.jpg", "/b.jpg")
    labelled = found[1]._replace(attributes={"label": "cat", "rank": "A"})
    table = replace(found, hits=(found[0], labelled)).to_pandas()
    columns = ["rank", "score", "image_id", "path", "width", "height"]
    assert table.columns.tolist() == [*columns, "label", "rank_attribute"]
    assert table.image_id.tolist() == [2**62 + 1, 2**62 + 2]
    assert table["rank"].tolist() == [1, 2]
    assert table.label.isna().tolist() == [True, False]
    assert table.rank_attribute.tolist()[1:] == ["A"]
    assert hits().to_pandas().columns.tolist() == columns
    assert hits("/not UTF-8 \udcff.jpg").to_pandas().path.tolist() == ["/not UTF-8 \udcff.jpg"]


def test_a_notebook_shows_thumbnails_that_need_no_file(tmp_path):
    good = paint(tmp_path / "<b>'\"&.png", 1, size=(640, 200))
    shown = hits(good, tmp_path / "gone.png")._repr_html_()
    (data,) = re.findall("src='data:image/jpeg;base64,([^']+)'", shown)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (SIDE, 50)
    assert "&lt;b&gt;&#x27;&quot;&amp;.png" in shown
    assert "<b>" not in shown
    assert "no such file" in shown
    assert "and 1 more" in hits(*["/gone.jpg"] * (SHOWN + 1))._repr_html_()


def test_files_are_copied_and_never_overwritten(tmp_path):
    files = [paint(tmp_path / folder / "a.png", seed) for seed, folder in enumerate("xyz")]
    out = tmp_path / "out"
    found = hits(*files)
    copies = found.copy_files(out)
    assert [path.name for path in copies] == ["a.png", "a-2.png", "a-3.png"]
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in files]
    assert found.copy_files(str(out)) == copies
    assert len(list(out.iterdir())) == 3
    files[1].unlink()
    with pytest.raises(ImageError, match=r"y/a\.png: no such file"):
        found.copy_files(out)
