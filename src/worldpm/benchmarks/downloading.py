"""`worldpm benchmarks`: the list of benchmarks, and downloads of the files of their authors.

The files are read afterwards, so a download that ends well has all items.
"""

import io
import logging
import re
import shutil
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from urllib.error import URLError

from rich.table import Table

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.catalogue import BENCHMARKS
from worldpm.console import screen_or_file
from worldpm.datasets import hub
from worldpm.errors import ConfigError, WorldPMError
from worldpm.options.benchmarks import BenchmarksOptions
from worldpm.storage import rows

logger = logging.getLogger(__name__)

GITHUB = "https://codeload.github.com"
"""Server of archives of GitHub's repositories."""
ON_GITHUB = re.compile(r"https://github\.com/([\w-]+/[\w.-]+)")
ON_HUB = re.compile(r"https://huggingface\.co/datasets/([\w-]+/[\w.-]+)")
KEPT_SUFFIXES = (*rows.SUFFIXES, ".txt", ".md")
"""Ends of the names of files that are kept of an archive: data, licences and descriptions."""
MOST_BYTES = 2 << 30
"""Largest size of an unpacked archive."""
SECONDS = 60.0


def run(options: BenchmarksOptions) -> None:
    """List the benchmarks, or download some."""
    if options.action == "list":
        _list(options.benchmarks)
        return
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        raise ConfigError(f"{unknown[0]}: no such benchmark. `worldpm benchmarks list` shows all.")
    for name in options.names:
        _download(BENCHMARKS[name], options.benchmarks / name)


def _list(folder: Path) -> None:
    table = Table("name", "items", "here", "source")
    for name, benchmark in BENCHMARKS.items():
        items = f"{sum(benchmark.sizes.values()):,}" if benchmark.sizes else ""
        table.add_row(name, items, "yes" if (folder / name).is_dir() else "", benchmark.home)
    screen_or_file().print(table)


def _download(benchmark: Benchmark, folder: Path) -> None:
    """Download the files into the folder, and read them.

    Raises:
        ConfigError: If the folder exists, or the files are not at one address.
        WorldPMError: If the server does not deliver them.
    """
    if folder.exists():
        raise ConfigError(f"{folder}: exists. Remove it to download {benchmark.name} again.")
    on_hub, on_github = ON_HUB.search(benchmark.home), ON_GITHUB.search(benchmark.home)
    if on_hub is None and on_github is None:
        raise ConfigError(
            f"{benchmark.name}: cannot be downloaded in one step. Its source: {benchmark.home}."
        )

    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if on_hub is not None:
        source = hub.dataset(on_hub[1], rows.SUFFIXES)
        shutil.copytree(source, aside, dirs_exist_ok=True)
    elif on_github is not None:
        _unpack(_archive(f"{GITHUB}/{on_github[1]}/zip/HEAD", benchmark.name), aside)

    items = benchmark.read(aside)
    aside.rename(folder)
    logger.info("%s: %d items in %s", benchmark.name, len(items), folder)


def _archive(url: str, name: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as reply:
            content: bytes = reply.read(MOST_BYTES)
    except (URLError, OSError) as error:
        raise WorldPMError(f"{name}: {url} did not deliver it ({error}). Try again.") from error
    return content


def _unpack(content: bytes, folder: Path) -> None:
    """Write the data files of an archive. Its first folder has the name of the repository."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise WorldPMError(f"{folder.stem}: the archive is damaged. Try again.") from error

    entries = [entry for entry in archive.infolist() if entry.filename.endswith(KEPT_SUFFIXES)]
    if sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise WorldPMError(f"{folder.stem}: the archive is larger than 2 GiB. Unpack it by hand.")
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts[1:]
        # An archive must not write outside the folder
        if not parts or ".." in parts:
            continue
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive.read(entry))
