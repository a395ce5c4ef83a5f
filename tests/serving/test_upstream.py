"""Our server in front of vLLM. The replies are those of a real vLLM; see `vllm_recording`."""

import base64
import json
import logging
import math
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import PreTrainedConfig

from tests.serving.vllm_recording import (
    ANSWERS,
    CASES,
    DIRECT,
    FOLDER,
    LOCAL,
    QUESTION,
    RECORDING,
    key_of,
    playing,
    serving,
)
from worldpm.errors import ConfigError
from worldpm.model import checkpoint
from worldpm.options.serve import ServeOptions
from worldpm.serving import decision_files, upstream
from worldpm.serving.run import assemble
from worldpm.storage.json_files import Json

VARYING = ("id", "created", "model", "reply")
BODY: Json = {"prompt": QUESTION, "responses": ANSWERS}


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[object]]:
    """The recorded replies."""
    content: dict[str, list[object]] = json.loads(RECORDING.read_text())
    return content


@pytest.fixture(scope="module")
def local() -> Iterator[TestClient]:
    """A server that computes rewards itself."""
    application, _ = assemble(ServeOptions(model=str(FOLDER)))
    with TestClient(application, base_url=LOCAL) as client:
        yield client


def front_of(*urls: str, **options: Any) -> TestClient:
    application, _ = assemble(ServeOptions(model=str(FOLDER), upstream=urls, **options))
    return TestClient(application, base_url=LOCAL, raise_server_exceptions=False)


def numbers_and_rest(content: object) -> tuple[list[float], object]:
    """The fractions of a reply, and everything else."""
    numbers: list[float] = []

    def rest(value: object) -> object:
        if isinstance(value, dict):
            return {key: rest(part) for key, part in value.items() if key not in VARYING}
        if isinstance(value, list):
            return list(map(rest, value))
        if isinstance(value, float):
            numbers.append(value)
            return "number"
        return value

    remaining = rest(content)
    return numbers, remaining


@pytest.mark.parametrize("case", range(len(CASES)), ids=[route for route, _ in CASES])
def test_a_server_in_front_of_vllm_is_the_same_server_with_one_call_a_request(
    case: int, recorded: dict[str, list[object]], local: TestClient
) -> None:
    route, body = CASES[case]
    calls: list[str] = []
    with serving(playing(recorded, calls)) as url, front_of(url) as front:
        before = sum(call.startswith("POST") for call in calls)
        got = front.post(route, json=body)
        assert sum(call.startswith("POST") for call in calls) - before <= 1

    expected = local.post(route, json=body)
    assert (got.status_code, expected.status_code) == (200, 200)
    if "base64" in body.values():
        return
    numbers, rest = numbers_and_rest(got.json())
    expected_numbers, expected_rest = numbers_and_rest(expected.json())
    assert numbers == pytest.approx(expected_numbers, abs=1e-4)
    assert rest == expected_rest


@pytest.mark.parametrize("case", range(len(DIRECT)), ids=[route for route, _ in DIRECT])
def test_our_routes_give_by_default_what_vllm_gives_for_the_exported_folder(
    case: int, recorded: dict[str, list[object]], local: TestClient
) -> None:
    route, body = DIRECT[case]
    status, text = recorded[key_of(route, body)]
    got = local.post(route, json=body)
    assert got.status_code == status, got.text
    # an unknown option gets our own message
    if status != 200:
        return

    numbers, rest = numbers_and_rest(got.json())
    expected_numbers, expected_rest = numbers_and_rest(json.loads(str(text)))
    assert numbers == pytest.approx(expected_numbers, abs=1e-4)
    if "base64" in body.values():
        (got_number,), (expected_number,) = (
            struct.unpack("<f", base64.b64decode(content["data"][0]["data"]))
            for content in (got.json(), json.loads(str(text)))
        )
        assert got_number == pytest.approx(expected_number, abs=1e-4)
    else:
        assert rest == expected_rest


