"""A checkpoint in the form that vLLM, SGLang, TEI and transformers load, with its model card."""

import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from worldpm.console import interval, number
from worldpm.datasets import hub
from worldpm.errors import ConfigError
from worldpm.evaluation.results import CheckpointResult, Conditions, read_results
from worldpm.model import chat, checkpoint
from worldpm.model.description import Description, read_description
from worldpm.model.sources import Source
from worldpm.storage.folders import Output
from worldpm.storage.json_files import Plain, read_json, to_json
from worldpm.storage.manifest import MANIFEST, TIMINGS, verified_files

CARD_FILE = "README.md"
CARD = """---
{facts}
---
# {name}

A preference model: for a prompt and answers, it gives each answer a reward, in logits. Only
differences between rewards for the same prompt have a meaning. The probability that one answer is
preferred to another is `sigmoid((its reward - the other's) / {temperature})`.

## Use

```python
from worldpm import Scorer

scorer = Scorer.load("{name}")
print(scorer.rewards("How long should I bake a loaf?", ["About 40 minutes.", "Who knows?"]))
```

`worldpm serve {name}` serves the model over HTTP.

```sh
vllm serve {name} --runner pooling --max-model-len {max_length_plain}{score_option}
```

does so too, because the folder is a plain `{architecture}` with one label. Its routes give
{activated}. {routes}

## Input

| | |
|---|---|
| longest prompt with one answer | {max_length:,} tokens; prompts are cut to {prompt_length:,} |
| end token | {end} |
| chat template | SHA-256 begins with `{template_hash}` |
| rewards on validation | mean {reward_mean}, standard deviation {reward_std} |

## Training

{training}

{results}
## Limits

Rewards show the preferences of the voters or labels above. They do not show what is true, safe or
kind. They depend on length and style as far as the labels do. A high reward does not make an answer
right.
{note}"""
SCORE_TEMPLATE = "score_template.jinja"
ACTIVATED = {
    "identity": "raw rewards, because `problem_type` is `regression`",
    "sigmoid": "the sigmoid of rewards, or raw rewards with `use_activation: false`",
}
READ_AS_TRAINED = (
    "Messages, and queries with documents, are read as in training, by the template. Text that you"
    " render yourself must end with {end}."
)
READS_MESSAGES = (
    "Messages are read as in training. `/score` and `/rerank` join query and document as plain"
    " text, which the model was not trained on, so do not use them there. Text that you render"
    " yourself must end with {end}."
)
READS_RENDERED_TEXT = (
    "Send text that you rendered as in training, with its last token {end}. Messages, `/score` and"
    " `/rerank` give the model other text there, so use them only with `worldpm serve`."
)
LICENCES = (
    "Texts from Stack Exchange are under CC BY-SA. The obligations of a model that was trained on"
    " them depend on your country's law."
)
RESULTS_HEAD = (
    "| set | accuracy | 95 % interval | loss, nats | pairs | ties | the longer wins |\n"
    "|---|--:|--:|--:|--:|--:|--:|"
)


class Origin(NamedTuple):
    """Facts for the card that a folder does not have."""

    licence: str
    """The licence, in the hub's spelling."""
    base_model: str | None = None
    """Hub id of the model that the training began from."""
    datasets: tuple[str, ...] = ()
    """Hub ids of data sets."""


def write(
    source: Source,
    output: Output,
    *,
    origin: Origin,
    results: Path | None,
    note: Path | None,
    name: str,
) -> int:
    """Copy the model's files, write its card, and return the number of files.

    Raises:
        DataError: If a file was altered after training.
    """
    if source.is_gguf:
        raise ConfigError(
            f"{source.folder}: a GGUF file cannot be exported. Train a reward model from it first."
        )

    # Folders of other programs have no manifest.
    if (source.folder / MANIFEST).is_file():
        names = verified_files(source.folder)
    else:
        names = sorted(path.name for path in source.folder.iterdir() if path.is_file())

    # do not copy snapshots and the old card
    left_out = (TIMINGS, CARD_FILE, SCORE_TEMPLATE, checkpoint.CONFIG)
    copied = [file for file in names if "/" not in file and file not in left_out]
    for file in copied:
        output.part(file, partial(_copy, source.folder / file))

    description = read_description(source.folder)
    config = _limited(read_json(source.folder / checkpoint.CONFIG), description.max_length)
    output.write(checkpoint.CONFIG, to_json(config))
    template = score_template(source)
    if template is not None:
        output.write(SCORE_TEMPLATE, template.encode())

    content = card(source, origin=origin, results=results, note=note, name=name)
    output.write(CARD_FILE, content.encode())
    return len(copied) + 2 + (template is not None)


