"""The packed row gives the rewards and gradients of separate rows."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from worldpm.parts.batches import EncodedGroup
from worldpm.parts.reward_model import HEAD, RewardModel, Size, build, to_tensors
from worldpm.parts.shared_prefix import plan_row

SMALL = Size(layers=2, width=32, heads=4, feed_forward=48, vocabulary=60, lr=1e-3, batch_pairs=4, epochs=1, decay=0.0)


class Vocabulary:
    eos_token_id, pad_token_id = 0, 3

    def __len__(self) -> int:
        return 60


def group(prefix: list[int], *suffixes: list[int]) -> EncodedGroup:
    return EncodedGroup(prefix, list(suffixes), [0] * len(suffixes), [False] * len(suffixes))


GROUPS = [
    group([5, 6, 7, 8, 9], [11, 12, 0], [13, 14, 15, 16, 0], [17, 0]),
    group([21], [22, 23, 24, 0]),
    group([31, 32], [33, 0], [34, 35, 0]),
]


@pytest.fixture
def model() -> RewardModel:
    made = build(SMALL, Vocabulary(), seed=1)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # large enough that a wrong mask shows
    return made


def alone(model: RewardModel, groups: list[EncodedGroup]) -> Tensor:
    rows = [group(one.prefix, suffix) for one in groups for suffix in one.suffixes]
    return torch.cat([model(plan_row([row])) for row in rows])


def test_a_row_gives_the_rewards_of_plain_transformers(model: RewardModel) -> None:
    config = Qwen2Config(**{**model.backbone.config.to_dict(), "num_labels": 1})
    plain = Qwen2ForSequenceClassification._from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    plain.load_state_dict(to_tensors(model))
    rows = [torch.tensor([one.prefix + suffix]) for one in GROUPS for suffix in one.suffixes]
    expected = torch.cat([plain(input_ids=row).logits[:, 0] for row in rows])
    assert torch.allclose(model(plan_row(GROUPS)), expected, atol=1e-5, rtol=0)


def test_a_row_gives_the_gradients_of_separate_rows(model: RewardModel) -> None:
    weights = torch.linspace(-1, 1, 6)
    gradients = []
    for rewards in (model(plan_row(GROUPS)), alone(model, GROUPS)):
        model.zero_grad()
        (rewards * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-5


def test_a_reward_does_not_depend_on_its_neighbours_or_their_order(model: RewardModel) -> None:
    first = GROUPS[0]
    moved = group(first.prefix, *first.suffixes[::-1])
    together, reversed_, single = model(plan_row(GROUPS))[:3], model(plan_row([GROUPS[1], moved]))[1:], alone(model, [first])
    assert torch.allclose(together, reversed_.flip(0), atol=1e-5, rtol=0)
    assert torch.allclose(together, single, atol=1e-5, rtol=0)


def test_positions_go_on_where_the_prompt_ended() -> None:
    plan = plan_row([group([5, 6], [7, 8, 0], [9, 0])])
    assert plan.input_ids.tolist() == [[5, 6, 7, 8, 0, 9, 0]]
    assert plan.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert plan.end_positions.tolist() == [4, 6]


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = (to_tensors(build(SMALL, Vocabulary(), seed=2)) for _ in range(2))  # type: ignore[arg-type]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first[HEAD], to_tensors(build(SMALL, Vocabulary(), seed=3))[HEAD])  # type: ignore[arg-type]
