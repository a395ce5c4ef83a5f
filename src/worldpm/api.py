"""The verbs as functions of Python, on paths and on tables in memory.

`import worldpm` has these names. A table is a `datasets.Dataset`, a pandas or Polars frame, or a
list of dictionaries. Options have the names of the command line, with underscores.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from worldpm.benchmarks import catalogue
from worldpm.benchmarks.catalogue import PlacedBenchmark
from worldpm.errors import ConfigError
from worldpm.evaluation import run as evaluation
from worldpm.evaluation.results import Results
from worldpm.laws import run as laws
from worldpm.laws.law import Laws, read_laws
from worldpm.options.laws import LawsOptions
from worldpm.options.other_names import OURS
from worldpm.options.shared import BENCHMARKS, column_names
from worldpm.options.train import TrainOptions
from worldpm.records import PreferenceGroup, Thread
from worldpm.scoring.scorer import Scorer
from worldpm.storage import parquet, schema
from worldpm.storage.manifest import read_manifest, sha256
from worldpm.training import run as training
from worldpm.training.loop import Callback

Data = Any
"""A path, a name, a hub id, or a table."""
Model = Any
"""A path, a hub id, the name of a built-in size, or a model of transformers."""
Columns = str | Mapping[str, str] | None
"""Names of columns in the data by ours, as a mapping or as `prompt=question,chosen=good`."""
SINGLE = (str, PathLike)
Made = TypeVar("Made")


def train(
    data: Data,
    *,
    out: Path | str,
    model: Model = "tiny",
    tokenizer: Any = None,
    validation: Data = None,
    columns: Columns = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Scorer:
    """Train a preference model on groups or pairs, as `worldpm train` does, and load it.

    The same call resumes an interrupted training, and loads a finished one. A part of the pairs is
    held out for validation unless `validation` is given. `columns` has the names of columns in the
    data by ours. `model` may also be a model of transformers with its `tokenizer`; it is saved
    beside `out`. Each callback gets every row of metrics, `StepMetrics` or `ValidationMetrics`. An
    error in a callback stops the training. The same call resumes it after the last saved state, so
    callbacks get the steps since then twice.

    Raises:
        ConfigError: If an option is wrong.
        DataError: If a row is damaged.
        TrainingError: If a loss is not finite.
    """
    with ExitStack() as stack:
        settings = _options(
            TrainOptions,
            columns=_columns(columns),
            groups=(_path(data, "pairs", stack),),
            model=_saved(model, tokenizer, Path(out)),
            validation=() if validation is None else (_path(validation, "validation", stack),),
            out=Path(out),
            **options,
        )
        settings.check_inputs()
        training.train(settings, callbacks)
    return Scorer.load(out)


def _options(kind: Callable[..., Made], **options: Any) -> Made:
    """The options of a verb.

    Raises:
        ConfigError: If an option does not exist.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            hint = f" Use {OURS[name]}." if name in OURS else ""
            raise ConfigError(f"{name}: no such option.{hint}")
    return kind(**options)


def _columns(columns: Columns) -> tuple[str, ...]:
    """Names of columns in the form of the option."""
    if columns is None:
        return ()
    if isinstance(columns, str):
        return (columns,)
    return tuple(f"{ours}={theirs}" for ours, theirs in columns.items())


def _saved(model: Model, tokenizer: Any, out: Path) -> str:
    """The name of a model. A model in memory is saved first."""
    if isinstance(model, SINGLE):
        return str(model)
    if not hasattr(model, "save_pretrained") or not hasattr(tokenizer, "save_pretrained"):
        raise ConfigError(
            "model: neither a name nor a model of transformers with its tokenizer. Give one."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(mkdtemp(prefix=f"{out.name}.start.", dir=out.parent))
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)

    # Named by its content: another model must not continue with the files of the first
    files = sorted(path for path in aside.iterdir() if path.is_file())
    digest = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()[:12]
    folder = out.with_name(f"{out.name}.start-{digest}")
    try:
        aside.rename(folder)
    # An earlier call, or another process of the same training, has saved the same files
    except OSError:
        shutil.rmtree(aside)
    return str(folder)


