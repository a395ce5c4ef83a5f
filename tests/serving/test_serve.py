"""The server: every client's route, limits before the model, the same rewards as offline, and
nothing lost."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.conftest import run
from worldpm import Scorer
from worldpm.errors import ConfigError, DataError
from worldpm.options.serve import ServeOptions
from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.serving import app, decision_log
from worldpm.serving.backends import EXPLAINED_AT_ONCE, LocalEngine
from worldpm.serving.run import assemble

PROMPT, ANSWERS = (
    "How long should I bake a loaf?",
    ["About 40 minutes at 220 C.", "This was asked before.", "Who knows?"],
)
RECORDED = Path(__file__).with_name("vllm_replies.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
Json = dict[str, Any]


@contextmanager
def server(road: Path, **options: Any) -> Iterator[TestClient]:
    """The application within this process."""
    application, service = assemble(
        ServeOptions(model=str(road / "checkpoint"), name="tinyrm", **options)
    )
    with TestClient(application, raise_server_exceptions=False) as client:
        yield client
    if service.decisions is not None:
        service.decisions.close()


@pytest.fixture(scope="module")
def client(road: Path) -> Iterator[TestClient]:
    with server(road, calibration=road / "results") as found:
        yield found


@pytest.fixture(scope="module")
def scorer(road: Path) -> Scorer:
    return Scorer.load(road / "checkpoint")


def shape(value: object) -> object:
    """A reply without what differs from server to server: numbers that were computed, ids,
    times."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"^(\w+)-[0-9a-f]{15,16}$", r"\1-ID", value)
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value


def recorded() -> list[tuple[str, Json, int, Json]]:
    lines = RECORDED.read_text(encoding="utf-8").splitlines()[1:]
    pairs = [
        (asked.split(" ", 2), reply.split(" ", 1))
        for asked, reply in zip(lines[::2], lines[1::2], strict=True)
    ]
    return [
        (asked[1], json.loads(asked[2]), int(reply[0]), json.loads(reply[1]))
        for asked, reply in pairs
    ]


@pytest.mark.parametrize(("route", "body", "status", "reply"), recorded())
def test_replies_have_the_shape_of_the_recorded_ones(
    client: TestClient, route: str, body: Json, status: int, reply: Json
) -> None:
    found = client.post(route, json=body)
    assert found.status_code == status
    if route == "/rerank":  # which document comes first is the model's affair
        reply["results"][0]["document"]["text"] = found.json()["results"][0]["document"]["text"]
    assert shape(found.json()) == shape(reply)
    assert found.text == json.dumps(found.json(), ensure_ascii=False, separators=(",", ":"))


def test_a_reward_is_the_same_on_every_route_and_offline(
    client: TestClient, scorer: Scorer
) -> None:
    from worldpm.model import chat

    offline = scorer.rewards(PROMPT, ANSWERS)
    conversations = chat.render(
        scorer.encoder.tokenizer, [Message("user", PROMPT)], ANSWERS, frame=scorer.encoder.frame
    )
    rendered = [conversation.text for conversation in conversations]
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    raw = {"use_activation": False}

    def post(route: str, body: Json) -> Any:
        return client.post(route, json=body).json()

    found = {
        "own": post("/v1/rewards", {"prompt": PROMPT, "responses": ANSWERS})["rewards"],
        "own, messages": post("/v1/rewards", {"messages": messages})["rewards"],
        "vllm classify": [
            one["probs"][0] for one in post("/classify", {"input": rendered, **raw})["data"]
        ],
        "vllm classify, messages": [
            one["probs"][0] for one in post("/classify", {"messages": messages, **raw})["data"]
        ],
        "vllm pooling": [
            one["data"][0] for one in post("/pooling", {"input": rendered, **raw})["data"]
        ],
        "vllm score": [
            one["score"]
            for one in post("/v1/score", {"queries": PROMPT, "documents": ANSWERS, **raw})["data"]
        ],
        "vllm score, N to N": [
            one["score"]
            for one in post("/score", {"text_1": [PROMPT] * 3, "text_2": ANSWERS, **raw})["data"]
        ],
        "sglang": [one["embedding"][0] for one in post("/classify", {"text": rendered})],
        "sglang, ids": [
            post("/classify", {"input_ids": scorer.encoder.tokenizer(rendered[0])["input_ids"]})[
                "embedding"
            ][0]
        ],
        "sglang embeddings": [
            one["embedding"][0] for one in post("/v1/embeddings", {"input": rendered})["data"]
        ],
        "tei": [post("/predict", {"inputs": [PROMPT, ANSWERS[0]], "raw_scores": True})[0]["score"]],
        "tei, batch": [
            one[0]["score"]
            for one in post(
                "/predict", {"inputs": [[text] for text in rendered], "raw_scores": True}
            )
        ],
        "openrlhf": post("/get_reward", {"query": rendered, "prompts": [PROMPT] * 3})["rewards"],
    }
    for route, rewards in found.items():
        assert rewards == pytest.approx(offline[: len(rewards)], abs=1e-5), route


