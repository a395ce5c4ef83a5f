"""Evaluation speed: benchmarks through the scorer against padded batches of plain transformers.

    # a folder of benchmarks, and names
    python speed/evaluation.py ../benchmarks pandalm finegrained-rlhf
    # synthetic texts with the shapes of these benchmarks
    python speed/evaluation.py - rm-bench rewardbench2 best-of-k

The model has 8 layers x 512 and random weights. Both sides get the same items, template and dtype,
in this process and in turns. The column `allowed` is the ratio that the token counts allow: padded
tokens over unique tokens.
"""

import argparse
import copy
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from worldpm.benchmarks.catalogue import BENCHMARKS
from worldpm.benchmarks.items import Item, better_first
from worldpm.evaluation.item_rewards import judge_items
from worldpm.model import chat, reward_model
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.tokenizer import train_tokenizer
from worldpm.scoring.scorer import Scorer

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
VOCABULARY, LONGEST, BATCH = 8192, 1024, 8
WORDS = ["the", "of", "a", "on", "in", "model", "word", "answer", "test", "light"]
MADE = {
    "rm-bench": (120, 3, 3, 250),
    "rewardbench2": (100, 1, 3, 300),
    "best-of-k": (150, 16, 16, 250),
}
"""Words of a prompt, better and worse responses, words of a response."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of benchmarks, or - for synthetic texts")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--responses", type=int, default=128, help="first responses of each set")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds of each side, in turns; the best counts"
    )
    options = parser.parse_args()
    print(
        f"{'set':18}{'ours':>10}{'padded':>10}{'ratio':>8}{'allowed':>9}{'share':>8}   responses/s,"
        f" {options.dtype}"
    )
    for name in options.names:
        items = cut(
            (
                made(name)
                if options.folder == "-"
                else BENCHMARKS[name].read(Path(options.folder) / name)
            ),
            options.responses,
        )
        measure(name, items, options)


def made(name: str) -> list[Item]:
    prompt, better, worse, words = MADE[name]
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(
            draw.choice(WORDS) for _ in range(draw.randint(length // 2, length * 3 // 2))
        )

    return [
        better_first(
            name,
            str(i),
            text(prompt),
            [text(words) for _ in range(better)],
            [text(words) for _ in range(worse)],
        )
        for i in range(99)
    ]


def cut(items: list[Item], responses: int) -> list[Item]:
    first: list[Item] = []
    while items and sum(len(item.responses) for item in first) < responses:
        first.append(items.pop(0))
    return first


def measure(name: str, items: list[Item], options: argparse.Namespace) -> None:
    texts = [
        text
        for item in items
        for text in (item.prompt[0].content, *(response.content for response in item.responses))
    ]
    tokenizer = train_tokenizer(texts, vocabulary=VOCABULARY, max_length=LONGEST)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=LONGEST,
        pad_token_id=0,
        num_labels=1,
        **SHAPE,
    )
    model = reward_model.from_config(config, seed=0).eval()
    plain = Qwen2ForSequenceClassification._from_config(
        copy.deepcopy(config), attn_implementation="sdpa"
    ).eval()
    plain.load_state_dict(
        {name.replace("backbone.", "model."): tensor for name, tensor in model.state_dict().items()}
    )
    dtype = getattr(torch, options.dtype)
    plain, model.backbone = plain.to(dtype), model.backbone.to(dtype)
    encoder = Encoder(tokenizer, chat.Frame(), Limits(LONGEST, LONGEST // 2, cut=True))
    scorer = Scorer(model, encoder)
    alone = [
        encoder.encode(item.prompt, [response.content])
        for item in items
        for response in item.responses
    ]
    rows = [
        torch.from_numpy(np.concatenate([group.prefix, group.suffixes[0]]).astype(np.int64))
        for group in alone
    ]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    unique = sum(
        encoder.encode(item.prompt, list({r.content: 0 for r in item.responses})).tokens
        for item in items
    )
    allowed = sum(len(batch) * max(map(len, batch)) for batch in batches) / unique
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: judge_items(scorer, items),
        "padded": lambda: [padded(plain, batch) for batch in batches],
    }
    scorer.rewards("warm", ["up"])
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(options.rounds):
        for side, run in sides.items():
            started = time.perf_counter()
            run()
            best[side] = min(best[side], time.perf_counter() - started)
    ratio = best["padded"] / best["ours"]
    rates = [len(rows) / best[side] for side in sides]
    print(
        f"{name:18}{rates[0]:10.2f}{rates[1]:10.2f}"
        f"{ratio:8.2f}{allowed:9.2f}{ratio / allowed:8.0%}",
        flush=True,
    )


@torch.no_grad()
def padded(plain: Qwen2ForSequenceClassification, rows: list[torch.Tensor]) -> torch.Tensor:
    """Rewards of right-padded rows, each read at the last token of its row."""
    ends = torch.tensor([len(row) - 1 for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = (torch.arange(ids.shape[1])[None] <= ends[:, None]).long()
    return plain(input_ids=ids, attention_mask=mask).logits


if __name__ == "__main__":
    main()
