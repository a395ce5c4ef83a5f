"""The training loop: losses, learning rates and saved states. A stopped run resumes and ends in the
same bits."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import run, spawn
from tests.model.test_shared_prefix import SMALL, Vocabulary, group
from tests.training.test_plan import HYBRID
from worldpm import Scorer
from worldpm.cli import VERBS
from worldpm.errors import TrainingError
from worldpm.model import costs, frozen_states
from worldpm.model.reward_model import RewardModel, build, from_config
from worldpm.options.train import TrainOptions
from worldpm.records import Preference, PreferenceGroup
from worldpm.storage.parquet import read_rows
from worldpm.training import processes
from worldpm.training import run as training_run
from worldpm.training.loop import Settings, Trainer
from worldpm.training.state import NOTE, Totals, weights_of
from worldpm.training.step_metrics import read_metrics
from worldpm.training.token_store import Example, TokenStore, write

pytestmark = pytest.mark.usefixtures("one_measure")

EXAMPLES = [
    Example(
        f"g{i}",
        group([5 + i % 7, 6], [10 + i % 5, 0], [20 + i % 3, 21, 0], [40, 0]),
        (Preference(0, 1, 1, 1, 0.5), Preference(0, 2, 2, 1, 0.5)),
    )
    for i in range(12)
]


def settings(**changes: Any) -> Settings:
    usual: dict[str, Any] = {
        "lr": 1e-2,
        "batch_pairs": 6,
        "epochs": 2,
        "max_steps": None,
        "weight_decay": 0.1,
        "warmup": 0.5,
        "decay": 0.25,
    }
    return Settings(**{**usual, "seed": 0, "validations": 4, **changes})


def trainer(
    folder: Path, model: RewardModel | None = None, *, states: Path | None = None, **changes: Any
) -> Trainer:
    folder.mkdir(exist_ok=True)
    model = model or build(SMALL, Vocabulary(), seed=1)  # type: ignore[arg-type]
    for name, examples in (("train", EXAMPLES), ("validation", EXAMPLES[:3])):
        write(folder / name, examples)
    train, validation = (TokenStore([folder / name]) for name in ("train", "validation"))
    accelerator = processes.accelerator(torch.float32)
    return Trainer(
        model,
        train,
        validation,
        settings(**changes),
        folder=folder,
        state=folder / "resume",
        states=states,
        accelerator=accelerator,
    )


ALL = np.arange(len(EXAMPLES))


def with_frozen_layer(folder: Path, *, states: bool) -> Trainer:
    """A trainer whose model has its first layer of two frozen, and keeps its states or runs it each
    time."""
    model = build(SMALL, Vocabulary(), seed=1)  # type: ignore[arg-type]
    frozen_states.freeze(model.backbone, 1)
    return trainer(folder, model, states=folder / "states" if states else None, freeze_layers=1)


def test_training_on_states_of_frozen_layers_gives_the_weights_of_training_without(
    tmp_path: Path,
) -> None:
    before = build(SMALL, Vocabulary(), seed=1).state_dict()  # type: ignore[arg-type]
    runs = [with_frozen_layer(tmp_path / str(states), states=states) for states in (True, False)]
    for one in runs:
        one.run()
    cached, whole = (weights_of(one.model) for one in runs)
    for name, weight in whole.items():
        assert (cached[name] - weight).abs().max() < 1e-5, name
        is_frozen = ".layers.0." in name or "embed" in name
        assert torch.equal(weight, before[name]) == is_frozen, name
    assert list((tmp_path / "True" / "states").rglob("*.safetensors"))


def test_operations_of_frozen_layers_count_their_forward_only(tmp_path: Path) -> None:
    flops = [trainer(tmp_path / "all").step(ALL).metrics.flops_seen]
    flops.append(with_frozen_layer(tmp_path / "half", states=False).step(ALL).metrics.flops_seen)
    # half of the layers: 1/2 + 1/2 * 1/3
    assert flops[1] == round(flops[0] * 2 / 3)


def test_training_lowers_the_loss_and_logs_the_documented_values(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a")
    run.run()
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(lines[0])) == [
        "step",
        "groups_seen",
        "pairs_seen",
        "effective_pairs_seen",
        "tokens_seen",
        "flops_seen",
        "loss_nats",
        "accuracy",
        "grad_norm",
        "lr",
    ]
    assert list(json.loads(lines[2]))[6:] == [
        "validation/loss_nats",
        "validation/accuracy",
        "validation/pairs",
        "validation/reward_mean",
        "validation/reward_std",
        "validation/temperature",
    ]

    log = read_metrics(tmp_path / "a")
    assert [row.step for row in log.steps] == list(range(1, 9))
    first, last = log.steps[0], log.steps[-1]
    assert last.loss_nats < 0.3 < first.loss_nats
    assert (last.groups_seen, last.pairs_seen, last.effective_pairs_seen) == (24, 48, 24.0)
    assert [row.lr for row in log.steps] == pytest.approx(
        [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01, 0.005]
    )
    assert [row.step for row in log.validations] == [2, 4, 6, 8]


def test_the_loss_of_a_step_does_not_depend_on_how_its_rows_are_filled(tmp_path: Path) -> None:
    losses = []
    for tokens in (16, 10_000):
        run = trainer(tmp_path / str(tokens), row_tokens=tokens)
        losses.append(run.step(ALL).metrics)
    assert losses[0].loss_nats == pytest.approx(losses[1].loss_nats, abs=1e-6)
    assert losses[0].grad_norm == pytest.approx(losses[1].grad_norm, rel=1e-5)


def test_rows_of_a_model_that_shares_no_prompts_hold_no_more_tokens_than_others(
    tmp_path: Path,
) -> None:
    run = trainer(tmp_path, from_config(HYBRID, seed=1), row_tokens=24)
    tokens: list[int] = []
    run.model.register_forward_pre_hook(
        lambda _, args: tokens.append(sum(one.tokens for g in args[0] for one in g.apart))
    )
    row = run.step(ALL).metrics
    assert [e.encoded.tokens for e in EXAMPLES] == [
        2 + 2 + 3 + 2
    ] * 12  # two groups would fit in a row if prompts were shared
    assert tokens == [4 + 5 + 4] * 12
    attended = 12 * (4 * 5 // 2 + 5 * 6 // 2 + 4 * 5 // 2)
    assert row.flops_seen == costs.train_flops(
        costs.cost_of(HYBRID), tokens=12 * 13, attended=attended
    )
    assert (row.tokens_seen, run.measure(run.validation).pairs) == (12 * 9, 6)


def test_the_loss_at_the_start_is_a_weighted_mean_over_pairs(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a")
    expected = run.measure(run.train).loss_nats
    assert run.step(ALL).metrics.loss_nats == pytest.approx(expected, abs=1e-6)


def test_a_run_killed_after_any_save_ends_in_the_same_bits(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    whole = trainer(tmp_path / "whole")
    whole.run()
    for stop in (2, 4, 6):
        folder = tmp_path / f"stopped{stop}"
        first = trainer(folder)
        save = first.save

        def save_and_stop(stop: int = stop, first: Trainer = first, save: Any = save) -> None:
            save()
            if first.totals.step == stop:
                raise StopError

        first.save = save_and_stop  # type: ignore[method-assign]
        with pytest.raises(StopError):
            first.run()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(
                '{"step": 99, "loss_nats": 1.0}\n{"torn'
            )  # lines that were logged between the save and the kill
        second = trainer(folder)
        second.run()
        assert (folder / "metrics.jsonl").read_bytes() == (
            tmp_path / "whole" / "metrics.jsonl"
        ).read_bytes()
        a, b = weights_of(whole.model), weights_of(second.model)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_after_a_damaged_state_the_state_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path / "a")
    for _ in range(3):
        run.step(ALL)
        run.save()
    older, newer = sorted((tmp_path / "a" / "resume").iterdir())
    assert (older.name, newer.name) == ("00000002", "00000003")
    content = bytearray((newer / "state.safetensors").read_bytes())
    content[-5] ^= 1
    (newer / "state.safetensors").write_bytes(content)
    second = trainer(tmp_path / "a")
    second.resume()
    assert second.totals.step == 2
    assert "00000003: this state changed after it was saved" in caplog.text
    (older / NOTE).unlink()
    third = trainer(tmp_path / "a")
    third.resume()
    assert third.totals.step == 0


def test_incomplete_states_of_later_steps_do_not_replace_a_new_one(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a")
    for _ in range(2):
        run.step(ALL)
        run.save()
    for torn in (
        "00000007",
        "00000009",
    ):  # from a run that was killed during a save, and restarted from step 2
        (tmp_path / "a" / "resume" / torn).mkdir()
    run.step(ALL)
    run.save()
    assert sorted(state.name for state in (tmp_path / "a" / "resume").iterdir()) == [
        "00000002",
        "00000003",
    ]
    second = trainer(tmp_path / "a")
    second.resume()
    assert second.totals.step == 3


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_groups(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a")
    with torch.no_grad():
        run.model.score.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan .*g0, g1, g2"):
        run.step(ALL)


def test_rewards_that_are_not_finite_after_the_last_step_stop_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", lr=1e30, warmup=0.0, decay=0.0, max_steps=1)
    with pytest.raises(TrainingError, match=r"step 1: the rewards of g0 are .*nan.*Lower --lr"):
        run.run()


def test_a_group_longer_than_a_row_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path / "a", row_tokens=4)
    assert "12 groups are longer than a row of 4 tokens, the longest 9" in caplog.text


def test_a_cosine_falls_from_the_warm_up_to_nearly_zero(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", schedule="cosine", warmup=0.25, decay=0.0)
    shares = []
    for step in range(8):
        run.totals = Totals(step=step)
        shares.append(run._lr_share())
    assert shares[:2] == [0.5, 1.0]
    assert shares[2:] == pytest.approx([(1 + math.cos(math.pi * i / 7)) / 2 for i in range(1, 7)])


def test_the_weights_with_the_lowest_validation_loss_are_kept(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", lr=3.0, warmup=0.0)
    run.run()
    validations = read_metrics(tmp_path / "a").validations
    best = min(validations, key=lambda row: row.loss_nats)
    assert run.totals.best == best
    assert run.kept_metrics() == best
    assert run.measure(run.validation).loss_nats == pytest.approx(best.loss_nats, abs=1e-6)


def test_timings_have_the_share_of_the_matrix_rate_that_a_step_reaches(road: Path) -> None:
    steps = [
        json.loads(line)
        for line in (road / "checkpoint" / "timings.jsonl").read_text().splitlines()
        if '"mfu"' in line
    ]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(0 < row["mfu"] < 1.5 and row["tokens_per_second"] > 0 for row in steps)


def test_a_tracker_gets_the_values_of_the_metrics_file(road: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    import sqlite3

    words = (
        "--model",
        "tiny",
        "--max-steps",
        2,
        "--dtype",
        "float32",
        "--max-length",
        64,
        "--tracker",
        "mlflow",
    )
    assert (
        spawn("train", road / "groups", *words, "--out", tmp_path / "out", cwd=tmp_path).returncode
        == 0
    )
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    tracked = (
        sqlite3.connect(tmp_path / "mlflow.db")
        .execute("select step, value from metrics where key = 'loss_nats'")
        .fetchall()
    )
    assert tracked == [
        (row["step"], pytest.approx(row["loss_nats"])) for row in rows if "loss_nats" in row
    ]


def test_an_absent_tracker_is_named(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            "train",
            road / "groups",
            "--model",
            "tiny",
            "--tracker",
            "trackio",
            "--out",
            tmp_path / "out",
        )
        == 2
    )
    assert (
        "--tracker trackio: its library is not installed. Run `pip install trackio`."
        in capsys.readouterr().err
    )


def trained(road: Path, folder: Path, pairs: list[dict[str, Any]], *words: object) -> Path:
    """Train one step on all pairs. Return the output folder."""
    folder.mkdir()
    for name in ("train", "val"):
        lines = [json.dumps(pair) + "\n" for pair in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    options = ("--max-steps", 1, "--batch-pairs", len(pairs), "--dtype", "float32", *words)
    model = road / "checkpoint"
    assert run("train", folder, "--model", model, *options, "--out", folder / "out") == 0
    return folder / "out"


MARGINS = (3.0, 0.2)
PAIRS = [
    {"prompt": f"How {margin}?", "chosen": "So.", "rejected": "No.", "margin": margin}
    for margin in MARGINS
]


def test_a_margin_is_a_target_on_request_and_otherwise_reported_as_not_used(
    road: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Scorer.load(road / "checkpoint")
    rewards = [scorer.rewards(f"How {margin}?", ["So.", "No."]) for margin in MARGINS]
    gaps = [chosen - rejected for chosen, rejected in rewards]

    for scale, words in ((1, ("--target-margin", 1)), (0, ())):
        caplog.clear()
        (step,) = read_metrics(trained(road, tmp_path / str(scale), PAIRS, *words)).steps
        losses = [
            math.log1p(math.exp(scale * margin - gap))
            for margin, gap in zip(MARGINS, gaps, strict=True)
        ]
        assert step.loss_nats == pytest.approx(sum(losses) / 2, abs=1e-4)
        assert caplog.text.count("the column margin is not used") == 1 - scale


def test_an_explicit_validation_set_is_measured_on_and_named(road: Path, tmp_path: Path) -> None:
    renamed = [{"q": "How?", "good": "So.", "bad": text, "id": 1} for text in ("No.", "So.")]
    for name in ("val", "train"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    (tmp_path / "mine.csv").write_text("q,good,bad\nWhy?,So.,No.\nWhy?,So., So.\n")

    words = (
        "--columns",
        "prompt=q,chosen=good,rejected=bad",
        "--validation",
        tmp_path / "mine.csv",
    )
    options = ("--max-steps", 1, "--batch-pairs", 1, "--dtype", "float32", *words)
    command = ("train", tmp_path / "train.jsonl", "--model", road / "checkpoint", *options)
    assert run(*command, "--out", tmp_path / "out") == 0

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    counts, drops = manifest["counts"], {"pair of equal responses": 1}
    assert (counts["train_groups"], counts["validation_groups"]) == (1, 1)
    assert manifest["drops"] == {"preference sets": drops, "validation sets": drops}
    assert [entry["name"] for entry in manifest["inputs"]][:2] == ["train.jsonl", "mine.csv"]
    assert manifest["config"]["validation"] == "mine.csv"
    assert manifest["config"]["columns"] == "prompt=q,chosen=good,rejected=bad"


def test_a_validation_set_without_a_preference_is_refused(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "mine.csv"
    empty.write_text("prompt,chosen,rejected\nWhy?,So.,So.\n")
    words = ("--model", "tiny", "--validation", empty, "--out", tmp_path / "out")
    assert run("train", road / "groups", *words) == 2
    assert "mine.csv: has no preferences. Name another file." in capsys.readouterr().err


def test_frozen_layers_are_shared_by_runs_and_evaluations(
    road: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = ("--max-steps", 2, "--dtype", "float32", "--max-length", 128, "--validations", 1)
    few = ("--batch-pairs", 16, "--validation-groups", 5, "--freeze-layers", 2)
    states = ("--states", tmp_path / "states")
    start = road / "checkpoint"
    for name, more in (("a", states), ("b", ("--seed", 1, *states)), ("c", ())):
        words = ("--model", start, *small, *few, *more, "--out", tmp_path / name)
        assert run("train", road / "groups", *words) == 0

    checkpoints = (tmp_path / "a", tmp_path / "b")
    on = ("--on", road / "groups")
    assert run("evaluate", *checkpoints, *on, *states, "--out", tmp_path / "with") == 0
    files = sorted((tmp_path / "states").rglob("*.safetensors"))
    # the model and all that were trained from it use one folder
    assert len({file.parent for file in files}) == 1
    assert run("evaluate", *checkpoints, *on, "--out", tmp_path / "without") == 0
    of_states, whole = (
        np.array([row["reward"] for row in read_rows(tmp_path / name / "rewards.parquet")])
        for name in ("with", "without")
    )
    assert np.abs(of_states - whole).max() < 1e-5
    # a second evaluation of the same texts adds no file, and other models use no states
    assert run("evaluate", tmp_path / "a", *on, *states, "--out", tmp_path / "again") == 0
    assert sorted((tmp_path / "states").rglob("*.safetensors")) == files

    assert run("evaluate", start, *on, *states, "--out", tmp_path / "none") == 0
    assert "checkpoint: --states has no effect, because no layer was frozen" in caplog.text

    record = json.loads((tmp_path / "c" / "worldpm.json").read_text())["training"]
    assert record["frozen_layers"] == 2
    # states in the folder of the run are removed with it
    assert not (tmp_path / "c" / "states").exists()
    assert [file.name for file in (tmp_path / "c").iterdir() if file.is_dir()] == []


def test_a_sample_of_validation_groups_is_told_and_does_not_change(
    road: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {}
    for most in (4, 9, 10_000):
        words = ("--model", "tiny", "--max-steps", 1, "--dtype", "float32", "--max-length", 64)
        out = tmp_path / str(most)
        limits = ("--validations", 1, "--validation-groups", most)
        assert run("train", road / "groups", *words, *limits, "--out", out) == 0
        manifest = json.loads((out / "manifest.json").read_text())
        sizes[most] = manifest["counts"]["validation_groups"]
        left_out = manifest["drops"].get("validation sets", {})
        whole = sizes[most] + left_out.get("group that --validation-groups leaves out", 0)
    assert (sizes[4], sizes[9], sizes[10_000]) == (4, 9, whole)
    assert "(4 groups, " in caplog.text


def test_a_sample_keeps_the_groups_of_smaller_samples_whatever_their_order() -> None:
    groups = [PreferenceGroup(f"g{i}", "", "", "validation", (), (), ()) for i in range(50)]
    names: dict[int, set[str]] = {}
    for most in (5, 20):
        for order in (groups, groups[::-1]):
            drops: Counter[str] = Counter()
            sample = [group.group_id for group in training_run._sample(iter(order), most, drops)]
            assert names.setdefault(most, set(sample)) == set(sample)
            assert drops == {training_run.NOT_SAMPLED: 50 - most}
            assert sample == [group.group_id for group in order if group.group_id in names[most]]
    assert names[5] < names[20]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--states", "x"), "--states: needs --freeze-layers. Add it"),
        (("--freeze-layers", 99), "--freeze-layers 99: the model has only"),
        (("--freeze-layers", -1), "--freeze-layers"),
        (("--validation-groups", 0), "--validation-groups"),
    ],
)
def test_impossible_frozen_layers_and_samples_are_named(
    words: tuple[object, ...],
    message: str,
    road: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ("train", road / "groups", "--model", "tiny", *words, "--out", tmp_path / "out")
    assert run(*command) == 2
    assert message in capsys.readouterr().err


def pair_of(number: int) -> dict[str, str]:
    return {"question": f"How {number}?", "good": "So.", "bad": "No."}


COLUMNS = "prompt=question,chosen=good,rejected=bad"


@pytest.mark.parametrize(
    ("chosen", "warned"), [(("So.", "No."), False), (("No.", "So."), True)], ids=["right", "wrong"]
)
def test_a_run_ends_with_its_kept_step_and_a_warning_if_a_coin_does_as_well(
    road: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    chosen: tuple[str, str],
    warned: bool,
) -> None:
    pairs = [pair_of(number) for number in range(8)]
    good, bad = chosen
    held_out = [{**pair, "good": good, "bad": bad} for pair in pairs]
    for name, rows in (("pairs", pairs), ("held_out", held_out)):
        content = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(content)

    words = ("--max-steps", 12, "--batch-pairs", 8, "--lr", 1e-3, "--dtype", "float32")
    files = (tmp_path / "pairs.jsonl", "--validation", tmp_path / "held_out.jsonl")
    model = ("--model", road / "checkpoint", "--columns", COLUMNS, "--validations", 1)
    out = tmp_path / "out"
    assert run("train", *files, *model, *words, "--out", out) == 0
    assert "kept the weights of step 12 of 12: validation loss " in caplog.text
    assert ("a coin does as well as this model" in caplog.text) == warned
    # the suggestion judges pairs that were not trained on, under their names of columns
    assert (
        f"next: worldpm evaluate {out} --on {tmp_path / 'held_out.jsonl'} --columns {COLUMNS}"
        " --out results"
    ) in caplog.text


def test_after_training_on_a_bare_file_another_set_is_suggested(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("")
    options = TrainOptions(groups=(str(file),), model="tiny", out=Path("out"))
    assert VERBS["train"].next_command(options) == (
        "worldpm evaluate out --on TEST_PAIRS --out results"
    )
