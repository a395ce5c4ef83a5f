"""Adapters of PEFT, as TRL saves them, are merged into their base model and give the rewards that
PEFT gives."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from tests.conftest import run
from tests.model.test_layouts import PROMPT, RESPONSES, SHAPE, change
from tests.model.test_weight_files import language_model, llama, plain_rewards, save_tokenizer
from worldpm import Scorer
from worldpm.errors import CheckpointError, ConfigError, DataError
from worldpm.model import adapter_folders, checkpoint, sources

peft: Any = pytest.importorskip("peft", reason="adapters need the extra lora")
# warnings of PEFT about transformers and about the adapters of these tests
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore:The following:RuntimeWarning"
)

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
CLASSIFIER = "SEQ_CLS"


def train_adapter(
    base: Path,
    folder: Path,
    config: Any = None,
    *,
    task: str | None = CLASSIFIER,
    with_tokenizer: bool = True,
    more_tokens: int = 0,
) -> list[float]:
    """Write an adapter with random weights, because PEFT's initial weights change nothing. Return
    the rewards that PEFT gives with it."""
    config = config or peft.LoraConfig(task_type=task, **LORA)
    tokenizer = AutoTokenizer.from_pretrained(base)
    is_classifier = task == CLASSIFIER
    auto = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    plain = auto.from_pretrained(base, **({"num_labels": 1} if is_classifier else {}))
    if more_tokens:
        tokenizer.add_tokens([f"token{number}" for number in range(more_tokens)])
        plain.resize_token_embeddings(len(tokenizer))

    tuned = peft.get_peft_model(plain, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter * (1 + noise / 4) if "magnitude" in name else noise / 5)
    tuned.save_pretrained(folder)
    if with_tokenizer:
        tokenizer.save_pretrained(folder)

    rewards = []
    for response in RESPONSES:
        turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rewards.append(float(tuned(input_ids=ids).logits.flatten()[0]))
    return rewards


def assert_rewards(folder: Path, expected: list[float]) -> None:
    scorer = Scorer.load(folder)
    assert scorer.rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    # after merging it is a model like any other
    assert not any("lora" in name for name in scorer.model.state_dict())
    assert all(parameter.requires_grad for parameter in scorer.model.parameters())


KINDS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: peft.LoraConfig(task_type=CLASSIFIER, **LORA),
    "of all layers": lambda: peft.LoraConfig(task_type=CLASSIFIER, target_modules="all-linear"),
    "DoRA": lambda: peft.LoraConfig(task_type=CLASSIFIER, use_dora=True, **LORA),
    "rank-stabilized": lambda: peft.LoraConfig(task_type=CLASSIFIER, use_rslora=True, **LORA),
    "with an embedding": lambda: peft.LoraConfig(
        task_type=CLASSIFIER, modules_to_save=["score", "embed_tokens"], **LORA
    ),
    "PiSSA": lambda: peft.LoraConfig(task_type=CLASSIFIER, init_lora_weights="pissa", **LORA),
    "IA3": lambda: peft.IA3Config(
        task_type=CLASSIFIER, target_modules=["k_proj"], feedforward_modules=[]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_the_rewards_that_peft_gives(kind: str, tmp_path: Path) -> None:
    base = language_model(tmp_path / "base")
    expected = train_adapter(base, tmp_path / "adapter", KINDS[kind]())
    assert abs(expected[0] - expected[1]) > 0.01
    assert_rewards(tmp_path / "adapter", expected)


EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
MIXTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(num_local_experts=4, **SHAPE),  # type: ignore[arg-type]
    "qwen3_moe": lambda: Qwen3MoeConfig(**SHAPE, **EXPERTS),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("target", [["q_proj"], "all-linear"], ids=["attention", "experts"])
@pytest.mark.parametrize("family", MIXTURES)
def test_an_adapter_of_a_mixture_of_experts_gives_the_rewards_that_peft_gives(
    family: str, target: object, tmp_path: Path
) -> None:
    base = language_model(tmp_path / "base", MIXTURES[family]())
    config = peft.LoraConfig(task_type=CLASSIFIER, r=4, target_modules=target)
    assert_rewards(tmp_path / "adapter", train_adapter(base, tmp_path / "adapter", config))


def add_to_experts(plain: Any, weights: dict[str, torch.Tensor]) -> None:
    """Add low-rank products to the experts of a Mixtral. Add their factors to `weights` under the
    names of transformers 4, which had a layer for each expert."""
    generator = torch.Generator().manual_seed(2)
    prefix = "base_model.model.model.layers"
    for number, layer in enumerate(plain.model.layers):
        experts = layer.mlp.experts
        for expert in range(4):
            w1, w3 = experts.gate_up_proj[expert].chunk(2)
            for name, weight in {"w1": w1, "w3": w3, "w2": experts.down_proj[expert]}.items():
                up = torch.randn(weight.shape[0], 4, generator=generator) / 5
                down = torch.randn(4, weight.shape[1], generator=generator) / 5
                weight += 2 * up @ down
                stem = f"{prefix}.{number}.block_sparse_moe.experts.{expert}.{name}"
                weights |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}


def test_an_adapter_of_experts_as_transformers_4_named_them_gives_the_same_rewards(
    tmp_path: Path,
) -> None:
    base, folder = language_model(tmp_path / "base", MIXTURES["mixtral"]()), tmp_path / "adapter"
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    weights = {"base_model.model.score.weight": plain.score.weight.detach().clone()}
    with torch.no_grad():
        add_to_experts(plain, weights)
    targets = ["w1", "w2", "w3"]
    config = peft.LoraConfig(task_type=CLASSIFIER, r=4, lora_alpha=8, target_modules=targets)
    config.base_model_name_or_path, config.modules_to_save = str(base), ["score"]
    config.save_pretrained(folder)
    save_file(weights, folder / adapter_folders.ADAPTER)

    plain.save_pretrained(tmp_path / "plain")
    save_tokenizer(tmp_path / "plain")
    assert_rewards(folder, plain_rewards(tmp_path / "plain"))


def test_an_adapter_of_a_reward_model_has_its_own_head_or_that_of_its_base(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    expected = train_adapter(base, tmp_path / "own")
    config = peft.LoraConfig(**LORA)
    borrowed = train_adapter(base, tmp_path / "borrowed", config)
    assert "score" not in str(adapter_folders.Adapter.read(tmp_path / "borrowed").names)
    assert expected != borrowed
    assert_rewards(tmp_path / "own", expected)
    assert_rewards(tmp_path / "borrowed", borrowed)


def test_an_adapter_of_our_checkpoint_reads_text_as_its_base_does(
    road: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(road / "checkpoint", tmp_path / "base"))
    for name, with_tokenizer in (("with", True), ("without", False)):
        folder = tmp_path / name
        expected = train_adapter(base, folder, with_tokenizer=with_tokenizer)
        assert_rewards(folder, expected)

    (base / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config.json: missing or changed since it was written"):
        Scorer.load(tmp_path / "with")


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_tokenizer_comes_from_the_adapter_or_else_from_its_base(
    tmp_path: Path, with_tokenizer: bool
) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    expected = train_adapter(base, folder, with_tokenizer=with_tokenizer)
    if with_tokenizer:
        (base / "tokenizer.json").unlink()
    assert_rewards(folder, expected)


def test_an_adapter_with_more_tokens_than_its_base_brings_their_rows(tmp_path: Path) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    assert_rewards(folder, train_adapter(base, folder, more_tokens=3))
    source = sources.find(folder)
    rows = checkpoint.load_config(source).vocab_size
    assert rows == checkpoint.load_config(sources.find(base)).vocab_size + 3
    # without these rows the tokenizer would have ids that the base's embedding lacks
    assert len(checkpoint.encoder_of(source, checkpoint.load_config(source)).tokenizer) == rows


@pytest.mark.parametrize("moved", [False, True])
def test_a_base_model_may_be_named_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    language_model(tmp_path / "base")
    expected = train_adapter(tmp_path / "base", tmp_path / "runs" / "adapter")
    # relative to the working directory, as in PEFT, or else to the adapter
    name = "../base" if moved else "base"
    change(tmp_path / "runs" / "adapter" / "adapter_config.json", base_model_name_or_path=name)
    if moved:
        (tmp_path / "base").rename(tmp_path / "runs" / "base")
    else:
        monkeypatch.chdir(tmp_path)
    assert_rewards(tmp_path / "runs" / "adapter", expected)


def test_a_base_model_is_found_in_the_hubs_cache_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    expected = train_adapter(base, folder)
    change(folder / "adapter_config.json", base_model_name_or_path="owner/base")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        CheckpointError, match=r"base model owner/base, which is .* \(`hf download owner/base`\)"
    ):
        Scorer.load(folder)

    commit, repository = "a" * 40, tmp_path / "hub" / "models--owner--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(base, repository / "snapshots" / commit)
    assert_rewards(folder, expected)


def test_the_error_about_an_absent_base_model_names_it_and_a_fix(tmp_path: Path) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, folder)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=rf"base model {base}, which is .* Name its folder as base_model_name"
    ):
        Scorer.load(folder)


Weights = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / adapter_folders.ADAPTER
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)


def without(word: str) -> Callable[[Path], None]:
    """A function that removes the weights with `word` in their names from an adapter."""
    return lambda folder: rewrite(
        folder, lambda weights: {name: weights[name] for name in weights if word not in name}
    )


def two_labels(folder: Path) -> None:
    head = "base_model.model.score.weight"
    rewrite(folder, lambda weights: weights | {head: weights[head].repeat(2, 1)})


def another_layer(folder: Path) -> None:
    rewrite(
        folder,
        lambda weights: {name.replace("layers.1", "layers.7"): weights[name] for name in weights},
    )


def other_width(folder: Path) -> None:
    rewrite(folder, lambda weights: {name: weights[name][..., :1] for name in weights})


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def whole_model(folder: Path) -> None:
    shutil.copy(folder.parent / "base" / "model.safetensors", folder)


def adapter_of_an_adapter(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "first")
    change(folder / "adapter_config.json", base_model_name_or_path=str(folder.parent / "first"))


def no_base(folder: Path) -> None:
    change(folder / "adapter_config.json", base_model_name_or_path=None)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without("score"), r"an adapter without head weights \(score.\*\): .* modules_to_save"),
        (without("layers.1"), r"does not fit the base model .*missing \['base_model.*layers.1"),
        (another_layer, r"does not fit the base model .*left over \['base_model.*layers.7"),
        (other_width, r"its head has weights .* are expected"),
        (two_labels, "its head has 2 labels, but a reward model has one"),
        (pickled, r"adapter's weights are pickle \(adapter_model.bin\), which can run code"),
        (whole_model, r"a whole model \(model.safetensors\) and an adapter .* remove adapter_conf"),
        (
            adapter_of_an_adapter,
            r"is also an adapter\. First merge that adapter into its base model",
        ),
        (no_base, "base_model_name_or_path"),
    ],
)
def test_a_broken_adapter_is_refused_with_the_reason(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, folder)
    harm(folder)
    with pytest.raises(CheckpointError, match=message):
        Scorer.load(folder)


def test_learned_tokens_are_refused_because_they_cannot_be_merged(tmp_path: Path) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, folder, peft.PromptTuningConfig(task_type=CLASSIFIER, num_virtual_tokens=2))
    with pytest.raises(CheckpointError, match=r"\(PROMPT_TUNING\) .* cannot be merged"):
        Scorer.load(folder)


def test_an_adapter_of_a_language_model_is_refused_for_scores_and_trained_with_a_new_head(
    road: Path, tmp_path: Path
) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, folder, task="CAUSAL_LM")
    with pytest.raises(CheckpointError, match="it is not a reward model"):
        Scorer.load(folder)

    plain = AutoModelForCausalLM.from_pretrained(base)
    expected = peft.PeftModel.from_pretrained(plain, folder).merge_and_unload().model.state_dict()
    backbone = checkpoint.load(sources.find(folder), fresh_head=True).backbone.state_dict()
    assert backbone.keys() == expected.keys()
    assert all(torch.allclose(backbone[name], expected[name], atol=1e-6) for name in expected)


def test_training_starts_from_an_adapter_and_ends_in_a_plain_checkpoint(
    road: Path, tmp_path: Path
) -> None:
    base, folder, out = language_model(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out"
    expected = train_adapter(base, folder)
    options = ("--max-steps", 1, "--batch-pairs", 4, "--max-length", 128, "--dtype", "float32")
    words = ("train", road / "groups", "--model", folder, *options, "--lr", 1e-7)
    assert run(*words, "--out", out) == 0
    assert Scorer.load(out).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-3)
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    assert not any("lora" in name for name in plain.state_dict())


def test_the_fingerprint_of_an_adapter_includes_its_base_model(tmp_path: Path) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, folder)
    before = sources.fingerprint(sources.find(folder))
    (base / "note.txt").write_text("a")
    after = sources.fingerprint(sources.find(folder))
    assert before.name == after.name == "adapter"
    assert before.sha256 != after.sha256


def test_merging_into_bfloat16_weights_does_not_round_an_adapter_away(tmp_path: Path) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    AutoModelForCausalLM.from_pretrained(base).bfloat16().save_pretrained(base)
    train_adapter(base, folder)
    rewrite(
        folder,
        lambda weights: {
            name: weights[name] * (1 if "score" in name else 0.01) for name in weights
        },
    )
    plain = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    merged = peft.PeftModel.from_pretrained(plain, folder).merge_and_unload().model.state_dict()
    scorer = Scorer.load(folder)
    assert scorer.dtype == torch.float32
    tensors = scorer.model.backbone.state_dict()
    assert all(torch.allclose(tensors[name], merged[name], atol=1e-7) for name in merged)
    assert Scorer.load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_without_peft_the_error_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, folder)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"peft is not installed. .* pip install '.\[lora\]'"):
        Scorer.load(folder)
