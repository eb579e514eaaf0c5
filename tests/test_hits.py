from __future__ import annotations

import json

from imgsearch.hits import Hit, Hits


def hits(*paths: str) -> Hits:
    found = tuple(
        Hit(rank, 1 / rank, 2**62 + rank, path, (path,), 640, 480)
        for rank, path in enumerate(paths, 1)
    )
    return Hits(found, "mine", "FLAT", {"name": "mini"}, {"total": 0.01})


def test_ids_survive_json_in_a_browser():
    written = json.loads(json.dumps(hits("/a.jpg", "/b.jpg").to_dict()))
    assert [hit["image_id"] for hit in written["hits"]] == [str(2**62 + 1), str(2**62 + 2)]
    assert written["collection"] == "mine"


def test_hits_are_a_sequence():
    found = hits("/a.jpg", "/b.jpg")
    assert len(found) == 2
    assert found[0].path == "/a.jpg"
    assert [hit.rank for hit in found[:1]] == [1]
