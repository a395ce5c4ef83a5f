"""Rewards for trainers of policies: each protocol gives the scorer's rewards, and a policy can
learn from them."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.conftest import run
from tests.serving.test_serve import process
from worldpm import Scorer
from worldpm.errors import ConfigError, WorldPMError
from worldpm.records import Message
from worldpm.rlhf import judge
from worldpm.rlhf.judge import Guards, RemoteJudge, RolloutRewards, judge_of, rewards_of
from worldpm.rlhf.openrlhf import _after, reward_func
from worldpm.rlhf.trl import RewardFunction
from worldpm.rlhf.verl import compute_score, compute_score_async, compute_scores
from worldpm.scoring.scorer import Request
from worldpm.storage.json_files import Json

NOT_INSTALLED = "is not installed (with pip's --no-deps: it needs another transformers)"
PROMPTS, ANSWERS = (
    ["How long?", "How long?", "Why?"],
    ["About an hour.", "No idea.", "Because of the heat."],
)


@pytest.fixture(scope="module")
def offline(road: Path) -> list[float]:
    scorer = Scorer.load(road / "checkpoint")
    return [
        scorer.rewards(prompt, [answer])[0] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]


def test_trl_gets_the_rewards_of_texts_and_of_conversations(
    road: Path, offline: list[float]
) -> None:
    function = RewardFunction(str(road / "checkpoint"))
    assert function(
        prompts=PROMPTS, completions=ANSWERS, completion_ids=[[1]] * 3, trainer_state=None
    ) == pytest.approx(offline, abs=1e-5)
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    assert function(turns, answers) == pytest.approx(offline, abs=1e-5)
    with pytest.raises(ConfigError, match="a completion has no turn"):
        function(turns[:1], [[]])


def test_openrlhf_gets_the_rewards_of_texts_that_begin_with_their_prompts(
    road: Path, offline: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDPM_REWARD_MODEL", str(road / "checkpoint"))
    queries = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    rewards = reward_func(queries, PROMPTS, [None] * 3)["rewards"]
    assert isinstance(rewards, torch.Tensor)
    assert rewards.tolist() == pytest.approx(offline, abs=1e-5)

    with pytest.raises(ConfigError, match="begins neither with its prompt nor with the end of it"):
        reward_func(["x"], ["y"], [None])
    monkeypatch.delenv("WORLDPM_REWARD_MODEL")
    with pytest.raises(ConfigError, match="WORLDPM_REWARD_MODEL"):
        reward_func(["x"], ["x"], [None])


@pytest.mark.parametrize(
    ("prompt", "query"),
    [
        # the tokenizer composes letters
        ("Where is the cafe\u0301?", "Where is the caf\u00e9? There."),
        (
            "an old story. " * 40 + "Where is the cat?",
            "story. " + "an old story. " * 9 + "Where is the cat? There.",
        ),
        ("", " There."),
    ],
)
def test_openrlhf_texts_may_have_composed_letters_and_prompts_cut_on_the_left(
    prompt: str, query: str
) -> None:
    assert _after(prompt, query) == " There."


def test_a_text_that_does_not_begin_with_the_end_of_its_prompt_is_rejected() -> None:
    with pytest.raises(ConfigError, match="begins neither"):
        # four characters may match by chance
        _after("an old story. " * 40 + "Where is the cat?", "cat? There.")


def test_parts_become_lines_and_parts_other_than_text_are_rejected(road: Path) -> None:
    function = RewardFunction(str(road / "checkpoint"))
    parts = [{"type": "text", "text": "About"}, {"type": "text", "text": "an hour."}]
    prompt = [{"role": "user", "content": parts[:1]}]
    rewards = function([prompt], [[{"role": "assistant", "content": parts}]])
    assert rewards == pytest.approx(function(["About"], ["About\nan hour."]), abs=1e-6)

    for content in (None, [{"type": "image", "url": "x"}], 7):
        with pytest.raises(ConfigError, match="Only text can be scored"):
            function([prompt], [[{"role": "assistant", "content": content}]])


def test_many_threads_load_a_model_once(road: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        judges = list(threads.map(lambda _: judge_of(f"{road}/./checkpoint"), range(8)))
    assert len(set(map(id, judges))) == 1


def test_verl_gets_one_reward_at_a_time(road: Path, offline: list[float]) -> None:
    checkpoint = str(road / "checkpoint")
    extras: list[Json] = [
        {"prompt": [{"role": "user", "content": PROMPTS[2]}]},
        {"question": PROMPTS[2]},
    ]
    for extra in extras:
        score = compute_score("d", ANSWERS[2], None, extra, source=checkpoint)["score"]
        assert score == pytest.approx(offline[2], abs=1e-5)

    with pytest.raises(ConfigError, match="neither `prompt` nor `question`"):
        compute_score("d", "a", None, {}, source=checkpoint)


def test_a_server_gives_the_rewards_of_the_folder(road: Path, offline: list[float]) -> None:
    with process(road) as (_, url):
        assert RewardFunction(url)(PROMPTS, ANSWERS) == pytest.approx(offline, abs=1e-5)
        with pytest.raises(WorldPMError, match="answered 422"):
            rewards_of(RemoteJudge((url,)), [()], ["a"], Guards())
    impatient = RemoteJudge((url, url), patience_seconds=0.5)
    with pytest.raises(WorldPMError, match=r"no answer .* for 0 s"):
        rewards_of(impatient, [()], ["a"], Guards())


class FullServer(BaseHTTPRequestHandler):
    """A server that is full once, and then gives a reward of 1 for each response."""

    replies = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_full = type(self).replies == 0
        type(self).replies += 1
        count = len(body["responses"])
        reply = {"rewards": [1.0] * count, "usage": {"response_tokens": [2] * count}}

        self.send_response(503 if is_full else 200)
        self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def test_requests_to_a_full_server_are_repeated() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), FullServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        judge = RemoteJudge((f"http://127.0.0.1:{server.server_port}",))
        (rollouts,) = judge.judge([Request("x", (Message("user", "a"),), ["b", "c"])])
        server.shutdown()
    assert rollouts == RolloutRewards([1.0, 1.0], [2, 2])


@pytest.mark.filterwarnings("ignore")  # warnings of its libraries
def test_openrlhf_reads_rewards_with_its_own_client(road: Path, offline: list[float]) -> None:
    agent = pytest.importorskip(
        "openrlhf.utils.agent", reason=f"OpenRLHF {NOT_INSTALLED}", exc_type=ImportError
    )
    tokenizer = Scorer.load(road / "checkpoint").encoder.tokenizer
    rendered = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rendered.append(tokenizer.apply_chat_template(turns, tokenize=False))

    with process(road) as (_, url):
        executor = agent.SingleTurnAgentExecutor(f"{url}/get_reward")
        (reply,) = asyncio.run(executor._fetch_rewards_via_http(rendered, PROMPTS, [None] * 3))
    assert reply["rewards"] == reply["scores"] == pytest.approx(offline, abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # warnings of its libraries
def test_verl_reads_rewards_with_its_own_client(road: Path, offline: list[float]) -> None:
    reward_loop = pytest.importorskip(
        "verl.experimental.reward_loop.reward_loop",
        reason=f"verl {NOT_INSTALLED}",
        exc_type=ImportError,
    )
    omegaconf = pytest.importorskip("omegaconf")
    checkpoint = str(road / "checkpoint")
    rollouts = verl_rollouts(Scorer.load(checkpoint).encoder.tokenizer)

    async def scores(backend: str, url: str) -> list[float]:
        reward_model = {"enable": True, "model_path": checkpoint, "rollout": {"name": backend}}
        config = {
            "actor_rollout_ref": {"model": {"path": checkpoint, "tokenizer_path": None}},
            "reward": {
                "reward_model": reward_model,
                "reward_manager": {"source": "register", "name": "naive"},
                "custom_reward_function": {"path": None},
            },
        }
        worker = reward_loop.RewardLoopWorker(
            omegaconf.OmegaConf.create(config), url.removeprefix("http://")
        )
        return [score["reward_score"] for score in await worker.compute_score_batch(rollouts)]

    with process(road) as (_, url):
        for backend in ("vllm", "sglang"):
            assert asyncio.run(scores(backend, url)) == pytest.approx(offline, abs=1e-5), backend


def verl_rollouts(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The answers as verl's batch: padded token ids with their masks."""
    protocol = pytest.importorskip("verl.protocol")
    end = tokenizer.eos_token_id
    answers = [torch.tensor([*tokenizer(answer)["input_ids"], end]) for answer in ANSWERS]
    padded = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
    masks = [torch.ones_like(ids) for ids in answers]
    mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)

    prompts = np.empty(len(PROMPTS), dtype=object)
    prompts[:] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return protocol.DataProto.from_dict(
        {"responses": padded, "attention_mask": mask}, {"raw_prompt": prompts}
    )


