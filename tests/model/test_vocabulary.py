"""Loading a model refuses ids without a row in the embedding, before a text contains such an
id."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from tests.conftest import run
from tests.model.test_layouts import PROMPT, RESPONSES
from tests.model.test_weight_files import llama, plain_rewards
from worldpm import Message, Scorer
from worldpm.errors import CheckpointError
from worldpm.model import checkpoint, sources


def add_words(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens(["grams", "rye bread"])


def add_to_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.chat_template = f"<|new|>{tokenizer.chat_template}"


def add_end(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_special_tokens({"eos_token": "<|new|>"})


def changed(folder: Path, change: Callable[[PreTrainedTokenizerBase], object]) -> tuple[int, int]:
    """Change a model's tokenizer. Return its largest id and the rows of the embedding."""
    tokenizer = checkpoint.load_tokenizer(sources.Source(folder))
    rows = len(tokenizer)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return len(tokenizer) - 1, rows


@pytest.mark.parametrize("change", [add_words, add_to_template, add_end])
def test_ids_without_a_row_are_refused_with_both_numbers(
    tmp_path: Path, change: Callable[[PreTrainedTokenizerBase], object]
) -> None:
    folder = llama(tmp_path / "model")
    largest, rows = changed(folder, change)
    message = rf"has ids up to {largest}, but the embedding has {rows} rows.* or resize"
    with pytest.raises(CheckpointError, match=message):
        Scorer.load(folder)


def test_training_refuses_ids_without_a_row_before_the_first_step(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = llama(tmp_path / "model")
    largest, rows = changed(folder, add_words)
    assert run("train", road / "groups", "--model", folder, "--out", tmp_path / "out") == 2
    assert f"ids up to {largest}, but the embedding has {rows} rows" in capsys.readouterr().err


def test_an_unused_special_token_without_a_row_is_plain_text(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    before = plain_rewards(folder)
    # Gemma 3 1B has such a token for images
    changed(folder, lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<|image|>"}))
    scorer = Scorer.load(folder)
    assert scorer.rewards(PROMPT, RESPONSES) == pytest.approx(before, abs=1e-5)

    rows = len(scorer.encoder.tokenizer)
    group = scorer.encoder.encode([Message("user", "an <|image|>")], ["<|image|>"])
    assert max(max(group.prefix), *map(max, group.suffixes)) < rows
    (rendered,) = scorer.encoder.read_texts(["an <|image|>"])
    assert max(max(rendered.prefix, default=0), *map(max, rendered.suffixes)) < rows
    assert scorer.rewards("an <|image|>", RESPONSES) != before


def test_a_model_with_such_a_token_is_trained_further(road: Path, tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    changed(folder, lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<|image|>"}))
    options = ("--model", folder, "--max-steps", 1, "--batch-pairs", 4, "--max-length", 128)
    out = tmp_path / "out"
    assert run("train", road / "groups", *options, "--dtype", "float32", "--out", out) == 0
    assert plain_rewards(out) == pytest.approx(
        Scorer.load(out).rewards(PROMPT, RESPONSES), abs=1e-4
    )