@pytest.mark.parametrize(
    ("route", "more"),
    [
        ("/classify", {"truncation_side": "left"}),
        ("/classify", {"chat_template": "x"}),
        ("/classify", {"chat_template_kwargs": {"a": 1}}),
        ("/classify", {"use_activation": True, "activation": False}),
        ("/classify", {"add_special_tokens": False}),
        ("/pooling", {"encoding_format": "bytes"}),
        ("/pooling", {"encoding_format": "base64", "embed_dtype": "float16"}),
        ("/score", {"max_tokens_per_query": 5}),
        ("/rerank", {"documents": ["one two three four five"], "max_tokens_per_doc": 3}),
        ("/rerank", {"instruction": "x"}),
    ],
)
def test_options_that_would_change_rewards_are_refused(
    route: str, more: Json, local: TestClient
) -> None:
    bodies: dict[str, Json] = {
        "/score": {"queries": "a", "documents": ["b"]},
        "/rerank": {"query": "a", "documents": ["b"]},
    }
    body = bodies.get(route, {"input": "a"})
    assert local.post(route, json=body).status_code == 200
    assert local.post(route, json={**body, **more}).status_code == 400


def test_a_model_without_a_problem_type_gets_a_sigmoid_unless_the_request_wants_none(
    local: TestClient,
) -> None:
    raw = local.post("/classify", json={"input": "a"}).json()["data"][0]["probs"][0]
    sigmoid = 1 / (1 + math.exp(-raw))

    application, service = assemble(ServeOptions(model=str(FOLDER)))
    assert service.identity.activation == "identity"
    service.identity = replace(service.identity, activation="sigmoid")
    with TestClient(application, base_url=LOCAL) as client:
        for more, value in (
            ({}, sigmoid),
            ({"use_activation": True}, sigmoid),
            ({"activation": False}, raw),
            ({"softmax": False}, raw),
        ):
            reply = client.post("/classify", json={"input": "a", **more}).json()
            assert reply["data"][0]["probs"] == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "activation"),
    [
        ({"problem_type": "regression"}, "identity"),
        ({"problem_type": "single_label_classification"}, "sigmoid"),
        ({}, "sigmoid"),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            "identity",
        ),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            "sigmoid",
        ),
    ],
)
def test_the_activation_is_that_of_vllm_for_the_config(settings: Json, activation: str) -> None:
    assert checkpoint.activation_of(PreTrainedConfig(**settings)) == activation


def test_the_routes_of_hugging_faces_clients(local: TestClient) -> None:
    pair = {"inputs": [QUESTION, ANSWERS[0]]}
    raw = local.post("/predict", json={**pair, "raw_scores": True}).json()
    none = {**pair, "parameters": {"function_to_apply": "none"}}
    assert local.post("/", json=none).json() == [raw]
    assert local.post("/", json=pair).json() == [local.post("/predict", json=pair).json()]
    softmax = {**pair, "parameters": {"function_to_apply": "softmax"}}
    assert local.post("/", json=softmax).status_code == 422

    (row,) = local.post("/tokenize", json={"inputs": "hello you"}).json()
    assert "".join("hello you"[token["start"] : token["stop"]] for token in row) == "hello you"
    (special,) = local.post("/tokenize", json={"inputs": "<|im_end|>"}).json()[0]
    assert (special["special"], special["start"]) == (True, None)
    ids = [token["id"] for token in row]
    assert local.post("/decode", json={"ids": ids}).json() == ["hello you"]
    both = local.post("/decode", json={"ids": [ids, [2]], "skip_special_tokens": False})
    assert both.json() == ["hello you", "<|im_end|>"]
    assert local.post("/decode", json={"ids": [10**6]}).status_code == 422
    assert local.post("/tokenize", json={"inputs": []}).json() == []
    assert local.post("/predict", json={**pair, "truncation_direction": "Left"}).status_code == 422


