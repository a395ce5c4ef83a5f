"""Options of the command line: groups, other names, configuration files, final messages."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run
from worldpm import cli
from worldpm.cli import VERBS
from worldpm.errors import ConfigError
from worldpm.options import parsing
from worldpm.options.parsing import parse
from worldpm.options.score import ScoreOptions
from worldpm.options.train import TrainOptions

TRAIN = ("train", "groups", "--model", "tiny", "--out", "out")


@pytest.fixture(autouse=True)
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the files and folders that examples name."""
    monkeypatch.chdir(tmp_path)
    for name in ("groups", "threads", "checkpoint", "results", "ladder", "dumps"):
        (tmp_path / name).mkdir()
    for name in ("answers.jsonl", "labelled.jsonl", "rules.json", "decisions.sqlite"):
        (tmp_path / name).touch()


def train(*words: object) -> TrainOptions:
    return parse(TrainOptions, "worldpm train", [*TRAIN[1:], *map(str, words)])


@pytest.mark.parametrize(
    ("theirs", "name", "value"),
    [
        (("--learning-rate", "1e-5"), "lr", 1e-5),
        (("--learning_rate=1e-5",), "lr", 1e-5),
        (("--num_train_epochs", "2"), "epochs", 2.0),
        (("--bf16",), "dtype", "bfloat16"),
        (("--bf16", "True"), "dtype", "bfloat16"),
        (("--bf16", "false"), "dtype", None),
        (("--max_steps", "7"), "max_steps", 7),
        (("--warmup_ratio", "0.2"), "warmup", 0.2),
        (("--lora_r", "8"), "lora_rank", 8),
        (("--trust_remote_code", "--revision", "a"), "remote_code", True),
        (("--per-device-train-batch-size", "8"), "batch_pairs", 8),
        (
            ("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "4"),
            "batch_pairs",
            32,
        ),
    ],
)
def test_names_of_other_scripts_are_accepted(
    theirs: tuple[str, ...], name: str, value: object
) -> None:
    assert getattr(train(*theirs), name) == value


def test_the_batch_of_a_device_counts_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("--per-device-train-batch-size", 8).batch_pairs == 16
    with pytest.raises(ConfigError, match="not a number of pairs"):
        train("--per-device-train-batch-size", "eight")


def test_model_and_output_have_their_other_names_too() -> None:
    words = ["groups", "--model_name_or_path", "tiny", "--output_dir", "there"]
    options = parse(TrainOptions, "worldpm train", words)
    assert (options.model, options.out) == ("tiny", Path("there"))

    words = ["--output-dir", "there", "answers.jsonl", "--model-name-or-path", "checkpoint"]
    scored = parse(ScoreOptions, "worldpm score", words)
    assert (scored.model, scored.file, scored.out) == (
        "checkpoint",
        Path("answers.jsonl"),
        Path("there"),
    )


def test_a_saved_configuration_gives_the_same_options(tmp_path: Path) -> None:
    words = ("--lr", "1e-5", "--validation", "groups", "threads", "--compile", "--snapshots", 3)
    saved = train(*words, "--save-config", "run.yaml")
    assert parse(TrainOptions, "worldpm train", ["--config", "run.yaml"]) == saved

    changed = parse(TrainOptions, "worldpm train", ["--config=run.yaml", "--lr", "2", "threads"])
    assert (changed.lr, changed.groups, changed.snapshots) == (2.0, ("threads",), 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: high", "lr: Expected `float"),
        ("lrr: 1", "lrr is not an option of this verb"),
        ("[1]", "no options"),
        ("a: [", "not YAML"),
        ("learning_rate: 0.1", None),
        ("max-steps: 5\ngroups: [threads]", None),
    ],
)
def test_a_configuration_is_checked(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "c.yaml").write_text(text)
    if message is None:
        train("--config", "c.yaml")
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        train("--config", "c.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        train("--config", "none.yaml")
    with pytest.raises(ConfigError, match="no file is named"):
        train("--config")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_every_option_and_an_example_that_the_parser_accepts(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    options = VERBS[verb].options
    program, named, *words = shlex.split(options.EXAMPLE)
    assert (program, named) == ("worldpm", verb)
    monkeypatch.setattr(parsing, "_check_inputs", lambda _: None)
    assert parse(options, "worldpm", words)

    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert options.EXAMPLE in shown
    for field in fields(options):
        flag = f"--{field.name.replace('_', '-')}"
        doc = parsing._docs(options)[field.name]
        assert flag in shown or doc.split()[0] in shown, field.name
    # every option of a group exists in the class, so help shows all groups
    grouped = parsing._grouped(options)
    assert grouped <= {field.name for field in fields(options)}


def test_long_lists_of_options_are_in_groups() -> None:
    for verb, (options, *_) in VERBS.items():
        alone = {field.name for field in fields(options)} - parsing._grouped(options)
        assert len(alone) <= 12, verb


@pytest.mark.parametrize(
    "words",
    [
        ("train", "nowhere", "--model", "tiny", "--out", "out"),
        ("score", "nowhere", "answers.jsonl"),
        ("score", "checkpoint", "nowhere"),
        ("group", "nowhere", "--out", "out"),
        ("serve", "checkpoint", "--rules", "nowhere"),
        ("log", "verify", "nowhere"),
    ],
)
def test_an_absent_path_is_reported_before_heavy_imports(words: tuple[str, ...]) -> None:
    program = (
        "import sys; from worldpm import cli; code = cli.main(sys.argv[1:]);"
        " assert not {'torch', 'transformers', 'duckdb', 'pyarrow'} & sys.modules.keys();"
        " sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "nowhere: no such file or folder" in done.stderr


def test_a_verb_ends_with_its_output_and_a_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("simulate", "--threads", 20, "--out", "forum") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["wrote forum", "next: worldpm group forum --out groups"]

    assert run("simulate", "--threads", 20, "--out", "forum2", "--quiet") == 0
    assert capsys.readouterr() == ("", "")

    assert run("simulate", "--threads", 20, "--out", "forum3", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "verb": "simulate",
        "out": "forum3",
        "next": "worldpm group forum3 --out groups",
        "result": None,
    }


def test_the_parser_accepts_every_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "_check_inputs", lambda _: None)
    for verb in VERBS.values():
        options = parse(verb.options, "worldpm", shlex.split(verb.options.EXAMPLE)[2:])
        command = verb.next_command(options)
        if command is not None:
            _, following, *words = shlex.split(command)
            assert parse(VERBS[following].options, "worldpm", words), command


def test_results_are_json_on_request(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", road / "checkpoint", "--on", road / "groups", "--out", tmp_path / "r")
    assert run(*words, "--json") == 0
    result = json.loads(capsys.readouterr().out)["result"]
    on_disk = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert result["checkpoints"].keys() == on_disk["checkpoints"].keys()

    assert run("plan", "tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"]
    assert run("score", road / "checkpoint", "answers.jsonl", "--json") == 2
    assert "already writes JSON lines" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_all_verbs_and_their_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--print-completion", shell) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    assert "label-smoothing" in script
    assert run("--print-completion", "dos") == 2


def test_a_close_verb_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trian") == 2
    assert "Perhaps you meant train" in capsys.readouterr().err


def test_a_run_of_few_steps_warns(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "tiny", "--max-steps", 2, "--dtype", "float32", "--max-length", 128)
    assert run("train", road / "groups", *words, "--out", tmp_path / "few") == 0
    assert "the run has only 2 steps" in capsys.readouterr().err


def test_no_color_turns_colors_off() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worldpm.cli", "train", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": ""},
    )
    assert "\x1b[" not in done.stdout


def test_the_readme_names_only_verbs_that_exist() -> None:
    text = (REPOSITORY / "README.md").read_text()
    named = set(re.findall(r"^\s*worldpm (\w+)", text, re.MULTILINE))
    assert named <= VERBS.keys()
    assert cli.main(["--version"]) == 0
