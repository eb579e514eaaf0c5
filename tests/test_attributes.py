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


def test_a_value_of_another_type_replaces_one_that_is_equal(gallery):
    for value in (True, 1, 0, False):
        gallery.set_attributes({"dogs0": {"seen": value}}, key="name")
        assert repr(labels(gallery, "seen")["dogs0"]) == repr(value)
        assert len(gallery.to_pandas(where={"seen": value})) == 1


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
def test_a_csv_file_keeps_what_is_no_number(gallery, tmp_path):
    rows = ["cats0,007,12345678901234567,5,true,1.5", "cats1,1,2, ,false,2", "dogs0,,,7,,nan"]
    (tmp_path / "a.csv").write_text("\n".join(["name, code,id,n,seen,x", *rows]))
    assert gallery.set_attributes("a.csv") == 3
    assert labels(gallery, "code") == {"cats0": "007", "cats1": "1"}
    assert labels(gallery, "id") == {"cats0": "12345678901234567", "cats1": "2"}
    assert labels(gallery, "n") == {"cats0": 5, "dogs0": 7}
    assert labels(gallery, "seen") == {"cats0": True, "cats1": False}
    assert labels(gallery, "x") == {"cats0": "1.5", "cats1": "2", "dogs0": "nan"}


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name;label\ncats0;cat\n", "no column; there are name;label. If a file has another sep"),
        ("name,label\ncats0,caf\udce9\n", "save it in UTF-8"),
        (",name,label\n0,cats0,cat\n", r"column 1 has no name; .*to_csv\(index=False\)"),
        ("name,label,label\ncats0,a,b\n", "two columns are called 'label'"),
        ("name,label\ncats0,a,b\n", "Expected 2 fields in line 2, saw 3"),
        ("name,label\ncats0,cat\ncats0,pet\n", r'\["cats0"\]\["label"\]: has two values'),
    ],
)
def test_a_csv_file_that_cannot_be_read_as_it_was_meant(gallery, tmp_path, text, reason):
    (tmp_path / "a.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=reason):
        gallery.set_attributes("a.csv")


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
        ([{"path": "photos/cats/cats0.png"}], None, "of type list: give a dict, a pandas"),
        (pd.Series({"photos/cats/cats0.png": "a"}), None, "of type Series: give"),
        ({"photos/cats/cats0.png": {"a": pd.NaT}}, None, r'cats0\.png"\]\["a"\]: is NaT'),
        ({"photos/cats/cats0.png": {"a": 1}, "photos/cats/../cats/cats0.png": {"a": 2}}, None,
         "has two values: give each file once"),
        (pd.DataFrame({"path": ["photos/cats/cats0.png"], "size": ["big"]}), None,
         r'\["size"\]: is a property of the file itself: use another name, or leave it out'),
        (pd.DataFrame({"path": ["photos/cats/cats0.png", None], "a": 1}), None, "not the path"),
        (pd.DataFrame({"image_id": [2.0**60, None], "a": 1}), None, "as int64 or as text"),
        (pd.DataFrame({"image_id": ["abc"], "a": 1}), None, "not the image_id of a file"),
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
