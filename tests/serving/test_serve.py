"""The server: every client's route, limits before the model, the same rewards as offline, and no
lost decisions."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient

from tests import foreign_model
from tests.conftest import run
from tests.warm_start import Command, Streams, start
from worldpm import Scorer
from worldpm.errors import ConfigError, DataError
from worldpm.model import chat
from worldpm.options.serve import ServeOptions
from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.serving import decision_files
from worldpm.serving.backends import EXPLAINED_AT_ONCE, LocalBackend
from worldpm.serving.routing import RoutingRules
from worldpm.serving.run import assemble
from worldpm.storage.json_files import Json

PROMPT, ANSWERS = (
    "How long should I bake a loaf?",
    ["About 40 minutes at 220 C.", "This was asked before.", "Who knows?"],
)
LOCAL = "http://127.0.0.1"
RECORDED = Path(__file__).with_name("vllm_replies.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def server(road: Path, **options: Any) -> Iterator[TestClient]:
    """A client of the application within this process."""
    application, service = assemble(
        ServeOptions(model=str(road / "checkpoint"), name="tinyrm", **options)
    )
    with TestClient(application, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client

    if service.decisions is not None:
        service.decisions.close()


@pytest.fixture(scope="module")
def client(road: Path) -> Iterator[TestClient]:
    with server(road, calibration=road / "results") as calibrated:
        yield calibrated


@pytest.fixture(scope="module")
def scorer(road: Path) -> Scorer:
    return Scorer.load(road / "checkpoint")


def shape(value: object) -> object:
    """A reply without the values that differ between servers: computed numbers, ids, times."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if isinstance(value, str):
        # vLLM's ids have 15 or 16 digits
        return re.sub(r"^(\w+)-[0-9a-f]{15,16}$", r"\1-ID", value)
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value


def recorded() -> list[tuple[str, Json, int, Json]]:
    """Route, body, status and reply.

    A record has two lines: `--- /classify {"input": "x"}` and `200 {"id": ...}`.
    """
    lines = RECORDED.read_text(encoding="utf-8").splitlines()[1:]
    records = []
    for request_line, reply_line in zip(lines[::2], lines[1::2], strict=True):
        _, route, body = request_line.split(" ", 2)
        status, reply = reply_line.split(" ", 1)
        records.append((route, json.loads(body), int(status), json.loads(reply)))
    return records


@pytest.mark.parametrize(("route", "body", "status", "reply"), recorded())
def test_replies_have_the_shape_of_the_recorded_ones(
    client: TestClient, route: str, body: Json, status: int, reply: Json
) -> None:
    response = client.post(route, json=body)
    assert response.status_code == status

    content = response.json()
    if route == "/rerank":  # the model decides which document comes first
        reply["results"][0]["document"]["text"] = content["results"][0]["document"]["text"]
    assert shape(content) == shape(reply)
    assert response.text == json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def test_a_reward_is_the_same_on_every_route_and_offline(
    client: TestClient, scorer: Scorer
) -> None:
    offline = scorer.rewards(PROMPT, ANSWERS)
    for route, rewards in rewards_by_route(client, scorer).items():
        assert rewards == pytest.approx(offline[: len(rewards)], abs=1e-5), route


def rewards_by_route(client: TestClient, scorer: Scorer) -> dict[str, list[float]]:
    """Raw rewards of `ANSWERS`, or of the first of them."""
    conversations = chat.render(
        scorer.encoder.tokenizer, [Message("user", PROMPT)], ANSWERS, frame=scorer.encoder.frame
    )
    rendered = [conversation.text for conversation in conversations]
    ids = scorer.encoder.tokenizer(rendered[0])["input_ids"]
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    raw = {"use_activation": False}

    def post(route: str, body: Json) -> Any:
        return client.post(route, json=body).json()

    def data(route: str, body: Json) -> list[Json]:
        data: list[Json] = post(route, {**body, **raw})["data"]
        return data

    pairs = {"text_1": [PROMPT] * 3, "text_2": ANSWERS}
    pair = {"inputs": [PROMPT, ANSWERS[0]], "raw_scores": True}
    batch = {"inputs": [[text] for text in rendered], "raw_scores": True}
    return {
        "own": post("/v1/rewards", {"prompt": PROMPT, "responses": ANSWERS})["rewards"],
        "own, messages": post("/v1/rewards", {"messages": messages})["rewards"],
        "vllm classify": [item["probs"][0] for item in data("/classify", {"input": rendered})],
        "vllm classify, messages": [
            item["probs"][0] for item in data("/classify", {"messages": messages})
        ],
        "vllm pooling": [item["data"][0] for item in data("/pooling", {"input": rendered})],
        "vllm score": [
            item["score"] for item in data("/v1/score", {"queries": PROMPT, "documents": ANSWERS})
        ],
        "vllm score, N to N": [item["score"] for item in data("/score", pairs)],
        "sglang": [item["embedding"][0] for item in post("/classify", {"text": rendered})],
        "sglang, ids": [post("/classify", {"input_ids": ids})["embedding"][0]],
        "sglang embeddings": [
            item["embedding"][0] for item in data("/v1/embeddings", {"input": rendered})
        ],
        "tei": [post("/predict", pair)[0]["score"]],
        "tei, batch": [labels[0]["score"] for labels in post("/predict", batch)],
        "openrlhf": post("/get_reward", {"query": rendered, "prompts": [PROMPT] * 3})["rewards"],
    }