def test_rewards_at_the_root_need_a_key_but_the_page_does_not(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"ann": {"key": "s3cret"}}')
    keys.chmod(0o600)
    application, _ = assemble(ServeOptions(model=str(FOLDER), keys=keys))
    with TestClient(application, base_url=LOCAL) as client:
        assert client.get("/").status_code == 200
        assert client.post("/", json={"inputs": "a"}).status_code == 401
        with_key = {"Authorization": "Bearer s3cret"}
        assert client.post("/", json={"inputs": "a"}, headers=with_key).status_code == 200


def test_small_routes_and_any_model_name(local: TestClient) -> None:
    assert local.get("/load").json() == {"server_load": 0}
    first, second = (
        local.post(route, json={"input": "a"}).json()["data"]
        for route in ("/classify", "/v1/classify")
    )
    assert first == second
    body = {"model": "rerank-v3.5", "query": "a", "documents": ["b"]}
    assert local.post("/rerank", json=body).status_code == 404
    application, _ = assemble(ServeOptions(model=str(FOLDER), any_model_name=True))
    with TestClient(application, base_url=LOCAL) as client:
        assert client.post("/rerank", json=body).status_code == 200


def test_limits_and_tokens_are_checked_without_a_call(recorded: dict[str, list[object]]) -> None:
    calls: list[str] = []
    with serving(playing(recorded, calls)) as url, front_of(url) as front:
        before = len([call for call in calls if call.startswith("POST")])
        long = front.post("/v1/rewards", json={"prompt": "why " * 900, "responses": ["b"]})
        unknown = front.post("/classify", json={"input": [10**9]})
        explained = front.post("/v1/explain", json=BODY)
        assert (long.status_code, unknown.status_code, explained.status_code) == (422, 400, 501)
        assert len([call for call in calls if call.startswith("POST")]) == before


def test_a_server_that_fails_is_replaced_by_another_and_then_reported(
    recorded: dict[str, list[object]], tmp_path: Path
) -> None:
    log = tmp_path / "log.sqlite"
    good: list[str] = []
    bad: list[str] = []
    with (
        serving(playing(recorded, good)) as url,
        serving(playing(recorded, bad, failing=500)) as failing,
    ):
        application, service = assemble(
            ServeOptions(model=str(FOLDER), upstream=(failing, url), log=log)
        )
        with TestClient(application, base_url=LOCAL) as front:
            for _ in range(4):
                assert front.post("/v1/rewards", json=BODY).status_code == 200
            assert service.is_ready
    assert service.decisions is not None
    service.decisions.close()
    assert decision_files.verify(log).decisions == 4
    assert sum("/classify" in call for call in good) == 5

    with serving(playing(recorded, [])) as url, front_of(url) as front:
        assert front.get("/ready").status_code == 200
        with serving(playing(recorded, [], failing=429)) as busy:
            full = front_of(busy)
            with full:
                reply = full.post("/v1/rewards", json=BODY)
                assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    with serving(playing(recorded, [], failing=500)) as failing, front_of(failing) as front:
        reply = front.post("/v1/rewards", json=BODY)
        assert (reply.status_code, "retry-after" in reply.headers) == (503, True)
        assert "answered 500" in reply.text
        # the load balancer learns it too
        assert front.get("/ready").status_code == 503


