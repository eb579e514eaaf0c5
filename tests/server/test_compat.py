"""Each row of the original demo's contract: routes, bodies, defaults, errors, and its holes."""

from __future__ import annotations

import re
import threading
from urllib.parse import quote

import pytest

from tests.helpers import paint
from tests.server.conftest import ODD

PROGRESS = re.compile(r"current: (\d+), total: (\d+)")


@pytest.fixture
def own(start, tmp_path, collection):
    """A server whose usual collection is empty, and which may load from the test's folder."""
    return start(collection=collection, roots=(tmp_path,))


def picture(path) -> dict:
    return {"image": (path.name, path.read_bytes(), "image/png")}


# ---- search -------------------------------------------------------------------------------------


def test_search_answers_pairs_of_path_and_squared_distance_in_ascending_order(server, photos):
    answer = server.admin.post("/img/search", files=picture(photos / "03.png"), data={"topk": "5"})
    assert answer.status_code == 200
    pairs = answer.json()
    assert isinstance(pairs, list)
    assert len(pairs) == 5
    assert all(len(pair) == 2 for pair in pairs)
    assert pairs[0][0] == str(photos / "03.png")
    assert pairs[0][1] == pytest.approx(0, abs=1e-4)
    distances = [distance for _, distance in pairs]
    assert distances == sorted(distances)
    assert distances[0] >= 0
    assert distances[-1] <= 4
    with_gallery = server.service.gallery("served").search(photos / "03.png", 5)
    assert distances == pytest.approx([2 - 2 * hit.score for hit in with_gallery], abs=1e-4)


@pytest.mark.parametrize("place", ["data", "params"])
def test_search_takes_its_parameters_from_the_form_or_the_query(server, photos, place):
    given = {place: {"topk": 3, "table_name": "served"}}
    answer = server.admin.post("/img/search", files=picture(photos / "00.png"), **given)
    assert len(answer.json()) == 3
    given = {place: {"table_name": "another"}}
    answer = server.admin.post("/img/search", files=picture(photos / "00.png"), **given)
    assert answer.status_code == 404


def test_search_gives_ten_results_unless_told_otherwise(server, photos):
    assert len(server.admin.post("/img/search", files=picture(photos / "00.png")).json()) == 10


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"data": {"topk": "5"}}, 422),
        ({"data": {"image": "text"}}, 422),
        ({"files": {"image": ("a.png", b"no picture")}}, 400),
        ({"files": {"image": ("a.png", b"")}}, 400),
        ({"files": {"image": ("a.png", b"x")}, "data": {"topk": "many"}}, 422),
        ({"files": {"image": ("a.png", b"x")}, "data": {"topk": "0"}}, 422),
        ({"files": {"image": ("a.png", b"x")}, "data": {"topk": "16385"}}, 422),
    ],
)
def test_search_refuses_what_it_cannot_use_with_a_status_and_a_sentence(server, given, status):
    answer = server.admin.post("/img/search", **given)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_visitors_get_ids_that_data_takes(server, photos):
    pairs = server.visitor.post("/img/search", files=picture(photos / "05.png")).json()
    assert all(re.fullmatch(r"\d+", shown) for shown, _ in pairs)
    got = server.visitor.get("/data", params={"image_path": pairs[0][0]})
    assert got.content == (photos / "05.png").read_bytes()
    by_path = server.visitor.get("/data", params={"image_path": str(photos / "05.png")})
    assert by_path.status_code == 404


# ---- table_name ----------------------------------------------------------------------------------


def test_a_collection_named_in_json_is_not_taken_for_the_usual_one(own):
    for route in ("count", "drop"):
        answer = own.admin.post(f"/img/{route}", json={"table_name": "other"})
        assert answer.status_code == 415


@pytest.mark.parametrize("name", ["Table", "table_name"])
def test_a_load_takes_the_collection_from_wherever_it_is_named(own, folder, collection, name):
    query, body = {"File": str(folder)}, {name: f"{collection}_2"}
    assert own.admin.post("/img/load", params=query, json=body).status_code == 200
    assert own.admin.post("/img/count").json() is None
    answer = own.admin.post("/img/drop", params={"table_name": f"{collection}_2"})
    assert answer.json() == "ok"


