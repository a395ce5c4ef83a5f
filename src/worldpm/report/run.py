"""Finished folders of the road become one self-contained page: what went in, what came out, what
was dropped, and how."""

import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldpm.errors import ConfigError
from worldpm.options.report import ReportOptions
from worldpm.report import (
    benchmark_tables,
    layout,
    planted_truth,
    scaling,
    threads_and_groups,
    training_curves,
)
from worldpm.report.layout import Grid, Section
from worldpm.storage import folders

logger = logging.getLogger(__name__)
Json = dict[str, Any]


def run(options: ReportOptions) -> None:
    """Write the page; it replaces an earlier one."""

    show = _show()
    manifests = {path: folders.manifest(path) for path in options.folders}
    for path in manifests:
        folders.verified_files(path)
    if unknown := [
        f"{path} (made by `worldpm {entry['step']}`)"
        for path, entry in manifests.items()
        if entry["step"] not in show
    ]:
        raise ConfigError(
            f"{unknown[0]}: there is nothing to show of it; name folders of {', '.join(show)}"
        )
    sections = [
        section
        for path, manifest in manifests.items()
        for section in show[manifest["step"]](path, manifest)
    ]
    judged = {
        path: manifest for path, manifest in manifests.items() if manifest["step"] == "evaluate"
    }
    page = layout.render([*sections, *benchmark_tables.across(judged), _how(manifests)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    folders.write_atomically(options.out, page)
    logger.info("wrote %s", options.out)


def _show() -> dict[str, Callable[[Path, Json], list[Section]]]:
    """What each step's folder shows."""

    return {
        "ingest": threads_and_groups.threads,
        "simulate": threads_and_groups.threads,
        "group": threads_and_groups.groups,
        "train": training_curves.checkpoint,
        "evaluate": benchmark_tables.results,
        "laws": scaling.laws,
        "demo": planted_truth.truth,
    }


def _how(manifests: Mapping[Path, Json]) -> Section:

    commands = [
        _command(path, manifest)
        for path, manifest in manifests.items()
        if manifest["step"] != "demo"
    ]
    versions = {
        name: version
        for manifest in manifests.values()
        for name, version in manifest["versions"].items()
    }
    inputs = [
        [
            path.name,
            entry["name"],
            f"{entry['bytes']:,}" if "bytes" in entry else "-",
            entry["sha256"][:16],
        ]
        for path, manifest in manifests.items()
        for entry in manifest["inputs"]
    ]
    return Section(
        title="How this was made",
        text=(
            "The commands with every setting spelled out, folders and files by their last names,"
            " the versions, and the inputs."
        ),
        code="\n".join(
            [*commands, "", ", ".join(f"{name} {version}" for name, version in versions.items())]
        ),
        tables=[Grid("Inputs", ("folder", "input", "bytes", "sha256"), inputs)],
    )


def _command(path: Path, manifest: Json) -> str:
    config: Json = dict(manifest["config"])
    named = [
        *config.get("trained_on", []),
        *(Path(word).name for word in config.get("decontaminate", [])),
        config.get("filter_with"),
    ]
    names = [
        entry["name"]
        for entry in manifest["inputs"]
        if "items" not in entry and entry["name"] not in named
    ]
    if "rewards" in config or "verdicts" in config:
        names = []
    if manifest["step"] == "train":
        names = [name for name in names if name != config["model"]]
    options = [
        _option(key, value) for key, value in config.items() if value is not None and value != []
    ]
    return " ".join(["worldpm", manifest["step"], *names, *options, "--out", path.name])


def _option(key: str, value: object) -> str:
    name = f"--{key.replace('_', '-')}"
    if value is False:
        return f"--no-{key.replace('_', '-')}"
    return (
        name
        if value is True
        else f"{name} {shlex.join(map(str, value if isinstance(value, list) else [value]))}"
    )
