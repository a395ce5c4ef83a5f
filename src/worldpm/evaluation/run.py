"""Checkpoints meet benchmarks: raw rewards are kept, and every metric is a pure function of
them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worldpm import console
from worldpm.benchmarks import catalogue, metrics, raw_rewards
from worldpm.benchmarks.catalogue import BENCHMARKS, PRESETS, Named
from worldpm.benchmarks.items import Item, Judged
from worldpm.datasets.training_data import TrainingData
from worldpm.errors import ConfigError
from worldpm.evaluation import strata, win_rates
from worldpm.model import chat, sources
from worldpm.model.sources import Source
from worldpm.options.evaluate import EvaluateOptions
from worldpm.preferences.contamination import Index
from worldpm.scoring.scorer import Request, Scorer
from worldpm.stats.style import style_of
from worldpm.storage import folders, parquet, schema

logger = logging.getLogger(__name__)

Json = dict[str, Any]

ITEMS_AT_ONCE = 512
"""So many items are scored and kept together; a killed evaluation loses at most these."""
RESPONSES_AT_ONCE = 64
"""Items of one prompt are scored as one group up to so many responses."""
PROBED = 8
"""Items that are scored alone too, to see that a reward does not depend on its batch."""


def run(options: EvaluateOptions) -> None:
    """Write items, rewards, preferences and metrics of every checkpoint on every set."""

    if options.verdicts:
        _run_on_verdicts(options)
        return
    named = {one.name: one for one in catalogue.find(options.on, options.benchmarks)}
    if options.rewards:
        _run_on_rewards(options, named)
        return
    models = {
        name: sources.find(place, revision=options.revision, remote_code=options.remote_code)
        for name, place in _by_name(options.checkpoints).items()
    }
    sets = {name: _drawn(one.items(), options) for name, one in named.items()}
    inputs = [sources.fingerprint(source) for source in models.values()] + _described(sets)
    with_training = [folders.describe(place) for place in options.trained_on]
    output = folders.begin(
        options.out,
        step="evaluate",
        config=_settings(options, named),
        inputs=inputs + with_training,
    )
    if output is None:
        return
    with output:
        overlap = output.part(
            f"{folders.PROGRESS}/overlap.json", lambda aside: _overlap(aside, sets, options)
        )
        judged: dict[str, dict[str, Judged]] = {}
        told: Json = {}
        for name, source in models.items():
            judged[name], told[name] = _score(output, name, source, sets, options)
            told[name]["training"] = sources.training_of(source)
            told[name] |= {
                "overlap_with_training": overlap or None,
                "strata": _strata(sets) if options.strata else None,
            }
        temperatures = {name: sources.temperature_of(source) for name, source in models.items()}
        _write(output, options, named, judged, told, temperatures)


def _run_on_rewards(options: EvaluateOptions, named: Mapping[str, Named]) -> None:
    """Judge raw rewards; a benchmark whose own files are there gives its texts, and must have the
    same items."""

    settings = {**_settings(options, named), "rewards": [path.name for path in options.rewards]}
    sets = {
        name: one.items()
        for name, one in named.items()
        if one.place is not None and one.place.exists()
    }
    inputs = [folders.describe(path) for path in options.rewards] + _described(sets)
    output = folders.begin(options.out, step="evaluate", config=settings, inputs=inputs)
    if output is None:
        return
    with output:
        judged: dict[str, dict[str, Judged]] = {}
        for path in options.rewards:
            for checkpoint, tables in raw_rewards.read(path).items():
                if checkpoint in judged:
                    raise ConfigError(
                        f"--rewards: two files have rewards of {checkpoint!r}; rename one"
                    )
                judged[checkpoint] = {}
                for name, one in named.items():
                    if name not in tables:
                        raise ConfigError(
                            f"{path}: has no rewards on {name}, but on {', '.join(tables)}"
                        )
                    mine = raw_rewards.judged(tables[name], path, one.module, sets.get(name))
                    first = next(iter(judged.values())).get(name, mine)
                    judged[checkpoint][name] = raw_rewards.in_order_of(first, mine, path)
        bare = [name for name in named if name not in sets]
        for name in bare:
            logger.warning(
                "%s: its files are not in %s, so every better response is held against every"
                " worse one",
                name,
                options.benchmarks,
            )
        told: Json = {
            checkpoint: {"raw_rewards": True, "without_files": bare or None}
            for checkpoint in judged
        }
        _write(output, options, named, judged, told, dict.fromkeys(judged))


def _run_on_verdicts(options: EvaluateOptions) -> None:
    """Win rates of the generators that a judge's files name."""

    read = (
        win_rates.read_arena_hard if options.on == ("arena-hard",) else win_rates.read_alpaca_eval
    )
    files = [
        file
        for path in options.verdicts
        for file in ([path] if path.is_file() else sorted(path.rglob("*.jsonl")))
    ]
    settings: Json = {"on": list(options.on), "verdicts": [path.name for path in options.verdicts]}
    output = folders.begin(
        options.out,
        step="evaluate",
        config=settings,
        inputs=[folders.describe(file) for file in files],
    )
    if output is None:
        return
    with output:
        found = win_rates.judge([battle for path in options.verdicts for battle in read(path)])
        generators = {
            name: {"win_rates": {options.on[0]: result}} for name, result in found.items()
        }
        output.write(
            "metrics.json", folders.to_json({"checkpoints": generators, "comparisons": []})
        )
        output.finish(counts={name: result["verdicts"] for name, result in found.items()})