def test_a_message_in_pieces_of_text_is_read_as_lines_and_other_pieces_are_refused(
    client: TestClient,
) -> None:
    def post(*pieces: Json) -> Any:
        messages = [
            {"role": "user", "content": list(pieces)},
            {"role": "assistant", "content": ANSWERS[0]},
        ]
        return client.post("/classify", json={"messages": messages, "use_activation": False})

    lines = post(
        {"type": "text", "text": "How long?"}, {"type": "text", "text": "At what heat?"}
    ).json()["data"]
    assert lines == post({"type": "text", "text": "How long?\nAt what heat?"}).json()["data"]
    found = post({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}})
    assert found.status_code == 400
    assert "messages.0.content" in found.text


def test_rerank_speaks_to_four_clients(client: TestClient, scorer: Scorer) -> None:
    offline = scorer.rewards(PROMPT, ANSWERS)
    order = sorted(range(3), key=lambda place: -offline[place])
    for route in ("/rerank", "/v1/rerank", "/v2/rerank"):  # vLLM, Jina, Cohere
        found = client.post(
            route,
            json={
                "model": "tinyrm",
                "query": PROMPT,
                "documents": ANSWERS,
                "return_documents": False,
            },
        ).json()
        assert [one["index"] for one in found["results"]] == order
        assert all(
            0 < one["relevance_score"] < 1 and "document" not in one for one in found["results"]
        )
    tei = client.post(
        "/rerank", json={"query": PROMPT, "texts": ANSWERS, "raw_scores": True, "return_text": True}
    ).json()
    assert [(one["index"], one["text"]) for one in tei] == [
        (place, ANSWERS[place]) for place in order
    ]
    assert [one["score"] for one in tei] == pytest.approx(sorted(offline, reverse=True), abs=1e-5)


@pytest.mark.filterwarnings(
    "ignore:You should not use the 'timeout'"
)  # the client sets one, the test's transport has none
def test_cohere_reads_a_ranking_with_its_own_client(client: TestClient, scorer: Scorer) -> None:
    cohere = pytest.importorskip(
        "cohere", reason="Cohere's client (pip install cohere) is not here"
    )
    found = cohere.ClientV2("key", base_url="http://testserver", httpx_client=client).rerank(
        model="tinyrm", query=PROMPT, documents=ANSWERS
    )
    offline = scorer.rewards(PROMPT, ANSWERS)
    assert [one.index for one in found.results] == sorted(
        range(3), key=lambda place: -offline[place]
    )
    assert found.results[0].relevance_score == pytest.approx(
        1 / (1 + math.exp(-max(offline))), abs=1e-5
    )


def test_own_reply_is_complete_and_consistent(client: TestClient) -> None:
    found = client.post(
        "/v1/rewards", json={"prompt": PROMPT, "responses": [*ANSWERS, ANSWERS[0]]}
    ).json()
    rewards, p = found["rewards"], found["probabilities"]
    assert rewards[0] == rewards[3]  # a tie to the last bit
    assert p[0][3] == 0.5
    assert all(p[i][j] + p[j][i] == pytest.approx(1) for i in range(4) for j in range(4))
    assert sorted(found["ranking"], key=lambda i: -rewards[i]) == found["ranking"]
    assert found["confidence"]["temperature"] > 0
    assert found["usage"]["computed_tokens"] < sum(
        found["usage"]["sequence_tokens"]
    )  # the prompt once
    assert (
        client.post("/v1/rewards", json={"prompt": PROMPT, "responses": []}).json()["rewards"] == []
    )


