"""The API below /api/v1."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from imgsearch.ingestion import ingest
from imgsearch.server import schemas
from tests.helpers import paint

V1 = "/api/v1"
SERVED = f"{V1}/collections/served"


@pytest.fixture
def own(start, tmp_path, collection):
    """A server that may load from the test's folder."""
    return start(collection=collection, roots=(tmp_path,))


def find(client, **query) -> list[dict]:
    answer = client.post(f"{SERVED}/search", json=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def an_id(server, place: int = 0) -> str:
    return server.visitor.get(f"{SERVED}/images").json()["items"][place]["image_id"]


def test_the_server_describes_itself(server, photos):
    about = server.admin.get(V1).json()
    assert about["collection"] == "served"
    assert about["roots"] == [str(photos.parent)]
    assert "JPEG" in about["formats"]
    assert about["fetches_urls"] is False


def test_collections_are_described(server):
    (served,) = [c for c in server.visitor.get(f"{V1}/collections").json() if c["name"] == "served"]
    assert served == server.visitor.get(SERVED).json()
    assert (served["images"], served["paths"], served["dim"]) == (20, 20, 512)
    assert served["text"] is False
    assert served["encoder"] == "small.onnx"
    assert server.visitor.get(f"{V1}/collections/none").status_code == 404
    assert server.visitor.get(f"{V1}/collections/no-name").status_code == 422


def test_images_are_listed_page_by_page(server):
    seen, offset = [], 0
    while offset is not None:
        params = {"offset": offset, "limit": 7}
        page = server.visitor.get(f"{SERVED}/images", params=params).json()
        seen += [item["image_id"] for item in page["items"]]
        offset = page["next"]
    assert len(seen) == len(set(seen)) == 20


def test_a_list_refuses_what_it_does_not_know_and_names_it(server):
    answer = server.visitor.get("/api/v1/collections/served/images?filter={}")
    assert answer.status_code == 422
    assert "filter" in answer.json()["detail"]
    (problem,) = server.visitor.get("/api/v1/collections/served/images?where={").json()["detail"]
    assert problem["loc"] == ["query", "where"]


def test_an_image_is_described_by_its_id(server, photos):
    number = an_id(server)
    told = server.visitor.get(f"{SERVED}/images/{number}").json()
    assert told["image_id"] == number
    assert (told["width"], told["height"], told["format"]) == (64, 48, "PNG")
    assert told["paths"] == []
    assert server.admin.get(f"{SERVED}/images/{number}").json()["paths"]
    assert server.visitor.get(f"{SERVED}/images/1").status_code == 404
    assert server.visitor.get(f"{SERVED}/images/{2**63}").status_code == 422
    assert server.visitor.get(told["original"]).headers["content-type"] == "image/png"


def test_a_stored_image_is_searched_with(server):
    number = an_id(server)
    hits = find(server.visitor, image_id=number, limit=5)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert hits[0]["image_id"] == number
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    others = find(server.visitor, image_id=number, limit=4, exclude=[number])
    assert [hit["image_id"] for hit in others] == [hit["image_id"] for hit in hits[1:]]


def test_results_come_in_pages(server):
    number = an_id(server)
    whole = find(server.visitor, image_id=number, limit=20)
    parts, offset = [], 0
    while offset is not None:
        query = {"image_id": number, "limit": 6, "offset": offset}
        answer = server.visitor.post(f"{SERVED}/search", json=query).json()
        parts += answer["hits"]
        offset = answer["next"]
    assert parts == whole


def test_no_page_follows_where_no_offset_may_lead(server, monkeypatch):
    monkeypatch.setattr(schemas, "LAST_OFFSET", 5)
    query = {"image_id": an_id(server), "limit": 3}
    address = "/api/v1/collections/served/search"
    pages = [server.visitor.post(address, json=query | {"offset": n}).json() for n in (0, 3)]
    assert [page["next"] for page in pages] == [3, None]


def test_results_and_lists_are_filtered(server):
    where = {"label": "even"}
    query = {"image_id": an_id(server), "where": where}
    answer = server.visitor.post(f"{SERVED}/search", json=query).json()
    assert (len(answer["hits"]), answer["matched"], answer["way"]) == (9, 9, "exact")
    params = {"where": json.dumps(where)}
    page = server.visitor.get(f"{SERVED}/images", params=params).json()
    assert page["total"] == len(page["items"]) == 9
    assert {item["attributes"]["label"] for item in page["items"]} == {"even"}
    values = server.visitor.get(f"{SERVED}/attributes").json()
    assert values["label"] == [{"value": "even", "count": 9}, {"value": "odd", "count": 8}]


@pytest.mark.parametrize("where", [{"width": {"<<": 1}}, {"and": []}, {"label": None}])
def test_filters_that_cannot_be_used_are_refused(server, where):
    query = {"image_id": an_id(server), "where": where}
    assert server.visitor.post(f"{SERVED}/search", json=query).status_code == 400
    params = {"where": json.dumps(where)}
    assert server.visitor.get(f"{SERVED}/images", params=params).status_code == 400
    assert server.visitor.get(f"{SERVED}/images", params={"where": "{"}).status_code == 422


@pytest.mark.parametrize(
    "where", [{"path": {"contains": "a"}}, {"or": [{"not": {"folder": {"prefix": "/"}}}]}]
)
def test_visitors_learn_nothing_of_folders_by_filters(server, where):
    query = {"image_id": an_id(server), "where": where}
    params = {"where": json.dumps(where)}
    assert server.visitor.post(f"{SERVED}/search", json=query).status_code == 403
    assert server.visitor.get(f"{SERVED}/images", params=params).status_code == 403
    assert server.admin.post(f"{SERVED}/search", json=query).status_code == 200
    said = {"name": {"prefix": '"path":'}}
    answer = server.visitor.get(f"{SERVED}/images", params={"where": json.dumps(said)})
    assert answer.json()["total"] == 0


def test_examples_and_counter_examples_are_searched_with(server):
    first, second, third = (an_id(server, place) for place in range(3))
    hits = find(server.visitor, like=[first, second], unlike=[third], limit=20)
    assert len(hits) == 17
    assert not {first, second, third} & {hit["image_id"] for hit in hits}
    ids = list(map(int, (first, second))), [int(third)]
    found = server.service.gallery("served").search(None, 20, like=ids[0], unlike=ids[1])
    assert [hit["image_id"] for hit in hits] == [str(hit.image_id) for hit in found]
    both = find(server.visitor, image_id=third, like=[first], limit=20)
    assert both[0]["image_id"] == third


def test_words_are_searched_with_where_the_encoder_reads_them(start, photos, collection):
    running = start(collection=collection)
    ingest(photos, collection, encoder="mini", settings=running.options.settings)
    about = f"{V1}/collections/{collection}"
    assert running.visitor.get(about).json()["text"] is True
    for query in ({"text": "a cat"}, {"text": "a cat", "like": [an_id(running)], "limit": 3}):
        assert running.visitor.post(f"{about}/search", json=query).json()["hits"]
    body = {"text": "a dog", "modality": "image", "num_images": 3, "indice_name": collection}
    assert len(running.visitor.post("/knn-service", json=body).json()) == 3


def test_an_uploaded_picture_and_a_part_of_it_are_searched_with(server, photos):
    data = (photos / "07.png").read_bytes()
    answer = server.visitor.post(f"{V1}/queries", files={"image": data})
    assert answer.status_code == 201
    query = answer.json()
    assert (query["width"], query["height"]) == (64, 48)
    thumbnail = server.visitor.get(query["thumbnail"])
    assert thumbnail.headers["content-type"] == "image/jpeg"
    hits = find(server.visitor, query_id=query["query_id"], limit=3)
    assert hits[0]["name"] == "07.png"
    part = find(server.visitor, query_id=query["query_id"], box=[0, 0, 32, 24], limit=3)
    box = server.service.gallery("served").search(data, 3, box=(0, 0, 32, 24))
    assert [hit["image_id"] for hit in part] == [str(hit.image_id) for hit in box]
    for box in ([0, 0, 65, 10], [10, 10, 5, 5]):
        body = {"query_id": query["query_id"], "box": box}
        assert server.visitor.post(f"{SERVED}/search", json=body).status_code == 400


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"image_id": 1, "query_id": "a"}, 422),
        ({"box": [0, 0, 1, 1], "like": [1]}, 400),
        ({"like": [1]}, 404),
        ({"image_id": 1}, 404),
        ({"image_id": "x"}, 422),
        ({"query_id": "x"}, 404),
        ({"text": "a cat"}, 400),
        ({"image_id": 1, "limit": 0}, 422),
        ({"image_id": 1, "limit": 201}, 422),
        ({"image_id": 1, "misspelt": 1}, 422),
    ],
)
def test_queries_that_cannot_be_used_are_refused(server, query, status):
    answer = server.visitor.post(f"{SERVED}/search", json=query)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_a_body_that_is_not_declared_as_json_is_told_how_to_be(server):
    answer = server.visitor.post("/api/v1/collections/served/search", content=b'{"text": "dog"}')
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"][0]["msg"]