def test_guards_limit_and_weigh_and_do_nothing_when_unset() -> None:
    rewards, lengths, texts = [1.0, 2.0, 4.0], [10, 30, 90], ["a", "b", "c"]
    assert Guards().values(rewards, lengths, texts) == rewards
    outside = Guards(ranges={"length": (5, 50)}).values(rewards, lengths, texts)
    assert outside == pytest.approx([1.0, 2.0, 0.0])  # one below the lowest
    weighed = Guards(weights={"length": -1.0}).values(rewards, lengths, texts)
    assert weighed[0] == pytest.approx(1.0 + (20 / 40 + 80 / 100) / 3)  # shorter than both others
    assert sum(weighed) == pytest.approx(sum(rewards))


def test_best_of_n_from_the_command_line(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "in.jsonl"
    responses = ["About an hour.", "No idea.", "x " * 30]
    lines.write_text(json.dumps({"prompt": "How long?", "responses": responses, "id": 7}) + "\n")

    assert run("score", road / "checkpoint", lines, "--best") == 0
    best = json.loads(capsys.readouterr().out)
    assert best["id"] == 7
    assert best["rewards"][best["best"]] == max(best["rewards"])
    assert best["kl_nats"] == pytest.approx(1.0986122886681098 - 2 / 3)  # ln 3 - 2/3
    assert best["lead"] == pytest.approx(max(best["rewards"]) - sum(best["rewards"]) / 3)

    assert run("score", road / "checkpoint", lines, "--best", "--allow", "length=20:400") == 0
    assert json.loads(capsys.readouterr().out)["best"] == 2
    for options in (
        ("--best", "--allow", "size=1:2"),
        ("--best", "--weigh", "length=a"),
        ("--weigh", "length=1"),
    ):
        assert run("score", road / "checkpoint", lines, *options) == 2


def test_a_policy_learns_from_the_reward(road: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL comes with the extra rlhf")
    script = Path(__file__).parents[2] / "runs" / "rlhf_trl.py"
    arguments = (road / "checkpoint", "tiny", road / "groups", tmp_path / "out", "60")
    command = [sys.executable, script, *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]

    rewards = [float(line) for line in (tmp_path / "out" / "rewards.txt").read_text().split()]
    assert sum(rewards[-12:]) > sum(rewards[:12])


def test_trl_gets_the_reward_of_a_conversation_with_tool_calls(road: Path) -> None:
    completion: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]},
        {"role": "tool", "content": "40 minutes"},
        {"role": "assistant", "content": "About 40 minutes."},
    ]
    prompt: list[dict[str, Any]] = [{"role": "user", "content": "How long?"}]
    (reward,) = RewardFunction(str(road / "checkpoint"))([prompt], [completion])
    scorer = Scorer.load(road / "checkpoint")
    expected = scorer.rewards([*prompt, *completion[:-1]], ["About 40 minutes."])
    assert [reward] == pytest.approx(expected, abs=1e-5)