def _limited(config: Plain, max_length: int) -> Plain:
    """A model's config whose positions end at its limit, so that engines refuse longer input.
    Without effect where the number of positions changes the model: learned or scaled ones."""
    ropes = config.get("rope_parameters")
    if not isinstance(ropes, dict):
        return config
    # some models have parameters for each kind of layer
    parts = [rope for rope in ropes.values() if isinstance(rope, dict)]
    each = parts if parts and len(parts) == len(ropes) else [ropes]
    if any(rope.get("rope_type", "default") != "default" for rope in each):
        return config
    return {**config, "max_position_embeddings": max_length}


def score_template(source: Source) -> str | None:
    """A template with which vLLM's `/score` and `/rerank` read query and document as prompt and
    response; None if engines would read other tokens than in training."""
    encoder = checkpoint.encoder_of(source, checkpoint.load_config(source))
    return chat.score_template(encoder.tokenizer, encoder.frame)


def _copy(path: Path, aside: Path) -> int:
    shutil.copyfile(path, aside)
    return aside.stat().st_size


def card(
    source: Source, *, origin: Origin, results: Path | None, note: Path | None = None, name: str
) -> str:
    """The model card as Markdown.

    Raises:
        CheckpointError: If the folder has no `worldpm.json`.
        ConfigError: If the results are of other checkpoints.
    """
    description = read_description(source.folder)
    # The card contains the name of the class that transformers loads.
    config = read_json(source.folder / checkpoint.CONFIG)
    made_here = chat.MADE_HERE in str(checkpoint.load_tokenizer(source).chat_template)
    scores = score_template(source) is not None
    reads = READ_AS_TRAINED if scores else READS_MESSAGES if made_here else READS_RENDERED_TEXT
    end = f"`{description.end_token}`" if description.end_token else "its chat template's last text"
    temperature = description.temperature
    return CARD.format(
        name=name,
        facts=_facts(source, description, origin, results, name),
        architecture=config["architectures"][0],
        activated=ACTIVATED[checkpoint.activation_of(checkpoint.load_config(source))],
        routes=reads.format(end=end),
        score_option=f" --chat-template {name}/{SCORE_TEMPLATE}" if scores else "",
        end=end,
        temperature=f"{temperature:.3f}" if temperature else "1",
        max_length=description.max_length,
        max_length_plain=description.max_length,
        prompt_length=description.prompt_length,
        template_hash=description.template_hash,
        reward_mean=number(description.reward_mean),
        reward_std=number(description.reward_std),
        training=_training(description),
        results=_results(results, source.folder.resolve().name) if results else "",
        note=f"\n{note.read_text(encoding='utf-8').strip()}\n" if note else "",
    )


def _facts(
    source: Source, description: Description, origin: Origin, results: Path | None, name: str
) -> str:
    """The card's facts as YAML, with the results as a `model-index`."""
    started = description.lineage.model if description.lineage else ""
    is_hub_id = hub.ID.fullmatch(started) is not None and not Path(started).exists()
    scores = _scores(results, source.folder.resolve().name) if results else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "preference-model", "worldpm"],
        license=origin.licence,
        base_model=origin.base_model or (started if is_hub_id else None),
        datasets=list(origin.datasets) or None,
        model_name=name,
        eval_results=scores or None,
    )
    return str(data.to_yaml())


def _scores(folder: Path, name: str) -> list[EvalResult]:
    """The accuracies of a checkpoint, for the hub."""
    benchmarks = _checked(folder, name).benchmarks
    return [
        EvalResult(
            task_type="text-ranking",
            dataset_type=benchmark,
            dataset_name=benchmark,
            metric_type="accuracy",
            metric_value=round(result.accuracy, 4),
        )
        for benchmark, result in benchmarks.items()
    ]


def _checked(folder: Path, name: str) -> CheckpointResult:
    """The results of the checkpoint.

    Raises:
        ConfigError: If the folder has results of others only.
    """
    checkpoints = read_results(folder).checkpoints
    if name not in checkpoints:
        raise ConfigError(
            f"--results {folder}: contains results of {', '.join(checkpoints)}, not of {name}."
            " Evaluate the exported checkpoint."
        )
    return checkpoints[name]


def _training(description: Description) -> str:
    """A table of the model's origin and its training data."""
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
    """A table of the checkpoint's accuracies, and the conditions."""
    result_of = _checked(folder, name)
    rows = []
    for benchmark, result in result_of.benchmarks.items():
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
    conditions = _conditions(result_of.conditions)
    return f"## Results\n\n{table}\n\nConditions: {conditions}.\n"


def _conditions(conditions: Conditions) -> str:
    """The conditions with the largest effect on rewards, on one line."""
    values = {
        "dtype": conditions.dtype,
        "device": conditions.device,
        "attention": conditions.attention,
        "max_length": conditions.max_length,
    }
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