# ---- data ---------------------------------------------------------------------------------------


def test_data_answers_the_file_with_its_media_type(server, photos):
    answer = server.admin.get("/data", params={"image_path": str(photos / "00.png")})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == (photos / "00.png").read_bytes()
    again = server.admin.get(
        "/data",
        params={"image_path": str(photos / "00.png")},
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert again.status_code == 304


@pytest.mark.parametrize("name", ODD)
def test_a_path_pasted_into_an_address_as_the_client_does_is_found(server, photos, name):
    """The web client does not encode paths; a browser encodes only what no address may hold."""
    path = photos / name
    pairs = server.admin.post("/img/search", files={"image": path.read_bytes()}).json()
    shown = pairs[0][0]
    as_browser = quote(shown, safe="/&#+%=?")
    assert server.admin.get(f"/data?image_path={as_browser}").content == path.read_bytes()
    assert server.admin.get("/data", params={"image_path": shown}).content == path.read_bytes()


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../../../etc/hostname", "{folder}", "{folder}/broken.jpg",
             "{folder}/../{name}/../../../../../../etc/hostname", "{folder}/none.png", "",
             "x\0y", "~root/x", "file:///etc/hostname", "99999999999999999999"],
)  # fmt: skip
def test_data_serves_nothing_but_images_of_a_collection(server, photos, path):
    wanted = path.format(folder=photos, name=photos.name)
    for client in (server.admin, server.visitor):
        answer = client.get("/data", params={"image_path": wanted})
        assert answer.status_code == 404
        assert "detail" in answer.json()


def test_data_compares_a_path_after_resolving_it(server, photos):
    path = f"{photos}/../{photos.name}/./00.png"
    assert server.admin.get("/data", params={"image_path": path}).status_code == 200


def test_a_stored_file_that_was_exchanged_is_not_served(own, folder):
    own.admin.post("/img/load", json={"File": str(folder)})
    secret = folder.parent / "secret.png"
    paint(secret, 77)
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to(secret)
    answer = own.admin.get("/data", params={"image_path": str(folder / "0.png")})
    assert answer.status_code == 404


def test_data_needs_a_path_and_no_other_method(server):
    assert server.admin.get("/data").status_code == 422
    assert server.admin.head("/data").status_code == 405
    assert server.admin.post("/data").status_code == 405


# ---- load, progress, count, drop ----------------------------------------------------------------


def test_load_count_and_drop(own, folder, collection):
    assert own.admin.get("/progress").status_code == 200
    assert own.admin.post("/img/count").json() is None
    answer = own.admin.post("/img/load", json={"File": str(folder), "Other": 1})
    assert answer.json() == "Successfully loaded data!"
    assert own.admin.post("/img/count").json() == 6
    # A bad file neither stops a load nor its progress: files are counted, not successes.
    assert own.admin.get("/progress").json() == "current: 8, total: 8"
    assert own.admin.post("/img/load", json={"File": str(folder), "Table": None}).status_code == 200
    assert own.admin.post("/img/count").json() == 6, "the same folder twice doubles nothing"
    assert own.admin.post("/img/drop").json() == "ok"
    assert own.admin.post("/img/count").json() is None
    answer = own.admin.post("/img/drop")
    assert (answer.status_code, answer.json()) == (
        200,
        f"Milvus doesn't have a collection named {collection}",
    )
    assert own.admin.get("/progress").json() == "current: 8, total: 8"


@pytest.mark.parametrize("place", ["json", "data", "params"])
def test_load_takes_its_parameters_from_any_place(own, folder, collection, place):
    given = {place: {"File": str(folder), "Table": f"{collection}_2"}}
    assert own.admin.post("/img/load", **given).status_code == 200
    table = {"table_name": f"{collection}_2"}
    assert own.admin.post("/img/count", params=table).json() == 6
    assert own.admin.post("/img/count", data=table).json() == 6
    assert own.admin.post("/img/drop", params=table).json() == "ok"


