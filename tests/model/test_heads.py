"""Models without a reward head that we can read are refused with the reason and a fix."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from tests.conftest import run
from tests.model.test_layouts import PROMPT, RESPONSES, SHAPE, change
from tests.model.test_weight_files import llama, plain_rewards, rewrite, save_tokenizer
from worldpm import Scorer
from worldpm.errors import CheckpointError
from worldpm.model import checkpoint, sources

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 0},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8},
    "modernbert": {"pad_token_id": 0},
    "gemma3_text": {"use_bidirectional_attention": True, "head_dim": 8},
}


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_are_refused_as_encoders(family: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(family, **SHAPE, **ENCODERS[family])
    config.vocab_size, config.num_labels = save_tokenizer(tmp_path), 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    name = r"\w+ForSequenceClassification"
    with pytest.raises(CheckpointError, match=rf"an encoder \({name}\).*Choose a decoder"):
        Scorer.load(tmp_path)


def test_encoders_with_a_decoder_are_refused_as_encoders(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    config = AutoConfig.for_model("t5", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    AutoModel.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    with pytest.raises(CheckpointError, match=r"an encoder \(T5Model\).*Choose a decoder"):
        checkpoint.load(sources.Source(tmp_path), fresh_head=True)


def test_a_head_of_several_labels_is_refused_with_their_number(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    expected = plain_rewards(folder)
    rewrite(
        folder, lambda weights: weights | {"score.weight": weights["score.weight"].repeat(3, 1)}
    )
    labels = {str(number): f"LABEL_{number}" for number in range(3)}
    change(folder / "config.json", id2label=labels)
    assert plain_rewards(folder) == pytest.approx(expected)
    with pytest.raises(CheckpointError, match=r"has 3 labels, .* Save the row of one .* or train"):
        Scorer.load(folder)

    # the suggested fix works
    rewrite(folder, lambda weights: weights | {"score.weight": weights["score.weight"][1:2]})
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


VALUE_HEAD = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
"""A value head as TRL's AutoModelForCausalLMWithValueHead saves it."""


def policy(folder: Path) -> Path:
    llama(folder)
    rewrite(
        folder, lambda weights: {name: weights[name] for name in weights if "score" not in name}
    )
    change(folder / "config.json", architectures=["LlamaForCausalLM"])
    return folder


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("fresh_head", [True, False])
def test_a_value_head_is_not_read_as_a_reward_head(
    tmp_path: Path, beside: bool, fresh_head: bool
) -> None:
    folder = policy(tmp_path / "policy")
    if beside:
        save_file(VALUE_HEAD, folder / "value_head.safetensors")
    else:
        rewrite(folder, lambda weights: weights | VALUE_HEAD)
    with pytest.raises(CheckpointError, match=r"a value head \(.*PPO .* If it is a reward, save"):
        checkpoint.load(sources.Source(folder), fresh_head=fresh_head)


def test_a_value_head_that_is_saved_as_a_reward_head_is_read(tmp_path: Path) -> None:
    folder = policy(tmp_path / "model")
    rewrite(folder, lambda weights: weights | {"score.weight": VALUE_HEAD["v_head.summary.weight"]})
    change(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    expected = plain_rewards(folder)
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_an_encoder_is_refused_in_training_too(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bert"
    config = AutoConfig.for_model("bert", vocab_size=save_tokenizer(folder), **SHAPE)
    AutoModel.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    assert run("train", road / "groups", "--model", folder, "--out", tmp_path / "out") == 2
    assert "an encoder (BertModel)" in capsys.readouterr().err
