"""Predicted costs of a run, checked against counts by hand and the memory of a real run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    FalconH1Config,
    Gemma3Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from tests.conftest import run
from tests.model.test_shared_prefix import group
from worldpm.model import costs
from worldpm.model.costs import ModelCost
from worldpm.options.plan import PlanOptions
from worldpm.training import planning

SMALL = Qwen2Config(
    vocab_size=100,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def test_parameters_are_counted_by_hand() -> None:
    attention = (
        (8 * 8 + 8) + 2 * (8 * 4 + 4) + 8 * 8
    )  # queries, keys and values with biases, output
    layer = attention + 3 * 8 * 12 + 2 * 8
    assert costs.cost_of(SMALL) == ModelCost(
        parameters=800 + 2 * layer + 8 + 8,
        non_embedding=2 * layer + 8 + 8,
        attention_width=2 * 2 * 4,
        active=2 * layer + 8 + 8,
        linear=2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12),
        # queries, keys and values, output, and three matrices of the feed-forward part
        adapter_width=2 * (16 + 12 + 12 + 16 + 3 * 20),
    )


def test_only_the_experts_of_a_token_are_active_parameters() -> None:
    mixture = Qwen3MoeConfig(
        vocab_size=100,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        moe_intermediate_size=6,
        num_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )
    cost = costs.cost_of(mixture)
    assert (
        cost.non_embedding - cost.active == (8 - 2) * 3 * 8 * 6
    )  # six inactive experts with three matrices each


def test_the_vision_part_of_a_model_counts_for_memory_only() -> None:
    text = Gemma3TextConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=4,
    )
    alone, seeing = costs.cost_of(text), costs.cost_of(Gemma3Config(text_config=text.to_dict()))
    assert seeing.parameters > alone.parameters
    assert seeing._replace(parameters=alone.parameters) == alone


def test_a_prompt_is_attended_once_and_by_each_response() -> None:
    assert costs.attended_pairs([group([1, 1, 1], [1, 1], [1])]) == 6 + (2 * 3 + 3) + (1 * 3 + 1)


def test_operations_are_6_per_token_and_parameter_and_12_per_pair_and_channel() -> None:
    assert (
        costs.train_flops(ModelCost(1000, 120, 16, 100), tokens=10, attended=5)
        == 6 * 100 * 10 + 12 * 16 * 5
    )


def test_a_typical_row_is_full_whether_or_not_prompts_are_shared() -> None:
    row = costs.typical_row(4096, prompt=512, response=256, responses=4)
    assert sum(one.tokens for one in row) == 4096
    separate = costs.typical_row(4096, prompt=512, response=256, responses=4, shares_prefix=False)
    assert [one.tokens for group in separate for one in group.apart] == [
        512 + 256 + 256
    ] * 4  # one group of 3,072 tokens; longer prompts fill the row


def test_separate_rows_are_counted_with_a_prompt_for_each_response() -> None:
    alone = group([1, 1, 1], [1, 1], [1]).apart
    assert [one.tokens for one in alone] == [5, 4]
    assert costs.attended_pairs(alone) == 15 + 10


MEASURE = """
import re, sys, torch
from transformers import AutoConfig
from worldpm.model import costs, reward_model
width, layers = map(int, sys.argv[2:4])
config = AutoConfig.for_model(sys.argv[1], vocab_size=1000, hidden_size=width,
    intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=4096)
model = reward_model.from_config(config, seed=0).train()
checkpointing = sys.argv[4] == "True"
if checkpointing:
    model.backbone.activation_checkpointing_enable()
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
row = costs.typical_row(2048, prompt=512, response=256, responses=4)
small = costs.typical_row(32, prompt=16, response=8, responses=2)
model(small).sum().backward()  # memory that libraries use from the first call on is not the model's
model.zero_grad()
def peak():  # getrusage would count the parent's memory at the start of this process
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1]) * 1024
def now():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
weights = sum(p.numel() * 4 for p in model.parameters())
before = now() - weights
model(small).sum().backward()
optimizer.step()
optimizer.zero_grad()
for _ in range(2):  # a step has many rows, so gradients exist beside the activations of a row
    model(row).square().sum().backward()