def _strata(sets: Mapping[str, Sequence[Item]]) -> Json:
    """The items of each kind in the sets that were drawn."""

    return {
        name: dict(sorted(Counter(map(strata.stratum, items)).items()))
        for name, items in sets.items()
    }


def _described(sets: Mapping[str, Sequence[Item]]) -> list[Json]:
    """The benchmarks as inputs of the manifest."""

    return [catalogue.describe(name, items) for name, items in sets.items()]


def _settings(options: EvaluateOptions, named: Mapping[str, Named]) -> Json:

    settings: Json = {
        "on": list(named),
        "dtype": options.dtype,
        "max_length": options.max_length,
        "strata": options.strata,
    }
    if not options.cut:
        settings["cut"] = False
    if options.trained_on:
        settings["trained_on"] = [path.resolve().name for path in options.trained_on]
    if BENCHMARKS.keys() & named.keys():
        settings["benchmarks"] = str(options.benchmarks)
    return settings


def _by_name(places: Sequence[str]) -> dict[str, str]:
    """The checkpoints by their last names, which is what the results call them."""
    names = {Path(place).resolve().name: place for place in places}
    if len(names) < len(places):
        raise ConfigError(
            f"{' and '.join(places)}: two have the same name, by which the results call them;"
            " rename one"
        )
    return names


def _drawn(items: list[Item], options: EvaluateOptions) -> list[Item]:

    return strata.draw(items, strata.shares(options.strata)) if options.strata else items


def _overlap(aside: Path, sets: Mapping[str, Sequence[Item]], options: EvaluateOptions) -> Json:
    """The share of each set's items that have 13 words in a row in common with the training split
    of some groups."""

    found: Json = {}
    if options.trained_on:
        data = TrainingData.find([str(place) for place in options.trained_on])
        shared = Index(sets).found_in(data.groups("train", Counter()))
        found = {name: len(shared.get(name, ())) / len(items) for name, items in sets.items()}
    aside.write_bytes(folders.to_json(found))
    return found


