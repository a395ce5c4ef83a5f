"""GGUF files are language models: training gives them a new head, and scoring refuses them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils.import_utils import is_gguf_available

from tests.conftest import run
from tests.model.test_families import GROUPS
from tests.model.test_layouts import PROMPT, RESPONSES, SHAPE
from tests.model.test_weight_files import language_model, plain_rewards, save_tokenizer
from worldpm import Scorer
from worldpm.errors import CheckpointError, ConfigError
from worldpm.model import checkpoint, sources
from worldpm.model.reward_model import RewardModel

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""llama.cpp's names for the parts of a layer."""


def interleaved(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """A query's or key's matrix with the rows of each head in the order that llama.cpp rotates."""
    halves = matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, matrix.shape[1])
    return halves.swapaxes(1, 2).reshape(matrix.shape)


def stored(model: PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """The weights with the names and the layout of a GGUF file."""
    weights = {}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            array = np.ascontiguousarray(interleaved(array, 4 if "q_proj" in name else 2))
        if name.startswith("model.layers."):
            number, _, part = name.removeprefix("model.layers.").partition(".")
            weights[f"blk.{number}.{NAMES[part.removesuffix('.weight')]}.weight"] = array
    plain = model.state_dict()
    weights["token_embd.weight"] = plain["model.embed_tokens.weight"].numpy()
    weights["output_norm.weight"] = plain["model.norm.weight"].numpy()
    weights["output.weight"] = plain["lm_head.weight"].numpy()
    return weights


def write(path: Path, *, with_head: bool = False) -> LlamaForCausalLM:
    """Write a tiny Llama with gguf's own writer."""
    gguf: Any = pytest.importorskip("gguf", reason="GGUF files need the extra gguf")
    folder = path.parent / "plain"
    rows = save_tokenizer(folder)
    tokenizer = checkpoint.load_tokenizer(sources.Source(folder))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=rows, max_position_embeddings=256, **SHAPE)  # type: ignore[arg-type]
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(rows)

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    ids, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in added else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)

    for name, array in stored(model).items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    if with_head:
        writer.add_tensor("cls.output.weight", np.ones((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_has_the_weights_and_hidden_states_of_the_plain_model(tmp_path: Path) -> None:
    plain = write(tmp_path / "model.gguf")
    source = sources.find(tmp_path / "model.gguf")
    model = checkpoint.load(source, fresh_head=True)
    expected = RewardModel(plain.model, model.score).eval()
    expected.share_prefix(False)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.allclose(model(GROUPS), expected(GROUPS), atol=1e-5)
    assert model.shares_prefix is True

    tokenizer = checkpoint.load_tokenizer(source)
    same = checkpoint.load_tokenizer(sources.Source(tmp_path / "plain"))
    for text in ("How many grams?\n\n 14", "<|start|>user<|end|>", "\u00e9t\u00e9"):
        assert tokenizer(text)["input_ids"] == same(text)["input_ids"]
    assert tokenizer.chat_template == same.chat_template


def test_other_models_files_beside_a_gguf_file_are_ignored(tmp_path: Path) -> None:
    plain = write(tmp_path / "model.gguf")
    language_model(tmp_path, LlamaConfig(**{**SHAPE, "hidden_size": 16}))  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    source = sources.find(tmp_path / "model.gguf")
    backbone = checkpoint.load(source, fresh_head=True).backbone
    weights, expected = backbone.state_dict(), plain.model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert len(checkpoint.load_tokenizer(source)) == len(expected["embed_tokens.weight"])


def test_a_gguf_file_is_trained_into_a_plain_checkpoint(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write(tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    options = ("--max-steps", 1, "--batch-pairs", 4, "--max-length", 128, "--dtype", "float32")
    words = ("train", road / "groups", "--model", "model.gguf", *options, "--lr", 1e-6)
    assert run(*words, "--out", "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert "quantization_config" not in config
    trained = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(trained[f"model.{name}"], tensor, atol=1e-4), name
    rewards = Scorer.load("out").rewards(PROMPT, RESPONSES)
    assert rewards == pytest.approx(plain_rewards(tmp_path / "out"), abs=1e-5)

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["model"] == "model.gguf"
    assert manifest["inputs"][-1]["name"] == "model.gguf"
    # the same command again sees that the folder is finished
    assert run(*words, "--out", "out") == 0


def test_a_gguf_file_is_refused_for_scores(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf")
    with pytest.raises(
        CheckpointError, match=r"without a reward head. Make a reward model from it with `worldpm"
    ):
        Scorer.load(tmp_path / "model.gguf")


def test_a_gguf_file_with_a_head_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", with_head=True)
    with pytest.raises(CheckpointError, match=r"its head \(cls.\*\) cannot be read"):
        sources.find(tmp_path / "model.gguf")


@pytest.mark.skipif(not is_gguf_available(), reason="GGUF files need the extra gguf")
@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model", b"GGUF" + b"\x03" * 40])
def test_a_damaged_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable GGUF file"):
        sources.find(tmp_path / "model.gguf")


@pytest.mark.skipif(is_gguf_available(), reason="gguf is installed")
def test_without_gguf_the_error_names_the_extra_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], road: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"model.gguf: .* pip install '.\[gguf\]'"):
        Scorer.load(tmp_path / "model.gguf")
    words = ("train", road / "groups", "--model", tmp_path / "model.gguf")
    assert run(*words, "--out", tmp_path / "out") == 2
    assert "pip install '.[gguf]'" in capsys.readouterr().err


def test_another_file_is_refused_with_its_folder_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a file, but not a GGUF file"):
        Scorer.load(tmp_path / "model.safetensors")
