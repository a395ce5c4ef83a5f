"""Packed rows are exact for every family of decoders, including the mechanism that is special to
each family."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from worldpm.model import reward_model
from worldpm.model.encoder import EncodedGroup, Tokens
from worldpm.model.reward_model import RewardModel, from_config

VOCABULARY = 60
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WINDOW = {"sliding_window": 6}  # shorter than every sequence below
EXPERTS = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
    "mistral": WINDOW,
    "gemma2": {**WINDOW, "head_dim": 8, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **WINDOW,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window_pattern": 2,
    },
    "phi3": {},
    "olmo2": {},
    "olmo3": WINDOW,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {**WINDOW, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere2": WINDOW,
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "granite": {"attention_multiplier": 0.3},
    "glm4": {"head_dim": 8},
    "gpt_neox": {"rotary_pct": 0.5, "attention_dropout": 0.1, "hidden_dropout": 0.1},
}
RECURRENT: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "qwen3_next": {
        **EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "qwen3_5_text": {
        "head_dim": 8,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
}


def model_of(family: str, changes: dict[str, Any]) -> RewardModel:
    model = from_config(AutoConfig.for_model(family, **{**BASE, **changes}), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(4)  # large enough that a wrong mask shows
            if "sinks" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def draw(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, length) for length in lengths]


def group(prefix: Tokens, suffixes: Sequence[Tokens]) -> EncodedGroup:
    return EncodedGroup(prefix, suffixes, [0] * len(suffixes), [False] * len(suffixes))


GROUPS = [
    group(draw(11)[0], draw(9, 4, 13, seed=1)),
    group(draw(2, seed=2)[0], draw(17, seed=3)),
    group(draw(0)[0], draw(8, 1, seed=4)),
]


def gradients(model: RewardModel, rewards: Tensor) -> Tensor:
    model.zero_grad()
    (rewards * torch.linspace(-1, 1, len(rewards))).sum().backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_and_gradients_of_a_shared_row_are_those_of_separate_rows(family: str) -> None:
    model = model_of(family, FAMILIES[family])
    shared = model(GROUPS)
    assert model.shares_prefix is True
    shared_gradients = gradients(model, shared)
    model.share_prefix(False)
    plain = model(GROUPS)
    plain_gradients = gradients(model, plain)
    assert (shared - plain).abs().max() < 1e-5
    assert (shared_gradients - plain_gradients).norm() < 1e-5 * plain_gradients.norm()
    model.share_prefix(True)
    model.train()
    model.backbone.activation_checkpointing_enable()
    again = model(GROUPS)
    assert (again - plain).abs().max() < 1e-5
    assert (gradients(model, again) - plain_gradients).norm() < 1e-5 * plain_gradients.norm()


def test_rounding_of_a_head_with_large_weights_is_not_taken_for_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama", FAMILIES["llama"]).eval().to(torch.bfloat16)
    groups = reward_model._trial_groups(VOCABULARY)
    with torch.no_grad(), model.separate_rows():
        states = model._apart(groups).float()
        # a head under which all parts of these rewards cancel
        weight = 40 * torch.randn(states.shape[1], generator=torch.Generator().manual_seed(0))
        weight -= states.T @ torch.linalg.lstsq(states.T, weight[:, None]).solution[:, 0]
        scores: Any = model.score
        scores.weight.data = weight[None].to(torch.bfloat16)
        plain = model._read(model._apart(groups))
    with torch.no_grad():
        model.share_prefix(True)
        rounded = model._read(model._shared(groups)) - plain
        model.shares_prefix = None
    # a twentieth of a logit is the tolerance of larger rewards
    assert rounded.abs().max() > 0.05
    assert model(GROUPS).isfinite().all()
    assert model.shares_prefix is True

    # rewards of other responses are a fault, in every type
    monkeypatch.setattr(RewardModel, "_shared", lambda self, groups: self._apart(groups).roll(1, 0))
    for dtype in (torch.bfloat16, torch.float32):
        wrong = model_of("llama", FAMILIES["llama"]).eval().to(dtype)
        wrong.score.load_state_dict(model.score.state_dict())
        wrong(GROUPS)
        assert wrong.shares_prefix is False


def test_after_separate_rows_a_model_still_checks_whether_it_shares_prompts() -> None:
    family = next(iter(FAMILIES))
    model = model_of(family, FAMILIES[family]).eval()
    with model.separate_rows():
        plain = model(GROUPS)
    assert model.shares_prefix is None
    assert (model(GROUPS) - plain).abs().max() < 1e-5
    assert model.shares_prefix is True


@pytest.mark.parametrize("family", RECURRENT)
def test_a_recurrent_model_falls_back_to_separate_rows_with_one_message(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(family, RECURRENT[family]).eval()
    rewards = [model(GROUPS), model(GROUPS[:1])]
    assert model.shares_prefix is False
    assert [
        record.message.split(", so ")[1]
        for record in caplog.records
        if "so each response" in record.message
    ] == ["each response runs as a separate row"]
    model.train()
    model.backbone.activation_checkpointing_enable()
    gradients(model, model(GROUPS[1:2]))  # recomputation uses the model's attention, too
    model.eval()
    alone = torch.cat(
        [model([group(one.prefix, [suffix])]) for one in GROUPS for suffix in one.suffixes]
    )
    assert (rewards[0] - alone).abs().max() < 1e-5
    assert (rewards[1] - alone[:3]).abs().max() < 1e-5
