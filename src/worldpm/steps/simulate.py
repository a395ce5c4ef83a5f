"""A simulated forum becomes threads, with the truth that was planted in them beside."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from worldpm.field.errors import ConfigError
from worldpm.formats import folders

if TYPE_CHECKING:
    import pyarrow as pa

    from worldpm.field.records import Thread
    from worldpm.parts.forums.simulated import Truth

TRUTH = "truth/truth.parquet"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a forum whose votes come from planted quality, a length bias, a head start and noise."""

    out: Path
    """Folder to write: threads as `worldpm ingest` writes them, and `truth/` with what was planted in each response."""
    threads: int = 3000
    """How many threads."""
    seed: int = 0
    """Of the forum; thread i is the same however many there are."""
    forum: Literal["hobbies", "skills", "control"] = "hobbies"
    """`hobbies` is the demo's. `skills` is for ladders, with a noiseless test of each skill in `tests/`; `control` lacks its hard one."""

    def __post_init__(self) -> None:
        if self.threads < 1 or self.seed < 0:
            raise ConfigError(f"--threads {self.threads} and --seed {self.seed}: at least 1 thread, and no negative seed")


def run(config: Config) -> None:
    """Simulate, and write both tables."""
    import pyarrow as pa

    from worldpm.formats import schema, tables
    from worldpm.parts.forums import simulated, skills

    settings = {"threads": config.threads, "seed": config.seed, "forum": config.forum}
    output = folders.begin(config.out, step="simulate", config=settings, inputs=[])
    if output is None:
        return
    with output:
        site = simulated.SITE if config.forum == "hobbies" else skills.SITE
        kept = [(schema.thread_to_row(thread), truths) for thread, truths in _forum(config)]
        threads = tables.rows_to_batches((row for row, _ in kept), schema.THREADS)
        output.part(f"{site}.parquet", lambda aside: {"rows": tables.write_parquet(aside, threads, schema.THREADS)})
        fields = [(name, pa.string() if name == "response_id" else pa.float64()) for name in simulated.Truth.__dataclass_fields__]
        truth_schema = pa.schema(fields)
        truth = tables.rows_to_batches((asdict(truth) for _, truths in kept for truth in truths), truth_schema)
        output.part(TRUTH, lambda aside: {"rows": tables.write_parquet(aside, truth, truth_schema)})
        for name, groups in ({} if config.forum == "hobbies" else skills.tests(seed=config.seed, variant=config.forum)).items():
            rows = tables.rows_to_batches(map(schema.group_to_row, groups), schema.GROUPS)
            output.part(f"tests/{name}.parquet", partial(_write_tests, rows))
        output.finish(counts={site: {"threads": len(kept), "responses": sum(len(truths) for _, truths in kept)}})


def _forum(config: Config) -> "Iterator[tuple[Thread, tuple[Truth, ...]]]":
    from worldpm.parts.forums import simulated, skills

    if config.forum == "hobbies":
        yield from simulated.simulate(config.threads, seed=config.seed)
    else:
        yield from skills.simulate(config.threads, seed=config.seed, variant=config.forum)


def _write_tests(rows: "Iterator[pa.RecordBatch]", aside: Path) -> folders.Json:
    from worldpm.formats import schema, tables

    return {"rows": tables.write_parquet(aside, rows, schema.GROUPS)}