print(peak() - before)
"""


@pytest.mark.proof
@pytest.mark.parametrize(
    ("family", "width", "layers", "checkpointing"),
    [("qwen2", 512, 6, False), ("llama", 768, 4, True)],
)
def test_the_predicted_memory_is_within_15_percent_of_the_measured_memory(
    family: str, width: int, layers: int, checkpointing: bool
) -> None:
    words = [sys.executable, "-c", MEASURE, family, str(width), str(layers), str(checkpointing)]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # a freed tensor returns its memory to the system at once
    measured = int(
        subprocess.run(words, capture_output=True, check=True, text=True, env=environment).stdout
    )
    kind = {"qwen2": Qwen2Config, "llama": LlamaConfig}[family]
    config = kind(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    placement = next(
        placement
        for placement in planning.placements_of(
            config,
            costs.cost_of(config),
            PlanOptions(model="", gpus=1, row_tokens=2048, dtype="float32"),
            shared=True,
        )
        if ("checkpointing" in placement.name) == checkpointing
    )
    assert placement.total == pytest.approx(measured, rel=0.15)


MEASURE_SMALL = """
import re, sys, tempfile, torch, bitsandbytes
from transformers import LlamaConfig, LlamaForSequenceClassification
from worldpm.model import adapters, checkpoint, costs
from worldpm.model.sources import Source
from pathlib import Path
option, checkpointing = sys.argv[1], sys.argv[2] == "True"
config = LlamaConfig(vocab_size=1000, hidden_size=1024, intermediate_size=3072,
    num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
    max_position_embeddings=4096, num_labels=1)
def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1]) * 1024
def now():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
folder = Path(sys.argv[3])
if option == "make":
    LlamaForSequenceClassification(config).save_pretrained(folder)
    sys.exit()