def test_settings_move_odds_and_order_but_never_rewards(client: TestClient) -> None:
    body = {"prompt": PROMPT, "responses": ANSWERS}
    plain = client.post("/v1/rewards", json=body).json()
    lengths = plain["usage"]["response_tokens"]
    settings = {"weights": {"length": -50}, "ranges": {"length": [0, max(lengths) - 1]}}
    found = client.post("/v1/rewards", json={**body, "settings": settings}).json()
    assert found["rewards"] == pytest.approx(plain["rewards"], abs=1e-6)
    assert found["probabilities"] == plain["probabilities"]
    longest = lengths.index(max(lengths))
    assert found["ranking"][-1] == longest
    assert f"length is {max(lengths)}" in found["style"]["outside"][longest][0]
    term = found["style"]["terms"]["length"]
    a, b = lengths[0], lengths[1]
    assert term[0][1] == pytest.approx(-50 * (a - b) / (a + b))


@pytest.mark.parametrize(
    ("route", "body", "status", "says"),
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
            "tokens of prompt and response; at most",
        ),
        ("/v1/rewards", {"prompt": "a", "responses": ["b"] * 300}, 422, "300 inputs; at most 256"),
        (
            "/v1/rewards",
            {"model": "other", "prompt": "a", "responses": ["b"]},
            404,
            "does not exist",
        ),
        ("/classify", {"input": "a " * 50_000}, 422, "tokens; at most"),
        ("/classify", {"input": [10**6]}, 422, "ids outside"),
        ("/classify", {"input": []}, 200, ""),
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
def test_what_is_wrong_is_told_before_the_model_sees_it(
    client: TestClient, route: str, body: Json, status: int, says: str
) -> None:
    found = client.post(
        route, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert found.status_code == status
    assert says in found.text


def test_broken_bodies_are_refused(client: TestClient, road: Path) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 500_000, b'{"a":' * 200_000):
        found = client.post(
            "/v1/rewards", content=body, headers={"content-type": "application/json"}
        )
        assert found.status_code in (400, 422), body[:10]
    with server(road, max_body_mib=0.001) as small:
        found = small.post("/v1/rewards", json={"prompt": "a" * 2000, "responses": ["b"]})
        assert found.status_code == 413
        chunks = iter([b"a" * 600] * 3)  # without a declared length
        assert small.post("/v1/rewards", content=chunks).status_code == 413
    assert client.get("/health").status_code == 200


def test_too_long_is_cut_on_request(client: TestClient) -> None:
    found = client.post(
        "/v1/rewards", json={"prompt": "a " * 5000, "responses": ["b"], "cut": True}
    ).json()
    assert found["truncated"] == [True]
    assert (
        client.post(
            "/classify", json={"input": "a " * 5000, "truncate_prompt_tokens": -1}
        ).status_code
        == 200
    )


def test_vllm_cuts_to_a_number_of_tokens(client: TestClient, scorer: Scorer) -> None:
    def post(body: Json, cut_to: int) -> Any:
        return client.post(
            "/classify", json={**body, "use_activation": False, "truncate_prompt_tokens": cut_to}
        )

    ids = scorer.encoder.tokenizer("a b c d " * 20 + scorer.encoder.tokenizer.eos_token)[
        "input_ids"
    ]
    kept, whole = (post({"input": one}, 24).json() for one in (ids[-24:], ids))
    assert kept["data"] == whole["data"]
    assert whole["usage"]["prompt_tokens"] == 24
    messages = [{"role": "user", "content": "a " * 100}, {"role": "assistant", "content": "b"}]
    cut = post({"messages": messages}, 24).json()
    assert cut["usage"]["prompt_tokens"] <= 24
    assert cut["data"][0]["probs"] == pytest.approx(
        scorer.cutting(24).rewards("a " * 100, ["b"]), abs=1e-5
    )
    for wrong, says in (
        (10**6, "greater than max_model_len"),
        (0, "truncate_prompt_tokens"),
        (-2, "truncate_prompt_tokens"),
    ):
        refused = post({"messages": messages}, wrong)
        assert refused.status_code == 400
        assert says in refused.text


