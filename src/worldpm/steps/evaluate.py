"""Checkpoints meet benchmarks: raw rewards are kept, and every metric is a pure function of them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import console, folders

if TYPE_CHECKING:
    from worldpm.parts.benchmarks.items import Item
    from worldpm.parts.checkpoint import Source
    from worldpm.parts.scorer import Scored, Scorer

logger = logging.getLogger(__name__)

BENCHMARKS = ("llmbar",)
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Judge checkpoints on benchmarks and on the test split of groups."""

    checkpoints: Positional[tuple[str, ...]]
    """Folders written by `worldpm train`, or folders or hub ids of other reward models."""
    on: tuple[str, ...]
    """Names of benchmarks (`llmbar`), or folders written by `worldpm group`, or bare Parquet files of the same columns."""
    out: Path
    """Folder to write."""
    benchmarks: Path = Path("benchmarks")
    """Folder that holds one folder per benchmark, with the files of its repository."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute type; that of the checkpoint's weights unless set."""
    max_length: int | None = None
    """Tokens of prompt plus one response, beyond which they are cut; the checkpoint's own unless set."""

    def __post_init__(self) -> None:
        if not self.checkpoints or not self.on:
            raise ConfigError("name at least one checkpoint, and after --on at least one benchmark or folder of groups")
        if self.max_length is not None and self.max_length < 16:
            raise ConfigError(f"--max-length is {self.max_length}; at least 16 tokens are needed")


def run(config: Config) -> None:
    """Score every item with every checkpoint, and write items, rewards, preferences and metrics."""
    from worldpm.formats import schema, tables
    from worldpm.parts import checkpoint

    sources = [checkpoint.find(place) for place in config.checkpoints]
    names = dict(zip(_by_name(tuple(map(Path, config.checkpoints))), sources, strict=True))
    sets = {name: _read(str(place), config) for name, place in _by_name(tuple(map(Path, config.on))).items()}
    settings: Json = {"on": list(sets), "dtype": config.dtype, "max_length": config.max_length}
    if any(name in BENCHMARKS for name in sets):
        settings["benchmarks"] = str(config.benchmarks)
    inputs = [checkpoint.fingerprint(source) for source in sources] + [_fingerprint(name, items) for name, (_, items) in sets.items()]
    output = folders.begin(config.out, step="evaluate", config=settings, inputs=inputs)
    if output is None:
        return
    with output:
        output.part("items.parquet", lambda aside: _write_items(aside, sets))
        output.part("preferences.parquet", lambda aside: _write_preferences(aside, sets))
        judged: Json = {}
        parts = []
        for name, source in names.items():
            part = f"{folders.PROGRESS}/rewards-{name}.parquet"
            judged[name] = output.part(part, partial(_judge, name, source, config, sets))
            parts.append(output.path / part)
        rewards = tables.rows_to_batches((row for path in parts for row in tables.read_rows(path)), schema.REWARDS)
        output.part("rewards.parquet", lambda aside: {"rows": tables.write_parquet(aside, rewards, schema.REWARDS)})
        output.write("metrics.json", folders.to_json({"checkpoints": judged, "comparisons": []}))
        output.finish(counts={name: len(items) for name, (_, items) in sets.items()})


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """The paths by their last names, which is what the results call them."""
    names = {path.resolve().name: path for path in paths}
    if len(names) < len(paths):
        raise ConfigError(f"{' and '.join(map(str, paths))}: two have the same name, by which the results call them; rename one")
    return names


def _read(name: str, config: Config) -> "tuple[ModuleType, list[Item]]":
    """The benchmark's module and its items."""
    from worldpm.parts.benchmarks import groups, llmbar

    if name in BENCHMARKS:
        return llmbar, llmbar.read(config.benchmarks / name)
    place = Path(name)
    if place.is_dir():
        folders.manifest(place, made_by="group")
    elif not place.is_file():
        raise ConfigError(f"--on {name}: neither a benchmark ({', '.join(BENCHMARKS)}) nor a folder of groups")
    return groups, groups.read(place)


def _fingerprint(name: str, items: "Sequence[Item]") -> Json:
    """An input of the manifest: the benchmark's name and a hash of what was read."""
    import hashlib

    digest = hashlib.sha256(repr([(item.item, item.prompt, item.responses, item.preferences) for item in items]).encode())
    return {"name": name, "items": len(items), "sha256": digest.hexdigest()}


def _judge(name: str, source: "Source", config: Config, sets: "dict[str, tuple[ModuleType, list[Item]]]", aside: Path) -> Json:
    """Score all sets with one checkpoint into the file `aside`; its entry of `metrics.json`."""
    import torch

    from worldpm.formats import schema, tables
    from worldpm.parts.scorer import Scorer

    dtype = getattr(torch, config.dtype) if config.dtype else None
    scorer = Scorer.load(source.folder, cut=True, max_length=config.max_length, dtype=dtype)
    scored = {benchmark: _score(scorer, benchmark, items) for benchmark, (_, items) in sets.items()}
    rows = (row for benchmark, (_, items) in sets.items() for row in _reward_rows(name, benchmark, items, scored[benchmark]))
    tables.write_parquet(aside, tables.rows_to_batches(rows, schema.REWARDS), schema.REWARDS)
    benchmarks = {
        benchmark: judge(module, items, [answer.rewards for answer in scored[benchmark]]) for benchmark, (module, items) in sets.items()
    }
    return {"benchmarks": benchmarks, "domains": _domains(benchmarks), "conditions": _conditions(scorer, scored)}