def test_parts_of_a_message_become_lines_and_parts_other_than_text_are_rejected(
    client: TestClient,
) -> None:
    def post(*parts: Json) -> Any:
        messages = [
            {"role": "user", "content": list(parts)},
            {"role": "assistant", "content": ANSWERS[0]},
        ]
        return client.post("/classify", json={"messages": messages, "use_activation": False})

    lines = post(
        {"type": "text", "text": "How long?"}, {"type": "text", "text": "At what heat?"}
    ).json()["data"]
    assert lines == post({"type": "text", "text": "How long?\nAt what heat?"}).json()["data"]

    image = post({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}})
    assert image.status_code == 400
    assert "messages.0.content" in image.text


def test_rerank_serves_four_clients(client: TestClient, scorer: Scorer) -> None:
    offline = scorer.rewards(PROMPT, ANSWERS)
    order = sorted(range(3), key=lambda index: -offline[index])
    body = {"model": "tinyrm", "query": PROMPT, "documents": ANSWERS, "return_documents": False}
    for route in ("/rerank", "/v1/rerank", "/v2/rerank"):  # vLLM, Jina, Cohere
        results = client.post(route, json=body).json()["results"]
        assert [result["index"] for result in results] == order
        scores = [result["relevance_score"] for result in results]
        assert scores == pytest.approx(sorted(offline, reverse=True), abs=1e-5)
        assert not any("document" in result for result in results)

    tei_body = {"query": PROMPT, "texts": ANSWERS, "raw_scores": True, "return_text": True}
    ranks = client.post("/rerank", json=tei_body).json()
    assert [rank["index"] for rank in ranks] == order
    assert [rank["text"] for rank in ranks] == [ANSWERS[index] for index in order]
    assert [rank["score"] for rank in ranks] == pytest.approx(
        sorted(offline, reverse=True), abs=1e-5
    )


def test_errors_have_the_format_of_the_client(client: TestClient) -> None:
    tei_body = {"query": PROMPT, "texts": ["b"] * 300}
    tei_errors = [
        client.post("/predict", json={"inputs": 5}),
        client.post("/rerank", json=tei_body),
    ]
    openai_errors = [
        client.post("/rerank", json={"query": PROMPT, "documents": ["b"] * 300}),
        client.post("/v1/rewards", json={"prompt": 5}),
        client.get("/nowhere"),
    ]
    assert [list(error.json()) for error in tei_errors] == [["error", "error_type"]] * 2
    assert [list(error.json()["error"]) for error in openai_errors] == [
        ["message", "type", "param", "code"]
    ] * 3
    assert [error.status_code for error in (*tei_errors, *openai_errors)] == [
        *(422, 422),
        *(422, 422, 404),
    ]


@pytest.mark.parametrize(
    ("route", "keys"),
    [
        ("/classify", ["body.input", "body.messages"]),
        ("/rerank", ["body.query", "body.documents", "body.query"]),
        ("/tokenize", ["body.Tokenize.prompt", "body.TokenizeMessages.messages"]),
        ("/predict", ["body.inputs"]),
    ],
)
def test_an_empty_body_gets_errors_of_the_formats_of_its_route(
    client: TestClient, route: str, keys: list[str]
) -> None:
    body = client.post(route, json={}).json()
    message = body["error"] if isinstance(body["error"], str) else body["error"]["message"]
    assert re.findall(r"'loc': '([^']*)'", message)[: len(keys)] == keys