def test_a_deadline_that_passed_is_503_and_not_computed(client: TestClient) -> None:
    body = {"prompt": PROMPT, "responses": ANSWERS}
    found = client.post("/v1/rewards", json=body, headers={"X-Timeout-Seconds": "0.000001"})
    assert found.status_code == 503
    assert found.headers["retry-after"] == "1"
    assert (
        client.post("/v1/rewards", json=body, headers={"X-Timeout-Seconds": "soon"}).status_code
        == 422
    )


def test_a_deadline_holds_where_others_are_read_and_explained(road: Path) -> None:
    application, service = assemble(ServeOptions(model=str(road / "checkpoint")))
    engine = service.engine
    assert isinstance(engine, LocalEngine)
    soon = {"x-timeout-seconds": "0.2"}
    with TestClient(application, raise_server_exceptions=False) as client:
        held, held_again = threading.Event(), threading.Event()
        engine._reader.submit(held.wait)  # a text of somebody else's that takes long
        started = time.monotonic()
        late = [client.post("/v1/rewards", json={"prompt": "a", "responses": ["b"]}, headers=soon)]
        late.append(client.post("/tokenize", json={"prompt": "a"}, headers=soon))
        held.set()
        for _ in range(EXPLAINED_AT_ONCE):
            engine._explainers.submit(held_again.wait)  # explanations of others are under way
        late.append(
            client.post("/v1/explain", json={"prompt": "a", "responses": ["b"]}, headers=soon)
        )
        held_again.set()
        assert [one.status_code for one in late] == [503, 503, 503]
        assert time.monotonic() - started < 5
        assert (
            client.post("/v1/rewards", json={"prompt": "a", "responses": ["b"]}).status_code == 200
        )


def test_without_a_style_model_nothing_is_said_of_equal_style(
    road: Path, client: TestClient
) -> None:
    body = {"prompt": PROMPT, "responses": ANSWERS}
    assert client.post("/v1/rewards", json=body).json()["style"]["at_equal_style"] is not None
    with server(road) as bare:
        assert bare.post("/v1/rewards", json=body).json()["style"]["at_equal_style"] is None


def test_a_reward_that_is_not_finite_is_500_and_not_logged(road: Path, tmp_path: Path) -> None:
    import torch

    application, service = assemble(
        ServeOptions(model=str(road / "checkpoint"), log=tmp_path / "log.sqlite")
    )
    service.engine.scorer.model.score.weight.data.fill_(torch.nan)  # type: ignore[attr-defined]
    with TestClient(application, raise_server_exceptions=False) as client:
        found = client.post("/v1/rewards", json={"prompt": PROMPT, "responses": ANSWERS})
    assert found.status_code == 500
    assert "the reward of response 0 is nan" in found.json()["error"]["message"]
    assert service.decisions is not None
    assert len(service.decisions) == 0
    service.decisions.close()


def test_keys_are_asked_for_and_bring_their_settings(road: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(
        json.dumps(
            {"ann": {"key": "s3cret", "settings": {"strictness": 0.7}}, "bob": {"key": "other"}}
        )
    )
    body = {"prompt": PROMPT, "responses": ANSWERS}
    with server(road, keys=keys, log=tmp_path / "log.sqlite") as client:
        assert client.post("/v1/rewards", json=body).status_code == 401
        assert (
            client.post(
                "/v1/rewards", json=body, headers={"Authorization": "Bearer wrong"}
            ).status_code
            == 401
        )
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200
        ann = client.post(
            "/v1/rewards", json=body, headers={"Authorization": "Bearer s3cret"}
        ).json()
        bob = client.post("/v1/rewards", json=body, headers={"X-Api-Key": "other"}).json()
    assert (ann["confidence"]["level"], bob["confidence"]["level"]) == (0.7, 0.9)
    assert [row["client"] for row in decision_log.rows(tmp_path / "log.sqlite")] == ["ann", "bob"]
    keys.write_text('{"ann": {"settings": {}}}')
    with pytest.raises(DataError, match="ann: expected"):
        assemble(ServeOptions(model=str(road / "checkpoint"), keys=keys))


def test_the_list_of_routes_needs_nobody_elses_script(road: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"alice": {"key": "secret"}}))
    with server(road, keys=keys) as client:
        page = client.get("/docs").text
        assert "http" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page))
        (script,) = re.findall(r'src="([^"]*)"', page)
        assert "SwaggerUI" in client.get(script).text
        assert client.get("/docs-assets/../../pyproject.toml").status_code in (401, 404)


