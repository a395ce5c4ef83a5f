"""Scoring speed: nine responses of 100 tokens to one prompt of 600, with a shared prompt, in padded
batches, and one at a time.

    python speed/scoring.py

The alternatives are what people run today: padded batches of plain transformers, and one response
at a time as in the released model's README. All sides get the same token ids, model and dtype, in
this process and in turns.
"""

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from worldpm.model import reward_model
from worldpm.model.encoder import EncodedGroup
from worldpm.scoring import scorer

PROMPT, RESPONSE, RESPONSES = 600, 100, 9
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of each side, in turns; the best counts"
    )
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    config = Qwen2Config(
        vocab_size=8192, max_position_embeddings=2048, pad_token_id=0, num_labels=1, **SHAPE
    )
    model = reward_model.from_config(config, seed=0).eval()
    plain = Qwen2ForSequenceClassification._from_config(
        copy.deepcopy(config), attn_implementation="sdpa"
    ).eval()
    plain.load_state_dict(
        {name.replace("backbone.", "model."): tensor for name, tensor in model.state_dict().items()}
    )
    plain, model.backbone = plain.to(dtype), model.backbone.to(dtype)
    rng = np.random.default_rng(0)
    groups = [
        EncodedGroup(
            rng.integers(1, 8192, PROMPT),
            list(rng.integers(1, 8192, (RESPONSES, RESPONSE))),
            [0] * RESPONSES,
            [False] * RESPONSES,
        )
        for _ in range(options.groups)
    ]
    sides: dict[str, Callable[[], list[float]]] = {
        "worldpm, shared": lambda: [
            reward for rewards in scorer.rewards_of(model, groups) for reward in rewards
        ],
        "transformers, padded batches": lambda: padded(plain, groups),
        "transformers, one at a time": lambda: one_at_a_time(plain, groups),
    }
    seconds = {name: [] for name in sides}
    rewards = {}
    for _ in range(options.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            rewards[name] = torch.tensor(side())
            seconds[name].append(time.perf_counter() - started)
    ours = "worldpm, shared"
    print(
        f"{options.groups} groups of {RESPONSES} responses, {options.dtype}; token counts allow "
        f"{RESPONSES * (PROMPT + RESPONSE) / (PROMPT + RESPONSES * RESPONSE):.2f} times"
    )
    for name, times in seconds.items():
        rate = options.groups * RESPONSES / min(times)
        apart = float((rewards[name] - rewards[ours]).abs().max())
        print(
            f"{name:30} {rate:8.2f} responses/s, ours is {min(times) / min(seconds[ours]):5.2f}"
            f" times as fast; rewards differ by at most {apart:.1g}"
        )


@torch.no_grad()
def padded(plain: Qwen2ForSequenceClassification, groups: list[EncodedGroup]) -> list[float]:
    """Rewards with one batch per group. All rows have the same length here, so the mask has no
    padding."""
    rewards: list[float] = []
    for group in groups:
        ids = torch.tensor(
            np.stack([np.concatenate([group.prefix, suffix]) for suffix in group.suffixes])
        )
        rewards += plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].tolist()
    return rewards


@torch.no_grad()
def one_at_a_time(plain: Qwen2ForSequenceClassification, groups: list[EncodedGroup]) -> list[float]:
    return [
        float(
            plain(input_ids=torch.tensor(np.concatenate([group.prefix, suffix]))[None]).logits[0, 0]
        )
        for group in groups
        for suffix in group.suffixes
    ]


if __name__ == "__main__":
    main()
