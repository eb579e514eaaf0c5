"""What the routes share: collections that come and go, and one encoder."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import HTTPException

from imgsearch.ingestion import ingest
from imgsearch.server.batching import Batcher
from imgsearch.server.pictures import Kept
from imgsearch.server.service import Plan
from tests.helpers import run_async


def test_a_collection_that_was_dropped_and_made_anew_is_opened_again(start, folder, collection):
    running = start(collection=collection, roots=(folder.parent,))
    for _ in range(2):
        ingest(folder, collection, settings=running.options.settings)  # as a notebook does
        assert running.visitor.post("/img/count").json() == 6
        files = {"image": (folder / "0.png").read_bytes()}
        assert len(running.visitor.post("/img/search", files=files).json()) == 6
        running.admin.post("/img/drop")
        assert running.visitor.post("/img/search", files=files).status_code == 404


def test_there_is_one_encoder_for_all_collections_and_loads(server, folder, photos, collection):
    files = {"image": (photos / "00.png").read_bytes()}
    (server.options.roots[0] / "again").mkdir(exist_ok=True)
    (server.options.roots[0] / "again" / "0.png").write_bytes((folder / "0.png").read_bytes())
    table = {"table_name": collection}
    body = {"File": str(server.options.roots[0] / "again"), "Table": collection}
    assert server.admin.post("/img/load", json=body).status_code == 200
    assert server.visitor.post("/img/search", files=files, params=table).status_code == 200
    kept = server.service
    assert kept.gallery(collection).encoder is kept.gallery("served").encoder
    assert server.admin.post("/img/drop", params=table).json() == "ok"


def test_query_pictures_are_bounded(server, monkeypatch, photos):
    data = (photos / "00.png").read_bytes()
    monkeypatch.setattr(server.service, "queries", Kept(3 * len(data)))
    keys = [server.service.keep_query(data) for _ in range(3)]
    server.service.query(keys[0])
    keys.append(server.service.keep_query(data))
    kept = [server.service.queries.find(key) for key in keys]
    assert kept == [data, None, data, data]


@pytest.mark.parametrize("number", [0, 1, 9_000_000_000_000_000_001, 2**63 - 1])
def test_every_number_of_63_bits_is_looked_up(server, monkeypatch, number):
    monkeypatch.setattr(server.service, "image", lambda name, image_id: (name, image_id))
    assert server.service.find(str(number), None, paths=False) == ("served", number)
    with pytest.raises(HTTPException):
        server.service.find(str(2**63), None, paths=True)


def test_a_search_with_and_one_without_a_picture_are_answered_apart(server, monkeypatch, photos):
    """They had one batch if all else was the same, and the picture was then ignored."""
    service, data = server.service, (photos / "05.png").read_bytes()
    gallery = service.gallery("served")
    (example, *_) = gallery.browse(limit=1)
    monkeypatch.setattr(service, "batcher", Batcher(service._search, lambda size: None))
    plan = Plan("served", 5, like=(example.image_id,))

    async def main():
        return await asyncio.gather(service.search(plan), service.search(plan, data))

    found = [[hit.image_id for hit in hits] for hits in run_async(main())]
    expected = [gallery.search(query, 5, like=[example.image_id]) for query in (None, data)]
    assert found == [[hit.image_id for hit in hits] for hits in expected]
    assert found[0] != found[1]
