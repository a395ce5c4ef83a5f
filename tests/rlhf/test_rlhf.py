"""Rewards for trainers of policies: each protocol gives the scorer's rewards, and a policy really
learns from them."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import run
from tests.serving.test_serve import process
from worldpm import Scorer
from worldpm.errors import ConfigError, WorldPMError
from worldpm.rlhf.judge import Guards, RemoteJudge, judge_of, rewards_of
from worldpm.rlhf.openrlhf import _after, reward_func
from worldpm.rlhf.trl import RewardFunction
from worldpm.rlhf.verl import compute_score

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
    with pytest.raises(ConfigError, match="2 turns"):
        function(turns[:1], [answers[0] * 2])


def test_openrlhf_gets_the_rewards_of_texts_that_begin_with_their_prompts(
    road: Path, offline: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDPM_REWARD_MODEL", str(road / "checkpoint"))
    found = reward_func([p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)], PROMPTS, [None] * 3)
    assert found["rewards"].tolist() == pytest.approx(offline, abs=1e-5)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="begins neither with its prompt nor with the end of it"):
        reward_func(["x"], ["y"], [None])
    monkeypatch.delenv("WORLDPM_REWARD_MODEL")
    with pytest.raises(ConfigError, match="WORLDPM_REWARD_MODEL"):
        reward_func(["x"], ["x"], [None])


@pytest.mark.parametrize(
    ("prompt", "query"),
    [
        (
            "Where is the cafe\u0301?",
            "Where is the caf\u00e9? There.",
        ),  # what a tokenizer that composes letters gives back
        (
            "an old story. " * 40 + "Where is the cat?",
            "story. " + "an old story. " * 9 + "Where is the cat? There.",
        ),
        ("", " There."),
    ],
)
def test_openrlhf_composes_letters_and_cuts_prompts_from_their_left(
    prompt: str, query: str
) -> None:
    assert _after(prompt, query) == " There."


def test_a_text_that_begins_otherwise_than_its_prompt_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match="begins neither"):
        _after(
            "an old story. " * 40 + "Where is the cat?", "cat? There."
        )  # five letters may be chance


def test_pieces_of_text_are_its_lines_and_other_pieces_are_refused(road: Path) -> None:
    function = RewardFunction(str(road / "checkpoint"))
    pieces = [{"type": "text", "text": "About"}, {"type": "text", "text": "an hour."}]
    asked = [{"role": "user", "content": pieces[:1]}]
    found = function([asked], [[{"role": "assistant", "content": pieces}]])
    assert found == pytest.approx(function(["About"], ["About\nan hour."]), abs=1e-6)
    for content in (None, [{"type": "image", "url": "x"}], 7):
        with pytest.raises(ConfigError, match="rewards are of text"):
            function([asked], [[{"role": "assistant", "content": content}]])


def test_many_threads_load_a_model_once(road: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        judges = list(threads.map(lambda _: judge_of(f"{road}/./checkpoint"), range(8)))
    assert len(set(map(id, judges))) == 1


def test_verl_gets_one_reward_at_a_time(road: Path, offline: list[float]) -> None:
    place = str(road / "checkpoint")
    asked = {"prompt": [{"role": "user", "content": PROMPTS[2]}]}
    assert compute_score("d", ANSWERS[2], None, asked, place=place)["score"] == pytest.approx(
        offline[2], abs=1e-5
    )
    assert compute_score("d", ANSWERS[2], None, {"question": PROMPTS[2]}, place=place)[
        "score"
    ] == pytest.approx(offline[2], abs=1e-5)
    with pytest.raises(ConfigError, match="neither `prompt` nor `question`"):
        compute_score("d", "a", None, {}, place=place)


def test_a_server_gives_the_rewards_of_the_folder(road: Path, offline: list[float]) -> None:
    with process(road) as (_, url):
        assert RewardFunction(url)(PROMPTS, ANSWERS) == pytest.approx(offline, abs=1e-5)
        with pytest.raises(WorldPMError, match="answered 422"):
            rewards_of(RemoteJudge(url), [()], ["a"], Guards())
    with pytest.raises(WorldPMError, match="no answer"):
        RewardFunction(url)(PROMPTS, ANSWERS)


@pytest.mark.filterwarnings("ignore")  # of its libraries
def test_openrlhf_reads_rewards_with_its_own_client(road: Path, offline: list[float]) -> None:
    why = "OpenRLHF (pip install --no-deps openrlhf, for it wants another transformers) is not here"
    agent = pytest.importorskip("openrlhf.utils.agent", reason=why, exc_type=ImportError)
    encoder = Scorer.load(road / "checkpoint").encoder
    turns = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": a}]
        for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    rendered = [encoder.tokenizer.apply_chat_template(one, tokenize=False) for one in turns]
    with process(road) as (_, url):
        executor = agent.SingleTurnAgentExecutor(f"{url}/get_reward")
        (found,) = asyncio.run(executor._fetch_rewards_via_http(rendered, PROMPTS, [None] * 3))
    assert found["rewards"] == found["scores"] == pytest.approx(offline, abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # of its libraries
def test_verl_reads_rewards_with_its_own_client(road: Path, offline: list[float]) -> None:
    why = "verl (pip install --no-deps verl, for it wants another transformers) is not here"
    reward_loop = pytest.importorskip(
        "verl.experimental.reward_loop.reward_loop", reason=why, exc_type=ImportError
    )
    protocol, omegaconf = pytest.importorskip("verl.protocol"), pytest.importorskip("omegaconf")
    place = str(road / "checkpoint")
    tokenizer = Scorer.load(place).encoder.tokenizer
    answers = [tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] for answer in ANSWERS]
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in answers], batch_first=True
    )
    kept = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(ids), dtype=torch.int64) for ids in answers], batch_first=True
    )
    prompts = np.empty(len(PROMPTS), dtype=object)
    prompts[:] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    rollouts = protocol.DataProto.from_dict(
        {"responses": padded, "attention_mask": kept}, {"raw_prompt": prompts}
    )

    async def judged(engine: str, url: str) -> list[float]:
        config = {
            "actor_rollout_ref": {"model": {"path": place, "tokenizer_path": None}},
            "reward": {
                "reward_model": {"enable": True, "model_path": place, "rollout": {"name": engine}},
                "reward_manager": {"source": "register", "name": "naive"},
                "custom_reward_function": {"path": None},
            },
        }
        worker = reward_loop.RewardLoopWorker(
            omegaconf.OmegaConf.create(config), url.removeprefix("http://")
        )
        return [one["reward_score"] for one in await worker.compute_score_batch(rollouts)]

    with process(road) as (_, url):
        for engine in ("vllm", "sglang"):
            assert asyncio.run(judged(engine, url)) == pytest.approx(offline, abs=1e-5), engine


def test_guards_do_what_they_say_and_nothing_when_unset() -> None:
    rewards, lengths, texts = [1.0, 2.0, 4.0], [10, 30, 90], ["a", "b", "c"]
    assert Guards().values(rewards, lengths, texts) == rewards
    outside = Guards(ranges={"length": (5, 50)}).values(rewards, lengths, texts)
    assert outside == pytest.approx([1.0, 2.0, 0.0])  # the lowest less one
    weighed = Guards(weights={"length": -1.0}).values(rewards, lengths, texts)
    assert weighed[0] == pytest.approx(1.0 + (20 / 40 + 80 / 100) / 3)  # shorter than both others
    assert sum(weighed) == pytest.approx(sum(rewards))


def test_best_of_n_from_the_command_line(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text(
        json.dumps(
            {"prompt": "How long?", "responses": ["About an hour.", "No idea.", "x " * 30], "id": 7}
        )
        + "\n"
    )
    assert run("score", road / "checkpoint", lines, "--best") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["id"] == 7
    assert found["rewards"][found["best"]] == max(found["rewards"])
    assert found["kl_nats"] == pytest.approx(1.0986122886681098 - 2 / 3)  # ln 3 - 2/3
    assert found["lead"] == pytest.approx(max(found["rewards"]) - sum(found["rewards"]) / 3)
    assert run("score", road / "checkpoint", lines, "--best", "--allow", "length=20:400") == 0
    assert json.loads(capsys.readouterr().out)["best"] == 2
    for words in (
        ("--best", "--allow", "size=1:2"),
        ("--best", "--weigh", "length=a"),
        ("--weigh", "length=1"),
    ):
        assert run("score", road / "checkpoint", lines, *words) == 2


def test_a_policy_learns_from_the_reward(road: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is an extra: pip install 'worldpm[rlhf]'")
    script = Path(__file__).parents[2] / "runs" / "rlhf_trl.py"
    command = [
        sys.executable,
        script,
        road / "checkpoint",
        "tiny",
        road / "groups",
        tmp_path / "out",
        "60",
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rewards = [float(line) for line in (tmp_path / "out" / "rewards.txt").read_text().split()]
    assert sum(rewards[-12:]) > sum(rewards[:12])
