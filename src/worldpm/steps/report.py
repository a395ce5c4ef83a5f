"""Finished folders of the road become one self-contained page: what went in, what came out, what was dropped, and how."""

import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import folders

if TYPE_CHECKING:
    from worldpm.parts.page.layout import Section

logger = logging.getLogger(__name__)
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show folders of the road on one page."""

    folders: Positional[tuple[Path, ...]]
    """Finished folders of any step, in the order to show them."""
    out: Path
    """HTML file to write; it needs no network."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise ConfigError("no folder given: name what the other steps wrote, for instance threads groups checkpoint results")
        if self.out.is_dir():
            raise ConfigError(f"--out {self.out}: a folder; name the file to write, for instance report.html")


def run(config: Config) -> None:
    """Write the page; it replaces an earlier one."""
    from worldpm.parts.page import layout, results

    show = _show()
    manifests = {path: folders.manifest(path) for path in config.folders}
    for path in manifests:
        folders.verified_files(path)
    if unknown := [f"{path} (made by `worldpm {entry['step']}`)" for path, entry in manifests.items() if entry["step"] not in show]:
        raise ConfigError(f"{unknown[0]}: there is nothing to show of it; name folders of {', '.join(show)}")
    sections = [section for path, manifest in manifests.items() for section in show[manifest["step"]](path, manifest)]
    judged = {path: manifest for path, manifest in manifests.items() if manifest["step"] == "evaluate"}
    page = layout.render([*sections, *results.across(judged), _how(manifests)])
    config.out.parent.mkdir(parents=True, exist_ok=True)
    folders.write_atomically(config.out, page)
    logger.info("wrote %s", config.out)


def _show() -> "dict[str, Callable[[Path, Json], list[Section]]]":
    """What each step's folder shows."""
    from worldpm.parts.page import data, laws, results, training, truth

    return {
        "ingest": data.threads,
        "simulate": data.threads,
        "group": data.groups,
        "train": training.checkpoint,
        "evaluate": results.results,
        "laws": laws.laws,
        "demo": truth.truth,
    }


def _how(manifests: Mapping[Path, Json]) -> "Section":
    from worldpm.parts.page.layout import Grid, Section

    commands = [_command(path, manifest) for path, manifest in manifests.items() if manifest["step"] != "demo"]
    versions = {name: version for manifest in manifests.values() for name, version in manifest["versions"].items()}
    inputs = [
        [path.name, entry["name"], f"{entry['bytes']:,}" if "bytes" in entry else "-", entry["sha256"][:16]]
        for path, manifest in manifests.items()
        for entry in manifest["inputs"]
    ]
    return Section(
        title="How this was made",
        text="The commands with every setting spelled out, folders and files by their last names, the versions, and the inputs.",
        code="\n".join([*commands, "", ", ".join(f"{name} {version}" for name, version in versions.items())]),
        tables=[Grid("Inputs", ("folder", "input", "bytes", "sha256"), inputs)],
    )


def _command(path: Path, manifest: Json) -> str:
    config: Json = dict(manifest["config"])
    named = [*config.get("trained_on", []), *(Path(word).name for word in config.get("decontaminate", [])), config.get("filter_with")]
    names = [entry["name"] for entry in manifest["inputs"] if "items" not in entry and entry["name"] not in named]
    if "rewards" in config or "verdicts" in config:
        names = []
    if manifest["step"] == "train":
        names = [name for name in names if name != config["model"]]
    options = [_option(key, value) for key, value in config.items() if value is not None and value != []]
    return " ".join(["worldpm", manifest["step"], *names, *options, "--out", path.name])


def _option(key: str, value: object) -> str:
    name = f"--{key.replace('_', '-')}"
    if value is False:
        return f"--no-{key.replace('_', '-')}"
    return name if value is True else f"{name} {shlex.join(map(str, value if isinstance(value, list) else [value]))}"
