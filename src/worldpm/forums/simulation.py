"""A simulated forum as threads, with its planted truth in a second table."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

import pyarrow as pa

from worldpm.forums import hobbies, skills
from worldpm.forums.hobbies import Truth
from worldpm.options.shared import command_of
from worldpm.options.simulate import SimulateOptions
from worldpm.records import PreferenceGroup, Thread
from worldpm.storage import folders, parquet, schema
from worldpm.storage.json_files import Plain

TRUTH = "truth/truth.parquet"
TRUTH_SCHEMA = pa.schema(
    [
        (field.name, pa.string() if field.name == "response_id" else pa.float64())
        for field in fields(Truth)
    ]
)


def run(options: SimulateOptions) -> None:
    """Simulate a forum, and write its threads, its truth and, if it has them, its test sets."""
    settings = {"threads": options.threads, "seed": options.seed, "forum": options.forum}
    output = folders.begin(
        options.out,
        step="simulate",
        config=settings,
        inputs=[],
        command=command_of("simulate", options),
    )
    if output is None:
        return

    with output:
        site = hobbies.SITE if options.forum == "hobbies" else skills.SITE
        threads: list[Thread] = []
        truths: list[Truth] = []
        for thread, of_thread in _forum(options):
            threads.append(thread)
            truths += of_thread

        # The truth is a separate table, because no step between threads and rewards may see it.
        rows = map(schema.thread_to_row, threads)
        _write(output, f"{site}.parquet", rows, schema.THREADS)
        _write(output, TRUTH, map(asdict, truths), TRUTH_SCHEMA)
        for name, groups in _tests(options).items():
            tests = map(schema.group_to_row, groups)
            _write(output, f"tests/{name}.parquet", tests, schema.GROUPS)

        # Every response has one row of truth.
        output.finish(counts={site: {"threads": len(threads), "responses": len(truths)}})


def _forum(options: SimulateOptions) -> Iterator[tuple[Thread, tuple[Truth, ...]]]:
    if options.forum == "hobbies":
        yield from hobbies.simulate(options.threads, seed=options.seed)
    else:
        yield from skills.simulate(options.threads, seed=options.seed, variant=options.forum)


def _tests(options: SimulateOptions) -> dict[str, list[PreferenceGroup]]:
    if options.forum == "hobbies":
        return {}
    return skills.tests(seed=options.seed, variant=options.forum)


def _write(output: folders.Output, name: str, rows: Iterable[Plain], table: pa.Schema) -> None:
    """Write a table as a part of the output."""

    def build(aside: Path) -> Plain:
        return {"rows": parquet.write_rows(aside, rows, table)}

    output.part(name, build)