def test_load_refuses_what_it_cannot_use(own, server, folder, tmp_path):
    load = lambda **given: own.admin.post("/img/load", **given)  # noqa: E731
    answer = load(json={})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "File"]
    assert load().status_code == 422
    assert load(content=b"{").status_code == 422
    assert load(json={"File": 7}).status_code == 422
    assert load(json={"File": str(tmp_path / "none")}).status_code == 400
    assert load(json={"File": str(folder / "0.png")}).status_code == 400
    assert load(json={"File": str(folder), "Table": "a b; DROP"}).status_code == 400
    (tmp_path / "empty").mkdir()
    assert load(json={"File": str(tmp_path / "empty")}).status_code == 400
    assert load(json={"File": str(tmp_path)}).status_code == 200


@pytest.mark.parametrize("place", ["/etc", "{root}/../", "{root}/link", "relative"])
def test_load_stays_below_the_roots(own, tmp_path, place):
    (tmp_path / "link").symlink_to("/etc")
    answer = own.admin.post("/img/load", json={"File": place.format(root=tmp_path)})
    assert answer.status_code == 403
    assert "--root" in answer.json()["detail"]


def test_a_load_blocks_no_other_request_and_progress_is_always_a_string(
    own, server, photos, tmp_path
):
    for number in range(300):
        paint(tmp_path / "many" / f"{number}.png", number)
    loading = threading.Thread(
        target=lambda: own.admin.post("/img/load", json={"File": str(tmp_path / "many")})
    )
    seen = []
    loading.start()
    while loading.is_alive():
        text = own.visitor.get("/progress").json()
        current, total = map(int, PROGRESS.fullmatch(text).groups())
        assert current <= total
        seen.append((current, total))
        answer = own.visitor.post(
            "/img/search", files=picture(photos / "00.png"), params={"table_name": "served"}
        )
        assert answer.status_code == 200
    assert len(seen) > 2
    assert own.visitor.get("/progress").json() == "current: 300, total: 300"


# ---- upload -------------------------------------------------------------------------------------


def test_an_upload_stays_in_its_folder(own, tmp_path, stored):
    base = stored.upload_path.parent
    names = ["../../x.png", "/etc/x.png", "..\\..\\x.png", ".", "a" * 300, "日本" * 99]
    for seed, name in enumerate(names, 5000):
        data = paint(tmp_path / "x.png", seed).read_bytes()
        before = {*base.rglob("*.png"), tmp_path / "x.png"}
        answer = own.admin.post("/img/upload", files={"image": (name, data)})
        assert answer.status_code == 200
        number = re.fullmatch(r"Successfully loaded data: (\d+)", answer.json())[1]
        new = set(base.rglob("*.png")) - before
        assert {path.parent for path in new} == {stored.upload_path}
        found = own.admin.post("/img/search", files={"image": data}).json()
        assert found[0][0] == str(new.pop())
        assert own.admin.get("/data", params={"image_path": number}).content == data
        again = own.admin.post("/img/upload", files={"image": (name, data)})
        assert again.json() == answer.json()
    assert own.admin.post("/img/count").json() == len(names)


def test_nothing_is_kept_of_an_upload_that_cannot_be_stored(own, photos, stored):
    before = set(stored.upload_path.iterdir())
    cut = (photos / "00.png").read_bytes()[:-40]
    answer = own.admin.post("/img/upload", files={"image": ("cut.png", cut)})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "cut.png: truncated"
    assert set(stored.upload_path.iterdir()) == before
    assert own.admin.post("/img/count").json() is None


def test_upload_refuses_what_it_cannot_use(own):
    answer = own.admin.post("/img/upload")
    assert answer.status_code == 400
    assert answer.json()["detail"] == "Image and url are required"
    assert own.admin.post("/img/upload", files={"image": b"no picture"}).status_code == 400
    answer = own.admin.post("/img/upload", params={"url": "http://127.0.0.1/x.png"})
    assert answer.status_code == 403, "not allowed unless a setting says so"


@pytest.mark.parametrize("route", ["load", "upload", "drop"])
def test_a_visitor_changes_nothing(server, route):
    answer = server.visitor.post(f"/img/{route}")
    assert answer.status_code == 403
    assert server.stranger.post(f"/img/{route}").status_code == 401
