"""The cards of data sets on the hub: groups as `group` writes them, and pairs."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from worldpm.preferences.outcomes import GroupCounts
from worldpm.storage import parquet
from worldpm.storage.json_files import Json
from worldpm.storage.manifest import read_manifest

FILE = "README.md"
CREDITS = "ATTRIBUTION.csv"
LEAST_SHARE = 0.02
"""Languages of a smaller share of the prompts are not named."""
IDENTIFIERS = {
    "CC BY-SA 2.5": "cc-by-sa-2.5",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CC0-1.0": "cc0-1.0",
}
"""The hub's names of licences. Source: https://huggingface.co/docs/hub/repositories-licenses."""
CARD = """---
pretty_name: {title}
{licences}{languages}task_categories:
- text-ranking
tags:
- preferences
- reward-model
- worldpm
configs:
- config_name: default
  data_files:
{files}
---
# {title}

{introduction}

## Columns

{columns}

## Sources and licences

{sources}

Texts stay under the licences of their authors. `{credits}` lists the author, the licence and
the address of each text. Keep it with the data.

## Splits

| split | groups | responses | pairs |
|---|--:|--:|--:|
{splits}

A thread is in one split only. Validation and test have every pair of answers with different votes.

## Rules

The rules that turned threads into groups. Dropped texts are counted below.

{rules}

## Citation

```bibtex
@article{{worldpm2025,
  title = {{WorldPM: Scaling Human Preference Modeling}},
  journal = {{arXiv preprint arXiv:2505.10527}},
  year = {{2025}}
}}
```
"""
PAIRS = """{pairs} pairs of {groups} threads, made by WorldPM. `prompt`, `chosen` and `rejected` are
lists of messages, in the form of TRL's `RewardTrainer` and `DPOTrainer`. The weights of a thread
add up to 1."""
GROUPS = """{groups} threads with {pairs} preferences among their answers, made by WorldPM. A row
is a prompt with all its answers. Each site has a table. The column `split` names the split of a
row, so filter by it."""
GROUP_COLUMNS = """| column | |
|---|---|
| `group_id`, `source`, `site` | thread and forum |
| `split` | `train`, `validation` or `test` |
| `prompt` | messages with `role` and `content` |
| `responses` | `content`, `votes`, `created`, and `meta`: author, licence and address |
| `preferences` | `chosen` and `rejected`: indices of responses, from 0; `strength`: gap of votes; \
`probability`: that the chosen one is truly better; `weight`: of the pair in loss and accuracy |"""
PAIR_COLUMNS = """| column | |
|---|---|
| `prompt`, `chosen`, `rejected` | messages with `role` and `content` |
| `strength` | gap of votes |
| `probability` | probability that the chosen response is truly better |
| `weight` | weight of the pair in loss and accuracy |
| `group_id`, `source`, `site` | thread and forum |
| `chosen_votes`, `rejected_votes` | up minus down; null if the source has none |
| `chosen_created`, `rejected_created` | dates in UTC; null if the source has none |
| `chosen_licence`, `rejected_licence` | licences; null if the source names none |"""


@dataclass(frozen=True)
class Rules:
    """The settings of a run of `worldpm group`, and what they dropped."""

    settings: Json
    drops: Mapping[str, int]
    """Dropped threads, answers and pairs of all sites, by reason."""


@dataclass(frozen=True)
class Facts:
    """Facts about the groups of some folders, for a card."""

    rules: Sequence[Rules]
    """Of each folder."""
    counts: GroupCounts
    """Sums over all sites."""
    sites: Mapping[str, Mapping[str, int]]
    """Groups by source and site."""
    licences: Mapping[str, int]
    """Texts by licence; those without are left out."""


def facts_of(folders: Sequence[Path]) -> Facts:
    """The facts about the groups of finished folders of `worldpm group`."""
    manifests = [read_manifest(folder, made_by="group") for folder in folders]
    counts = [
        msgspec.convert(site, GroupCounts)
        for manifest in manifests
        for site in manifest.counts.values()
    ]
    rules = [Rules(manifest.config, _total(manifest.drops.values())) for manifest in manifests]
    return facts(folders, counts, rules)