small = costs.typical_row(32, prompt=16, response=8, responses=2)
def load(folder):
    bits = "int4" if "int4" in option else None
    model = checkpoint.load(Source(folder), quantize=bits, device=torch.device("cpu")).train()
    if checkpointing:
        model.backbone.activation_checkpointing_enable()
    if "lora" in option:
        adapters.add(model, rank=16, seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = bitsandbytes.optim.AdamW8bit if "8bit" in option else torch.optim.AdamW
    return model, kind(trained, lr=1e-4)
def weights_of(model):
    return sum(t.nbytes for t in model.state_dict().values())
model, optimizer = load(folder)
# memory that libraries use from the first call on is not the model's
model(small).sum().backward()
model.zero_grad()
before = now() - weights_of(model)
model(small).sum().backward()
optimizer.step()
optimizer.zero_grad()
row = costs.typical_row(2048, prompt=512, response=256, responses=4)
open("/proc/self/clear_refs", "w").write("5")  # a load has its own peak
for _ in range(2):
    model(row).square().sum().backward()
print(peak() - before)
"""


@pytest.mark.proof
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "option", ["--optimizer adamw-8bit", "--lora-rank 16", "--lora-rank 16 --quantize int4"]
)
def test_the_predicted_memory_of_small_cards_is_within_15_percent_of_the_measured_memory(
    option: str, checkpointing: bool, tmp_path: Path
) -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE_SMALL]
    last = [str(checkpointing), str(tmp_path)]
    subprocess.run([*command, "make", *last], check=True, env=environment)
    done = subprocess.run(
        [*command, option, *last], capture_output=True, check=True, text=True, env=environment
    )
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    options = PlanOptions(model="", gpus=1, row_tokens=2048, dtype="float32")
    placements = planning.placements_of(config, costs.cost_of(config), options, shared=True)
    name = f"one GPU {option}{planning.CHECKPOINTING if checkpointing else ''}"
    (placement,) = [placement for placement in placements if placement.name == name]
    assert placement.total == pytest.approx(int(done.stdout), rel=0.15)


def test_copies_of_weights_in_the_compute_type_are_not_counted_with_the_activations() -> None:
    config = Qwen2Config(**{**SMALL.to_dict(), "hidden_size": 256, "intermediate_size": 512})
    row = costs.typical_row(3, prompt=1, response=1, responses=2)
    activations = costs.activation_bytes(
        config, row, shared=True, dtype=torch.bfloat16, gradient_checkpointing=False
    )
    assert (
        0 < activations < costs.cost_of(config).non_embedding
    )  # copies of the weights, 2 bytes each, would be twice that


HYBRID = Lfm2Config(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    layer_types=["conv", "full_attention"],
)


def test_a_model_that_shares_no_prompts_needs_the_memory_of_separate_rows() -> None:
    row = [group([1] * 20, [2] * 5, [3] * 5)]
    apart = [group([1] * 19, [1] + [2] * 5), group([1] * 19, [1] + [3] * 5)]
    sizes = [
        costs.activation_bytes(
            HYBRID, one, shared=False, dtype=torch.float32, gradient_checkpointing=False
        )
        for one in (row, apart)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_models_that_share_prompts_are_known_before_they_run() -> None:
    undeclared = FalconH1Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_ssm=64,
    )
    shares = {
        config.model_type: costs.shares_prefix(config) for config in (SMALL, HYBRID, undeclared)
    }
    assert shares == {"qwen2": True, "lfm2": False, "falcon_h1": False}


def test_the_plan_of_a_model_that_shares_no_prompts_counts_a_prompt_for_each_response(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    HYBRID.save_pretrained(tmp_path)
    words = ("--gpus", 2, "--pairs", "1e6", "--tokens-per-pair", 1000, "--row-tokens", 3072)
    assert run("plan", tmp_path, *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "reads the prompt again for each response, 2 times the tokens" in said
    )  # 4 x (512 + 256) tokens instead of 512 + 4 x 256
    assert "1e+06 pairs, 2e+09 tokens" in said
    assert "FSDP2 or ZeRO-3" not in said
    assert run("plan", tmp_path, *words[:-1], 1024) == 0
    assert "1e+06 pairs, 2e+09 tokens" in " ".join(
        capsys.readouterr().out.split()
    )  # for rows of any length


def test_the_plan_of_a_large_model_shows_what_fits_and_its_cost(
    capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    folder = str(tmp_path)
    Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ).save_pretrained(folder)
    assert run("plan", folder, "--gpus", 8, "--memory", 80, "--pairs", "15e6", "--price", 2) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "7.07 billion parameters, 6.53 without embeddings" in said
    assert "Use FSDP2, not resharded with --gradient-checkpointing." in said
    assert "1.5e+07 pairs, 1.3e+10 tokens" in said
    assert "GPU hours" in said

    # a card of 24 GiB trains adapters
    assert run("plan", folder, "--memory", 24, "--row-tokens", 4096) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Use one GPU --lora-rank 16 with --gradient-checkpointing." in said


def test_weights_in_fewer_bits_are_counted_by_hand(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=8192,
        intermediate_size=29_568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    cost, options = costs.cost_of(config), PlanOptions(model="", memory=80)
    full, int8, int4 = planning.scoring_of(config, cost, options, shared=True)
    linear = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 29_568)
    assert cost.linear == linear
    rest = 2 * (cost.parameters - linear)
    assert full.weights == 2 * linear + rest
    assert int8.weights == linear + rest
    # 4 bits, and a scale of 4 bytes for 64 weights
    assert int4.weights == linear * 9 // 16 + rest
    assert [planning.fits(way, options) for way in (full, int8, int4)] == [False, True, True]


def test_an_impossible_plan_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "tiny", "--gpus", 0) == 2
    assert "--gpus is 0" in capsys.readouterr().err


def test_a_plan_has_the_rows_of_training_on_a_gpu() -> None:
    config = Qwen2Config(**{**SMALL.to_dict(), "max_position_embeddings": 32_768})
    cost = costs.cost_of(config)
    default, same = (
        PlanOptions(model="", row_tokens=tokens) for tokens in (None, costs.GPU_ROW_TOKENS)
    )
    assert list(planning.placements_of(config, cost, default, shared=True)) == list(
        planning.placements_of(config, cost, same, shared=True)
    )
