"""Useful operations of a training step, as a share of the rate of this machine's matrix products.

    python speed/mfu.py --shape 8x512            # or qwen2.5-0.5b, and on a GPU qwen2.5-1.5b
    python speed/mfu.py --profile                # prints the time of each operation

Useful operations are 6 N per unique token, and attention over unmasked pairs of query and key. The
peak is the best rate of large square matrix products of the same dtype, measured before and after
the step.
"""

import argparse
import time

import torch
from transformers import Qwen2Config

from worldpm.model import costs, reward_model

SHAPES = {
    "8x512": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8x512")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--row-tokens",
        type=int,
        default=2048,
        help="tokens of a row; the default is that of training on a CPU",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    device, dtype = ("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, options.dtype)
    config = Qwen2Config(
        vocab_size=8192, pad_token_id=None, max_position_embeddings=32_768, **SHAPES[options.shape]
    )
    model = reward_model.from_config(config, seed=0).to(device).train()
    if options.compile:
        reward_model.compile_layers(model)
    row = costs.typical_row(options.row_tokens, prompt=512, response=256, responses=4)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            rewards = model(row)
        rewards.square().sum().backward()
        model.zero_grad()

    def seconds(rounds: int) -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / rounds

    seconds(2)  # the first steps include the check of the shared path, and compilation
    peaks = [costs.matrix_rate(device, dtype)]
    took = seconds(options.rounds)
    peaks.append(costs.matrix_rate(device, dtype))
    tokens = sum(group.tokens for group in row)
    flops = costs.train_flops(
        costs.cost_of(config), tokens=tokens, attended=costs.attended_pairs(row)
    )
    print(
        f"{options.shape}, {options.dtype} on {device}: {tokens} tokens in {took:.3f} s,"
        f" {tokens / took:.0f} tokens/s"
    )
    print(
        f"{flops / took / 1e9:.0f} of {max(peaks) / 1e9:.0f} GFLOP/s:"
        f" {flops / took / max(peaks):.1%} of this machine's matrix rate"
    )
    if options.profile:
        with torch.profiler.profile() as profile:
            step()
        print(
            profile.key_averages().table(
                sort_by=f"self_{device}_time_total", row_limit=15, max_name_column_width=60
            )
        )


if __name__ == "__main__":
    main()
