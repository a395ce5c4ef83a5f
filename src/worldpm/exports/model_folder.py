"""A checkpoint as others load it: vLLM, SGLang, TEI, plain transformers; with a model card of what
is known about it."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from worldpm import console
from worldpm.errors import ConfigError
from worldpm.model import chat, checkpoint, sources
from worldpm.storage import folders

Json = dict[str, Any]
CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, preference-model, worldpm]
license: {licence}
---
# {name}

A preference model: given a prompt and answers, a reward for each, in logits. Only differences of
rewards at one prompt mean anything;
the probability that one answer is preferred to another is `sigmoid((its reward - the other's) /
{temperature})`.

## Use

```python
from worldpm import Scorer

scorer = Scorer.load("{name}")
print(scorer.rewards("How long should I bake a loaf?", ["About 40 minutes.", "Who knows?"]))
```

`worldpm serve {name}` answers over HTTP. The folder is a plain `{architecture}` with one label:
`vllm serve {name} --runner pooling`
gives raw rewards at `/classify`, since `problem_type` is `regression`{template_ends}. Text that
you render yourself must end with {end}.

## How it reads text

| | |
|---|---|
| longest prompt with one answer | {max_length:,} tokens; prompts were cut to {prompt_length:,} |
| end token | {end} |
| chat template | SHA-256 begins with `{template_hash}` |
| rewards on validation | mean {reward_mean:.3f}, standard deviation {reward_std:.3f} |

## Training

{training}

{results}
## Limits

Rewards are what voters of public forums, or the labels above, preferred: not what is true, safe
or kind. They follow length and style
to the extent that the labels do. No answer is right because its reward is high.
"""
LICENCES = """\
Texts from Stack Exchange are under CC BY-SA; what a model trained on them owes to their authors
depends on where you are."""


def write(
    source: sources.Source, output: folders.Output, *, licence: str, results: Path | None, name: str
) -> Json:
    """Copy the model's files and write its card.

    Raises:
        DataError: If a file was altered since the training.
    """
    names = (
        folders.verified_files(source.folder)
        if (source.folder / folders.MANIFEST).is_file()
        else sorted(path.name for path in source.folder.iterdir() if path.is_file())
    )
    kept = [one for one in names if "/" not in one and one not in (folders.TIMINGS, "README.md")]
    for one in kept:
        output.part(one, partial(_copied, source.folder / one))
    output.write("README.md", card(source, licence=licence, results=results, name=name).encode())
    return {"files": len(kept) + 1}


def _copied(path: Path, aside: Path) -> Json:
    shutil.copyfile(path, aside)
    return {"bytes": aside.stat().st_size}


def card(source: sources.Source, *, licence: str, results: Path | None, name: str) -> str:
    """The model card as Markdown.

    Raises:
        CheckpointError: If the folder has no description of ours.
    """
    described = sources.describe(source.folder)
    config = folders.read_json(source.folder / checkpoint.CONFIG)
    known = {
        key: described[key]
        for key in ("max_length", "prompt_length", "template_hash", "reward_mean", "reward_std")
    }
    temperature = described.get("temperature")
    end = (
        f"`{described['end_token']}`"
        if described["end_token"]
        else "what its chat template puts last"
    )
    ends = chat.MADE_HERE in str(checkpoint.load_tokenizer(source).chat_template)
    return CARD.format(
        template_ends=(
            ", and with messages, since the chat template ends a conversation as training did"
            if ends
            else ""
        ),
        name=name,
        licence=licence,
        architecture=config["architectures"][0],
        end=end,
        temperature=f"{temperature:.3f}" if temperature else "1",
        training=_training(described),
        results=_results(results, source.folder.resolve().name) if results else "",
        **known,
    )


def _training(described: Json) -> str:
    training, lineage = described.get("training") or {}, described.get("lineage") or {}
    rows = [("began from", f"`{lineage.get('model', 'unknown')}`")]
    rows += [
        (f"groups `{one['name']}`", f"{one['bytes']:,} bytes, SHA-256 `{one['sha256'][:16]}...`")
        for one in lineage.get("groups", [])
    ]
    if training:
        rows += [
            ("parameters that are not embeddings", f"{training['non_embedding']:,}"),
            (
                "pairs, effective pairs",
                f"{training['pairs']:,}, {training['effective_pairs']:,.0f}",
            ),
            ("tokens, operations", f"{training['tokens']:,}, {training['flops']:.3g}"),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| | |\n|---|---|\n{table}\n\n{LICENCES}"


def _results(results: Path, name: str) -> str:
    found = folders.read_json(results / "metrics.json")["checkpoints"]
    if name not in found:
        raise ConfigError(
            f"--results {results}: judged {', '.join(found)}, not {name}; evaluate the checkpoint"
            " that is exported"
        )
    one = found[name]
    rows = []
    for benchmark, metrics in one["benchmarks"].items():
        interval = console.interval(metrics["interval"])
        longer = metrics["nulls"].get("longer")
        rows.append(
            f"| {benchmark} | {metrics['accuracy']:.3f} | {interval} | {metrics['loss_nats']:.3f} |"
            f" {metrics['n']:,} | {metrics['ties']} |"
            f" {'-' if longer is None else f'{longer:.3f}'} |"
        )
    conditions = one["conditions"]
    told = ", ".join(
        f"{key} {conditions[key]}"
        for key in ("dtype", "device", "attention", "max_length")
        if key in conditions
    )
    head = (
        "| set | accuracy | 95 % interval | loss, nats | pairs | ties | the longer wins"
        " |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    return f"## Results\n\n{head}\n" + "\n".join(rows) + f"\n\nConditions: {told}.\n"