def _score(
    output: folders.Output,
    name: str,
    source: Source,
    sets: Mapping[str, Sequence[Item]],
    options: EvaluateOptions,
) -> tuple[dict[str, Judged], Json]:
    """All sets judged by one checkpoint, with the conditions; what an earlier run scored is not
    scored again."""

    @cache
    def scorer() -> Scorer:
        return Scorer.of(source, options)

    found: dict[str, Judged] = {}
    cut: dict[str, float] = {}
    for benchmark, items in sets.items():
        rows: list[Json] = []
        for start in console.track(
            range(0, len(items), ITEMS_AT_ONCE),
            f"score {benchmark}",
            total=-(-len(items) // ITEMS_AT_ONCE),
        ):
            part = f"{folders.PROGRESS}/rewards/{name}/{benchmark}-{start:08}.parquet"
            output.part(
                part,
                partial(_score_part, scorer, name, benchmark, items[start : start + ITEMS_AT_ONCE]),
            )
            rows += parquet.read_rows(output.path / part)
        numbers = iter(rows)
        own = [list(islice(numbers, len(item.responses))) for item in items]
        columns = (
            [[row[key] for row in group] for group in own]
            for key in ("reward", "length_tokens", "truncated")
        )
        found[benchmark] = Judged(items, *columns)
        cut[benchmark] = sum(row["truncated"] for row in rows) / max(1, len(rows))
    first = next(iter(found.values()))
    probe = Judged(first.items[:PROBED], first.rewards[:PROBED])
    told = output.part(
        f"{folders.PROGRESS}/conditions-{name}.json",
        lambda aside: _conditions(aside, scorer(), probe),
    )
    return found, {**told, "truncated_share": cut}


def _score_part(
    scorer: Callable[[], Scorer], name: str, benchmark: str, items: Sequence[Item], aside: Path
) -> Json:
    """Score some items into a table of rewards."""

    rows = raw_rewards.table_of(name, benchmark, Judged(items, *_score_items(scorer(), items)))
    return {
        "rows": parquet.write_parquet(
            aside, parquet.rows_to_batches(rows, schema.REWARDS), schema.REWARDS
        )
    }


def _score_items(
    scorer: Scorer, items: Sequence[Item]
) -> tuple[list[list[float]], list[list[int]], list[list[bool]]]:
    """Rewards, lengths and cuts of the items' responses; items of one prompt are one group, equal
    responses are scored once."""

    texts: dict[tuple[Any, int], dict[str, int]] = {}
    asked: dict[tuple[Any, int], Request] = {}
    keys: list[tuple[Any, int]] = []
    for item in items:
        prompt, part = tuple(item.prompt), 0
        while len(texts.setdefault((prompt, part), {})) >= RESPONSES_AT_ONCE:
            part += 1
        for response in item.responses:
            texts[prompt, part].setdefault(response.content, len(texts[prompt, part]))
        asked.setdefault((prompt, part), Request(item.item, item.prompt, ()))
        keys.append((prompt, part))
    requests = [request._replace(responses=list(texts[key])) for key, request in asked.items()]
    scored = dict(zip(asked, scorer.score(requests), strict=True))
    found: tuple[list[list[float]], list[list[int]], list[list[bool]]] = ([], [], [])
    for item, key in zip(items, keys, strict=True):
        places = [texts[key][response.content] for response in item.responses]
        answer = scored[key]
        found[0].append([answer.rewards[place] for place in places])
        found[1].append([answer.length_tokens[place] for place in places])
        found[2].append([answer.truncated[place] for place in places])
    return found


def _conditions(aside: Path, scorer: Scorer, probe: Judged) -> Json:
    """What a reader must know to trust or repeat the numbers."""

    item = probe.items[0]
    group = scorer.encoder.encode(item.prompt, [item.responses[0].content])
    tokens = scorer.encoder.tokenizer.convert_ids_to_tokens(
        [*map(int, group.prefix), *map(int, group.suffixes[0])]
    )
    alone = [
        (scorer.rewards(item.prompt, [response.content])[0], reward)
        for item, rewards in zip(probe.items, probe.rewards, strict=True)
        for response, reward in zip(item.responses, rewards, strict=True)
    ]
    told = {
        "template_hash": chat.template_hash(scorer.encoder.tokenizer),
        "end_token": scorer.encoder.frame.end_token,
        "first_tokens": tokens[:6],
        "last_tokens": tokens[-4:],
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "device": scorer.model.device.type,
        "attention": "shared prefix" if scorer.model.shares_prefix else "separate rows",
        "max_length": scorer.encoder.limits.max_length,
        "prompt_length": scorer.encoder.limits.prompt_length,
        "batch_invariance": {
            "responses": len(alone),
            "largest_difference": max(abs(a - b) for a, b in alone),
        },
    }
    aside.write_bytes(folders.to_json(told))
    return told


def _write(
    output: folders.Output,
    options: EvaluateOptions,
    named: Mapping[str, Named],
    judged: Mapping[str, Mapping[str, Judged]],
    told: Json,
    temperatures: Mapping[str, float | None],
) -> None:
    """The four files of a results folder, from rewards that are all there."""

    sets = {name: one.items for name, one in next(iter(judged.values())).items()}
    output.part("items.parquet", lambda aside: _write_items(aside, sets))
    output.part("preferences.parquet", lambda aside: _write_preferences(aside, sets))
    rows = (
        row
        for checkpoint, found in judged.items()
        for name, one in found.items()
        for row in raw_rewards.table_of(checkpoint, name, one)
    )
    output.part(
        "rewards.parquet",
        lambda aside: {
            "rows": parquet.write_parquet(
                aside, parquet.rows_to_batches(rows, schema.REWARDS), schema.REWARDS
            )
        },
    )
    found: Json = {}
    for checkpoint, benchmarks in judged.items():
        results = {
            name: metrics.judge(named[name].module, one, temperature=temperatures[checkpoint])
            for name, one in console.track(
                benchmarks.items(), f"judge {checkpoint}", total=len(benchmarks)
            )
        }
        found[checkpoint] = {
            "benchmarks": results,
            "domains": _domains(results),
            "conditions": told[checkpoint],
        }
        there = {
            name: preset
            for name, preset in PRESETS.items()
            if set(preset.NEEDS) <= benchmarks.keys()
        }
        found[checkpoint]["presets"] = {
            name: preset.judge(benchmarks) for name, preset in there.items()
        }
    output.write(
        "metrics.json",
        folders.to_json(
            {"checkpoints": found, "comparisons": metrics.compare(judged, _runs(told))}
        ),
    )
    output.finish(counts={name: len(items) for name, items in sets.items()})
    _tell(found)


def _tell(found: Json) -> None:
    """Print the scores with their conditions."""

    screen = Console(highlight=False)
    table = Table(
        "checkpoint",
        "set",
        "accuracy",
        "95 % interval",
        "detectable",
        "prompts",
        "ties",
        "longer",
        title="Accuracy, a tie half",
    )
    for name, one in found.items():
        for benchmark, result in one["benchmarks"].items():
            interval = console.interval(result["interval"])
            numbers = [
                console.number(n)
                for n in (result["accuracy"], result["detectable"], result["nulls"]["longer"])
            ]
            counts = [f"{result[key]:,}" for key in ("prompts", "ties")]
            table.add_row(
                escape(name),
                escape(benchmark),
                numbers[0],
                interval,
                numbers[1],
                *counts,
                numbers[2],
            )
    screen.print(table)
    screen.print(
        "Detectable: the smallest distance from another number, such as a coin's half, that so many"
        " prompts would show."
    )
    for name, one in found.items():
        told = "; ".join(
            f"{key.replace('_', ' ')}: {value}"
            for key, value in one["conditions"].items()
            if value is not None and key != "training"
        )
        screen.print(f"{name}: {told}", soft_wrap=True, markup=False)


def _runs(told: Json) -> dict[str, tuple[str, int]]:
    """Of which training run each checkpoint is, and of which step of it, where that is known."""
    trained = {
        name: conditions["training"]
        for name, conditions in told.items()
        if conditions.get("training")
    }
    return {name: (training["run"], training["step"]) for name, training in trained.items()}


def _domains(benchmarks: Json) -> Json:
    """Every domain's accuracy in each benchmark that has it, and their plain mean."""
    domains: dict[str, dict[str, float]] = {}
    for name, result in benchmarks.items():
        for domain, measured in result["domains"].items():
            domains.setdefault(domain, {})[name] = measured["accuracy"]
    return {
        domain: {"accuracy": sum(found.values()) / len(found), "benchmarks": found}
        for domain, found in domains.items()
    }


def _write_items(aside: Path, sets: Mapping[str, Sequence[Item]]) -> Json:

    def rows() -> Iterator[Json]:
        for benchmark, items in sets.items():
            for item in items:
                for place, (response, preferred) in enumerate(
                    zip(item.responses, item.preferred, strict=True)
                ):
                    yield {
                        "benchmark": benchmark,
                        "subset": item.subset,
                        "item": item.item,
                        "prompt_id": item.prompt_id,
                        "response": place,
                        "preferred": preferred,
                        "quality": item.qualities[place] if item.qualities else None,
                        "prompt": (
                            "\n\n".join(message.content for message in item.prompt)
                            if place == 0
                            else None
                        ),
                        "text": response.content if item.prompt else None,
                        "created": response.created,
                        "votes": response.votes,
                        **(style_of(response.content)._asdict() if item.prompt else {}),
                    }

    return {
        "rows": parquet.write_parquet(
            aside, parquet.rows_to_batches(rows(), schema.ITEMS), schema.ITEMS
        )
    }


def _write_preferences(aside: Path, sets: Mapping[str, Sequence[Item]]) -> Json:

    rows = (
        {"benchmark": benchmark, "subset": item.subset, "item": item.item, **asdict(preference)}
        for benchmark, items in sets.items()
        for item in items
        for preference in item.preferences
    )
    return {
        "rows": parquet.write_parquet(
            aside, parquet.rows_to_batches(rows, schema.ITEM_PREFERENCES), schema.ITEM_PREFERENCES
        )
    }