@contextmanager
def replying(
    *statuses: int, header: str | None = None, bodies: list[Json] | None = None
) -> Iterator[str]:
    """A server that replies with these statuses in turn, and then with rewards: the length of each
    response. A status of 0 closes the connection; 1 ends the reply early. It keeps the bodies."""
    waiting = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = waiting.pop(0) if waiting else 200
            if status == 0:
                self.connection.close()
                return
            if bodies is not None:
                bodies.append(request)
            lengths = [len(text) for text in request["responses"]]
            reply = {"rewards": list(map(float, lengths)), "usage": {"response_tokens": lengths}}
            body = json.dumps(reply).encode()
            self.send_response(max(status, 200))
            if header is not None:
                self.send_header("Retry-After", header)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: 3 if status == 1 else None])
            self.close_connection = True

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Log nothing."""

    started = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=started.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{started.server_port}"
    started.shutdown()
    started.server_close()


REQUEST = Request("x", [Message("user", "a")], ["b"])


@pytest.mark.parametrize(
    ("status", "header"),
    [
        (502, None),
        (504, None),
        (0, None),
        (1, None),
        (429, "0"),
        (503, "Wed, 21 Oct 2015 07:28:00 GMT"),
        (503, "soon"),
        (503, "nan"),
    ],
)
def test_requests_to_a_server_that_fails_briefly_are_repeated(
    status: int, header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "FIRST_WAIT_SECONDS", 0.01)
    with replying(status, status, header=header) as url:
        (rewards,) = judge.RemoteJudge((url,)).judge([REQUEST])
    assert rewards.rewards == [1.0]


def test_several_servers_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "FIRST_WAIT_SECONDS", 60.0)
    first: list[Json] = []
    second: list[Json] = []
    with replying(bodies=first) as one, replying(bodies=second) as two:
        both = judge.RemoteJudge((one, two))
        for _ in range(4):
            both.judge([REQUEST])
    assert (len(first), len(second)) == (2, 2)

    # no wait, because another server answers
    with replying() as url:
        function = RewardFunction(f"http://127.0.0.1:9,{url}")
        assert [function(["q"], ["four"]) for _ in range(3)] == [[4.0]] * 3


def test_an_error_that_does_not_pass_is_not_repeated() -> None:
    bodies: list[Json] = []
    with (
        replying(400, bodies=bodies) as url,
        pytest.raises(WorldPMError, match="answered 400"),
    ):
        judge.RemoteJudge((url,)).judge([REQUEST])
    assert len(bodies) == 1


def test_waits_grow_and_vary_and_have_a_limit() -> None:
    waits = [[judge._wait(rounds, None) for _ in range(50)] for rounds in (0, 3, 1000)]
    for of_round, longest in zip(waits, (1, 8, 120), strict=True):
        assert longest / 2 <= min(of_round) < max(of_round) <= longest
    assert 7 <= judge._wait(0, "7") <= 8


def test_many_responses_are_split_and_prompts_are_sent_together() -> None:
    bodies: list[Json] = []
    texts = ["x" * (number % 7) for number in range(300)]
    requests = [Request("x", [Message("user", "a")], texts), REQUEST]
    with replying(bodies=bodies) as url:
        many, few = judge.RemoteJudge((url,)).judge(requests)
    assert many.rewards == [float(len(text)) for text in texts]
    assert few.rewards == [1.0]
    assert sorted(len(body["responses"]) for body in bodies) == [1, 44, 128, 128]


def test_verl_scores_a_batch_with_the_rollouts_of_a_prompt_together() -> None:
    bodies: list[Json] = []
    turns = np.array([{"role": "user", "content": "q"}], dtype=object)
    infos: list[Json] = [{"prompt": turns}, {"question": "other"}, {"prompt": turns}]
    with replying(bodies=bodies) as url:
        scores = compute_scores(["d"] * 3, ["a", "bb", "ccc"], [None] * 3, infos, source=url)
    assert scores == [{"score": 1.0}, {"score": 2.0}, {"score": 3.0}]
    assert sorted(len(body["responses"]) for body in bodies) == [1, 2]


def test_verl_scores_rollouts_that_are_awaited_at_once_together() -> None:
    bodies: list[Json] = []

    async def both(url: str) -> list[Json]:
        calls = [
            compute_score_async("d", text, None, {"question": "q"}, source=url)
            for text in ("a", "bb", "ccc")
        ]
        return list(await asyncio.gather(*calls))

    with replying(bodies=bodies) as url:
        assert asyncio.run(both(url)) == [{"score": 1.0}, {"score": 2.0}, {"score": 3.0}]
        assert asyncio.run(both(url)) == [{"score": 1.0}, {"score": 2.0}, {"score": 3.0}]
    assert [len(body["responses"]) for body in bodies] == [3, 3]

    with replying(400, 400, 400) as url, pytest.raises(WorldPMError, match="answered 400"):
        asyncio.run(both(url))

    async def first_is_cancelled(url: str) -> list[Json]:
        calls = [
            asyncio.create_task(compute_score_async("d", text, None, {"question": "q"}, source=url))
            for text in ("a", "bb", "ccc")
        ]
        await asyncio.sleep(0.005)
        calls[0].cancel()
        return list(await asyncio.wait_for(asyncio.gather(*calls[1:]), 10))

    with replying() as url:
        assert asyncio.run(first_is_cancelled(url)) == [{"score": 2.0}, {"score": 3.0}]


def test_a_date_to_retry_at_becomes_a_number_of_seconds() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    seconds = judge._seconds_to_wait(soon)
    assert seconds is not None
    assert 25 < seconds <= 30
    assert judge._seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert judge._seconds_to_wait("7") == 7
