"""The whole road: the demo on a toy forum, the page, and the README's words."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import once, run, spawn
from tests.warm_start import Streams, start
from worldpm import cli
from worldpm.cli import VERBS
from worldpm.evaluation.planted import read_planted
from worldpm.options import parsing

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
PAGES = (README, *sorted(DOCS.rglob("*.md")))
RUNNABLE = ("start.md", "how-to/scoring.md", "reference/python.md")
"""Pages whose Python a reader can run."""
MOST_BYTES = 8192
"""Largest size of the README."""
SMALL = ("--threads", 80)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "demo", make_demo)


def make_demo(folder: Path) -> None:
    """The demo in a process, with its output."""
    streams = Streams(folder / "stdout", folder / "stderr")
    code, error = start(folder, "demo", "--out", folder, *SMALL, streams=streams).finish()
    assert code == 0, error


def description(path: Path) -> str:
    """The text that a PNG file describes itself by."""
    with Image.open(path) as image:
        return str(image.info["Description"])


def test_the_demo_ends_with_a_table_of_80_columns_and_a_page(demo: Path) -> None:
    output = (demo / "stdout").read_text()
    table = output[output.index("Held-out accuracy") :]
    assert "adversarial, by votes" in table
    assert "report.html" in table
    lines = [line for line in table.splitlines() if str(demo) not in line]
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in table
    assert [
        (demo / name / "manifest.json").exists()
        for name in ("threads", "groups", "checkpoint", "results", "truth")
    ] == [True] * 5


def test_the_demos_figure_has_the_numbers_of_its_table(demo: Path) -> None:
    results = read_planted(demo / "truth")
    described = description(demo / "truth" / "accuracy.png")
    for against, domains in results.items():
        for domain, result in domains.items():
            assert f"| {domain}, by {against} | {result.model.n:,} | " in described
            assert f" {result.model.accuracy:.3f} " in described


def test_the_readme_shows_the_table_and_the_figure_of_one_run() -> None:
    results = (DOCS / "results" / "demo.md").read_text(encoding="utf-8")
    assert description(DOCS / "demo.png") in results


def test_the_demo_run_again_leaves_its_files_as_they_are(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*.parquet")}
    assert run("demo", "--out", demo, *SMALL) == 0
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*.parquet")} == before


def test_the_page_is_self_contained_and_shows_every_folder(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert not re.findall(
        r"(?:src|href)=\"(?!#)|@import|url\((?!#)|<link|fetch\(|XMLHttp|import\(",
        re.sub(r'xlink:href="#[^"]*"', "", page),
    )
    for words in (
        "Threads: threads",
        "Preference groups: groups",
        "Training: checkpoint",
        "Results: checkpoint",
        "planted truth",
        "How this was made",
    ):
        assert words in page
    assert "prefers-color-scheme: dark" in page
    assert not re.findall(r"#(0[1-7])\1\1", page)
    assert "worldpm train groups --model tiny" in page


def test_the_page_escapes_what_forums_write(road: Path, tmp_path: Path) -> None:
    import shutil

    hostile = tmp_path / "<b>x"
    shutil.copytree(road / "threads", hostile)
    assert run("report", hostile, "--out", tmp_path / "r.html") == 0
    assert "<b>x" not in (tmp_path / "r.html").read_text()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [README, *(DOCS / name for name in RUNNABLE)])
def test_the_python_of_the_pages_runs(
    road: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    page: Path,
) -> None:
    (tmp_path / "checkpoint").symlink_to(road / "checkpoint")
    monkeypatch.chdir(tmp_path)
    for snippet in blocks(page, "python"):
        if "72B" not in snippet:
            exec(compile(snippet, page.name, "exec"), {})
            assert re.search(r"-?\d+\.\d+", capsys.readouterr().out)


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= MOST_BYTES


def test_the_readme_names_every_verb_and_only_make_targets_that_exist() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(VERBS) <= set(re.findall(r"worldpm (\w+)", pages))
    text = README.read_text(encoding="utf-8")
    assert all(verb in text for verb in VERBS)
    targets = set(re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(), re.MULTILINE))
    assert (
        {"demo", "test"} <= set(re.findall(r"(?m)(?:^|`)make (\w+)", text)) <= targets | {"PYTHON"}
    )


def test_every_command_of_the_pages_has_words_that_the_verb_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # its files are those of a reader
    monkeypatch.setattr(parsing, "_check_inputs", lambda _: None)
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    lines = [line for text in texts for line in re.findall(r"^worldpm .*$", text, re.MULTILINE)]
    # without comments, redirections and pipes
    commands = [shlex.split(re.split(r"#| [<>|&]", line)[0]) for line in lines]
    assert len(commands) > 40
    for _, verb, *words in commands:
        arguments = [word for word in words if word not in (cli.QUIET, cli.JSON)]
        assert cli._parse(VERBS[verb].options, verb, arguments)


def test_the_road_of_the_docs_runs_as_typed_on_real_sites(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ai", "beer", "matheducators", "quantumcomputing"):
        archive = f"{name}.stackexchange.com.7z"
        (tmp_path / archive).symlink_to(real_data / "stackexchange" / archive)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "benchmarks").symlink_to(real_data / "benchmarks")
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "Is stout vegan?", "responses": ["Mostly.", "Finings are made of fish."]}\n'
    )
    how_to = blocks(DOCS / "how-to" / "forums.md", "bash")
    commands = next(block for block in how_to if "worldpm ingest" in block)
    for line in commands.splitlines():
        words, _, source = line.partition("#")[0].strip().partition(" < ")
        if not words:
            continue
        verb, *rest = shlex.split(words)[1:]
        files = [
            str(path)
            for word in rest
            for path in (sorted(tmp_path.glob(word)) if "*" in word else [word])
        ]
        shortened = ["--max-steps", "2", "--max-length", "128"] if verb == "train" else []
        found = spawn(
            verb,
            *files,
            *shortened,
            stdin=(tmp_path / source).read_bytes() if source else None,
            cwd=tmp_path,
        )
        assert found.returncode == 0, found.stderr.decode()
    counts = json.loads((tmp_path / "threads" / "manifest.json").read_text())["counts"]
    assert counts["beer.stackexchange.com"] == {
        "threads": 1029,
        "responses": 2277,
        "threads_with_two_responses": 583,
        "responses_with_earlier_votes": 0,
    }
    assert {
        site: entry["threads_with_two_responses"]
        for site, entry in counts.items()
        if not site.startswith("beer")
    } == {
        "ai.stackexchange.com": 255,
        "matheducators.stackexchange.com": 311,
        "quantumcomputing.stackexchange.com": 309,
    }
