"""Plans of rows, checked against plans made by hand. Exactness for every family is in
test_families."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from worldpm.model import shared_prefix
from worldpm.model.encoder import EncodedGroup
from worldpm.model.reward_model import RewardModel, build
from worldpm.model.shared_prefix import plan_row
from worldpm.model.sizes import Size

SMALL = Size(
    layers=2,
    width=32,
    heads=4,
    feed_forward=48,
    vocabulary=60,
    lr=1e-3,
    batch_pairs=4,
    epochs=1,
    decay=0.0,
)


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
    return build(SMALL, Vocabulary(), seed=1)  # type: ignore[arg-type]


def test_a_row_gives_the_rewards_of_plain_transformers(model: RewardModel) -> None:
    config = Qwen2Config(**{**model.backbone.config.to_dict(), "num_labels": 1})
    plain = Qwen2ForSequenceClassification._from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    plain.load_state_dict(
        {name.replace("backbone.", "model."): tensor for name, tensor in model.state_dict().items()}
    )
    rows = [torch.tensor([[*one.prefix, *suffix]]) for one in GROUPS for suffix in one.suffixes]
    expected = torch.cat([plain(input_ids=row).logits[:, 0] for row in rows])
    assert torch.allclose(model(GROUPS), expected, atol=1e-5, rtol=0)


def test_a_reward_does_not_depend_on_its_neighbours_or_their_order(model: RewardModel) -> None:
    first = GROUPS[0]
    moved = group(list(first.prefix), *map(list, first.suffixes[::-1]))
    together, turned = model(GROUPS)[:3], model([GROUPS[1], moved])[1:]
    alone = torch.cat(
        [model([group(list(first.prefix), list(suffix))]) for suffix in first.suffixes]
    )
    assert torch.allclose(together, turned.flip(0), atol=1e-5, rtol=0)
    assert torch.allclose(together, alone, atol=1e-5, rtol=0)


def test_positions_continue_where_the_prompt_ended() -> None:
    plan = plan_row([group([5, 6], [7, 8, 0], [9, 0])])
    assert plan.input_ids.tolist() == [[5, 6, 7, 8, 0, 9, 0]]
    assert plan.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert plan.end_positions.tolist() == [4, 6]


def test_the_keys_of_a_response_are_its_prompt_and_itself() -> None:
    plan = plan_row([group([5, 6], [7, 8, 0], [9, 0]), group([], [1])])
    cpu = torch.device("cpu")
    assert plan.key_index(cpu).tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 7]
    assert plan.borders("queries", cpu).tolist() == [0, 5, 7, 8]
    assert plan.borders("keys", cpu).tolist() == [0, 5, 9, 10]


def test_a_query_sees_the_window_that_ends_with_itself() -> None:
    bias = plan_row([group([1] * 4, [1, 1])]).bias(2, 6, 3, torch.zeros(1))
    assert torch.isfinite(bias).tolist() == [
        [False, False, True, True, True, False],
        [False, False, False, True, True, True],
    ]


def variable_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    num_splits: int,
) -> Tensor:
    """A reference of `varlen_attn` written from its documentation, with the causal mask aligned at
    the bottom right."""
    assert max_q == int(queries.diff().max())
    assert max_k == int(keys.diff().max())
    assert enable_gqa is (query.shape[1] != key.shape[1])
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    pieces = []
    for index in range(len(queries) - 1):
        q = query[queries[index] : queries[index + 1]].transpose(0, 1)
        k, v = (x[keys[index] : keys[index + 1]].transpose(0, 1) for x in (key, value))
        distance = (
            torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])
        )
        visible = (distance >= -window_size[1]) & (
            (window_size[0] < 0) | (distance <= window_size[0])
        )
        scores = (q @ k.transpose(1, 2)) * (scale or q.shape[-1] ** -0.5)
        pieces.append((scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("window", [None, 3])
def test_the_variable_length_path_gives_the_results_of_the_other_path(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself needs a GPU, so its arguments are checked with a reference that follows
    its documentation."""
    monkeypatch.setattr(shared_prefix, "varlen_attn", variable_length)
    plan = plan_row(GROUPS)
    tokens = plan.input_ids.shape[1]
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, tokens, 8, generator=rng) for heads in (4, 2, 2))
    expected, _ = shared_prefix.attend(
        torch.nn.Module(), query, key, value, None, plan=plan, scaling=0.3, sliding_window=window
    )
    attended = shared_prefix._variable_length(plan, query, key, value, 0.3, window)
    assert torch.allclose(attended, expected, atol=1e-5)


def test_a_cpu_rounds_the_attention_of_short_sequences_once() -> None:
    torch.manual_seed(0)
    plan = plan_row([group([1] * 5, [1] * 3, [1] * 4)])
    query, key, value = (torch.randn(1, 2, 12, 8, dtype=torch.bfloat16) for _ in range(3))
    module = torch.nn.Identity()
    exact, _ = shared_prefix.attend(
        module, query.float(), key.float(), value.float(), None, plan=plan
    )
    for rounded in (
        shared_prefix.attend(module, query, key, value, None, plan=plan)[0],
        _under_autocast(
            shared_prefix.attend, module, query.float(), key.float(), value.float(), None, plan=plan
        )[0],
    ):
        assert torch.equal(rounded, exact.bfloat16())


def _under_autocast(
    function: Callable[..., tuple[Tensor, None]], *arguments: object, **options: object
) -> tuple[Tensor, None]:
    with torch.autocast("cpu", torch.bfloat16):
        return function(*arguments, **options)


def test_the_same_seed_gives_the_same_model() -> None:
    vocabulary: Any = Vocabulary()
    first, second, other = (build(SMALL, vocabulary, seed=seed).state_dict() for seed in (2, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["score.weight"], other["score.weight"])


def test_arrays_of_tokens_give_the_same_rewards_as_lists(model: RewardModel) -> None:
    arrays = [
        EncodedGroup(np.array(g.prefix), [np.array(s) for s in g.suffixes], [], []) for g in GROUPS
    ]
    assert torch.equal(model(GROUPS), model(arrays))
