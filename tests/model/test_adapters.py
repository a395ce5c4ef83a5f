"""Adapters train few weights and end in a plain checkpoint."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from tests.conftest import run
from tests.model.test_families import EXPERTS, FAMILIES, GROUPS, RECURRENT, model_of
from tests.model.test_layouts import PROMPT, RESPONSES, SHAPE
from tests.model.test_weight_files import language_model, plain_rewards
from worldpm import Scorer
from worldpm.errors import ConfigError
from worldpm.model import adapters
from worldpm.model.reward_model import from_config


@pytest.mark.parametrize("family", [*FAMILIES, *RECURRENT])
def test_merged_weights_are_the_base_plus_the_product_of_the_adapters(family: str) -> None:
    changes = {**FAMILIES, **RECURRENT}[family]
    model = model_of(family, changes)
    plain = model_of(family, changes)
    before = plain(GROUPS)
    adapters.add(model, rank=2, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    weights = adapters.merged(dict(model.state_dict()))
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    assert torch.allclose(plain(GROUPS), model(GROUPS), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain(GROUPS), before, atol=1e-2)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"])
def test_experts_have_no_adapters_and_a_message_says_so(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(family, FAMILIES[family])
    with caplog.at_level("INFO"):
        adapters.add(model, rank=2, seed=0)
    assert "the experts have no adapters and stay unchanged" in caplog.text
    trained = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert trained
    assert not any("experts" in name.replace("shared_expert", "") for name in trained)


def test_adapters_that_could_not_be_merged_are_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import peft

    monkeypatch.setattr(peft, "LoraConfig", partial(peft.LoraConfig, use_dora=True))
    with pytest.raises(
        ConfigError, match=r"--lora-rank: .* cannot be merged \(.*lora_magnitude.* Train without"
    ):
        adapters.add(model_of("llama", FAMILIES["llama"]), rank=2, seed=0)


def test_transposed_layers_are_refused_before_the_first_step() -> None:
    model = from_config(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=60), seed=0)
    with pytest.raises(
        ConfigError, match=r"--lora-rank: .*transposed .* Train without --lora-rank"
    ):
        adapters.add(model, rank=2, seed=0)


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(num_local_experts=4, max_position_embeddings=256, **SHAPE),  # type: ignore[arg-type]
        Qwen3MoeConfig(**SHAPE, **EXPERTS, max_position_embeddings=256),  # type: ignore[arg-type]
    ],
    ids=lambda config: config.model_type,
)
def test_a_mixture_of_experts_is_trained_with_adapters_into_a_plain_checkpoint(
    road: Path, tmp_path: Path, config: PreTrainedConfig
) -> None:
    base, out = language_model(tmp_path / "base", config), tmp_path / "out"
    options = ("--lora-rank", 2, "--max-steps", 2, "--batch-pairs", 4, "--max-length", 128)
    words = ("train", road / "groups", "--model", base, *options, "--lr", 1e-2)
    assert run(*words, "--dtype", "float32", "--out", out) == 0
    expected = plain_rewards(out)
    assert Scorer.load(out).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-4)
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (base, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("experts" in name for name in changed)


def test_merging_into_bfloat16_weights_does_not_round_adapters_away() -> None:
    model = model_of("llama", FAMILIES["llama"]).bfloat16()
    adapters.add(model, rank=2, seed=0)
    before = {
        name.replace(adapters.BASE, "."): tensor.float()
        for name, tensor in model.state_dict().items()
        if adapters.BASE in name
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-5)
    weights = adapters.merged(dict(model.state_dict()))
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    changed = [
        (weights[name] != tensor).float().mean()
        for name, tensor in before.items()
        if name.endswith("weight")
    ]
    assert min(changed) > 0.9  # in bfloat16 hardly any weight would change


def test_only_adapters_and_the_head_are_trained_and_both_are_saved(
    road: Path, tmp_path: Path
) -> None:
    words = (
        "--model",
        road / "checkpoint",
        "--lora-rank",
        4,
        "--max-steps",
        2,
        "--batch-pairs",
        16,
        "--lr",
        1e-2,
        "--max-length",
        128,
    )
    assert (
        run("train", road / "groups", *words, "--dtype", "float32", "--out", tmp_path / "tuned")
        == 0
    )
    counts = json.loads((tmp_path / "tuned" / "manifest.json").read_text())["counts"]
    assert counts["trained_parameters"] < counts["parameters"] / 10
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(f).state_dict()
        for f in (road / "checkpoint", tmp_path / "tuned")
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "score.weight" in changed
    assert any("q_proj.weight" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    assert Scorer.load(tmp_path / "tuned").rewards(PROMPT, RESPONSES) != Scorer.load(
        road / "checkpoint"
    ).rewards(PROMPT, RESPONSES)


def test_a_resumed_adapter_run_ends_in_the_same_bits(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worldpm.training.loop import Trainer

    words = (
        "--model",
        road / "checkpoint",
        "--lora-rank",
        2,
        "--max-steps",
        4,
        "--batch-pairs",
        8,
        "--max-length",
        128,
    )
    assert (
        run("train", road / "groups", *words, "--dtype", "float32", "--out", tmp_path / "whole")
        == 0
    )
    save = Trainer.save

    def save_and_stop(self: Trainer) -> None:
        save(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save_and_stop)
    assert (
        run("train", road / "groups", *words, "--dtype", "float32", "--out", tmp_path / "stopped")
        == 1
    )
    monkeypatch.setattr(Trainer, "save", save)
    assert (
        run("train", road / "groups", *words, "--dtype", "float32", "--out", tmp_path / "stopped")
        == 0
    )
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
