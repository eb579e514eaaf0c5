from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgsearch import batch
from imgsearch.errors import ConfigError, ImageError
from tests.helpers import paint


@pytest.fixture
def photos(tmp_path):
    for i in range(5):
        paint(tmp_path / "photos" / f"{i}.png", seed=i)
    return tmp_path / "photos"


def notebook(*cells: str) -> dict:
    """Globals of a notebook whose cells have run."""
    namespace: dict = {}
    for cell in cells:
        exec(cell, namespace)
    return namespace | {"In": ["", *cells]}


def test_parameters_are_what_the_parameter_cells_set():
    namespace = notebook(
        "# Parameters. Some words.\ntop_k = 10\nbox = None", "# Parameters\ntop_k = 3", "other = 1"
    )
    assert batch.parameters(namespace, batch.search_image) == {"top_k": 3, "box": None}


def test_a_wrong_name_is_an_error_that_offers_the_right_one():
    namespace = notebook("# Parameters\ntop_k = 10", "# Parameters\ncolection = 'mine'")
    with pytest.raises(ConfigError, match=r"colection.*'collection'"):
        batch.parameters(namespace, batch.search_image)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", "many"), ("recursive", "perhaps"), ("limit", 1.5), ("image_dir", None)],
)
def test_a_value_of_another_type_is_named(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        batch.ingest_folder(**({"image_dir": str(tmp_path)} | {name: value}))


def test_reports_are_written_and_say_what_was_done(photos, tmp_path):
    made = tmp_path / "made"
    batch.ingest_folder(str(photos), encoder="resnet18@random:0", output_dir=str(made))
    report = json.loads((made / "ingest.json").read_text())
    assert (report["state"], report["encoded"], report["failures"]) == ("done", 5, [])
    assert report["encoder"]["name"] == "resnet18@random:0"
    query = str(photos / "3.png")
    batch.search_image(query, top_k=2, output_dir=str(made))
    found = json.loads((made / "search.json").read_text())
    assert len(found["hits"]) == 2
    assert query not in [hit["path"] for hit in found["hits"]]
    batch.search_image(query, top_k=2, exclude_query=False, output_dir=str(made))
    found = json.loads((made / "search.json").read_text())
    assert found["hits"][0]["path"] == query
    assert isinstance(found["hits"][0]["image_id"], str)
    assert (made / "search.png").read_bytes().startswith(b"\x89PNG")


def test_words_and_examples_are_searched_with_in_batch(photos, tmp_path):
    batch.ingest_folder(str(photos), encoder="mini", output_dir=str(tmp_path))
    like, unlike = [str(photos / "1.png"), str(photos / "2.png")], str(photos / "4.png")
    batch.search_image(query_text="dog", like=like, unlike=unlike, output_dir=str(tmp_path))
    found = json.loads((tmp_path / "search.json").read_text())
    assert (found["query"], found["text"], found["like"]) == (None, "dog", like)
    assert {Path(hit["path"]).name for hit in found["hits"]} == {"0.png", "3.png"}
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="is empty: give a picture, a text, or an example"):
        batch.search_image(output_dir=str(tmp_path))


def test_images_are_labelled_and_filtered(photos, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("name,label\n1.png,cat\n2.png,cat\n")
    options = {"encoder": "resnet18@random:0", "output_dir": str(tmp_path)}
    batch.ingest_folder(str(photos), attributes=str(table), **options)
    where = {"label": "cat"}
    batch.search_image(str(photos / "3.png"), where=where, output_dir=str(tmp_path))
    found = json.loads((tmp_path / "search.json").read_text())
    assert sorted(Path(hit["path"]).name for hit in found["hits"]) == ["1.png", "2.png"]
    assert found["where"] == where


def test_shards_have_reports_of_their_own(photos, tmp_path):
    for i in range(2):
        batch.ingest_folder(
            str(photos), encoder="resnet18@random:0", shard=f"{i}/2", output_dir=str(tmp_path)
        )
    parts = [json.loads((tmp_path / f"ingest-{i}-of-2.json").read_text()) for i in range(2)]
    assert sum(part["encoded"] for part in parts) == 5


def test_a_run_that_fails_leaves_no_report(photos, tmp_path):
    with pytest.raises(ImageError):
        batch.ingest_folder(str(tmp_path / "nowhere"), output_dir=str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()