def test_a_picture_that_is_cut_off_is_no_query(server, photos):
    data = (photos / "00.png").read_bytes()[:-40]
    answer = server.visitor.post("/api/v1/queries", files={"image": ("cut.png", data)})
    assert (answer.status_code, answer.json()["detail"]) == (400, "cut.png: truncated")


def test_a_picture_that_is_none_is_no_query(server):
    assert server.visitor.post(f"{V1}/queries", files={"image": b"x"}).status_code == 400


def test_an_image_is_added_and_the_collection_dropped(own, collection, photos):
    data = (photos / "00.png").read_bytes()
    address = f"{V1}/collections/{collection}"
    answer = own.admin.post(f"{address}/images", files={"image": ("../a.png", data)})
    assert answer.status_code == 201
    assert own.visitor.get(answer.json()["original"]).content == data
    assert own.admin.delete(address).status_code == 204
    assert own.admin.delete(address).status_code == 404


def events(client, number: int) -> list[dict]:
    with client.stream("GET", f"{V1}/ingests/{number}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_folder_is_loaded_and_its_progress_followed(own, folder, collection):
    answer = own.admin.post(f"{V1}/ingests", json={"folder": str(folder)})
    assert answer.status_code == 202
    number = answer.json()["id"]
    seen = events(own.admin, number)
    assert seen[-1]["state"] == "done"
    assert (seen[-1]["encoded"], seen[-1]["failed"], seen[-1]["ignored"]) == (6, 1, 1)
    assert seen[-1]["done"] == seen[-1]["total"] == 8
    assert seen[-1]["failures"][0]["path"].endswith("broken.jpg")
    assert own.admin.get(f"{V1}/ingests/{number}").json() == seen[-1]
    assert own.admin.get(f"{V1}/ingests").json() == [seen[-1]]
    assert own.visitor.get(f"{V1}/collections/{collection}").json()["images"] == 6
    assert own.admin.get(f"{V1}/ingests/99").status_code == 404
    assert own.admin.get(f"{V1}/ingests/99/events").status_code == 404


def test_a_load_is_stopped(own, tmp_path):
    for number in range(400):
        paint(tmp_path / "many" / f"{number}.png", number)
    number = own.admin.post(f"{V1}/ingests", json={"folder": str(tmp_path / "many")}).json()["id"]
    following = []
    thread = threading.Thread(target=lambda: following.extend(events(own.admin, number)))
    thread.start()
    own.admin.post(f"{V1}/ingests/{number}/stop")
    thread.join(60)
    assert following[-1]["state"] == "stopped"
    assert following[-1]["done"] < 400


@pytest.mark.parametrize("folder", ["/etc", "/", "none"])
def test_only_folders_below_the_roots_are_loaded(own, folder):
    assert own.admin.post(f"{V1}/ingests", json={"folder": folder}).status_code == 403


@pytest.mark.parametrize("name", ["none", "load/0.png", "x" * 300])
def test_what_is_not_a_folder_is_refused_at_once(own, folder, name):
    path = str(folder.parent / name)
    answer = own.admin.post(f"{V1}/ingests", json={"folder": path})
    assert answer.status_code == 400
    assert path in answer.json()["detail"]


def test_a_load_that_fails_says_why(own, tmp_path, monkeypatch):
    monkeypatch.setattr(own.service, "loadable", Path)  # it vanishes after it was checked
    answer = own.admin.post(f"{V1}/ingests", json={"folder": str(tmp_path / "none")})
    last = events(own.admin, answer.json()["id"])[-1]
    assert last["state"] == "failed"
    assert "no such folder" in last["error"]