def test_the_reply_of_our_route_is_complete_and_consistent(client: TestClient) -> None:
    reply = client.post(
        "/v1/rewards", json={"prompt": PROMPT, "responses": [*ANSWERS, ANSWERS[0]]}
    ).json()

    rewards, p = reply["rewards"], reply["probabilities"]
    assert rewards[0] == rewards[3]  # a tie to the last bit
    assert p[0][3] == 0.5
    assert all(p[i][j] + p[j][i] == pytest.approx(1) for i in range(4) for j in range(4))
    assert sorted(reply["ranking"], key=lambda i: -rewards[i]) == reply["ranking"]
    assert reply["confidence"]["temperature"] > 0
    # the prompt is computed once
    assert reply["usage"]["computed_tokens"] < sum(reply["usage"]["sequence_tokens"])

    empty = client.post("/v1/rewards", json={"prompt": PROMPT, "responses": []}).json()
    assert empty["rewards"] == []


def test_settings_move_odds_and_order_but_never_rewards(client: TestClient) -> None:
    body = {"prompt": PROMPT, "responses": ANSWERS}
    plain = client.post("/v1/rewards", json=body).json()
    lengths = plain["usage"]["response_tokens"]
    settings = {"weights": {"length": -50}, "ranges": {"length": [0, max(lengths) - 1]}}

    reply = client.post("/v1/rewards", json={**body, "settings": settings}).json()
    assert reply["rewards"] == pytest.approx(plain["rewards"], abs=1e-6)
    assert reply["probabilities"] == plain["probabilities"]
    longest = lengths.index(max(lengths))
    assert reply["ranking"][-1] == longest
    assert f"length is {max(lengths)}" in reply["style"]["outside"][longest][0]
    term = reply["style"]["terms"]["length"]
    a, b = lengths[0], lengths[1]
    assert term[0][1] == pytest.approx(-50 * (a - b) / (a + b))


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/v1/rewards", {"prompt": "a"}, 422, "either prompt and responses, or messages"),
        (
            "/v1/rewards",
            {"prompt": "a", "responses": ["b"], "messages": []},
            422,
            "at least 2 items",
        ),
        ("/v1/rewards", {"prompt": [], "responses": ["b"]}, 422, "at least 1 item"),
        ("/v1/rewards", {"prompt": "a", "responses": ["b"], "respones": []}, 422, "Extra inputs"),
        (
            "/v1/rewards",
            {"prompt": "a", "responses": ["b"], "settings": {"strictness": 1}},
            422,
            "less than 1",
        ),
        ("/v1/rewards", {"prompt": "\ud800", "responses": ["b"]}, 422, "surrogate"),
        (
            "/v1/rewards",
            {"prompt": "a " * 50_000, "responses": ["b"]},
            422,
            "tokens of prompt and response, but at most",
        ),
        (
            "/v1/rewards",
            {"prompt": "a", "responses": ["b"] * 300},
            422,
            "300 inputs. Send at most 256",
        ),
        (
            "/v1/rewards",
            {"model": "other", "prompt": "a", "responses": ["b"]},
            404,
            "does not exist",
        ),
        ("/classify", {"input": "a " * 50_000}, 400, "tokens, but at most"),
        ("/classify", {"input": [10**6]}, 400, "ids outside"),
        ("/classify", {"input": []}, 400, "at least one prompt"),
        ("/classify", {"input": ""}, 400, "cannot be empty"),
        ("/score", {"queries": "a", "documents": []}, 400, "At least one text_pair"),
        ("/rerank", {"query": "a", "documents": []}, 400, "At least one text_pair"),
        (
            "/classify",
            {"messages": [{"role": "user", "content": "a"}]},
            400,
            "must be the assistant's",
        ),
        ("/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, 400, "1:1, 1:N or N:N"),
        ("/pooling", {"input": "a", "task": "embed"}, 400, "Unsupported task"),
        ("/predict", {"inputs": [["a"], ["a", "b"]]}, 422, "one kind"),
        ("/v1/route", {"prompt": "a", "responses": ["b"]}, 404, "--rules"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_wrong_requests_are_rejected_before_the_model_reads_them(
    client: TestClient, route: str, body: Json, status: int, message: str
) -> None:
    # `json=` would not send an unpaired surrogate
    reply = client.post(
        route, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert reply.status_code == status
    assert message in reply.text


def test_broken_bodies_are_rejected(client: TestClient, road: Path) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 500_000, b'{"a":' * 200_000):
        reply = client.post(
            "/v1/rewards", content=body, headers={"content-type": "application/json"}
        )
        assert reply.status_code in (400, 422), body[:10]

    with server(road, max_body_mib=0.001) as small:
        reply = small.post("/v1/rewards", json={"prompt": "a" * 2000, "responses": ["b"]})
        assert reply.status_code == 413
        chunks = iter([b"a" * 600] * 3)  # without a declared length
        assert small.post("/v1/rewards", content=chunks).status_code == 413
    assert client.get("/health").status_code == 200


def test_long_inputs_are_cut_on_request(client: TestClient) -> None:
    body = {"prompt": "a " * 5000, "responses": ["b"], "cut": True}
    assert client.post("/v1/rewards", json=body).json()["truncated"] == [True]

    vllm_body = {"input": "a " * 5000, "truncate_prompt_tokens": -1}
    assert client.post("/classify", json=vllm_body).status_code == 200


def test_vllm_cuts_to_a_number_of_tokens(client: TestClient, scorer: Scorer) -> None:
    def post(body: Json, cut_to: int) -> Any:
        return client.post(
            "/classify", json={**body, "use_activation": False, "truncate_prompt_tokens": cut_to}
        )

    tokenizer = scorer.encoder.tokenizer
    ids = tokenizer("a b c d " * 20 + tokenizer.eos_token)["input_ids"]
    end_reply = post({"input": ids[-24:]}, 24).json()
    cut_reply = post({"input": ids}, 24).json()
    assert cut_reply["data"] == end_reply["data"]
    assert cut_reply["usage"]["prompt_tokens"] == 24

    messages = [{"role": "user", "content": "a " * 100}, {"role": "assistant", "content": "b"}]
    cut = post({"messages": messages}, 24).json()
    assert cut["usage"]["prompt_tokens"] <= 24
    assert cut["data"][0]["probs"] == pytest.approx(
        scorer.cutting(24).rewards("a " * 100, ["b"]), abs=1e-5
    )

    for tokens, message in (
        (10**6, "greater than max_model_len"),
        (0, "truncate_prompt_tokens"),
        (-2, "truncate_prompt_tokens"),
    ):
        rejected = post({"messages": messages}, tokens)
        assert rejected.status_code == 400
        assert message in rejected.text


def test_a_deadline_that_passed_is_503_and_not_computed(client: TestClient) -> None:
    body = {"prompt": PROMPT, "responses": ANSWERS}
    late = client.post("/v1/rewards", json=body, headers={"X-Timeout-Seconds": "0.000001"})
    assert late.status_code == 503
    assert late.headers["retry-after"] == "1"

    wrong = client.post("/v1/rewards", json=body, headers={"X-Timeout-Seconds": "soon"})
    assert wrong.status_code == 422


def test_a_deadline_holds_while_other_requests_are_read_and_explained(road: Path) -> None:
    application, service = assemble(ServeOptions(model=str(road / "checkpoint")))
    backend = service.backend
    assert isinstance(backend, LocalBackend)
    body = {"prompt": "a", "responses": ["b"]}
    soon = {"x-timeout-seconds": "0.2"}

    with TestClient(application, base_url=LOCAL, raise_server_exceptions=False) as client:
        read, explained = threading.Event(), threading.Event()
        backend._reader.submit(read.wait)  # another request's text, which takes long
        started = time.monotonic()
        late = [client.post("/v1/rewards", json=body, headers=soon)]
        late.append(client.post("/tokenize", json={"prompt": "a"}, headers=soon))
        read.set()

        for _ in range(EXPLAINED_AT_ONCE):
            backend._explainers.submit(explained.wait)  # other requests' explanations
        late.append(client.post("/v1/explain", json=body, headers=soon))
        explained.set()

        assert [reply.status_code for reply in late] == [503, 503, 503]
        assert time.monotonic() - started < 5
        assert client.post("/v1/rewards", json=body).status_code == 200


def test_only_a_style_model_gives_probabilities_at_equal_style(
    road: Path, client: TestClient
) -> None:
    body = {"prompt": PROMPT, "responses": ANSWERS}
    assert client.post("/v1/rewards", json=body).json()["style"]["at_equal_style"] is not None
    with server(road) as uncalibrated:
        style = uncalibrated.post("/v1/rewards", json=body).json()["style"]
    assert style["at_equal_style"] is None


def test_a_reward_that_is_not_finite_is_500_and_not_logged(road: Path, tmp_path: Path) -> None:
    application, service = assemble(
        ServeOptions(model=str(road / "checkpoint"), log=tmp_path / "log.sqlite")
    )
    assert isinstance(service.backend, LocalBackend)
    service.backend.scorer.model.score.weight.data.fill_(torch.nan)  # type: ignore[operator]

    with TestClient(application, base_url=LOCAL, raise_server_exceptions=False) as client:
        reply = client.post("/v1/rewards", json={"prompt": PROMPT, "responses": ANSWERS})
    assert reply.status_code == 500
    assert "the reward of response 0 is nan" in reply.json()["error"]["message"]
    assert service.decisions is not None
    assert len(service.decisions) == 0
    service.decisions.close()


def test_keys_are_required_and_set_their_settings(road: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.touch(0o600)
    keys.write_text(
        json.dumps(
            {"ann": {"key": "s3cret", "settings": {"strictness": 0.7}}, "bob": {"key": "other"}}
        )
    )
    body = {"prompt": PROMPT, "responses": ANSWERS}
    with server(road, keys=keys, log=tmp_path / "log.sqlite") as client:

        def post(**headers: str) -> Any:
            return client.post("/v1/rewards", json=body, headers=headers)

        assert post().status_code == 401
        assert post(Authorization="Bearer wrong").status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200
        types = {
            path: client.get(path).headers["content-type"].split(";")[0]
            for path in ("/", "/page/page.js", "/page/page.css")
        }
        assert list(types.values()) == ["text/html", "text/javascript", "text/css"]
        ann = post(Authorization="Bearer s3cret").json()
        bob = post(**{"X-Api-Key": "other"}).json()

    assert (ann["confidence"]["level"], bob["confidence"]["level"]) == (0.7, 0.9)
    rows = list(decision_files.rows(tmp_path / "log.sqlite"))
    assert [row.key for row in rows] == ["ann", "bob"]
    assert rows[0].settings == {"strictness": 0.7, "ranges": {}, "weights": {}}

    keys.write_text('{"ann": {"settings": {}}}')
    with pytest.raises(DataError, match="ann has no key"):
        assemble(ServeOptions(model=str(road / "checkpoint"), keys=keys))


def test_the_list_of_routes_needs_no_script_of_another_server(road: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.touch(0o600)
    keys.write_text(json.dumps({"alice": {"key": "secret"}}))
    with server(road, keys=keys) as client:
        page = client.get("/docs").text
        assert "http" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page))
        (script,) = re.findall(r'src="([^"]*)"', page)
        assert "SwaggerUI" in client.get(script).text
        assert client.get("/docs-assets/../../pyproject.toml").status_code in (401, 404)


def test_rules_send_responses_to_queues(road: Path, tmp_path: Path, scorer: Scorer) -> None:
    best = max(scorer.rewards(PROMPT, ANSWERS))
    rules = tmp_path / "rules.json"
    content = {
        "rules": [
            {"queue": "publish", "preferred_to_others": 0.5},
            {"queue": "low", "reward_below": best},
        ],
        "otherwise": "review",
    }
    rules.write_text(json.dumps(content))
    log = tmp_path / "log.sqlite"
    with server(road, rules=rules, log=log) as client:

        def routed(responses: list[str]) -> list[Json]:
            body = {"prompt": PROMPT, "responses": responses}
            routed: list[Json] = client.post("/v1/route", json=body).json()["responses"]
            return routed

        group, single = routed(ANSWERS), routed(ANSWERS[:1])

    assert sorted(response["queue"] for response in group) == ["low", "low", "publish"]
    assert sorted(response["rule"] for response in group) == [0, 1, 1]
    assert single[0]["preferred_to_others"] is None
    assert [row.settings for row in decision_files.rows(log)] == [content, content]


@pytest.mark.parametrize(
    "rule",
    [
        '{"queue": "a", "reward": 1}',
        '{"queue": "a", "reward_below": 1e999}',
        '{"queue": "a", "reward_below": NaN}',
        '{"queue": "a", "reward_below": true}',
        '{"queue": "a"}',
        '{"reward_below": 1}',
        "[]",
    ],
)
def test_a_rule_needs_a_queue_and_numbers(tmp_path: Path, rule: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(f'{{"rules": [{rule}], "otherwise": "b"}}')
    with pytest.raises(DataError, match="rule 0"):
        RoutingRules.read(path)


def test_metrics_count_requests_rewards_and_lengths(road: Path) -> None:
    with server(road) as client:
        client.post("/v1/rewards", json={"prompt": PROMPT, "responses": ANSWERS})
        metrics = client.get("/metrics").text
    assert 'worldpm_requests_total{route="/v1/rewards",status="200"} 1.0' in metrics
    assert "worldpm_response_tokens_count 3.0" in metrics
    assert "worldpm_reward_count 3.0" in metrics
    assert "worldpm_queue_tokens 0.0" in metrics


def test_explanations_are_complete(client: TestClient, scorer: Scorer) -> None:
    text = "Bake it for 40 minutes. Then let it cool.\nDone"
    body = {"prompt": PROMPT, "responses": [text]}
    (explanation,) = client.post("/v1/explain", json=body).json()["responses"]

    tokens = explanation["tokens"]
    explained = tokens["reward"] - tokens["baseline_reward"]
    total = sum(value for _, value in tokens["prompt"] + tokens["response"])
    assert explained == pytest.approx(total + tokens["gap"], abs=1e-5)
    assert abs(tokens["gap"]) <= 0.01 * max(abs(explained), 0.01) or tokens["points"] == 256
    assert "".join(token for token, _ in tokens["response"]) == text
    assert "".join(token for token, _ in tokens["prompt"]) == PROMPT
    assert tokens["reward"] == pytest.approx(scorer.rewards(PROMPT, [text])[0], abs=1e-5)

    sentences = explanation["sentences"]
    assert [sentence["text"] for sentence in sentences] == [
        "Bake it for 40 minutes. ",
        "Then let it cool.\n",
        "Done",
    ]
    full, without = scorer.rewards(PROMPT, [text, "Bake it for 40 minutes. Done"])
    assert sentences[1]["adds"] == pytest.approx(full - without, abs=1e-5)


def test_many_clients_at_once_get_their_own_rewards(client: TestClient, scorer: Scorer) -> None:
    requests = []
    for i in range(40):
        prompt, responses = (
            f"Prompt {i} " * (1 + i % 5),
            [f"answer {i} {j}" for j in range(1 + i % 3)],
        )
        requests.append(Request("x", (Message("user", prompt),), responses))
    expected = [scorer.answer(request).rewards for request in requests]

    def post(request: Request) -> list[float]:
        body = {"prompt": request.prompt[0].content, "responses": request.responses}
        rewards: list[float] = client.post("/v1/rewards", json=body).json()["rewards"]
        return rewards

    with ThreadPoolExecutor(16) as pool:
        served = list(pool.map(post, requests))
    for rewards, offline in zip(served, expected, strict=True):
        assert rewards == pytest.approx(offline, abs=1e-5)


def test_a_full_queue_rejects_with_retry_after(road: Path) -> None:
    body = {"prompt": "word " * 30, "responses": ["a", "b"]}
    with server(road, queue_tokens=300, row_tokens=200) as client, ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: client.post("/v1/rewards", json=body), range(48)))

    assert {reply.status_code for reply in replies} == {200, 429}
    rejected = [reply for reply in replies if reply.status_code == 429]
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in rejected)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(road: Path, *options: object) -> Iterator[tuple[Command, str]]:
    """The server in a process, and its address."""
    url, words = serve_command(road, options)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        started = start(Path(folder), *words, streams=Streams(output, output))
        try:
            wait_until_ready(started, url)
            yield started, url
        finally:
            started.kill()
            started.wait()


