"""Does preference pre-training on a forum help fine-tuning on a small human set? Tests the paper's
claim, with a control that the paper does not have.

    python runs/studies/pretraining.py GROUPS BENCHMARK=FOLDER OUT [SIZE]

Compares three starts of one size and tokenizer: random weights; weights trained on the forum's
preferences; weights trained as a language model on the same text and number of tokens (and so with
the same number of operations, except for the output layer). Fine-tunes each on 100, 300 and 1,000
pairs of the set and evaluates it on held-out prompts, five-fold, with two seeds. Each start and
amount uses the learning rate, out of two, with the lower validation loss in the first fold.
Differences are paired by prompt. If it is interrupted, the same command resumes.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from worldpm.benchmarks import catalogue
from worldpm.benchmarks.items import Item, Judged
from worldpm.benchmarks.metrics import scored_pairs
from worldpm.cli import main as worldpm
from worldpm.datasets.training_data import TrainingData
from worldpm.model import checkpoint, reward_model, sources
from worldpm.model.encoder import Encoder
from worldpm.records import PreferenceGroup
from worldpm.stats.uncertainty import Difference, clustered_interval, holm, paired_difference
from worldpm.storage import parquet, schema
from worldpm.training.step_metrics import read_metrics

MAX_LENGTH, FORUM_EPOCHS = 512, 3
FOLDS, AMOUNTS, SEEDS, RATES, EPOCHS, BATCH_PAIRS = 5, (100, 300, 1000), (0, 1), (1e-3, 3e-4), 2, 32
VALIDATION_PROMPTS = 60
STARTS = ("scratch", "language", "forum")
Json = dict[str, Any]


def main(groups: str, named: str, out: Path, size: str = "w128") -> None:
    run(
        "train",
        groups,
        "--model",
        size,
        "--epochs",
        FORUM_EPOCHS,
        "--max-length",
        MAX_LENGTH,
        "--out",
        out / "forum",
    )
    encoder = checkpoint.encoder_of(
        sources.Source(out / "forum"), checkpoint.load_config(sources.Source(out / "forum"))
    )
    tokens = json.loads((out / "forum" / "manifest.json").read_text())["counts"]["tokens_seen"]
    language_model(out / "scratch", size, groups, encoder, tokens=0)
    language_model(out / "language", size, groups, encoder, tokens=tokens)
    (benchmark,) = catalogue.find([named], Path())
    items = benchmark.items()
    fold_of = folds(items)
    print(
        f"{benchmark.name}: accuracy on held-out prompts, {FOLDS}-fold, {len(SEEDS)} seeds;"
        " intervals over prompts, not over seeds"
    )
    gaps: dict[str, Difference] = {}
    for amount in AMOUNTS:
        gaps |= show(
            amount,
            {start: list(fine_tuned(out, start, amount, items, fold_of)) for start in STARTS},
        )
    for (name, gap), p_value in zip(
        gaps.items(), holm([gap.p_value for gap in gaps.values()]), strict=True
    ):
        print(f"{name}: {gap.estimate:+.3f}, p = {p_value:.4f} by Holm over all {len(gaps)}")


def run(*words: object) -> None:
    if worldpm([str(word) for word in words]):
        sys.exit(f"`worldpm {' '.join(map(str, words))}` failed")


def language_model(out: Path, size: str, groups: str, encoder: Encoder, *, tokens: int) -> None:
    """Train a language model of this size on responses after their prompts, and save it in the
    format of transformers."""
    if (out / "config.json").exists():
        return
    torch.manual_seed(0)
    config = reward_model.config_of(reward_model.SIZES[size], vocabulary=len(encoder.tokenizer))
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=reward_model.SIZES[size].lr, betas=(0.9, 0.99), weight_decay=0.1
    )
    read, step = 0, 0
    while read < tokens:
        for batch in batches(groups, encoder, seed=step):
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            read, step = read + int(batch["attention_mask"].sum()), step + 1
            if step % 50 == 0:
                print(
                    f"language model: {read:,} of {tokens:,} tokens, loss {float(loss):.3f} nats",
                    flush=True,
                )
            if read >= tokens:
                break
    save(model, encoder.tokenizer, out)


def save(model: Any, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    shutil.rmtree(aside := out.with_name(f"{out.name}.partial"), ignore_errors=True)
    tokenizer.save_pretrained(aside)
    model.save_pretrained(aside)
    aside.rename(out)


def batches(groups: str, encoder: Encoder, *, seed: int) -> Iterator[Json]:
    """Padded batches of about 2,048 tokens: each row is a thread's prompt with one response."""
    generator = np.random.default_rng(seed)
    rows = []
    for group in TrainingData.find([groups]).groups("train", Counter()):
        encoded = encoder.encode(group.prompt, [response.content for response in group.responses])
        rows.append(
            [
                *map(int, encoded.prefix),
                *map(int, encoded.suffixes[int(generator.integers(len(encoded.suffixes)))]),
            ]
        )
    order = sorted(generator.permutation(len(rows)), key=lambda index: len(rows[index]) // 64)
    chunks: list[list[list[int]]] = [[]]
    for index in order:
        if chunks[-1] and (len(chunks[-1]) + 1) * max(map(len, [*chunks[-1], rows[index]])) > 2048:
            chunks.append([])
        chunks[-1].append(rows[index])
    for number in generator.permutation(len(chunks)):
        width = max(map(len, chunks[number]))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in chunks[number]])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chunks[number]])
        yield {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def folds(items: Sequence[Item]) -> dict[str, int]:
    """The fold that tests each prompt."""
    prompts = sorted({item.prompt_id for item in items})
    order = np.random.default_rng(0).permutation(len(prompts))
    return {prompts[index]: number % FOLDS for number, index in enumerate(order)}


def fine_tuned(
    out: Path, start: str, amount: int, items: Sequence[Item], fold_of: dict[str, int]
) -> Iterator[tuple[str, float, float]]:
    """Prompt, credit and weight of every pair in every fold and seed. The model that scores a pair
    was not trained on its prompt."""
    rates: tuple[float, ...] = RATES
    for fold in range(FOLDS):
        tested = [item for item in items if fold_of[item.prompt_id] == fold]
        for seed in SEEDS:
            folder = out / "tuned" / f"fold{fold}-pairs{amount}-seed{seed}"
            write_sets(
                folder,
                [item for item in items if fold_of[item.prompt_id] != fold],
                tested,
                amount,
                seed,
            )
            tuned = {rate: tune(folder, out / start, start, rate, seed) for rate in rates}
            rate = min(tuned, key=lambda rate: least_validation_loss(tuned[rate]))
            rates, best = (rate,), tuned[rate]
            results = folder / f"{start}-results"
            run("evaluate", best, "--on", folder / "test.parquet", "--out", results)
            judged = Judged(tested, rewards(results, tested))
            pairs = scored_pairs(judged)
            columns = (pairs.prompts, pairs.margins.tolist(), pairs.weights.tolist())
            for prompt, margin, weight in zip(*columns, strict=True):
                yield prompt, 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0, weight


def tune(folder: Path, model: Path, start: str, rate: float, seed: int) -> Path:
    tuned = folder / f"{start}-{rate:g}"
    options = (
        "--lr",
        rate,
        "--epochs",
        EPOCHS,
        "--batch-pairs",
        BATCH_PAIRS,
        "--max-length",
        MAX_LENGTH,
        "--seed",
        seed,
    )
    run("train", folder / "tune.parquet", "--model", model, *options, "--out", tuned)
    return tuned


def least_validation_loss(folder: Path) -> float:
    return min(row.loss_nats for row in read_metrics(folder).validations)


def write_sets(
    folder: Path, others: Sequence[Item], tested: Sequence[Item], amount: int, seed: int
) -> None:
    """Write `tune.parquet` with `amount` pairs and some validation prompts, and `test.parquet`."""
    if (folder / "test.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(others))
    validation, train, pairs = [others[i] for i in order[:VALIDATION_PROMPTS]], [], 0
    for i in order[VALIDATION_PROMPTS:]:
        if pairs >= amount:
            break
        train.append(others[i])
        pairs += len(others[i].preferences)
    tune_rows = [
        *(as_group(item, "train") for item in train),
        *(as_group(item, "validation") for item in validation),
    ]
    for name, groups in (
        ("tune", tune_rows),
        ("test", [as_group(item, "test") for item in tested]),
    ):
        rows = parquet.rows_to_batches(map(schema.group_to_row, groups), schema.GROUPS)
        parquet.write_parquet(folder / f"{name}.parquet", rows, schema.GROUPS)


def as_group(item: Item, split: str) -> PreferenceGroup:
    return PreferenceGroup(
        item.item,
        "study",
        item.subset,
        split,
        tuple(item.prompt),
        tuple(item.responses),
        tuple(item.preferences),
    )


def rewards(results: Path, items: Sequence[Item]) -> list[list[float]]:
    by_item: dict[str, list[float]] = {}
    for row in parquet.read_rows(results / "rewards.parquet"):
        by_item.setdefault(row["item"], []).append(row["reward"])
    return [by_item[item.item] for item in items]


def show(amount: int, judged: dict[str, list[tuple[str, float, float]]]) -> dict[str, Difference]:
    """Print the accuracy of each start at one amount. Return the differences between the forum's
    start and the others."""
    gaps = {}
    columns = {
        start: tuple(map(np.array, zip(*rows, strict=True))) for start, rows in judged.items()
    }
    for start, (prompts, credit, weight) in columns.items():
        low, high = clustered_interval(credit, weight, prompts)
        print(
            f"{amount:>6} pairs  {start:9} {np.average(credit, weights=weight):.3f}  {low:.3f} to"
            f" {high:.3f}"
        )
    for other in STARTS[:-1]:
        gap = paired_difference(
            columns["forum"][1], columns[other][1], columns["forum"][2], columns["forum"][0]
        )
        gaps[f"{amount} pairs, forum - {other}"] = gap
        ends = f"{gap.interval.low:+.3f} to {gap.interval.high:+.3f}"
        print(
            f"{'':14}forum - {other}: {gap.estimate:+.3f}  {ends}, p = {gap.p_value:.4f}",
            flush=True,
        )
    return gaps


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
