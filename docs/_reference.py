"""Pages of the reference that are made from the code, as a hook of MkDocs."""

import dataclasses
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import pyarrow as pa
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from worldpm.benchmarks.catalogue import BENCHMARKS
from worldpm.benchmarks.items_file import FORMAT, Row
from worldpm.cli import VERBS
from worldpm.options import parsing
from worldpm.options.serve import ServeOptions
from worldpm.serving.run import assemble
from worldpm.storage import schema

TABLES = {
    "threads/": schema.THREADS,
    "groups/": schema.GROUPS,
    "pairs/ (`worldpm export`)": schema.PAIRS,
    "results/items.parquet": schema.ITEMS,
    "results/rewards.parquet": schema.REWARDS,
    "results/preferences.parquet": schema.ITEM_PREFERENCES,
}
RULE = "|---|---|---|\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages = {
        "commands": commands(),
        "benchmarks": benchmarks(),
        "files": tables(),
        "http": routes(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content="".join(content)))
    return files


def commands() -> Iterator[str]:
    """Every verb with its options."""
    yield "# Commands\n\n`worldpm VERB --help` shows the same on a terminal.\n"
    yield parsing.NOTE
    for name, verb in VERBS.items():
        options = verb.options
        yield f"\n## worldpm {name}\n\n{' '.join((options.__doc__ or '').split())}\n\n"
        yield f"```bash\n{options.EXAMPLE}\n```\n\n"
        yield f"| option | default | |\n{RULE}"
        docs, positional = parsing._docs(options), parsing._positional(options)
        for field in dataclasses.fields(options):
            is_positional = field.name in positional
            flag = field.name.upper() if is_positional else f"--{field.name.replace('_', '-')}"
            text = docs.get(field.name, "").replace("|", r"\|")
            yield f"| `{flag}`{_choices(field.type)} | {_default(field)} | {text} |\n"


def _choices(hint: Any) -> str:
    """The values of an option that has few."""
    members = get_args(hint) if get_origin(hint) in (Union, type(int | None)) else (hint,)
    values = [
        value for member in members if get_origin(member) is Literal for value in get_args(member)
    ]
    return " " + ", ".join(f"`{value}`" for value in values) if values else ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    has_none = any(field.default is empty for empty in (None, False)) or field.default == ()
    return "" if has_none else f"`{field.default}`"


def benchmarks() -> Iterator[str]:
    """Every benchmark with its source and its authors' rule."""
    yield (
        "# Benchmarks\n\n`worldpm evaluate CHECKPOINT --on NAME` reads the files of the authors"
        " from `data/benchmarks/NAME`, at any depth, or from `NAME=FOLDER` or `NAME=HUB_ID`."
        " `--check` and [files of items](../how-to/evaluating.md) are for sets of your own.\n\n"
        "| name | domains | items | files | the authors' aggregates |\n|---|---|--:|---|---|\n"
    )
    for name, benchmark in BENCHMARKS.items():
        rule = " ".join((inspect.getdoc(benchmark.native) or "").split("\n\n")[0].split())
        items = f"{sum(benchmark.sizes.values()):,}" if benchmark.sizes else "unknown"
        home = benchmark.home.replace("|", r"\|")
        yield f"| `{name}` | {', '.join(benchmark.domains)} | {items} | {home} | {rule} |\n"


def tables() -> Iterator[str]:
    """The columns of every table."""
    yield (
        "# Files\n\nAll tables are Parquet (zstd), for DuckDB, Polars, Spark and `datasets`. A"
        " folder is finished when its `manifest.json` exists; it has the settings, versions,"
        " inputs, counts, drops by reason and the SHA-256 of every file.\n"
    )
    for name, columns in TABLES.items():
        yield f"\n## {name}\n\n| column | type |\n|---|---|\n"
        for column in columns:
            yield f"| `{column.name}` | `{_type(column.type)}` |\n"
    yield from items_file()


def items_file() -> Iterator[str]:
    """The columns of a file of items."""
    yield (
        "\n## A file of items\n\nJSON lines or Parquet, one item per row, for `worldpm evaluate"
        " --on FILE`; `worldpm evaluate --check FILE` checks it. Every row has `format`, either"
        " `right` or `qualities`, and `responses` (with `prompt`) or `rewards`:\n\n```json\n"
        f'{{"format": "{FORMAT}", "item": "q7", "prompt": "How?", "responses": ["So.", "No."],'
        ' "right": [0], "rewards": {"my-model": [1.5, null]}}\n```\n\n'
        "| column | default | |\n" + RULE
    )
    docs = parsing._own_docs(Row)
    for field in msgspec.structs.fields(Row):
        default = "" if field.required or field.default is None else f"`{field.default}`"
        yield f"| `{field.name}` | {default} | {docs.get(field.name, '')} |\n"


def _type(kind: pa.DataType) -> str:
    return str(kind).replace("|", r"\|")


def routes() -> Iterator[str]:
    """Every route of the server, from its OpenAPI document."""
    with TemporaryDirectory() as folder:
        # Routes of rules exist only with rules
        rules = Path(folder) / "rules.json"
        shutil.copyfile("runs/tickets/rules.json", rules)
        application, _ = assemble(ServeOptions(model="worldpm/tiny-forum", rules=rules))
    document = application.openapi()
    schemas = document["components"]["schemas"]
    yield (
        "# HTTP\n\n`worldpm serve` answers these routes. `/docs` of a running server shows the same"
        " with examples, `/openapi.json` is the document for tools. With `--keys`, requests need"
        " `Authorization: Bearer KEY`. Errors have the form of the route's client.\n"
    )
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            summary = operation.get("description") or operation.get("summary", "")
            yield f"\n## {method.upper()} {path}\n\n{' '.join(summary.split())}\n\n"
            yield f"Statuses: {', '.join(sorted(operation['responses']))}.\n"
            yield from _fields(operation, schemas)


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    """The fields of a route's body, for each form that it accepts."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    forms = [body["schema"], *body["schema"].get("anyOf", [])] if body else []
    for form in forms:
        name = form.get("$ref", "").rpartition("/")[2]
        properties = schemas.get(name, form).get("properties", {})
        required = schemas.get(name, form).get("required", [])
        if not properties:
            continue
        yield f"\n| {name or 'field'} | default | |\n{RULE}"
        for field, facts in properties.items():
            default = facts.get("default")
            shown = "required" if field in required else f"`{default}`" if default else ""
            text = " ".join(str(facts.get("description", "")).split()).replace("|", r"\|")
            yield f"| `{field}` | {shown} | {text} |\n"