def test_rules_send_responses_to_queues(road: Path, tmp_path: Path, scorer: Scorer) -> None:
    best, *_ = sorted(scorer.rewards(PROMPT, ANSWERS), reverse=True)
    rules = tmp_path / "rules.json"
    rules.write_text(
        json.dumps(
            {
                "rules": [
                    {"queue": "publish", "preferred_to_others": 0.5},
                    {"queue": "low", "reward_below": best},
                ],
                "otherwise": "review",
            }
        )
    )
    with server(road, rules=rules) as client:
        found = client.post("/v1/route", json={"prompt": PROMPT, "responses": ANSWERS}).json()[
            "responses"
        ]
        alone = client.post("/v1/route", json={"prompt": PROMPT, "responses": [ANSWERS[0]]}).json()[
            "responses"
        ]
    assert sorted(one["queue"] for one in found) == ["low", "low", "publish"]
    assert alone[0]["preferred_to_others"] is None
    for wrong in ('"reward": 1', '"reward_below": 1e999', '"reward_below": NaN'):
        rules.write_text(f'{{"rules": [{{"queue": "a", {wrong}}}], "otherwise": "b"}}')
        with pytest.raises(DataError, match="rule 0"):
            assemble(ServeOptions(model=str(road / "checkpoint"), rules=rules))


def test_metrics_count_what_happened(road: Path) -> None:
    with server(road) as client:
        client.post("/v1/rewards", json={"prompt": PROMPT, "responses": ANSWERS})
        told = client.get("/metrics").text
    assert 'worldpm_requests_total{route="/v1/rewards",status="200"} 1.0' in told
    assert "worldpm_response_tokens_count 3.0" in told
    assert "worldpm_reward_count 3.0" in told
    assert "worldpm_queue_tokens 0.0" in told


def test_explanations_are_complete(client: TestClient, scorer: Scorer) -> None:
    text = "Bake it for 40 minutes. Then let it cool.\nDone"
    (found,) = client.post("/v1/explain", json={"prompt": PROMPT, "responses": [text]}).json()[
        "responses"
    ]
    tokens = found["tokens"]
    total = sum(value for _, value in tokens["prompt"] + tokens["response"])
    assert tokens["reward"] - tokens["baseline_reward"] == pytest.approx(
        total + tokens["gap"], abs=1e-5
    )
    assert (
        abs(tokens["gap"]) <= 0.01 * max(abs(tokens["reward"] - tokens["baseline_reward"]), 0.01)
        or tokens["points"] == 256
    )
    assert "".join(token for token, _ in tokens["response"]) == text
    assert "".join(token for token, _ in tokens["prompt"]) == PROMPT
    assert tokens["reward"] == pytest.approx(scorer.rewards(PROMPT, [text])[0], abs=1e-5)
    assert [one["text"] for one in found["sentences"]] == [
        "Bake it for 40 minutes. ",
        "Then let it cool.\n",
        "Done",
    ]
    without = scorer.rewards(PROMPT, [text, "Bake it for 40 minutes. Done"])
    assert found["sentences"][1]["adds"] == pytest.approx(without[0] - without[1], abs=1e-5)


def test_many_clients_at_once_get_their_own_rewards(client: TestClient, scorer: Scorer) -> None:
    asked = [
        (f"Prompt {i} " * (1 + i % 5), [f"answer {i} {j}" for j in range(1 + i % 3)])
        for i in range(40)
    ]
    expected = [
        one.rewards
        for one in scorer.score(Request("x", (Message("user", p),), r) for p, r in asked)
    ]
    with ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(
                lambda one: client.post(
                    "/v1/rewards", json={"prompt": one[0], "responses": one[1]}
                ).json()["rewards"],
                asked,
            )
        )
    for own, offline in zip(found, expected, strict=True):
        assert own == pytest.approx(offline, abs=1e-5)


