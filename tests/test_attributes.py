from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imgsearch import ingest
from imgsearch.errors import ConfigError, FilterError
from imgsearch.gallery import Gallery
from tests.helpers import paint


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    for seed, name in enumerate(("cats0", "cats1", "dogs0", "dogs1")):
        paint(tmp_path / "photos" / name[:-1] / f"{name}.png", seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.fixture
def gallery(stores, collection, encoder, photos):
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        gallery.add("photos", from_folders=True)
        yield gallery


def labels(gallery: Gallery, name: str = "label") -> dict[str, object]:
    return {
        Path(image.path).stem: image.attributes[name]
        for image in gallery
        if name in image.attributes
    }


def test_folders_are_labels_and_a_dict_is_for_every_image(gallery, encoder):
    assert labels(gallery) == {"cats0": "cats", "cats1": "cats", "dogs0": "dogs", "dogs1": "dogs"}
    report = gallery.add("photos/cats", attributes={"set": "train", "label": "cat"})
    assert (report.encoded, report.unchanged) == (0, 2)
    assert labels(gallery, "set") == {"cats0": "train", "cats1": "train"}
    assert labels(gallery)["cats0"] == "cat"
    options = {"attributes": {"seen": True}, "from_folders": True}
    ingest("photos", gallery.name, settings=gallery.settings, **options)
    assert set(labels(gallery, "seen").values()) == {True}
    assert labels(gallery)["cats0"] == "cats"


def test_a_dict_names_files_by_path_name_or_id(gallery, photos):
    image = gallery["photos/cats/cats1.png"]
    assert gallery.set_attributes({"photos/cats/cats0.png": {"stars": 5, "tags": ["a", "b"]}}) == 1
    assert gallery.set_attributes({image.image_id: {"stars": np.int64(4)}}) == 1
    assert (
        gallery.set_attributes({"dogs0": {"stars": 3}, "dogs1.png": {"stars": 2}}, key="name") == 2
    )
    assert labels(gallery, "stars") == {"cats0": 5, "cats1": 4, "dogs0": 3, "dogs1": 2}
    gallery.set_attributes({photos / "cats" / "cats0.png": {"stars": None}})
    assert "cats0" not in labels(gallery, "stars")
    gallery.set_attributes({image.path: {"only": 1}}, replace=True)
    assert gallery[image].attributes == {"only": 1}


def test_a_table_that_was_taken_out_can_be_changed_and_set_again(gallery):
    table = gallery.to_pandas()
    assert {"image_id", "path", "name", "folder", "label"} <= set(table.columns)
    table["big"] = [1.5, None, 2.5, None]
    table["when"] = pd.Timestamp("2026-05-01")
    table.loc[0, "label"] = None  # an empty cell changes nothing
    assert gallery.set_attributes(table) == 4
    again = gallery.to_pandas()
    assert again.label.tolist() == ["cats", "cats", "dogs", "dogs"]
    assert again.big.isna().tolist() == [False, True, False, True]
    assert set(again.when) == {"2026-05-01T00:00:00"}
    assert gallery.set_attributes(table.set_index("image_id")[["big"]]) == 4


def test_a_csv_file_names_files_by_name(gallery, tmp_path):
    csv = tmp_path / "labels.csv"
    csv.write_text(
        "name,label,year,note\ncats0,NA,2020,\ndogs1,None,2021,x\nunknown,a,1,\n", "utf-8-sig"
    )
    assert gallery.set_attributes("labels.csv") == 2
    assert labels(gallery) == {"cats0": "NA", "cats1": "cats", "dogs0": "dogs", "dogs1": "None"}
    assert labels(gallery, "year") == {"cats0": 2020, "dogs1": 2021}
    assert labels(gallery, "note") == {"dogs1": "x"}
    paint(tmp_path / "more" / "unknown.png", 50)
    gallery.add("more", attributes=csv)
    assert labels(gallery)["unknown"] == "a"


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
@pytest.mark.parametrize(
    ("given", "key", "reason"),
    [
        ({"nowhere.png": {"a": 1}}, None, r"name no file of .*first path is .*nowhere\.png"),
        (pd.DataFrame({"a": [1], "b": [2]}), None, "key: 'path' is no column; there are a, b"),
        (pd.DataFrame({"path": ["a"]}), "name", "'name' is no column"),
        ({"a": {"b": 1}}, "file", "key: is 'file'; there are path, name, image_id"),
        ({"photos/cats/cats0.png": "cat"}, None, "give a dict"),
        ({"photos/cats/cats0.png": {"width": 5}}, None, "property of the file"),
        ({"photos/cats/cats0.png": {"a": {"b": 1}}}, None, "a text, a number"),
        ("nowhere.csv", None, r"nowhere\.csv: no CSV table"),
        ("photos/cats/cats0.png", None, r"cats0\.png: no CSV table"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_says_why_and_changes_nothing(gallery, given, key, reason):
    before = gallery.to_pandas()
    with pytest.raises(ConfigError, match=reason):
        gallery.set_attributes(given, key=key)
    pd.testing.assert_frame_equal(gallery.to_pandas(), before)


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
def test_attributes_are_checked_before_anything_is_added(gallery, tmp_path):
    paint(tmp_path / "more" / "a.png", 50)
    for attributes in ({"width": 1}, "nowhere.csv"):
        with pytest.raises((ConfigError, FilterError)):
            gallery.add("more", attributes=attributes)
    assert "more/a.png" not in gallery