def _score(scorer: "Scorer", benchmark: str, items: "Sequence[Item]") -> "list[Scored]":
    from worldpm.parts.scorer import Request

    requests = (Request(item.item, item.prompt, [response.content for response in item.responses]) for item in items)
    return list(console.track(scorer.score(requests), f"score {benchmark}", total=len(items)))


def judge(module: ModuleType, items: "Sequence[Item]", rewards: Sequence[Sequence[float]]) -> Json:
    """The metrics of one benchmark: whole, by subset and by domain, and its own aggregates. A pure function."""
    from worldpm.parts.benchmarks.items import metrics

    def on(wanted: Sequence[str]) -> Json:
        chosen = [place for place, item in enumerate(items) if item.subset in wanted]
        return metrics([items[i] for i in chosen], [rewards[i] for i in chosen])

    names = list(dict.fromkeys(item.subset for item in items))
    domains: dict[str, Sequence[str]] = getattr(module, "DOMAINS", {getattr(module, "DOMAIN", ""): names})
    of_subset = {subset: domain for domain, subsets in domains.items() for subset in subsets}
    subsets = {name: {"domain": of_subset[name], **on([name])} for name in names}
    return {
        "domain": next(iter(domains)) if len(domains) == 1 else "mixed",
        **on(names),
        "native": module.native(subsets),
        "subsets": subsets,
        "domains": {domain: on(wanted) for domain, wanted in domains.items()},
    }


def _domains(benchmarks: Json) -> Json:
    """Every domain's accuracy in each benchmark that has it, and their plain mean."""
    domains: dict[str, dict[str, float]] = {}
    for name, result in benchmarks.items():
        for domain, metrics in result["domains"].items():
            domains.setdefault(domain, {})[name] = metrics["accuracy"]
    return {domain: {"accuracy": sum(found.values()) / len(found), "benchmarks": found} for domain, found in domains.items()}


def _conditions(scorer: "Scorer", scored: "dict[str, list[Scored]]") -> Json:
    """What a reader must know to trust or repeat the numbers."""
    from worldpm.formats import chat

    marks = {benchmark: [mark for answer in answers for mark in answer.truncated] for benchmark, answers in scored.items()}
    return {
        "template_hash": chat.template_hash(scorer.encoder.tokenizer),
        "end_token": scorer.encoder.frame.end_token,
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "device": scorer.model.device.type,
        "attention": "shared prefix" if scorer.model.shares_prefix else "separate rows",
        "max_length": scorer.encoder.limits.max_length,
        "prompt_length": scorer.encoder.limits.prompt_length,
        "truncated_share": {benchmark: sum(found) / max(1, len(found)) for benchmark, found in marks.items()},
    }


def _reward_rows(checkpoint: str, benchmark: str, items: "Sequence[Item]", scored: "Sequence[Scored]") -> Iterator[Json]:
    for item, answer in zip(items, scored, strict=True):
        for place, preferred in enumerate(item.preferred):
            yield {
                "checkpoint": checkpoint, "benchmark": benchmark, "subset": item.subset, "item": item.item, "response": place,
                "preferred": preferred, "reward": answer.rewards[place], "length_tokens": answer.length_tokens[place],
                "truncated": answer.truncated[place],
            }  # fmt: skip


def _write_items(aside: Path, sets: "dict[str, tuple[ModuleType, list[Item]]]") -> Json:
    from worldpm.formats import schema, tables
    from worldpm.parts.style import style_of

    def rows() -> Iterator[Json]:
        for benchmark, (_, items) in sets.items():
            for item in items:
                for place, (response, preferred) in enumerate(zip(item.responses, item.preferred, strict=True)):
                    yield {
                        "benchmark": benchmark, "subset": item.subset, "item": item.item, "prompt_id": item.prompt_id, "response": place,
                        "preferred": preferred, "text": response.content, "created": response.created, "votes": response.votes,
                        **style_of(response.content)._asdict(),
                    }  # fmt: skip

    return {"rows": tables.write_parquet(aside, tables.rows_to_batches(rows(), schema.ITEMS), schema.ITEMS)}


def _write_preferences(aside: Path, sets: "dict[str, tuple[ModuleType, list[Item]]]") -> Json:
    from dataclasses import asdict

    from worldpm.formats import schema, tables

    rows = (
        {"benchmark": benchmark, "subset": item.subset, "item": item.item, **asdict(preference)}
        for benchmark, (_, items) in sets.items()
        for item in items
        for preference in item.preferences
    )
    return {"rows": tables.write_parquet(aside, tables.rows_to_batches(rows, schema.ITEM_PREFERENCES), schema.ITEM_PREFERENCES)}
