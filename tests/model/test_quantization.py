"""Weights in 8 and 4 bits: rewards, gradients, and training with adapters on them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification

from tests import foreign_model
from tests.conftest import run
from worldpm import Scorer
from worldpm.errors import ConfigError
from worldpm.model import adapters, checkpoint, quantization, sources
from worldpm.model.encoder import EncodedGroup
from worldpm.model.reward_model import RewardModel
from worldpm.options.score import ScoreOptions
from worldpm.options.train import TrainOptions
from worldpm.storage.manifest import read_manifest

pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
pytest.importorskip("torchao", reason="the extra quant is not installed")

GROUPS = [
    EncodedGroup(
        np.arange(100, 130), [np.arange(200, 220), np.arange(50, 65)], [20, 15], [False] * 2
    ),
    EncodedGroup(np.arange(150, 180), [np.arange(20, 50)], [30], [False]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_model.make(tmp_path_factory.mktemp("quantized") / "model", width=128)


def load(model: Path, bits: quantization.Bits | None) -> RewardModel:
    device = torch.device("cpu")
    return checkpoint.load(sources.find(model), quantize=bits, device=device)


@pytest.mark.parametrize(("bits", "largest"), [("int8", 0.03), ("int4", 0.4)])
def test_rewards_stay_near_those_of_the_full_weights(
    model: Path, bits: quantization.Bits, largest: float
) -> None:
    with torch.no_grad():
        exact, rounded = load(model, None)(GROUPS), load(model, bits)(GROUPS)
    assert 0 < float((rounded - exact).norm() / exact.norm()) < largest


def test_prompts_are_shared_and_rewards_do_not_depend_on_the_batch(model: Path) -> None:
    for bits in ("int8", "int4"):
        quantized = Scorer.load(model, quantize=bits)
        responses = ["The quick fox.", "About 14."]
        together = quantized.rewards("How many?", responses)
        alone = [quantized.rewards("How many?", [response])[0] for response in responses]
        assert together == pytest.approx(alone, abs=1e-4)
        assert quantized.model.shares_prefix


def test_adapters_on_weights_in_4_bits_have_the_gradients_of_the_same_weights_in_float32(
    model: Path,
) -> None:
    quantized, plain = load(model, "int4"), load(model, None)
    plain.load_state_dict(quantization.dequantized(quantized.state_dict()))
    gradients: list[Tensor] = []
    for one in (quantized, plain):
        adapters.add(one, rank=4, seed=0)
        trained = [parameter for name, parameter in one.named_parameters() if "lora_" in name]
        generator = torch.Generator().manual_seed(1)
        for parameter in trained:
            parameter.data.normal_(std=0.1, generator=generator)
        # in evaluation mode too, where bitsandbytes has a kernel without gradients
        one.eval()(GROUPS).square().sum().backward()
        gradients.append(torch.cat([torch.as_tensor(p.grad).flatten() for p in trained]))
    assert gradients[1].norm() > 0
    torch.testing.assert_close(gradients[0], gradients[1])

    # the merged checkpoint gives the rewards of training
    merged = adapters.merged(dict(quantized.state_dict()))
    restored = load(model, None)
    restored.load_state_dict(merged)
    with torch.no_grad():
        torch.testing.assert_close(restored(GROUPS), quantized(GROUPS), rtol=1e-4, atol=1e-5)


def test_a_run_with_4_bits_and_moments_in_8_bits_resumes_in_the_same_bits(
    model: Path, road: Path, tmp_path: Path
) -> None:
    words = (
        *("train", road / "groups", "--model", model, "--lora-rank", 4, "--quantize", "int4"),
        *("--optimizer", "adamw-8bit", "--max-steps", 4, "--batch-pairs", 8, "--lr", 0.01),
        *("--max-length", 64, "--dtype", "float32", "--validations", 2),
    )
    assert run(*words, "--out", tmp_path / "whole") == 0
    assert read_manifest(tmp_path / "whole").config["quantize"] == "int4"

    program = (
        "import os, sys\nfrom worldpm.training import loop\nfrom worldpm import cli\n"
        "save = loop.save_state\n"
        "def end(*rest):\n    save(*rest)\n    os._exit(9)\n"
        "loop.save_state = end\nloop.SECONDS_BETWEEN_SAVES = 0\n"
        "cli.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, *map(str, words), "--out", str(tmp_path / "cut")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert done.returncode == 9, done.stderr.decode()[-2000:]
    assert run(*words, "--out", tmp_path / "cut") == 0

    ends = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    # a plain checkpoint, with all its weights in full
    assert Scorer.load(tmp_path / "whole").rewards("a", ["b"])
    assert "quantization_config" not in (tmp_path / "whole" / "config.json").read_text()


def test_what_cannot_be_quantized_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--quantize puts the model on one device"):
        ScoreOptions(model="a", quantize="int8", across_devices=True)
    with pytest.raises(ConfigError, match="weights in 4 bits cannot be trained"):
        TrainOptions(groups=("a",), model="tiny", out=tmp_path, quantize="int4")
    source = sources.find(model)
    with pytest.raises(ConfigError, match="an adapter, which is merged into its base"):
        checkpoint.load(sources.Source(source.folder, base=source), quantize="int8")


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_models_whose_layers_are_not_plain_are_refused(
    bits: quantization.Bits, tmp_path: Path
) -> None:
    # GPT-2 has transposed layers, and Falcon layers with a computation of their own
    folder = foreign_model.make(tmp_path / "model", width=128)
    config = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=400)
    config.num_labels = 1
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="cannot be quantized"):
        load(folder, bits)


def test_results_name_the_bits(model: Path) -> None:
    assert Scorer.load(model, quantize="int8").precision == "float32, int8 weights"
    assert Scorer.load(model).cutting().precision == "float32"
