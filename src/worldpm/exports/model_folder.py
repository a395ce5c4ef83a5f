"""A checkpoint as others load it (vLLM, SGLang, TEI, plain transformers), with its model card."""

import shutil
from functools import partial
from pathlib import Path

from worldpm.console import interval, number
from worldpm.errors import ConfigError
from worldpm.evaluation.results import Conditions, read_results
from worldpm.model import chat, checkpoint
from worldpm.model.description import Description, read_description
from worldpm.model.sources import Source
from worldpm.storage.folders import Output
from worldpm.storage.json_files import read_json
from worldpm.storage.manifest import MANIFEST, TIMINGS, verified_files

CARD_FILE = "README.md"
CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, preference-model, worldpm]
license: {licence}
---
# {name}

A preference model: given a prompt and answers, a reward for each, in logits. Only differences of
rewards at one prompt mean anything. The probability that one answer is preferred to another is
`sigmoid((its reward - the other's) / {temperature})`.

## Use

```python
from worldpm import Scorer

scorer = Scorer.load("{name}")
print(scorer.rewards("How long should I bake a loaf?", ["About 40 minutes.", "Who knows?"]))
```

`worldpm serve {name}` answers over HTTP. The folder is a plain `{architecture}` with one label:
`vllm serve {name} --runner pooling` gives raw rewards at `/classify`, since `problem_type` is
`regression`{template_ends}. Text that you render yourself must end with {end}.

## How it reads text

| | |
|---|---|
| longest prompt with one answer | {max_length:,} tokens; prompts were cut to {prompt_length:,} |
| end token | {end} |
| chat template | SHA-256 begins with `{template_hash}` |
| rewards on validation | mean {reward_mean}, standard deviation {reward_std} |

## Training

{training}

{results}
## Limits

Rewards show what voters of public forums, or the labels above, preferred: not what is true, safe
or kind. They follow length and style to the extent that the labels do. No answer is right because
its reward is high.
"""
TEMPLATE_ENDS = ", and with messages, since the chat template ends a conversation as training did"
LICENCES = (
    "Texts from Stack Exchange are under CC BY-SA; what a model trained on them owes to their"
    " authors depends on where you are."
)
RESULTS_HEAD = (
    "| set | accuracy | 95 % interval | loss, nats | pairs | ties | the longer wins |\n"
    "|---|--:|--:|--:|--:|--:|--:|"
)


def write(source: Source, output: Output, *, licence: str, results: Path | None, name: str) -> int:
    """Copy the model's files and write its card; the number of files.

    Raises:
        DataError: If a file was altered since the training.
    """
    if source.is_gguf:
        raise ConfigError(
            f"{source.folder}: a GGUF file cannot be exported. Train a reward model from it first."
        )

    # Folders of other programs have no manifest to check.
    if (source.folder / MANIFEST).is_file():
        names = verified_files(source.folder)
    else:
        names = sorted(path.name for path in source.folder.iterdir() if path.is_file())

    # snapshots and the old card stay behind
    copied = [file for file in names if "/" not in file and file not in (TIMINGS, CARD_FILE)]
    for file in copied:
        output.part(file, partial(_copy, source.folder / file))
    content = card(source, licence=licence, results=results, name=name)
    output.write(CARD_FILE, content.encode())
    return len(copied) + 1


def _copy(path: Path, aside: Path) -> int:
    shutil.copyfile(path, aside)
    return aside.stat().st_size


def card(source: Source, *, licence: str, results: Path | None, name: str) -> str:
    """The model card as Markdown.

    Raises:
        CheckpointError: If the folder has no description of ours.
        ConfigError: If the results are of other checkpoints.
    """
    description = read_description(source.folder)
    # The card names the class that transformers loads.
    config = read_json(source.folder / checkpoint.CONFIG)
    template = str(checkpoint.load_tokenizer(source).chat_template)
    end = f"`{description.end_token}`" if description.end_token else "its chat template's last text"
    temperature = description.temperature
    return CARD.format(
        name=name,
        licence=licence,
        architecture=config["architectures"][0],
        template_ends=TEMPLATE_ENDS if chat.MADE_HERE in template else "",
        end=end,
        temperature=f"{temperature:.3f}" if temperature else "1",
        max_length=description.max_length,
        prompt_length=description.prompt_length,
        template_hash=description.template_hash,
        reward_mean=number(description.reward_mean),
        reward_std=number(description.reward_std),
        training=_training(description),
        results=_results(results, source.folder.resolve().name) if results else "",
    )


def _training(description: Description) -> str:
    """A table of the model's origin and of what it was trained on."""
    lineage, training = description.lineage, description.training
    rows = [("began from", f"`{lineage.model if lineage else 'unknown'}`")]
    for group in lineage.groups if lineage else ():
        text = f"{group.bytes or 0:,} bytes, SHA-256 `{group.sha256[:16]}...`"
        rows.append((f"groups `{group.name}`", text))
    if training:
        pairs = f"{training.pairs:,}, {training.effective_pairs:,.0f}"
        rows += [
            ("parameters that are not embeddings", f"{training.non_embedding:,}"),
            ("pairs, effective pairs", pairs),
            ("tokens, operations", f"{training.tokens:,}, {training.flops:.3g}"),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| | |\n|---|---|\n{table}\n\n{LICENCES}"


def _results(folder: Path, name: str) -> str:
    """A table of the checkpoint's accuracies, with the conditions."""
    checkpoints = read_results(folder).checkpoints
    if name not in checkpoints:
        raise ConfigError(
            f"--results {folder}: judged {', '.join(checkpoints)}, not {name}; evaluate the"
            " checkpoint that is exported"
        )

    rows = []
    for benchmark, result in checkpoints[name].benchmarks.items():
        cells = [
            benchmark,
            f"{result.accuracy:.3f}",
            interval(result.interval),
            f"{result.loss_nats:.3f}",
            f"{result.n:,}",
            str(result.ties),
            number(result.nulls.get("longer")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join([RESULTS_HEAD, *rows])
    conditions = _conditions(checkpoints[name].conditions)
    return f"## Results\n\n{table}\n\nConditions: {conditions}.\n"


def _conditions(conditions: Conditions) -> str:
    """The conditions that change a reward most, on one line."""
    values = {
        "dtype": conditions.dtype,
        "device": conditions.device,
        "attention": conditions.attention,
        "max_length": conditions.max_length,
    }
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
