"""The OpenAPI document is correct: its examples are answered, and every reply has a documented form
and status."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.serving.listening import address_of
from worldpm.options.serve import ServeOptions
from worldpm.serving.run import assemble
from worldpm.storage.json_files import Json

CASES_A_ROUTE = 150
"""Cases of each of two kinds: valid and invalid bodies."""
RULES = '{"rules": [{"queue": "a", "reward_at_least": 0}], "otherwise": "b"}'


@pytest.fixture(scope="module")
def client(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    rules = tmp_path_factory.mktemp("rules") / "rules.json"
    rules.write_text(RULES)
    application, _ = assemble(
        ServeOptions(model=str(road / "checkpoint"), rules=rules, calibration=road / "results")
    )
    with TestClient(application, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def schema(client: TestClient) -> Json:
    schema: Json = client.get("/openapi.json").json()
    return schema


def operations(schema: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_example_is_answered(client: TestClient, schema: Json) -> None:
    examples = {}
    for path, method, operation in operations(schema):
        if method == "post":
            text = str(operation["requestBody"])
            for name in re.findall(r"#/components/schemas/(\w+)", text):
                for example in schema["components"]["schemas"][name].get("examples", []):
                    examples[path, name] = client.post(path, json=example).status_code
    assert len(examples) >= 16
    assert set(examples.values()) == {200}


def test_every_route_describes_its_reply_its_errors_and_its_keys(schema: Json) -> None:
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "header"}
    for path, method, operation in operations(schema):
        assert operation["summary"], path
        assert operation["security"][-1] == {}, path
        if method == "post":
            statuses = operation["responses"].keys()
            assert {"200", "400", "401", "413", "422", "429", "500", "503"} <= statuses, path
            reply = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert reply, path


def test_the_document_of_a_server_with_keys_marks_the_routes_that_need_one(
    road: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    keys.touch(0o600)
    keys.write_text('{"ann": {"key": "s3cret"}}')
    application, _ = assemble(ServeOptions(model=str(road / "checkpoint"), keys=keys))
    with TestClient(application, base_url="http://127.0.0.1") as client:
        schema = client.get("/openapi.json").json()
    assert {} not in schema["paths"]["/v1/rewards"]["post"]["security"]
    assert schema["paths"]["/health"]["get"]["security"] == [{}]


CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
)


@pytest.mark.proof
def test_every_status_and_reply_is_documented(road: Path, tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schemathesis.checks.load_all_checks()
    checks = [schemathesis.checks.CHECKS.get_one(name) for name in CHECKS]
    rules = tmp_path / "rules.json"
    rules.write_text(RULES)

    tried: Counter[str] = Counter()
    with address_of(road, rules=rules) as (host, port):
        api = schemathesis.openapi.from_url(f"http://{host}:{port}/openapi.json")
        for result in api.get_all_operations():
            operation = result.ok()
            # bodies that match the document, and bodies that do not
            for mode in schemathesis.GenerationMode:

                @settings(
                    max_examples=CASES_A_ROUTE,
                    deadline=None,
                    database=None,
                    # the first case that fails is enough
                    phases=(Phase.explicit, Phase.generate),
                    suppress_health_check=list(HealthCheck),
                )
                @given(operation.as_strategy(generation_mode=mode))
                def try_case(case: Any) -> None:
                    reply = case.call(timeout=60)
                    tried[f"{case.method} {case.path} {reply.status_code}"] += 1
                    case.validate_response(reply, checks=checks)

                with contextlib.suppress(Unsatisfiable):
                    try_case()
    print(*sorted(tried.items()), sep="\n")
    assert sum(tried.values()) >= 3000