def facts(folders: Sequence[Path], counts: Iterable[GroupCounts], rules: Sequence[Rules]) -> Facts:
    """The facts about the groups of folders whose counts, settings and drops are given."""
    total = GroupCounts()
    for of_site in counts:
        total.add(of_site)

    sites: dict[str, Counter[str]] = {}
    for path in parquet.paths_of(*folders):
        for row in parquet.read_rows(path, ["source", "site"]):
            sites.setdefault(row["source"], Counter())[row["site"]] += 1
    return Facts(rules, total, sites, _licences(folders))


def _total(drops: Iterable[Mapping[str, int]]) -> Counter[str]:
    total = Counter[str]()
    for reasons in drops:
        total.update(reasons)
    return total


def _licences(folders: Sequence[Path]) -> Counter[str]:
    licences = Counter[str]()
    for folder in folders:
        with (folder / CREDITS).open(encoding="utf-8", newline="") as file:
            licences.update(row["licence"] for row in csv.DictReader(file) if row["licence"])
    return licences


def _languages(counts: GroupCounts) -> list[str]:
    """The languages of the prompts, the most common first."""
    total = sum(counts.languages.values())
    ranked = Counter(counts.languages).most_common()
    return [code for code, number in ranked if number >= LEAST_SHARE * total]


def pairs_card(facts: Facts, *, files: Mapping[str, str]) -> str:
    """The card of a folder of pairs; `files` has the path of each split with pairs."""
    return _card(facts, "Preference pairs", files, PAIRS, PAIR_COLUMNS)


def groups_card(facts: Facts) -> str:
    """The card of a folder of groups. To the hub all tables are one split, because the splits of
    the groups are a column."""
    files = {"groups": "'*.parquet'"}
    return _card(facts, "Preference groups", files, GROUPS, GROUP_COLUMNS)


def _card(
    facts: Facts, title: str, files: Mapping[str, str], introduction: str, columns: str
) -> str:
    counts = facts.counts
    return CARD.format(
        title=title,
        licences=_yaml_list("license", _licence_names(facts)),
        languages=_yaml_list("language", _languages(facts.counts)),
        files="\n".join(f"  - split: {split}\n    path: {path}" for split, path in files.items()),
        introduction=introduction.format(pairs=f"{counts.pairs:,}", groups=f"{counts.groups:,}"),
        columns=columns,
        sources=_sources(facts),
        credits=CREDITS,
        splits="\n".join(
            f"| {name} | {split.groups:,} | {split.responses:,} | {split.pairs:,} |"
            for name, split in counts.splits.items()
        ),
        rules="\n\n".join(map(_rules, facts.rules)),
    )


def _licence_names(facts: Facts) -> list[str]:
    """The hub's names of the licences; `unknown` if no text has one."""
    names = {IDENTIFIERS.get(licence, "other") for licence in facts.licences}
    return sorted(names) or ["unknown"]


def _yaml_list(key: str, values: Sequence[str]) -> str:
    return "".join([f"{key}:\n", *(f"- {value}\n" for value in values)]) if values else ""


def _sources(facts: Facts) -> str:
    lines = ["| source | site | groups |", "|---|---|--:|"]
    for source, sites in facts.sites.items():
        lines += [f"| {source} | {site} | {number:,} |" for site, number in sorted(sites.items())]
    if facts.licences:
        lines += ["", "| licence | texts |", "|---|--:|"]
        licences = Counter(facts.licences).most_common()
        lines += [f"| {name} | {number:,} |" for name, number in licences]
    return "\n".join(lines)


def _rules(rules: Rules) -> str:
    """Tables of the settings that are set, and of the drops."""
    settings = {
        name: value for name, value in rules.settings.items() if value not in (None, [], ())
    }
    lines = ["| setting | value |", "|---|---|"]
    lines += [f"| {name} | {_value(value)} |" for name, value in settings.items()]
    if rules.drops:
        drops = Counter(rules.drops).most_common()
        lines += ["", "| dropped | number |", "|---|--:|"]
        lines += [f"| {reason} | {number:,} |" for reason, number in drops]
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
