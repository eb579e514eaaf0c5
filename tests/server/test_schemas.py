"""The description of the API: complete, with examples, and no request leads to status 500."""

from __future__ import annotations

from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
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


def fuzz(operation, mode: GenerationMode, examples: int, token: str) -> set[tuple]:
    """Send requests that fit the description, or do not; return the unexpected errors."""
    found = set()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 10,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def send(case):
        answer = case.call(headers={"Authorization": token}, timeout=60)
        if answer.status_code >= 500:
            found.add((operation.label, answer.status_code, case.as_curl_command()[:500]))

    with suppress(Unsatisfiable):  # a request without parameters is never wrong
        send()
    return found


@pytest.mark.parametrize(
    "examples", [pytest.param(2, id="quick"), pytest.param(200, id="soak", marks=pytest.mark.soak)]
)
def test_no_request_leads_to_status_500(start, collection, examples):
    running = start(collection=collection)
    token = running.admin.headers["authorization"]
    schema = schemathesis.openapi.from_url(
        f"{running.url}/openapi.json", headers={"Authorization": token}
    )
    found = set()
    for result in schema.get_all_operations():
        for mode in GenerationMode:
            found |= fuzz(result.ok(), mode, examples, token)
    assert not found
