"""Speed from a dump to groups: `python speed/forum_data.py DUMP... [--reference]`. Dumps are files
as `speed/forum_dump.py` writes them.

Runs `worldpm ingest` and `worldpm group` on each dump with all defaults. Peak memory is the sum of
the proportional set sizes of all processes, measured every 0.3 s. Then times each stage of the
first dump alone, in one process. With --reference also runs a simple script on the first dump:
lxml's iterparse, markdownify, and pandas to join, sort and pair (`pip install lxml markdownify
pandas`).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from worldpm.forums import joining, stackexchange
from worldpm.forums.counts import no_drops
from worldpm.forums.markdown import from_html
from worldpm.options.group import GroupRules
from worldpm.preferences import near_duplicates, thread_batches
from worldpm.preferences.grouping import Learned
from worldpm.storage import parquet, schema

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dumps", type=Path, nargs="+")
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dumps[0].parent) as name:
        folder = Path(name)
        ours = [whole(dump, folder / dump.parent.name) for dump in options.dumps]
        if options.reference:
            start = time.monotonic()
            pairs = reference(options.dumps[0])
            seconds = time.monotonic() - start
            print(
                f"lxml, markdownify, pandas: {seconds:.1f} s, {pairs:,} pairs;"
                f" {seconds / ours[0]:.1f} times ours"
            )
        stages(options.dumps[0], folder)


def whole(dump: Path, folder: Path) -> float:
    """Seconds that both verbs take together."""
    folder.mkdir()
    megabytes = dump.stat().st_size / 1e6
    total = 0.0
    for words in (
        ["ingest", str(dump), "--out", str(folder / "threads")],
        ["group", str(folder / "threads"), "--out", str(folder / "groups")],
    ):
        seconds, memory_mib = timed([sys.executable, "-m", "worldpm.cli", *words])
        total += seconds
        print(
            f"{dump.parent.name} {megabytes:,.0f} MB: {words[0]} {seconds:.1f} s,"
            f" {megabytes / seconds:.1f} MB/s, peak {memory_mib:,} MiB"
        )
    print(
        f"{dump.parent.name} {megabytes:,.0f} MB: both {total:.1f} s, {megabytes / total:.1f} MB/s",
        flush=True,
    )
    return total


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds of a command, and the peak of the summed memory of its processes in MiB."""
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_proportional_kib, _tree(process.pid))))
            time.sleep(0.3)
    if process.returncode:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    return time.monotonic() - start, peak // 1024


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rsplit(")", 1)[1].split()[1]), []).append(
                int(stat.parent.name)
            )
        except OSError:
            continue
    tree = [root]
    for process in tree:
        tree += children.get(process, [])
    return tree


def _proportional_kib(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def reference(dump: Path) -> int:
    """Number of pairs of answers to one question with different votes, with bodies in Markdown."""
    import pandas as pd
    from lxml import etree
    from markdownify import markdownify

    rows = []
    for _, element in etree.iterparse(dump, tag="row"):
        if element.get("PostTypeId") in ("1", "2"):
            rows.append(
                (
                    element.get("Id"),
                    element.get("ParentId"),
                    int(element.get("Score")),
                    markdownify(element.get("Body") or ""),
                )
            )
        element.clear()
        while element.getprevious() is not None:
            del element.getparent()[0]
    posts = pd.DataFrame(rows, columns=["id", "parent", "votes", "body"])
    answered = posts[posts.parent.notna()].merge(
        posts[posts.parent.isna()][["id", "body"]], left_on="parent", right_on="id"
    )
    pairs = 0
    for _, thread in answered.groupby("parent"):
        pairs += sum(one != other for one, other in combinations(thread.votes, 2))
    return pairs


def stages(dump: Path, folder: Path) -> None:
    """Time each stage, one after the other, in one process."""
    megabytes, rules = dump.stat().st_size / 1e6, GroupRules()

    def stage(name: str, work: Callable[[], Result]) -> Result:
        start = time.monotonic()
        result = work()
        print(f"  {name:22} {(time.monotonic() - start) * 1000 / megabytes:5.1f} ms/MB", flush=True)
        return result

    print(f"stages of {megabytes:,.0f} MB, one process:")
    stage(
        "parse",
        lambda: sum(
            batch.num_rows
            for batch in stackexchange.read_posts(dump, site="site", drops=no_drops())
        ),
    )
    raw, threads, bands = (folder / name for name in ("posts", "threads", "bands"))
    stage(
        "parse and write posts",
        lambda: joining.write_posts(
            raw, stackexchange.read_posts(dump, site="s", drops=no_drops())
        ),
    )
    bare = stage(
        "join",
        lambda: list(
            joining.join_threads([raw], source="s", site="s", text=None, spill=folder).threads
        ),
    )
    bodies = [
        body
        for batch in bare
        for lists in (batch["body"], batch["responses"].flatten().field("body"))
        for body in lists.to_pylist()
    ]
    stage("HTML to Markdown", lambda: sum(len(from_html(body)) for body in bodies))
    stage("write threads", lambda: parquet.write_parquet(threads, bare, schema.THREADS))
    joined = joining.join_threads([raw], source="s", site="s", text=from_html, spill=folder).threads
    parquet.write_parquet(threads, joined, schema.THREADS)
    batches = stage("read threads", lambda: list(parquet.read_batches(threads)))
    stage(
        "records of threads", lambda: sum(1 for batch in batches for _ in schema.threads_of(batch))
    )
    statistics = stage(
        "learn (with records)",
        lambda: [thread_batches.see(batch, rules=rules, one_in=4) for batch in batches],
    )
    batch_bands = (batch.bands for batch in statistics)
    parquet.write_parquet(bands, batch_bands, near_duplicates.SCHEMA)
    again = stage("find duplicates", lambda: near_duplicates.duplicates([bands], spill=folder))
    make = {"rules": rules, "learned": Learned(duplicates=again), "sieves": thread_batches.Sieves()}
    made = stage(
        "group (with records)",
        lambda: [thread_batches.make(batch, **make).groups for batch in batches],
    )  # type: ignore[arg-type]
    stage("write groups", lambda: parquet.write_parquet(folder / "groups", made, schema.GROUPS))


if __name__ == "__main__":
    main()
