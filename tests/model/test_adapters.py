"""Adapters train few weights and end in a plain checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.conftest import run
from tests.model.test_families import FAMILIES, GROUPS, model_of
from worldpm import Scorer
from worldpm.model import adapters

PROMPT, RESPONSES = "How many grams?", ["About 14.", "Read the basics."]


def test_merged_weights_are_the_base_and_the_product_of_the_adapters() -> None:
    model = model_of("llama", FAMILIES["llama"])
    adapters.add(model, rank=2, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    weights = adapters.merged(dict(model.state_dict()))
    plain = model_of("llama", FAMILIES["llama"])
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    assert torch.allclose(plain(GROUPS), model(GROUPS), atol=1e-5)


def test_what_adapters_learned_of_bfloat16_weights_is_not_rounded_away() -> None:
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
    assert min(changed) > 0.9  # of bfloat16's weights hardly one would be


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


def test_a_stopped_adapter_run_ends_in_the_same_bits(
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
