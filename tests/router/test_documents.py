"""The OpenAPI documents that the router serves, and what schemathesis finds when it asks whatever they allow.

An engine that always answers stands behind the router: then nothing that a client sends may be answered with 5xx, and every
answer is one that the document tells of.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from tests.router.conftest import MODEL, Running, StartEngine, StartRouter
from tests.router.engines import answering

EXAMPLES = {"nightly": 300, "quick": 5}.get(os.environ["HYPOTHESIS_PROFILE"], 10)
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


@pytest.fixture
async def router(start_router: StartRouter, start_engine: StartEngine) -> Running:
    engine = await start_engine(script=answering(200, {"choices": []}))
    return await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])


def ask_everything(base: str, examples: int, **fixed: Any) -> int:
    """Hypothesis asks each operation of the document at `base`, with `fixed` those that take a body; how many they are."""
    schema = schemathesis.openapi.from_url(base + "/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations()]
    if fixed:
        operations = [one for one in operations if one.method == "post"]
    for operation in operations:

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def asked(case: Case) -> None:
            if isinstance(case.body, dict) and "model" in case.body and fixed:
                case.body = {**case.body, **fixed}
            case.call_and_validate(checks=CHECKS)

        asked()
    return len(operations)


async def test_clients_documents_are_true(router: Running) -> None:
    assert await asyncio.to_thread(ask_everything, router.base, EXAMPLES) == 6
    # Most random names are no model: ask again with one that is.
    assert await asyncio.to_thread(ask_everything, router.base, EXAMPLES, model=MODEL) == 2
    assert (await router.chat())[0] == 200


async def test_the_planners_documents_are_true(router: Running) -> None:
    assert await asyncio.to_thread(ask_everything, router.admin, EXAMPLES) == 6
    assert (await router.state())["pools"][0]["name"] == "a"


async def test_documents_name_what_they_protect(start_router: StartRouter) -> None:
    key = {"name": "me", "sha256": "0" * 64}
    router = await start_router([{"name": "a", "role": "agg"}], keys=[key])
    async with router.session.get(router.base + "/openapi.json") as answer:
        document = await answer.json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/health"]["get"]["security"] == []


@pytest.mark.parametrize("version", [2**53, 10**30])
async def test_a_version_beyond_counting_is_refused(router: Running, version: int) -> None:
    """Found by asking everything: it was taken, could not be told in the answer, and no later version came after it."""
    message = {"version": version, "groups": []}
    async with router.session.put(router.admin + "/admin/admission", json=message) as answer:
        assert answer.status == 400