def test_a_full_queue_refuses_with_retry_after(road: Path) -> None:
    body = {"prompt": "word " * 30, "responses": ["a", "b"]}
    with server(road, queue_tokens=300, row_tokens=200) as client, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: client.post("/v1/rewards", json=body), range(48)))
    assert {one.status_code for one in found} == {200, 429}
    assert all(int(one.headers["retry-after"]) >= 1 for one in found if one.status_code == 429)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(road: Path, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server as a user starts it, and its address."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "worldpm.cli",
        "serve",
        str(road / "checkpoint"),
        "--port",
        str(port),
        *map(str, words),
    ]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                assert started.poll() is None, started.stdout and started.stdout.read()
            time.sleep(0.25)
        yield started, url
    finally:
        started.kill()
        started.communicate()


def test_sigterm_answers_what_was_accepted_and_logs_are_json(road: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    body = {"prompt": "word " * 30, "responses": ["a", "b c d"]}
    with process(road, "--log", log) as (started, url), ThreadPoolExecutor(12) as pool:
        waiting = [
            pool.submit(httpx.post, f"{url}/v1/rewards", json=body, timeout=60) for _ in range(12)
        ]
        while httpx.get(f"{url}/metrics").text.count('route="/v1/rewards"') == 0:
            time.sleep(0.01)
        started.send_signal(signal.SIGTERM)
        answered = 0
        for one in waiting:
            with contextlib.suppress(httpx.TransportError):  # not accepted any more
                answered += one.result().status_code == 200
        output, _ = started.communicate(timeout=60)
    assert started.returncode in (0, -signal.SIGTERM)
    assert answered >= 1
    assert decision_log.verify(log).decisions == answered
    lines = [json.loads(line) for line in output.decode().splitlines()]
    assert all(
        {"@timestamp", "log.level", "message", "ecs.version"} <= line.keys() for line in lines
    )
    assert sum(line["message"] == "POST /v1/rewards 200" for line in lines) == answered


def test_every_acknowledged_decision_survives_kill_9(road: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    acknowledged: list[float] = []
    for round_ in range(2):
        with process(road, "--log", log) as (started, url), ThreadPoolExecutor(4) as pool:

            def ask(number: int, url: str = url, round_: int = round_) -> list[float]:
                try:
                    body = {"prompt": f"prompt {round_} {number}", "responses": ["a", "b"]}
                    rewards: list[float] = httpx.post(
                        f"{url}/v1/rewards", json=body, timeout=60
                    ).json()["rewards"]
                except (httpx.TransportError, ValueError):
                    return []
                return rewards

            waiting = [pool.submit(ask, number) for number in range(200)]
            while sum(one.done() for one in waiting) < 20 * (1 + round_):
                time.sleep(0.005)
            os.kill(started.pid, signal.SIGKILL)
            acknowledged += [one.result()[0] for one in waiting if one.result()]
    with process(road, "--log", log):  # a torn tail is repaired
        pass
    found = decision_log.verify(log)
    assert found.broken is None
    logged = [json.loads(row["rewards"])[0] for row in decision_log.rows(log)]
    assert len(acknowledged) >= 40
    assert len(logged) >= len(acknowledged)
    assert not set(acknowledged) - set(logged)


def test_clients_that_misbehave_harm_nobody(road: Path) -> None:
    with process(road) as (started, url):
        host, port = "127.0.0.1", int(url.rsplit(":", 1)[1])
        for sent in (
            (
                b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type:"
                b' application/json\r\nContent-Length: 1000\r\n\r\n{"prompt":'
            ),
            b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\n",
            b"\x00\xff\x00nonsense\r\n\r\n",
        ):
            with socket.create_connection((host, port)) as raw:
                raw.sendall(sent)
        for _ in range(5):  # asks and leaves
            with socket.create_connection((host, port)) as raw:
                body = json.dumps({"prompt": "word " * 30, "responses": ["a"]}).encode()
                head = (
                    "POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type:"
                    f" application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                raw.sendall(head.encode() + body)
        assert (
            httpx.post(
                f"{url}/v1/rewards", json={"prompt": "a", "responses": ["b"]}, timeout=60
            ).status_code
            == 200
        )
        assert not re.findall(
            r'requests_total\{.*status="5\d\d"', httpx.get(f"{url}/metrics").text
        )  # who left is no error of ours
        assert started.poll() is None


def test_serve_says_what_is_wrong_with_its_arguments(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", road / "checkpoint", "--port", 99999) == 2
    assert "0 to 65535" in capsys.readouterr().err
    assert run("serve", road / "nowhere") == 2
    assert run("serve", road / "checkpoint", "--calibration", road / "groups") == 2
    assert "made by `worldpm group`" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no such file"):
        assemble(ServeOptions(model=str(road / "checkpoint"), keys=tmp_path / "none.json"))
    assert run("serve", road / "checkpoint", "--rules", tmp_path / "none.json") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_the_page_compares_answers_in_a_browser(road: Path, scorer: Scorer, tmp_path: Path) -> None:
    with process(road, "--calibration", road / "results") as (_, url):
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=20000",
        )
        command = [
            str(CHROMIUM),
            *options,
            "--window-size=390,1500",
            "--dump-dom",
            f"{url}/#compare",
        ]
        page = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False
        ).stdout
    prompt = "How long should I bake a loaf of white bread?"
    answers = re.findall(
        r'"([^"]+)"',
        (Path(app.__file__).with_name("page.html").read_text().split("answers: [")[1]).split("]")[
            0
        ],
    )
    rewards = scorer.rewards(prompt, answers)
    best = "AB"[rewards.index(max(rewards))]
    assert 'data-done="true"' in page
    assert re.search(r'id="error"[^>]*hidden', page)
    assert re.findall(r'data-answer="(\w)"', page)[0] == best
    assert f"reward {max(rewards):.3f}" in page
    assert len(re.findall(r'title="[+-]\d+\.\d{3} logits"', page)) > 10  # the heat map
    assert "At equal style" in page


def test_in_front_of_another_server_nothing_changes(
    road: Path, tmp_path: Path, scorer: Scorer
) -> None:
    log = tmp_path / "log.sqlite"
    with process(road) as (behind, url):
        application, service = assemble(ServeOptions(upstream=url, log=log))
        with TestClient(application, raise_server_exceptions=False) as front:
            found = front.post(
                "/v1/rewards", json={"prompt": PROMPT, "responses": [*ANSWERS, ANSWERS[0]]}
            ).json()
            assert found["rewards"] == pytest.approx(
                scorer.rewards(PROMPT, [*ANSWERS, ANSWERS[0]]), abs=1e-5
            )
            local = next(scorer.score([Request("x", (Message("user", PROMPT),), ANSWERS)]))
            assert found["usage"]["response_tokens"][:3] == local.length_tokens
            text = front.post("/classify", json={"input": "hello", "use_activation": False}).json()[
                "data"
            ][0]["probs"][0]
            assert text == pytest.approx(
                httpx.post(f"{url}/v1/embeddings", json={"input": "hello"}).json()["data"][0][
                    "embedding"
                ][0]
            )
            long = {"prompt": "a " * 5000, "responses": ["b"]}
            assert front.post("/v1/rewards", json=long).status_code == 422
            assert front.post("/v1/rewards", json={**long, "cut": True}).json()["truncated"] == [
                True
            ]
            assert front.post(
                "/v1/rewards", json={"prompt": "a", "responses": ["b"], "cut": True}
            ).json()["truncated"] == [False]
            assert (
                front.post("/v1/explain", json={"prompt": "a", "responses": ["b"]}).status_code
                == 501
            )
            behind.kill()
            behind.wait()
            gone = front.post("/v1/rewards", json={"prompt": "a", "responses": ["b"]})
            assert (gone.status_code, "retry-after" in gone.headers) == (503, True)
    assert service.decisions is not None
    service.decisions.close()
    assert decision_log.verify(log).decisions == 4
    with pytest.raises(ConfigError, match="no vLLM answers"):
        assemble(ServeOptions(upstream=url))
    with pytest.raises(ConfigError, match="one of the two"):
        ServeOptions()
    with pytest.raises(ConfigError, match="--row-tokens cannot be used with --upstream"):
        ServeOptions(upstream=url, row_tokens=7)


def test_tokens_are_those_of_the_model(client: TestClient, scorer: Scorer) -> None:
    found = client.post("/tokenize", json={"prompt": PROMPT}).json()
    assert found["tokens"] == scorer.encoder.tokenizer.encode(PROMPT)
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    whole = client.post(
        "/tokenize", json={"messages": turns, "add_generation_prompt": False}
    ).json()
    group = scorer.encoder.encode([Message("user", PROMPT)], ANSWERS[:1])
    assert whole["tokens"] == [*group.prefix, *group.suffixes[0]]
    assert found["count"] == len(found["tokens"])
