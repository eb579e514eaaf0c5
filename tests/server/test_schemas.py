"""The description of the API: complete, with examples, and no request leads to status 500."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode


def test_openapi_describes_every_route_with_a_sentence(server):
    described = server.visitor.get("/openapi.json").json()
    for path in ("/img/search", "/knn-service", "/api/v1/collections/{name}/search", "/readyz"):
        assert path in described["paths"]
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            assert about.get("description"), f"{method} {path}"
    assert described["components"]["schemas"]["SearchRequest"]["examples"]


# Only what a fuzzed request can reach: loads outside the roots, and collections of its own.
@pytest.mark.parametrize(
    "examples", [pytest.param(3, id="quick"), pytest.param(200, id="soak", marks=pytest.mark.soak)]
)
def test_no_request_leads_to_status_500(start, collection, stored, examples):
    running = start(collection=collection)
    token = running.admin.headers["authorization"]
    schema = schemathesis.openapi.from_url(
        f"{running.url}/openapi.json", headers={"Authorization": token}
    )
    failures = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/events"):
            continue

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=examples < 10,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
        def fuzz(case, operation=operation):
            answer = case.call(headers={"Authorization": token}, timeout=60)
            if answer.status_code >= 500 and answer.status_code != 503:
                failures.append((operation.label, answer.status_code, case.as_curl_command()))

        fuzz()
    assert not failures
