"""Several processes give the results of one, and a run may move between numbers of processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Lfm2Config

from tests import warm_program
from tests.conftest import run
from tests.training import sharded
from tests.training.test_plan import HYBRID
from tests.warm_start import Command, Surroundings, start, start_main, streams_in
from worldpm import cli
from worldpm.model.reward_model import from_config

WORDS = (
    "--model",
    "w48",
    "--max-steps",
    "5",
    "--dtype",
    "float32",
    "--max-length",
    "256",
    "--row-tokens",
    "512",
)


def launch(
    processes: int,
    *words: object,
    zero: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> subprocess.Popen[bytes]:
    """Launch a command in several processes as a user would. The processes communicate over gloo
    and have one thread each. `zero` is a stage of DeepSpeed."""
    if zero is None:
        launcher = [
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            "localhost:0",
        ]
    else:
        launcher = [
            "accelerate.commands.launch",
            "--use_deepspeed",
            "--zero_stage",
            str(zero),
            "--num_processes",
            str(processes),
        ]
        launcher += [
            "--main_process_port",
            "0",
            "--gradient_accumulation_steps",
            "1",
            "--mixed_precision",
            "no",
        ]
    command = [sys.executable, "-m", *launcher, *map(str, words)]
    return subprocess.Popen(
        command,
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def train(processes: int, groups: Path, out: Path, *, zero: int | None = None) -> None:
    """Train as a user does."""
    process = launch(
        processes, "-m", "worldpm.cli", "train", groups, *WORDS, "--out", out, zero=zero
    )
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()


def train_until(
    step: int, processes: int, groups: Path, out: Path, *, zero: int | None = None
) -> None:
    """Train, and kill all processes when the state of a step has been saved."""
    process = launch(
        processes, "-m", "worldpm.cli", "train", groups, *WORDS, "--out", out, zero=zero
    )
    deadline = time.monotonic() + 300
    while not state_of(step, out).exists():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for entry in Path("/proc").glob("[0-9]*"):  # the workers have their own sessions
        with contextlib.suppress(OSError):
            if str(out).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    process.communicate()


def state_of(step: int, out: Path) -> Path:
    """The last file of a saved state."""
    return out / ".progress" / "resume" / f"{step:08d}" / "state.json"


def start_group(
    folder: Path, main: Callable[[list[str]], int | None], words: Sequence[object]
) -> list[Command]:
    """Start two processes with the variables that `torchrun` sets, but without its import time and
    theirs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    commands = []
    for rank in ("0", "1"):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        variables = {**os.environ, **group, **ranks, "CUDA_VISIBLE_DEVICES": ""}
        surroundings = Surroundings(environment=variables)
        texts = [str(word) for word in words]
        commands.append(start_main(main, texts, streams_in(folder), surroundings))
    return commands


def wait_for(commands: Sequence[Command], sign: Callable[[], bool]) -> None:
    """Wait until `sign()` is true. If a process fails or time runs out, kill all and fail."""
    deadline = time.monotonic() + 300
    while not sign():
        failed = [command for command in commands if command.poll() not in (None, 0)]
        if failed or time.monotonic() > deadline:
            for command in commands:
                command.kill()
            pytest.fail("\n".join(command.finish()[1] for command in failed or commands))
        time.sleep(0.01)


def have_ended(commands: Sequence[Command]) -> bool:
    return all(command.poll() is not None for command in commands)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "out"
    assert run("train", road / "groups", *WORDS, "--out", folder) == 0
    return folder


def assert_same_run(folder: Path, expected: Path) -> None:
    for one, other in zip(metrics(folder), metrics(expected), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(
                other[name], rel=1e-3 if name == "grad_norm" else 1e-4, abs=1e-4
            ), name
        for name in ("step", "groups_seen", "pairs_seen", "tokens_seen"):
            assert one[name] == other[name]


def test_two_processes_give_the_loss_curve_of_one(road: Path, alone: Path, tmp_path: Path) -> None:
    words = ("train", road / "groups", *WORDS, "--out", tmp_path / "two")
    with warm_program.on_the_path(tmp_path) as environment:
        process = launch(2, "--no-python", "worldpm", *words, environment=environment)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    assert_same_run(tmp_path / "two", alone)
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, tmp_path / "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def test_a_run_moves_from_one_process_to_two_and_back_and_skips_no_group(
    road: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "moved"
    words = ["train", road / "groups", *WORDS, "--out", out]
    one = start(tmp_path, *words)
    wait_for([one], state_of(1, out).exists)
    one.kill()
    one.wait()

    two = start_group(tmp_path, cli.main, words)
    wait_for(two, state_of(3, out).exists)
    for command in two:
        command.kill()
        command.wait()

    assert run(*words) == 0
    assert_same_run(out, alone)


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"
)
def test_a_run_moves_to_zero_and_back_and_skips_no_group(
    zero: int, road: Path, alone: Path, tmp_path: Path
) -> None:
    train_until(1, 1, road / "groups", tmp_path / "moved")
    train_until(3, 2, road / "groups", tmp_path / "moved", zero=zero)
    train(1, road / "groups", tmp_path / "moved")
    assert_same_run(tmp_path / "moved", alone)
    train(2, road / "groups", tmp_path / "whole", zero=zero)
    assert_same_run(tmp_path / "whole", alone)


@pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"
)
def test_a_model_that_shares_no_prompts_is_refused_by_engines_that_gather_its_weights(
    road: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(road / "checkpoint")
    model = from_config(Lfm2Config(**{**HYBRID.to_dict(), "vocab_size": len(tokenizer)}), seed=0)
    model.backbone.save_pretrained(tmp_path / "hybrid")
    tokenizer.save_pretrained(tmp_path / "hybrid")
    words = ("--model", tmp_path / "hybrid", *WORDS[2:], "--out", tmp_path / "out")
    process = launch(2, "-m", "worldpm.cli", "train", road / "groups", *words, zero=3)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert b"Use DDP or ZeRO-2" in said


def test_a_sharded_model_has_the_rewards_and_the_state_of_an_unsharded_one(tmp_path: Path) -> None:
    commands = start_group(tmp_path, sharded.main, [tmp_path / "state"])
    wait_for(commands, lambda: have_ended(commands))
    said = [command.streams.output.read_text() for command in commands]
    assert sum("sharded rewards, gradients and state agree" in text for text in said) == 1
