"""Weight files of other programs are read as transformers reads them, or refused with the
reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedConfig,
)

from tests.model.test_layouts import LLAMA_TEMPLATE, PROMPT, RESPONSES, SHAPE, TEXTS, change
from worldpm import Scorer
from worldpm.errors import CheckpointError
from worldpm.model import checkpoint, sources
from worldpm.model.tokenizer import train_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Weights = dict[str, Tensor]


def save_tokenizer(folder: Path) -> int:
    """Write a tokenizer like Llama's. Return its number of tokens."""
    tokenizer = train_tokenizer(TEXTS, vocabulary=400, max_length=512)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|eot|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = LLAMA_TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def llama(folder: Path, *, seed: int = 0, more_rows: int = 0, tied: bool = False) -> Path:
    """Write a reward model as others publish them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=save_tokenizer(folder) + more_rows,
        max_position_embeddings=256,
        pad_token_id=None,
        tie_word_embeddings=tied,
        **SHAPE,  # type: ignore[arg-type]
    )
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def language_model(folder: Path, config: PreTrainedConfig | None = None) -> Path:
    """Write a language model with its tokenizer."""
    config = config or LlamaConfig(max_position_embeddings=256, **SHAPE)  # type: ignore[arg-type]
    config.vocab_size, config.pad_token_id = save_tokenizer(folder), None
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def plain_rewards(folder: Path, dtype: torch.dtype | None = None) -> list[float]:
    """The rewards of plain transformers."""
    tokenizer = checkpoint.load_tokenizer(sources.Source(folder))
    options = {} if dtype is None else {"dtype": dtype}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    rewards = []
    for response in RESPONSES:
        turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rewards.append(float(model(input_ids=ids).logits[0, 0]))
    return rewards


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Change the weights of a folder's single file."""
    tensors = {name: tensor.clone() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_shards(folder: Path, tensors: Weights, *, subfolder: str = "") -> None:
    """Write weights as two shards in a subfolder, with an index that names them."""
    index: dict[str, str] = {}
    for number, is_head in enumerate((False, True), start=1):
        name = f"{subfolder}model-0000{number}-of-00002.safetensors"
        shard = {key: tensor for key, tensor in tensors.items() if ("score" in key) is is_head}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_a_single_file_takes_precedence_over_an_index_with_its_shards(tmp_path: Path) -> None:
    folder, older = llama(tmp_path / "model"), llama(tmp_path / "older", seed=1)
    expected = plain_rewards(folder)
    write_shards(folder, load_file(older / WEIGHTS))
    assert plain_rewards(folder) == expected != plain_rewards(older)
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_an_index_without_its_shards_is_ignored_beside_a_single_file(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    write_shards(folder, load_file(folder / WEIGHTS))
    for path in folder.glob("model-*.safetensors"):
        path.unlink()
    expected = plain_rewards(folder)
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_shards_are_read_where_there_is_no_single_file(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    expected = plain_rewards(folder)
    write_shards(folder, load_file(folder / WEIGHTS), subfolder="shards/")
    (folder / WEIGHTS).unlink()
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_the_file_that_a_config_names_takes_precedence(tmp_path: Path) -> None:
    folder, other = llama(tmp_path / "model"), llama(tmp_path / "other", seed=1)
    shutil.copy(other / WEIGHTS, folder / "other.safetensors")
    change(folder / "config.json", transformers_weights="other.safetensors")
    expected = plain_rewards(folder)
    assert expected == plain_rewards(other)
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)

    model = checkpoint.load(sources.Source(folder))
    checkpoint.save(model, dict(model.state_dict()), tmp_path / "saved", pad_token_id=None)
    save_tokenizer(tmp_path / "saved")
    assert Scorer.load(tmp_path / "saved").rewards(PROMPT, RESPONSES) == pytest.approx(expected)


@pytest.mark.parametrize("outside", ["../", "{folder}/"])
def test_shards_outside_the_folder_are_refused(tmp_path: Path, outside: str) -> None:
    folder = llama(tmp_path / "model")
    outside = outside.format(folder=tmp_path / "outside")
    write_shards(folder, load_file(folder / WEIGHTS), subfolder=outside)
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        CheckpointError,
        match=rf"names {outside}model-00001-of-00002.*, which is outside the folder",
    ):
        Scorer.load(folder)


def test_a_file_outside_the_folder_that_a_config_names_is_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    change(folder / "config.json", transformers_weights="../other/model.safetensors")
    with pytest.raises(CheckpointError, match=r"config.json: names \.\./other.* outside"):
        Scorer.load(folder)


def test_shards_may_be_links_out_of_the_folder_as_in_the_hubs_cache(tmp_path: Path) -> None:
    folder, blobs = llama(tmp_path / "snapshots" / "commit"), tmp_path / "blobs"
    expected = plain_rewards(folder)
    write_shards(folder, load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_shards_of_a_distributed_training_are_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    shutil.copy(folder / WEIGHTS, folder / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"distributed training. Save the model with"):
        Scorer.load(folder)


WRAPPED: dict[str, Callable[[str], str]] = {
    "a compiled model": lambda name: f"_orig_mod.{name}",
    "compiled layers": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "a compiled head": lambda name: name.replace("score.", "score._orig_mod."),
    "DDP": lambda name: f"module.{name}",
    "DDP of a compiled model": lambda name: f"module._orig_mod.{name}",
    "FSDP with activation checkpointing": lambda name: (
        "_fsdp_wrapped_module."
        + name.replace(
            "layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."
        ).replace("q_proj.", "q_proj._orig_mod.")
    ),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_name_parts_that_compilers_and_engines_add_are_removed(
    tmp_path: Path, wrapped: Callable[[str], str]
) -> None:
    folder = llama(tmp_path / "model")
    expected, names = plain_rewards(folder), set(load_file(folder / WEIGHTS))
    rewrite(folder, lambda weights: {wrapped(name): weights[name] for name in weights})
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)

    model = checkpoint.load(sources.Source(folder))
    checkpoint.save(model, dict(model.state_dict()), tmp_path / "saved", pad_token_id=None)
    assert set(load_file(tmp_path / "saved" / WEIGHTS)) == names


def test_a_weight_with_two_names_is_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    rewrite(folder, lambda weights: weights | {"_orig_mod.score.weight": -weights["score.weight"]})
    with pytest.raises(CheckpointError, match="are the same weight"):
        Scorer.load(folder)


@pytest.mark.parametrize("in_config", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_gives_the_rewards_of_plain_transformers(
    tmp_path: Path, dtype: torch.dtype, in_config: bool
) -> None:
    folder = llama(tmp_path / "model")
    rewrite(folder, lambda weights: {name: weights[name].to(dtype) for name in weights})
    change(folder / "config.json", dtype=str(dtype).removeprefix("torch.") if in_config else None)
    scorer = Scorer.load(folder)
    assert scorer.dtype == dtype
    # our head computes its products and their sum in float32
    assert scorer.rewards(PROMPT, RESPONSES) == pytest.approx(plain_rewards(folder), abs=2e-3)
    expected = plain_rewards(folder, torch.float32)
    rewards = Scorer.load(folder, dtype=torch.float32).rewards(PROMPT, RESPONSES)
    assert rewards == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("in_config", [True, False])
def test_float64_is_read_as_float32(tmp_path: Path, in_config: bool) -> None:
    folder = llama(tmp_path / "model")
    rewrite(folder, lambda weights: {name: weights[name].double() for name in weights})
    change(folder / "config.json", dtype="float64" if in_config else None)
    scorer = Scorer.load(folder)
    assert scorer.dtype == torch.float32
    assert scorer.rewards(PROMPT, RESPONSES) == pytest.approx(plain_rewards(folder), abs=1e-5)


@pytest.mark.parametrize(("more_rows", "tied"), [(77, False), (0, True), (77, True)])
def test_more_rows_than_tokens_and_a_tied_embedding_are_fine(
    tmp_path: Path, more_rows: int, tied: bool
) -> None:
    folder = llama(tmp_path / "model", more_rows=more_rows, tied=tied)
    expected = plain_rewards(folder)
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_an_embedding_whose_rows_differ_from_the_config_is_refused_with_both_numbers(
    tmp_path: Path,
) -> None:
    folder = llama(tmp_path / "model")
    rows = len(load_file(folder / WEIGHTS)["model.embed_tokens.weight"])
    change(folder / "config.json", vocab_size=rows + 5)
    with pytest.raises(
        CheckpointError, match=rf"embed_tokens.weight \({rows}, 32\), not \({rows + 5}, 32\)"
    ):
        Scorer.load(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_stored_only_as_the_tied_head_is_read(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(vocab_size=save_tokenizer(tmp_path), tie_word_embeddings=tied, **SHAPE)  # type: ignore[arg-type]
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / WEIGHTS))
    if not tied:
        rewrite(
            tmp_path,
            lambda weights: {name: weights[name] for name in weights if "embed" not in name},
        )
    assert "model.embed_tokens.weight" not in load_file(tmp_path / WEIGHTS)

    source = sources.Source(tmp_path)
    if not tied:
        with pytest.raises(CheckpointError, match=r"missing \['embed_tokens.weight'\]"):
            checkpoint.load(source, fresh_head=True)
        return
    backbone = checkpoint.load(source, fresh_head=True).backbone
    assert torch.equal(backbone.state_dict()["embed_tokens.weight"], model.lm_head.weight)
