"""Training speed: WorldPM against TRL's RewardTrainer at its fastest batch size, on the same pairs,
model and dtype.

    # threads of a Stack Exchange site, with all pairs whose votes differ
    python speed/training.py site.7z
    # pairs of a plain preference set, such as hh-rlhf
    python speed/training.py train.jsonl.gz

Needs the extra `rlhf`. The sides run one after the other, each in a separate process, so that their
peak memory is separate. Both read the same texts in the same template. Pairs with a text of 1,024
tokens or more are left out.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

Json = dict[str, Any]

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
VOCABULARY, LONGEST = 8192, 1024
BATCHES = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--pairs", type=int, default=64, help="pairs of one optimizer step, and of the whole run"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=BATCHES, help="TRL's pairs per forward"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile our layers with torch.compile; the time of compilation is not counted",
    )
    parser.add_argument("--row-tokens", type=int, default=4096, help="tokens of our rows")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one_side(options)))
        return
    with tempfile.TemporaryDirectory() as work:
        prepare(options, Path(work))
        sides = {
            side: measure(options, work, side)
            for side in ("worldpm", *(f"trl {batch}" for batch in options.batches))
        }
    print_table(sides)


def prepare(options: argparse.Namespace, work: Path) -> None:
    """Write files: groups of short texts with about `--pairs` pairs, a tokenizer, and a model."""
    import torch
    from transformers import Qwen2Config

    from worldpm.model import chat, checkpoint, reward_model
    from worldpm.model.encoder import Encoder, Limits
    from worldpm.model.tokenizer import train_tokenizer

    groups = list(read(options.data, work))
    texts = [
        text
        for g in groups
        for text in (*(m.content for m in g.prompt), *(r.content for r in g.responses))
    ]
    tokenizer = train_tokenizer(texts, vocabulary=VOCABULARY, max_length=LONGEST)
    tokenizer.save_pretrained(work / "model")
    encoder = Encoder(tokenizer, chat.frame_of(tokenizer), Limits(LONGEST, LONGEST // 2))
    short = [
        g
        for g in groups
        if not any(encoder.encode(g.prompt, [r.content for r in g.responses]).truncated)
    ]
    random.Random(0).shuffle(short)
    rows, pairs = [], 0
    for group in short:
        if pairs >= options.pairs:
            break
        pairs += len(group.preferences)
        rows.append(group)
    print(
        f"{len(rows)} groups of {sum(len(g.responses) for g in rows)} responses, {pairs} pairs,"
        f" {options.dtype}",
        flush=True,
    )
    from dataclasses import asdict

    (work / "groups.json").write_text(json.dumps([asdict(g) for g in rows], default=str))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=2048,
        **SHAPE,
    )
    torch.manual_seed(0)
    model = reward_model.from_config(config, seed=0)
    checkpoint.save(
        model, dict(model.state_dict()), work / "model", pad_token_id=tokenizer.pad_token_id
    )


def read(path: Path, work: Path):  # type: ignore[no-untyped-def]
    """All groups of a site, with at most 8 responses each, or of a plain preference set."""
    from worldpm import cli
    from worldpm.datasets import preference_sets
    from worldpm.storage import parquet, schema

    if path.suffix != ".7z":
        yield from preference_sets.read(
            [path], "test" if "test" in path.name else "train", Counter()
        )
        return
    assert cli.main(["ingest", str(path), "--out", str(work / "threads")]) == 0
    assert (
        cli.main(
            ["group", str(work / "threads"), "--max-responses", "8", "--out", str(work / "groups")]
        )
        == 0
    )
    for table in parquet.paths_of(work / "groups"):
        yield from schema.read_groups(table)


def measure(options: argparse.Namespace, work: str, side: str) -> Json:
    words = [
        str(options.data),
        "--pairs",
        str(options.pairs),
        "--dtype",
        options.dtype,
        "--side",
        side,
        "--work",
        work,
    ]
    words += ["--row-tokens", str(options.row_tokens)]
    words += ["--gradient-checkpointing"] * options.gradient_checkpointing + [
        "--compile"
    ] * options.compile
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, check=False, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    result: Json = json.loads(done.stdout.splitlines()[-1])
    print(side, result, flush=True)
    return result


def one_side(options: argparse.Namespace) -> Json:
    groups = json.loads((options.work / "groups.json").read_text())
    before = peak_mib()
    run = train_worldpm if options.side == "worldpm" else train_trl
    pairs, tokens, seconds = run(options, groups)
    return {
        "pairs_per_second": pairs / seconds,
        "tokens": tokens,
        "peak_mib": peak_mib(),
        "peak_mib_before": before,
    }


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def train_worldpm(options: argparse.Namespace, groups: list[Json]) -> tuple[int, int, float]:
    import numpy as np
    import torch

    from worldpm.model import chat, checkpoint, reward_model, sources
    from worldpm.model.encoder import Encoder, Limits
    from worldpm.records import Message, Preference
    from worldpm.training import loop, processes, token_store

    source = sources.Source(options.work / "model")
    tokenizer = checkpoint.load_tokenizer(source)
    encoder = Encoder(tokenizer, chat.frame_of(tokenizer), Limits(LONGEST, LONGEST // 2))
    examples = [
        token_store.Example(
            g["group_id"],
            encoder.encode(
                [Message(**m) for m in g["prompt"]], [r["content"] for r in g["responses"]]
            ),
            tuple(Preference(**p) for p in g["preferences"]),
        )
        for g in groups
    ]
    token_store.write(options.work / "store", examples)
    store = token_store.TokenStore([options.work / "store"])
    model = checkpoint.load(source)
    if options.gradient_checkpointing:
        model.backbone.activation_checkpointing_enable()
    if options.compile:
        reward_model.compile_layers(model)
    # The first uses include the check of the shared path and compilation, which later steps lack
    for example in examples[:2]:
        model.train()([example.encoded]).sum().backward()
    model.zero_grad()
    settings = loop.Settings(
        lr=1e-6,
        batch_pairs=options.pairs,
        epochs=1,
        max_steps=1,
        weight_decay=0.1,
        warmup=0,
        decay=0,
        seed=0,
        row_tokens=options.row_tokens,
    )
    trainer = loop.Trainer(
        model,
        store,
        store,
        settings,
        folder=options.work,
        state=options.work / "state",
        accelerator=processes.accelerator(getattr(torch, options.dtype)),
    )
    started = time.perf_counter()
    trainer.step(np.arange(len(store)))
    return int(store.pairs.sum()), int(store.tokens.sum()), time.perf_counter() - started


def train_trl(options: argparse.Namespace, groups: list[Json]) -> tuple[int, int, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    batch = int(options.side.split()[1])
    tokenizer = AutoTokenizer.from_pretrained(options.work / "model")
    model = AutoModelForSequenceClassification.from_pretrained(
        options.work / "model", dtype=torch.float32
    )
    opening = [{"role": "system", "content": ""}]
    rows = [
        {
            "chosen": [
                *opening,
                *g["prompt"],
                {"role": "assistant", "content": g["responses"][p["chosen"]]["content"]},
            ],
            "rejected": [
                *opening,
                *g["prompt"],
                {"role": "assistant", "content": g["responses"][p["rejected"]]["content"]},
            ],
        }
        for g in groups
        for p in g["preferences"]
    ]

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    clock = Clock()
    arguments = RewardConfig(
        output_dir=str(options.work / "trl"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=max(1, len(rows) // batch),
        num_train_epochs=1,
        bf16=options.dtype == "bfloat16",
        gradient_checkpointing=options.gradient_checkpointing,
        max_length=2 * LONGEST,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        eos_token="<|endoftext|>",
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    columns = [name for name in trainer.train_dataset.column_names if name.endswith("ids")]
    tokens = sum(len(row[name]) for row in trainer.train_dataset for name in columns)
    trainer.train()
    return len(trainer.train_dataset), tokens, clock.seconds


def print_table(sides: dict[str, Json]) -> None:
    ours, others = (
        sides["worldpm"],
        {side: result for side, result in sides.items() if side != "worldpm"},
    )
    best = max(others, key=lambda side: others[side]["pairs_per_second"])
    print(f"\n{'':10} {'pairs/s':>8} {'tokens':>9} {'peak MiB':>9}")
    for side, result in sides.items():
        print(
            f"{side:10} {result['pairs_per_second']:8.2f} {result['tokens']:9}"
            f" {result['peak_mib']:9}"
        )
    print(
        f"\n{ours['pairs_per_second'] / others[best]['pairs_per_second']:.2f} times the pairs per"
        f" second of {best} (its best), {others[best]['tokens'] / ours['tokens']:.2f} times fewer"
        f" tokens, {ours['peak_mib'] / others[best]['peak_mib']:.2f} of its peak memory"
    )


if __name__ == "__main__":
    main()
