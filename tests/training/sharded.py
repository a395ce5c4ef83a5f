"""A program for two processes: FSDP2 shards a model, which must give the rewards of an unsharded
model, and be saved and loaded like one."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.model.test_families import FAMILIES, GROUPS, model_of
from worldpm.model.reward_model import RewardModel
from worldpm.training import state


def sharded() -> RewardModel:
    model = model_of("qwen2", FAMILIES["qwen2"])
    for module in list(model.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module)
    fully_shard(model)
    return model


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), lr=1e-2, eps=0.1
    )  # a large eps, so that the sign of a gradient near 0 does not matter


def step(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
    """Take a step on all groups. Every process reads all of them, so the mean over processes equals
    the gradient of one."""
    model(GROUPS).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def rewards(model: torch.nn.Module) -> torch.Tensor:
    output: torch.Tensor = model(GROUPS)
    return output


def main(words: list[str]) -> None:
    folder = Path(words[0])
    accelerator = Accelerator(cpu=True)
    whole, parts = model_of("qwen2", FAMILIES["qwen2"]), sharded()
    optimizers = optimizer_of(whole), optimizer_of(parts)
    assert isinstance(next(parts.parameters()), DTensor)
    assert torch.allclose(rewards(whole), rewards(parts), atol=1e-5)
    step(whole, optimizers[0])
    step(parts, optimizers[1])
    expected = rewards(whole)
    assert torch.allclose(expected, rewards(parts), atol=1e-4)
    saved = state.SavedState(state.Totals(step=1), best_weights={})
    state.save(folder, accelerator, parts, optimizers[1], saved)
    accelerator.wait_for_everyone()
    later = None
    for fresh in (
        sharded(),
        model_of("qwen2", FAMILIES["qwen2"]),
    ):  # saved in shards, loaded in shards and unsharded
        optimizer = optimizer_of(fresh)
        assert state.load_last(folder, accelerator, fresh, optimizer) is not None
        assert torch.allclose(expected, rewards(fresh), atol=1e-4)
        step(fresh, optimizer)
        fresh_rewards = rewards(fresh)
        assert (fresh_rewards - expected).abs().max() > 1e-2
        both = fresh_rewards if later is None else later
        assert torch.allclose(both, fresh_rewards, atol=1e-3)
        later = fresh_rewards
    if accelerator.is_main_process:
        print("sharded rewards, gradients and state agree")
