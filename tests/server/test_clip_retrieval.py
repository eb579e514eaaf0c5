"""The contract of clip-retrieval, as its client and its web page send it."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

# What ClipClient 2.45.0 sends, without a Content-Type.
SENT = {
    "text": None,
    "image": None,
    "image_url": None,
    "embedding_input": None,
    "deduplicate": True,
    "use_safety_model": True,
    "use_violence_detector": True,
    "indice_name": "served",
    "use_mclip": False,
    "aesthetic_score": 9,
    "aesthetic_weight": 0.5,
    "modality": "image",
    "num_images": 5,
    "num_result_ids": 5,
}
# What its web page sends, as text/plain.
PAGE = {"aesthetic_score": "", "aesthetic_weight": "0.5", "num_images": 4, "num_result_ids": 3000}


def ask(client, kind: str | None = None, **fields):
    headers = {"Content-Type": kind} if kind else {}
    return client.post("/knn-service", content=json.dumps(SENT | fields), headers=headers)


def test_the_client_finds_a_picture(server, photos):
    image = base64.b64encode((photos / "04.png").read_bytes()).decode()
    answer = ask(server.visitor, image=image)
    assert answer.status_code == 200
    found = answer.json()
    assert len(found) == 5
    assert found[0]["caption"] == "04.png"
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-4)
    similarities = [item["similarity"] for item in found]
    assert similarities == sorted(similarities, reverse=True)
    assert isinstance(found[0]["id"], int)
    assert server.visitor.get(found[0]["url"]).content == (photos / "04.png").read_bytes()
    assert Image.open(io.BytesIO(base64.b64decode(found[0]["image"]))).format == "JPEG"
    assert "image_path" not in found[0]
    assert ask(server.admin, image=image).json()[0]["image_path"] == str(photos / "04.png")


def test_the_token_may_be_in_the_address_since_the_client_sets_no_header(server, photos):
    image = base64.b64encode((photos / "04.png").read_bytes()).decode()
    token = server.visitor.headers["authorization"].split()[1]
    body = json.dumps(SENT | {"image": image})
    assert server.stranger.post(f"/knn-service?token={token}", content=body).status_code == 200
    assert server.stranger.post("/knn-service?token=x", content=body).status_code == 401


def test_the_web_page_gets_ids_beyond_the_images(server, photos):
    image = base64.b64encode((photos / "04.png").read_bytes()).decode()
    found = ask(server.visitor, "text/plain;charset=UTF-8", image=image, text="", **PAGE).json()
    assert len(found) == 20
    assert all("url" in item for item in found[:4])
    assert all(set(item) == {"id", "similarity"} for item in found[4:])
    ids = [item["id"] for item in found]
    body = json.dumps({"ids": [*ids, 1], "indice_name": "served"})
    told = server.visitor.post("/metadata", content=body).json()
    assert [item["id"] for item in told] == ids
    assert told[0]["metadata"]["caption"] == "04.png"


def test_an_embedding_is_searched_with(server):
    ids, vectors = server.service.gallery("served").embeddings()
    found = ask(server.visitor, embedding_input=vectors[3].tolist(), indice_name=None).json()
    assert found[0]["id"] == ids[3]
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"image": "no base64!"}, 400),
        ({"image": "\u00e9"}, 400),
        ({"image": base64.b64encode(b"no picture").decode()}, 400),
        ({"image_url": "http://127.0.0.1:9/x.png"}, 403),
        ({"embedding_input": [1.0, 2.0]}, 400),
        ({"embedding_input": [0.0] * 512}, 400),
        ({"text": "a cat"}, 400),  # this encoder reads no words
        ({"image": "eA==", "indice_name": "none"}, 404),
        ({"image": "eA==", "modality": "text"}, 422),
        ({"image": "eA==", "num_images": 0}, 422),
    ],
)
def test_errors_are_statuses_with_a_sentence(server, fields, status):
    answer = ask(server.visitor, **fields)
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize("image", ["!!!", "data:image/png;base64,iVBORw0KGgo="])
def test_what_is_not_base64_is_told_so(server, image):
    answer = ask(server.admin, image=image)
    assert answer.status_code == 400
    assert "base64" in answer.json()["detail"]


@pytest.mark.parametrize("missing", ["modality", "num_images", "indice_name"])
def test_required_fields_are_required(server, missing):
    body = {key: value for key, value in SENT.items() if key != missing}
    answer = server.visitor.post("/knn-service", content=json.dumps(body))
    assert answer.status_code == 422
    assert missing in str(answer.json())


def test_the_usual_collection_is_the_first_index(server):
    assert server.visitor.get("/indices-list").json()[0] == "served"


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), 1e39, -1e300])
def test_numbers_that_do_not_fit_float32_are_refused(server, number):
    answer = ask(server.visitor, embedding_input=[1.0] * 511 + [number])
    assert answer.status_code == 400
    assert "float32" in answer.json()["detail"]
