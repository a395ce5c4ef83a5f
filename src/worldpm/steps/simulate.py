"""A simulated forum becomes threads, with the truth that was planted in them beside."""

from dataclasses import asdict, dataclass
from pathlib import Path

from worldpm.field.errors import ConfigError
from worldpm.formats import folders

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

    def __post_init__(self) -> None:
        if self.threads < 1 or self.seed < 0:
            raise ConfigError(f"--threads {self.threads} and --seed {self.seed}: at least 1 thread, and no negative seed")


def run(config: Config) -> None:
    """Simulate, and write both tables."""
    import pyarrow as pa

    from worldpm.formats import schema, tables
    from worldpm.parts.forums import simulated

    settings = {"threads": config.threads, "seed": config.seed}
    output = folders.begin(config.out, step="simulate", config=settings, inputs=[])
    if output is None:
        return
    with output:
        forum = simulated.simulate(config.threads, seed=config.seed)
        threads = tables.rows_to_batches((schema.thread_to_row(thread) for thread, _ in forum), schema.THREADS)
        output.part(f"{simulated.SITE}.parquet", lambda aside: {"rows": tables.write_parquet(aside, threads, schema.THREADS)})
        fields = [(name, pa.string() if name == "response_id" else pa.float64()) for name in simulated.Truth.__dataclass_fields__]
        truth_schema = pa.schema(fields)
        truth = tables.rows_to_batches((asdict(truth) for _, truths in forum for truth in truths), truth_schema)
        output.part(TRUTH, lambda aside: {"rows": tables.write_parquet(aside, truth, truth_schema)})
        responses = sum(len(thread.responses) for thread, _ in forum)
        output.finish(counts={simulated.SITE: {"threads": len(forum), "responses": responses}})
