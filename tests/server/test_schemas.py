"""The description of the API: complete, with examples, and no request leads to status 500."""

from __future__ import annotations

from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode


def test_openapi_describes_every_route_with_a_sentence(server):
    described = server.visitor.get("/openapi.json").json()
    for path in ("/img/search", "/knn-service", "/api/v1/collections/{name}/search", "/readyz"):
        assert path in described["paths"]
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            assert about.get("description"), f"{method} {path}"
    assert described["components"]["schemas"]["SearchRequest"]["examples"]
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert described["security"] == [{"token": []}]


def rounds(quick: int, long: int):
    """Give a test so many examples, and more in `make soak`."""
    soak = pytest.param(long, id="soak", marks=pytest.mark.soak)
    return pytest.mark.parametrize("examples", [pytest.param(quick, id="quick"), soak])


def aim(case, ids: list[int]) -> None:
    """Let a request that only reads name a collection and images that exist, most of the time."""

    def one(given: object) -> object:
        return ids[given % len(ids)] if isinstance(given, int) and given % 5 else given

    reads = case.method == "GET" or case.path.endswith("/search")
    if not reads or not isinstance(case.path_parameters.get("name"), str):
        return
    case.path_parameters["name"] = "served"
    if "image_id" in case.path_parameters:
        case.path_parameters["image_id"] = one(case.path_parameters["image_id"])
    if isinstance(case.body, dict):
        for name, value in case.body.items():
            if name == "image_id":
                case.body[name] = one(value)
            elif name in ("like", "unlike", "exclude") and isinstance(value, list):
                case.body[name] = list(map(one, value))


@pytest.mark.parametrize(
    "examples",
    [pytest.param(20, id="quick"), pytest.param(2000, id="soak", marks=pytest.mark.soak)],
)
def test_every_search_among_stored_images_is_answered(server, examples):
    items = server.admin.get("/api/v1/collections/served/images").json()["items"]
    ids = [item["image_id"] for item in items]
    some = st.lists(st.sampled_from(ids), max_size=4)
    parts = {
        "image_id": st.sampled_from(ids),
        "like": some,
        "unlike": some,
        "exclude": some,
        "box": st.sampled_from([[0, 0, 32, 24], [8, 8, 16, 16]]),
        "where": st.sampled_from([{"label": "even"}, {"width": {">=": 1}}, {"format": "GIF"}]),
        "limit": st.integers(1, 200),
        "offset": st.integers(0, 30),
    }

    @settings(max_examples=examples, database=None, derandomize=examples < 100)
    @given(st.fixed_dictionaries({}, optional=parts))
    def search(body):
        answer = server.admin.post("/api/v1/collections/served/search", json=body)
        whole = "image_id" in body or body.get("like")
        if not whole or ("box" in body and "image_id" not in body):
            assert answer.status_code == 400
        elif answer.status_code == 400:  # the sum of the parts is next to nothing
            assert "cancel each other out" in answer.json()["detail"]
        else:
            assert answer.status_code == 200
            left_out = {*body.get("like", []), *body.get("unlike", []), *body.get("exclude", [])}
            hits = answer.json()["hits"]
            assert not left_out & {hit["image_id"] for hit in hits}
            assert [hit["score"] for hit in hits] == sorted(
                (h["score"] for h in hits), reverse=True
            )

    search()


def fuzz(operation, mode: GenerationMode, examples: int, token: str, ids: list[int]) -> set[tuple]:
    """Send requests that fit the description, or do not; return the unexpected errors."""
    found = set()

    @settings(
        max_examples=examples,
        database=None,
        derandomize=examples < 10,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def send(case):
        aim(case, ids)
        answer = case.call(headers={"Authorization": token}, timeout=60)
        if answer.status_code >= 500:
            found.add((operation.label, answer.status_code, case.as_curl_command()[:500]))

    with suppress(Unsatisfiable):  # a request without parameters is never wrong
        send()
    return found


@rounds(2, 500)
def test_no_request_leads_to_status_500(start, collection, examples):
    running = start(collection=collection)
    token = running.admin.headers["authorization"]
    schema = schemathesis.openapi.from_url(
        f"{running.url}/openapi.json", headers={"Authorization": token}
    )
    items = running.admin.get("/api/v1/collections/served/images").json()["items"]
    ids = [int(item["image_id"]) for item in items]
    found = set()
    for result in schema.get_all_operations():
        for mode in GenerationMode:
            found |= fuzz(result.ok(), mode, examples, token, ids)
    assert not found
