"""A simulated forum becomes threads, with the truth that was planted in them beside."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow as pa

from worldpm.forums import hobbies, skills
from worldpm.forums.hobbies import Truth
from worldpm.options.simulate import SimulateOptions
from worldpm.records import Thread
from worldpm.storage import folders, parquet, schema

TRUTH = "truth/truth.parquet"


def run(options: SimulateOptions) -> None:
    """Simulate, and write both tables."""

    settings = {"threads": options.threads, "seed": options.seed, "forum": options.forum}
    output = folders.begin(options.out, step="simulate", config=settings, inputs=[])
    if output is None:
        return
    with output:
        site = hobbies.SITE if options.forum == "hobbies" else skills.SITE
        kept = [(schema.thread_to_row(thread), truths) for thread, truths in _forum(options)]
        threads = parquet.rows_to_batches((row for row, _ in kept), schema.THREADS)
        output.part(
            f"{site}.parquet",
            lambda aside: {"rows": parquet.write_parquet(aside, threads, schema.THREADS)},
        )
        fields = [
            (name, pa.string() if name == "response_id" else pa.float64())
            for name in hobbies.Truth.__dataclass_fields__
        ]
        truth_schema = pa.schema(fields)
        truth = parquet.rows_to_batches(
            (asdict(truth) for _, truths in kept for truth in truths), truth_schema
        )
        output.part(
            TRUTH, lambda aside: {"rows": parquet.write_parquet(aside, truth, truth_schema)}
        )
        for name, groups in (
            {}
            if options.forum == "hobbies"
            else skills.tests(seed=options.seed, variant=options.forum)
        ).items():
            rows = parquet.rows_to_batches(map(schema.group_to_row, groups), schema.GROUPS)
            output.part(f"tests/{name}.parquet", partial(_write_tests, rows))
        output.finish(
            counts={
                site: {"threads": len(kept), "responses": sum(len(truths) for _, truths in kept)}
            }
        )


def _forum(options: SimulateOptions) -> Iterator[tuple[Thread, tuple[Truth, ...]]]:

    if options.forum == "hobbies":
        yield from hobbies.simulate(options.threads, seed=options.seed)
    else:
        yield from skills.simulate(options.threads, seed=options.seed, variant=options.forum)


def _write_tests(rows: Iterator[pa.RecordBatch], aside: Path) -> folders.Json:

    return {"rows": parquet.write_parquet(aside, rows, schema.GROUPS)}