def test_upstream_servers_are_checked_at_the_start(
    recorded: dict[str, list[object]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    with pytest.raises(ConfigError, match="no vLLM answers"):
        front_of("http://127.0.0.1:9")

    def changed(old: str, new: str) -> dict[str, list[object]]:
        return {call: [status, str(reply).replace(old, new)] for call, (status, reply) in others}

    others = [(call, (row[0], row[1])) for call, row in recorded.items()]
    with serving(playing(changed('"max_model_len":512', '"max_model_len":100'), [])) as short:
        with pytest.raises(ConfigError, match="takes 100 tokens, but the checkpoint 512"):
            front_of(short)
        with front_of(short, max_length=100) as front:
            assert front.get("/v1/models").json()["data"][0]["max_model_len"] == 100

    with (
        serving(playing(recorded, [])) as url,
        serving(playing(changed('"probs":[-', '"probs":[-7'), [])) as other,
        pytest.raises(ConfigError, match="Serve the same model at all URLs"),
    ):
        front_of(url, other)

    with pytest.raises(ConfigError, match="--row-tokens cannot be used with --upstream"):
        ServeOptions(model=str(FOLDER), upstream=("http://127.0.0.1:1",), row_tokens=7)
    with pytest.raises(ConfigError, match="--upstream-key needs --upstream"):
        ServeOptions(model=str(FOLDER), upstream_key=tmp_path / "key")


def test_a_server_that_never_answers_is_left_for_another(
    recorded: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "SECONDS_BETWEEN_CHECKS", 0.1)
    monkeypatch.setattr(upstream, "CHECK_SECONDS", 0.3)
    hangs: list[bool] = []

    class Hanging(playing(recorded, [])):  # type: ignore[misc]
        def answer(self, body: str) -> None:
            if hangs:
                time.sleep(3)
            super().answer(body)

    with (
        serving(Hanging) as hung,
        serving(playing(recorded, [])) as good,
        front_of(hung, good) as front,
    ):
        hangs.append(True)
        started = time.monotonic()
        for _ in range(2):
            assert front.post("/v1/rewards", json=BODY).status_code == 200
        assert time.monotonic() - started < 2.5


def test_large_requests_are_refused_before_they_are_sent(
    recorded: dict[str, list[object]],
) -> None:
    with serving(playing(recorded, [])) as url:
        application, service = assemble(ServeOptions(model=str(FOLDER), upstream=(url,)))
        engine: Any = service.backend.engine
        engine.most_tokens = 100
        with TestClient(application, base_url=LOCAL) as front:
            reply = front.post("/v1/rewards", json=BODY)
    assert (reply.status_code, "with its prompt for each response" in reply.text) == (422, True)


def test_full_servers_are_asked_again_with_queue_wait(recorded: dict[str, list[object]]) -> None:
    calls: list[str] = []

    class BusyOnce(playing(recorded, calls)):  # type: ignore[misc]
        def answer(self, body: str) -> None:
            # the first call is the probe
            if sum("/classify" in call for call in calls) == 1 and "/classify" in self.path:
                calls.append("POST /classify busy")
                self.send_response(429)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            super().answer(body)

    with serving(BusyOnce) as url, front_of(url, queue_wait=5.0) as front:
        assert front.post("/v1/rewards", json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://ann:s3cret@127.0.0.1:9", "holds a password"),
        ("http://host:port", "not a URL"),
        ("ftp://host", "not a URL of HTTP"),
        ("127.0.0.1:8000", "not a URL"),
    ],
)
def test_wrong_addresses_are_refused_without_their_passwords(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        front_of(url)
    assert "s3cret" not in str(caught.value)


def test_a_key_of_two_lines_is_refused_and_not_shown(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("abc-s3cret\nsecond")
    key.chmod(0o600)
    with pytest.raises(ConfigError, match="characters that a header cannot contain") as caught:
        front_of("http://127.0.0.1:9", upstream_key=key)
    assert "s3cret" not in str(caught.value)


def test_the_key_of_an_upstream_server_is_sent(
    recorded: dict[str, list[object]], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    key.chmod(0o600)
    calls: list[str] = []
    player = playing(recorded, calls)
    seen: list[str | None] = []

    class Keyed(player):  # type: ignore[misc, valid-type]
        def answer(self, body: str) -> None:
            seen.append(self.headers.get("Authorization"))
            super().answer(body)

    with serving(Keyed) as url, front_of(url, upstream_key=key) as front:
        assert front.post("/v1/rewards", json=BODY).status_code == 200
    assert set(seen) == {"Bearer s3cret"}