@contextmanager
def process_of_a_user(
    road: Path, *options: object
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The same, started as a user would start it, which takes seconds longer."""
    url, words = serve_command(road, options)
    started = subprocess.Popen(
        [sys.executable, "-m", "worldpm.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until_ready(started, url)
        yield started, url
    finally:
        started.kill()
        started.communicate()


def serve_command(road: Path, options: Sequence[object]) -> tuple[str, list[str]]:
    """An address, and the arguments of a command that serves at this address."""
    port = free_port()
    words = ["serve", road / "checkpoint", "--port", port, *options]
    return f"http://127.0.0.1:{port}", [str(word) for word in words]


def wait_until_ready(started: Command | subprocess.Popen[bytes], url: str) -> None:
    """Wait until a server answers. If its process ends, fail with its output."""
    deadline = time.monotonic() + 120
    with httpx.Client() as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/ready").status_code == 200:
                    return
            assert started.poll() is None, started.communicate()[0].decode()
            time.sleep(0.05)
    pytest.fail("the server did not become ready")


def test_after_sigterm_accepted_requests_are_answered_and_logs_are_json(
    road: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.sqlite"
    body = {"prompt": "word " * 30, "responses": ["a", "b c d"]}
    with (
        process_of_a_user(road, "--log", log) as (started, url),
        ThreadPoolExecutor(12) as pool,
    ):
        waiting = [
            pool.submit(httpx.post, f"{url}/v1/rewards", json=body, timeout=60) for _ in range(12)
        ]
        # until the first is answered
        while httpx.get(f"{url}/metrics").text.count('route="/v1/rewards"') == 0:
            time.sleep(0.01)
        started.send_signal(signal.SIGTERM)

        answered = 0
        for reply in waiting:
            with contextlib.suppress(httpx.TransportError):  # the server no longer accepted it
                answered += reply.result().status_code == 200
        output, _ = started.communicate(timeout=60)

    assert started.returncode in (0, -signal.SIGTERM)
    assert answered >= 1
    assert decision_files.verify(log).decisions == answered
    lines = [json.loads(line) for line in output.decode().splitlines()]
    assert all(
        {"@timestamp", "log.level", "message", "ecs.version"} <= line.keys() for line in lines
    )
    assert sum(line["message"] == "POST /v1/rewards 200" for line in lines) == answered


def test_every_acknowledged_decision_survives_kill_9(road: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    acknowledged = [*until_killed(road, log, 0), *until_killed(road, log, 1)]
    with process(road, "--log", log):  # a start repairs an incomplete end of the log
        pass

    assert decision_files.verify(log).broken is None
    logged = [row.rewards[0] for row in decision_files.rows(log)]
    assert len(acknowledged) >= 40
    assert len(logged) >= len(acknowledged)
    assert not set(acknowledged) - set(logged)


def until_killed(road: Path, log: Path, number: int) -> list[float]:
    """The rewards that a server gave before it was killed under load."""
    with (
        process(road, "--log", log) as (started, url),
        ThreadPoolExecutor(4) as pool,
        httpx.Client(timeout=60) as client,
    ):

        def first_reward(i: int) -> float | None:
            body = {"prompt": f"prompt {number} {i}", "responses": ["a", "b"]}
            try:
                reply = client.post(f"{url}/v1/rewards", json=body)
                return float(reply.json()["rewards"][0])
            except (httpx.TransportError, ValueError):
                return None

        waiting = [pool.submit(first_reward, i) for i in range(200)]
        while sum(reply.done() for reply in waiting) < 20 * (1 + number):
            time.sleep(0.005)
        os.kill(started.pid, signal.SIGKILL)
        rewards = [reply.result() for reply in waiting]
    return [reward for reward in rewards if reward is not None]


def test_clients_that_misbehave_do_not_affect_others(road: Path) -> None:
    body = json.dumps({"prompt": "word " * 30, "responses": ["a"]}).encode()
    start = b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\n"
    headers = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    messages = [
        start + headers % 1000 + b'{"prompt":',
        start,
        b"\x00\xff\x00nonsense\r\n\r\n",
        *[start + headers % len(body) + body] * 5,  # complete, but the client leaves at once
    ]

    with process(road) as (started, url):
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        for message in messages:
            with socket.create_connection(address) as raw:
                raw.sendall(message)

        good = {"prompt": "a", "responses": ["b"]}
        assert httpx.post(f"{url}/v1/rewards", json=good, timeout=60).status_code == 200
        # a client that leaves is not an error of the server
        metrics = httpx.get(f"{url}/metrics").text
        assert not re.findall(r'requests_total\{.*status="5\d\d"', metrics)
        assert started.poll() is None


def test_serve_rejects_wrong_arguments(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", road / "checkpoint", "--port", 99999) == 2
    assert "0 to 65535" in capsys.readouterr().err
    assert run("serve", road / "nowhere") == 2
    assert run("serve", road / "checkpoint", "--calibration", road / "groups") == 2
    assert "made by `worldpm group`" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="No such file"):
        assemble(ServeOptions(model=str(road / "checkpoint"), keys=tmp_path / "none.json"))
    assert run("serve", road / "checkpoint", "--rules", tmp_path / "none.json") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_the_page_compares_answers_in_a_browser(road: Path, scorer: Scorer, tmp_path: Path) -> None:
    with process(road, "--calibration", road / "results") as (_, url):
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=20000",
            "--window-size=390,1500",
            "--dump-dom",
            f"{url}/#compare",
        ]
        page = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False
        ).stdout

    # the first example
    answers = [
        "Bake it at 220 C for about 35 to 40 minutes. It is done when it sounds hollow if you tap"
        " its bottom.",
        "This was asked before. Please use the search.",
    ]
    rewards = scorer.rewards("How long should I bake a loaf of white bread?", answers)
    best = "AB"[rewards.index(max(rewards))]
    assert 'data-done="true"' in page
    assert re.search(r'id="error"[^>]*hidden', page)
    assert re.findall(r'data-answer="(\w)"', page)[0] == best
    assert f"reward {max(rewards):.3f}" in page
    assert len(re.findall(r'title="[+-]\d+\.\d{3} logits"', page)) > 10  # the heat map
    assert "At equal style" in page


def test_tokens_are_those_of_the_model(client: TestClient, scorer: Scorer) -> None:
    reply = client.post("/tokenize", json={"prompt": PROMPT}).json()
    assert reply["tokens"] == scorer.encoder.tokenizer.encode(PROMPT)
    assert reply["count"] == len(reply["tokens"])

    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    body = {"messages": turns, "add_generation_prompt": False}
    conversation = client.post("/tokenize", json=body).json()
    group = scorer.encoder.encode([Message("user", PROMPT)], ANSWERS[:1])
    assert conversation["tokens"] == [*group.prefix, *group.suffixes[0]]


@contextmanager
def foreign_server(folder: Path, **options: Any) -> Iterator[TestClient]:
    """A client of the application with a model as others publish them."""
    application, _ = assemble(ServeOptions(model=str(folder), name="other", **options))
    with TestClient(application, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client


def numbers_in(content: object) -> list[float]:
    """All floats in a reply."""
    if isinstance(content, dict | list):
        values = content.values() if isinstance(content, dict) else content
        return [number for value in values for number in numbers_in(value)]
    return [content] if isinstance(content, float) else []


@pytest.mark.parametrize("template", [foreign_model.CHATML, foreign_model.STRICT])
def test_every_route_gives_one_reward_for_messages_and_for_rendered_text(
    tmp_path: Path, template: str
) -> None:
    folder = foreign_model.make(tmp_path, template)
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "How many grams?"},
        {"role": "assistant", "content": "About 14."},
    ]
    expected = foreign_model.plain_reward(folder, turns)
    scorer = Scorer.load(folder)
    text = str(scorer.encoder.tokenizer.apply_chat_template(turns, tokenize=False))

    raw = {"use_activation": False}
    with foreign_server(folder) as client:
        bodies = {
            "/v1/rewards": {"messages": turns},
            "/classify": {"messages": turns, **raw},
            "/pooling": {"input": text, **raw},
            "/get_reward": {"query": [text]},
            "/predict": {"inputs": text, "raw_scores": True},
        }
        rewards = {}
        for route, body in bodies.items():
            numbers = numbers_in(client.post(route, json=body).json())
            rewards[route] = min(numbers, key=lambda number: abs(number - expected))
        text_reply = client.post("/classify", json={"input": text, **raw}).json()
    assert rewards == pytest.approx(dict.fromkeys(bodies, expected), abs=1e-5)
    assert text_reply["data"][0]["probs"] == pytest.approx([expected], abs=1e-5)


def test_a_conversation_that_the_template_refuses_is_a_422_and_the_next_is_answered(
    tmp_path: Path,
) -> None:
    folder = foreign_model.make(tmp_path, foreign_model.STRICT)
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with foreign_server(folder) as client:
        refused = client.post("/v1/rewards", json={"prompt": two, "responses": ["c"]})
        assert refused.status_code == 422
        assert "the chat template rejects it (roles must alternate)" in refused.text
        answered = client.post("/v1/rewards", json={"prompt": two[:1], "responses": ["c"]})
        assert answered.status_code == 200


def test_a_conversation_with_tool_calls_has_the_reward_of_its_template(
    road: Path, scorer: Scorer, client: TestClient
) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]},
        {"role": "tool", "content": "40 minutes", "tool_call_id": "1"},
        {"role": "assistant", "content": ANSWERS[0]},
    ]
    reply = client.post("/v1/rewards", json={"messages": turns})
    assert reply.json()["rewards"] == pytest.approx(
        scorer.rewards(turns[:-1], [ANSWERS[0]]), abs=1e-5
    )


def test_the_name_of_the_key_scheme_may_be_in_any_case(road: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.touch(0o600)
    keys.write_text(json.dumps({"one": {"key": "k" * 20}}))
    with server(road, keys=keys) as client:
        for scheme in ("Bearer", "bearer", "BEARER"):
            reply = client.post(
                "/v1/rewards",
                json={"prompt": PROMPT, "responses": ANSWERS},
                headers={"Authorization": f"{scheme} {'k' * 20}"},
            )
            assert reply.status_code == 200, scheme


@pytest.mark.parametrize(
    ("unit", "head", "tail"),
    [
        ("{},", '{"input":[', "]}"),
        ("{},", '{"prompt":"a","responses":[', "]}"),
        ("1,", '{"prompt":"a","responses":[', "]}"),
        ("[1],", '{"input":[', "]}"),
        ('"k%d":1,', "{", "}"),
        ("[", '{"input":', ""),
    ],
    ids=["objects", "responses", "numbers", "lists", "keys", "depth"],
)
def test_an_expensive_body_gets_a_small_reply(
    client: TestClient, unit: str, head: str, tail: str
) -> None:
    units = "".join(unit % i if "%" in unit else unit for i in range(60_000)).rstrip(",")
    body = head + units + (tail or "]" * 60_000 + "}")
    for route in ("/classify", "/v1/rewards", "/pooling", "/rerank", "/predict", "/v1/embeddings"):
        reply = client.post(route, content=body, headers={"Content-Type": "application/json"})
        assert 400 <= reply.status_code < 500, route
        assert len(reply.content) < 65_536, route


def test_only_the_first_errors_of_a_body_are_reported(client: TestClient) -> None:
    body = {f"unknown {i}": 1 for i in range(100)}
    message = client.post("/v1/rewards", json=body).json()["error"]["message"]
    assert message.startswith("10")
    assert message.count("extra_forbidden") <= 16
    assert "more" in message.splitlines()[-1]