def evaluate(
    models: Scorer | Path | str | Mapping[str, Scorer | Path | str] | Sequence[Path | str],
    on: Data | Mapping[str, Data],
    *,
    columns: Columns = None,
    benchmarks: Path | str = BENCHMARKS,
) -> Results:
    """Judge one or several models on benchmarks, groups or pairs, and compare them pair by pair.

    `on` is what `--on` takes (one or a list), or a table, or tables by name. `columns` has the
    names of columns in pairs by ours. Nothing is written; `worldpm evaluate` also keeps every raw
    reward, and resumes.

    Raises:
        ConfigError: If a name or a path does not exist.
        DataError: If a file is damaged.
        NotFiniteError: If a reward is not finite.
    """
    with ExitStack() as stack:
        placed = {entry.name: entry for entry in _placed(on, Path(benchmarks), columns, stack)}
        sets = {name: entry.items() for name, entry in placed.items()}
    evaluated = {name: evaluation.evaluate(model, sets) for name, model in _models(models)}
    return evaluation.measure(placed, evaluated)


def fit_laws(
    table: Data, *, out: Path | str | None = None, resamples: int = 1000, **options: Any
) -> Laws:
    """Fit scaling laws, as `worldpm laws` does, to a table with N, D and a loss, or to folders of
    results. Without `out`, the folder with figures is not kept.

    Raises:
        ConfigError: If the table has no points to fit.
        DataError: If a row is wrong.
    """
    with ExitStack() as stack:
        inputs = table if _is_list_of_paths(table) else [_path(table, "table", stack)]
        folder = Path(out or Path(stack.enter_context(TemporaryDirectory())) / "laws")
        laws.run(
            _options(
                LawsOptions,
                inputs=tuple(map(Path, inputs)),
                out=folder,
                resamples=resamples,
                **options,
            )
        )
        return read_laws(folder)


def read_threads(folder: Path | str) -> Iterator[Thread]:
    """The threads of a finished folder of `worldpm ingest`, site by site.

    Raises:
        ConfigError: If the folder is not finished.
        DataError: If a file is damaged.
    """
    read_manifest(Path(folder))
    for path in parquet.paths_of(Path(folder)):
        for batch in parquet.read_batches(path):
            yield from schema.threads_of(batch)


def read_groups(folder: Path | str, split: str | None = None) -> Iterator[PreferenceGroup]:
    """The preference groups of a folder of `worldpm group` or of a Parquet file, of one split or of
    all.

    Raises:
        DataError: If a file is damaged.
    """
    for path in parquet.paths_of(Path(folder)):
        yield from schema.read_groups(path, split=split)


def _models(models: Any) -> Iterator[tuple[str, Scorer]]:
    """The models by their names in the results."""
    if isinstance(models, Scorer):
        models = {"model": models}
    elif isinstance(models, SINGLE):
        models = [models]
    if not isinstance(models, Mapping):
        names = [Path(model).name for model in models]
        if len(set(names)) < len(names):
            raise ConfigError("models: two have the same name. Use a mapping with other names.")
        models = dict(zip(names, models, strict=True))
    for name, model in models.items():
        yield name, model if isinstance(model, Scorer) else Scorer.load(model, cut=True)


def _placed(on: Any, benchmarks: Path, columns: Columns, stack: ExitStack) -> list[PlacedBenchmark]:
    renamed = column_names(_columns(columns))
    if isinstance(on, SINGLE) or _is_list_of_paths(on):
        names = [on] if isinstance(on, SINGLE) else on
        return catalogue.find([str(name) for name in names], benchmarks, columns=renamed)
    tables = on if isinstance(on, Mapping) else {"table": on}
    return [
        entry
        for name, table in tables.items()
        for entry in catalogue.find([_path(table, name, stack)], benchmarks, columns=renamed)
    ]


def _is_list_of_paths(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, SINGLE) for entry in value)


def _path(data: Any, name: str, stack: ExitStack) -> str:
    """The path of data; a table is written to a temporary file with a name."""
    if isinstance(data, SINGLE):
        return str(data)
    folder = Path(stack.enter_context(TemporaryDirectory()))
    path = folder / f"{name}.parquet"
    rows = list(_rows(data))
    if not rows:
        raise ConfigError(f"{name}: the table has no rows. Add some.")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def _rows(table: Any) -> Iterable[Mapping[str, object]]:
    """The rows of a table."""
    if hasattr(table, "to_dicts"):  # Polars
        return table.to_dicts()  # type: ignore[no-any-return]
    if hasattr(table, "to_dict") and hasattr(table, "iloc"):  # pandas
        return table.to_dict("records")  # type: ignore[no-any-return]
    if isinstance(table, str | bytes | Mapping):
        raise ConfigError("a table is a data set, a frame or a list of dictionaries. Give one.")
    return table  # type: ignore[no-any-return]
