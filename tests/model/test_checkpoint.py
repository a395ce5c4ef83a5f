"""Checkpoints: plain transformers loads them, and damaged ones are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from worldpm import Message, Scorer
from worldpm.errors import CheckpointError, ConfigError, DataError, NotFiniteError
from worldpm.model import chat
from worldpm.scoring import scorer
from worldpm.storage.json_files import to_json
from worldpm.storage.manifest import read_manifest, sha256

PROMPT, RESPONSES = (
    "How many grams does rye bread take?",
    ["Rye bread takes 14 grams.", "Read the basics first.", ""],
)


@pytest.fixture
def copy(road: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(road / "checkpoint", tmp_path / "copy"))


def test_plain_transformers_gives_the_same_rewards(road: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(road / "checkpoint")
    model = AutoModelForSequenceClassification.from_pretrained(road / "checkpoint").eval()
    texts = [
        one.text
        for one in chat.render(tokenizer, [Message("user", PROMPT)], RESPONSES, frame=chat.Frame())
    ]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits[:, 0].tolist()
    assert Scorer.load(road / "checkpoint").rewards(PROMPT, RESPONSES) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("system", [(), (Message("system", "Be brief."),)])
def test_the_template_alone_gives_the_text_that_the_model_reads(
    road: Path, system: tuple[Message, ...]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(road / "checkpoint")
    prompt = [
        *system,
        Message("user", PROMPT),
        Message("assistant", "Of which flour?"),
        Message("user", "Rye."),
    ]
    for response, conversation in zip(
        RESPONSES, chat.render(tokenizer, prompt, RESPONSES, frame=chat.Frame()), strict=True
    ):
        turns = [
            {"role": m.role, "content": m.content}
            for m in (*prompt, Message("assistant", response))
        ]
        assert tokenizer.apply_chat_template(turns, tokenize=False) == conversation.text
    again = chat.standing_alone(str(tokenizer.chat_template), chat.Frame())
    assert again == tokenizer.chat_template


@pytest.mark.parametrize("frame", [chat.Frame("</s>"), chat.UNFRAMED])
def test_a_template_that_asks_for_the_day_gets_a_fixed_one(road: Path, frame: chat.Frame) -> None:
    tokenizer = AutoTokenizer.from_pretrained(road / "checkpoint")
    tokenizer.chat_template = chat.standing_alone("Today: {{ strftime_now('%d %b %Y') }}.", frame)
    assert str(
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    ).startswith("Today: 26 Jul 2024.")
    assert chat.standing_alone(tokenizer.chat_template, frame) == tokenizer.chat_template


def test_the_folder_describes_how_the_model_reads_text(road: Path) -> None:
    config = json.loads((road / "checkpoint" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] != config["eos_token_id"]
    description = json.loads((road / "checkpoint" / "worldpm.json").read_text())
    assert {
        "end_token",
        "template_hash",
        "max_length",
        "reward_mean",
        "reward_std",
        "lineage",
    } <= description.keys()
    assert not list((road / "checkpoint").rglob("*.bin"))
    assert not (road / "checkpoint" / ".progress").exists()


def test_a_reward_does_not_depend_on_the_other_responses_or_their_order(road: Path) -> None:
    model = Scorer.load(road / "checkpoint")
    together = model.rewards(PROMPT, RESPONSES)
    assert model.rewards(PROMPT, RESPONSES[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    assert [model.rewards(PROMPT, [response])[0] for response in RESPONSES] == pytest.approx(
        together, abs=1e-5
    )


def test_results_come_in_the_order_of_the_requests(road: Path) -> None:
    model = Scorer.load(road / "checkpoint")
    requests = [
        scorer.Request(
            str(i), [Message("user", "word " * (1 + i * 37 % 40))], ["a", "b " * (i % 7)][: i % 3]
        )
        for i in range(70)
    ]
    answers = [one for one in model.score(iter(requests)) if isinstance(one, scorer.Scored)]
    streamed = [one.rewards for one in answers]
    assert [len(rewards) for rewards in streamed] == [i % 3 for i in range(70)]
    for request, rewards in zip(requests, streamed, strict=True):
        assert rewards == pytest.approx(model.answer(request).rewards, abs=1e-5)


def test_bfloat16_ranks_like_float32(road: Path) -> None:
    exact, rough = (
        Scorer.load(road / "checkpoint", dtype=dtype).rewards(PROMPT, RESPONSES)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough == pytest.approx(exact, abs=0.05)


def drop_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors")


def two_labels(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"].repeat(2, 1)
    save_file(tensors, folder / "model.safetensors")


def nan_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"score.weight": tensors["score.weight"] * float("nan")},
        folder / "model.safetensors",
    )


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            drop_head,
            (
                r"Qwen2ForSequenceClassification without head weights \(score.\*\): its weights are"
                r" incomplete"
            ),
        ),
        (two_labels, "2 labels, but a reward model has one"),
        (nan_head, "the reward of response 0 is nan"),
        (other_template, "chat template differs from the one in training"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "damaged"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "not a config of a known model|not JSON",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "no readable tokenizer"),
        (
            lambda folder: (folder / "worldpm.json").write_text("{}"),
            "lacks template_hash, end_token, empty_system, max_length, prompt_length",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused(copy: Path, harm: object, message: str) -> None:
    assert callable(harm)
    harm(copy)
    with pytest.raises(
        (DataError, CheckpointError), match=r"missing or changed since it was written|worldpm.json"
    ):
        Scorer.load(copy)
    sign(copy)
    with pytest.raises((CheckpointError, NotFiniteError), match=message):
        Scorer.load(copy).rewards(PROMPT, RESPONSES)


def sign(folder: Path) -> None:
    """Write a manifest with the hashes of the folder's present files."""
    manifest = read_manifest(folder)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    hashes: dict[str, str | None] = {str(path.relative_to(folder)): sha256(path) for path in files}
    manifest = replace(manifest, files=hashes)
    (folder / "manifest.json").write_bytes(to_json(manifest))


def test_an_unfinished_checkpoint_is_not_loaded(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        Scorer.load(copy)


def test_equal_responses_have_equal_rewards_to_the_last_bit(road: Path) -> None:
    first, other, second = Scorer.load(road / "checkpoint").rewards(
        PROMPT, [RESPONSES[0], RESPONSES[1], RESPONSES[0]]
    )
    assert first == second != other


def test_requests_before_one_over_the_limit_are_answered(road: Path) -> None:
    requests = [
        scorer.Request(str(i), [Message("user", "word " * (5000 if i == 3 else 1))], ["a"])
        for i in range(5)
    ]
    answers = Scorer.load(road / "checkpoint").score(requests)
    assert [type(next(answers)) for _ in range(3)] == [scorer.Scored] * 3
    with pytest.raises(DataError, match=r"^3: 10"):
        next(answers)


def test_training_starts_from_a_checkpoint(road: Path, tmp_path: Path) -> None:
    from tests.conftest import run

    words = (
        "train",
        road / "groups",
        "--model",
        road / "checkpoint",
        "--max-steps",
        1,
        "--batch-pairs",
        8,
        "--lr",
        1e-5,
    )
    assert run(*words, "--max-length", 256, "--dtype", "float32", "--out", tmp_path / "more") == 0
    first, second = (
        Scorer.load(folder).rewards(PROMPT, RESPONSES)
        for folder in (road / "checkpoint", tmp_path / "more")
    )
    assert first != second
    assert first == pytest.approx(second, abs=0.5)
