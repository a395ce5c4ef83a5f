"""Folders of reward models, loaded without running anybody's code, and saved.

Two layouts are read and written: `*ForSequenceClassification` with one label, and the released
WorldPM's `Qwen2ForRewardModel` with a head of two layers. Weights are safetensors, one file or
shards with their index.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from worldpm.errors import CheckpointError, first_line
from worldpm.model import chat
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.reward_model import RewardModel, linear_head, released_head, without_dropout
from worldpm.model.shared_prefix import ATTENTION, attend
from worldpm.model.sources import DESCRIPTION, Source, describe
from worldpm.storage import folders

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HEAD = "score."
LM_HEADS = ("lm_head.", "embed_out.")
"""What language models have in its place."""
RELEASED = "Qwen2ForRewardModel"
SHARD_SIZE = "5GB"
Json = dict[str, Any]


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        CheckpointError: If there is none, or none that tells where its tokens stand in the text.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=source.remote_code
        )
    except Exception as error:  # a torn file raises whatever its parser does
        raise CheckpointError(f"{source.folder}: no readable tokenizer ({error})") from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{source.folder}: the tokenizer has no tokenizer.json, which tells where a token"
            " stands in the text"
        )
    return tokenizer


def load(
    source: Source,
    *,
    dtype: torch.dtype | None = torch.float32,
    fresh_head: bool = False,
    across_devices: bool = False,
) -> RewardModel:
    """The model of a folder, in evaluation mode; `dtype` None keeps the folder's own.

    `fresh_head` gives a language model a random head, to be trained; a reward model without its
    head is refused always. `across_devices` spreads the layers over all devices, and over memory
    where they are full.

    Raises:
        CheckpointError: If a file is missing or damaged, or a weight is missing or left over: never
            a random head.
    """
    config = load_config(source)
    names = _weight_names(source.folder)
    head = _head(source.folder, config, names, fresh=fresh_head)
    AttentionInterface.register(ATTENTION, attend)
    _quiet()
    try:
        backbone, report = AutoModel.from_pretrained(
            source.folder,
            config=without_dropout(config),
            attn_implementation=ATTENTION,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=source.remote_code,
            device_map="auto" if across_devices else None,
        )
    except Exception as error:
        raise CheckpointError(
            f"{source.folder}: its weights cannot be read ({first_line(error)}); get the folder"
            " again"
        ) from error
    strangers = sorted(
        name for name in report["unexpected_keys"] if not name.startswith((HEAD, *LM_HEADS))
    )
    missing, shapes = (
        sorted(report["missing_keys"]),
        sorted(str(name) for name in report["mismatched_keys"]),
    )
    if missing or strangers or shapes:
        raise CheckpointError(
            f"{source.folder}: weights do not fit the config: missing {missing[:3]}, left over"
            f" {strangers[:3]}, other shape {shapes[:3]}"
        )
    return RewardModel(backbone, head).eval()


def load_config(source: Source) -> PreTrainedConfig:
    """The folder's config.

    Raises:
        CheckpointError: If it is not that of a known model, or wants code of its own that was not
            allowed.
    """
    path = source.folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{source.folder}: not a checkpoint (it has no {CONFIG}); `worldpm train` makes one"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=source.remote_code
        )
    except Exception as error:
        content = folders.read_json(path) if not isinstance(error, OSError) else {}
        if content.get("auto_map") and not source.remote_code:
            raise CheckpointError(
                f"{source.folder}: its architecture is Python of its own, which is not run; "
                "read it, and then allow it with --remote-code and --revision COMMIT"
            ) from error
        raise CheckpointError(
            f"{path}: not a config of a known model ({first_line(error)})"
        ) from error
    return config


def _weight_names(folder: Path) -> dict[str, Path]:
    """The file that holds each weight.

    Raises:
        CheckpointError: If there is no safetensors file, or a shard is missing or damaged.
    """
    if (folder / INDEX).is_file():
        shards: dict[str, str] | None = folders.read_json(folder / INDEX).get("weight_map")
        if not shards:
            raise CheckpointError(f"{folder / INDEX}: it has no weight_map; get the folder again")
        places = {name: folder / file for name, file in shards.items()}
        if absent := sorted({path.name for path in places.values() if not path.is_file()}):
            raise CheckpointError(
                f"{folder}: {len(absent)} shards are missing ({', '.join(absent[:3])}); get the"
                " folder again"
            )
        return places
    path = folder / WEIGHTS
    if not path.is_file():
        if pickled := sorted(file.name for file in folder.glob("*.bin")) + sorted(
            file.name for file in folder.glob("*.pt*")
        ):
            raise CheckpointError(
                f"{folder}: its weights are pickle ({pickled[0]}), which can run code; have them"
                " converted to safetensors, for instance by"
                " https://huggingface.co/spaces/safetensors/convert"
            )
        raise CheckpointError(f"{folder}: it has no {WEIGHTS}; get the folder again")
    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); get the folder again") from error


def _head(
    folder: Path, config: PreTrainedConfig, names: dict[str, Path], *, fresh: bool
) -> nn.Module:
    """The head with its weights, in float32; for a language model a fresh one where that was asked
    for."""
    tensors = {}
    for name, path in names.items():
        if name.startswith(HEAD):
            try:
                with safe_open(path, framework="pt") as file:
                    tensors[name.removeprefix(HEAD)] = file.get_tensor(name).float()
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: damaged ({error}); get the folder again") from error
    architecture = (config.architectures or ["?"])[0]
    is_reward_model = architecture.endswith(("ForSequenceClassification", "ForRewardModel"))
    if not tensors and not is_reward_model and fresh:
        return linear_head(config)
    if not tensors:
        hint = (
            "its weights are not whole"
            if is_reward_model
            else "it is no reward model; `worldpm train --model` makes one of it"
        )
        raise CheckpointError(f"{folder}: {architecture} without head weights ({HEAD}*): {hint}")
    head = (
        released_head(config)
        if "0.weight" in tensors or architecture == RELEASED
        else linear_head(config)
    )
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        labels = next(
            (shape[0] for name, shape in found.items() if name in ("weight", "2.weight")), 1
        )
        what = (
            f"{labels} labels, and a reward model has one"
            if labels != 1
            else f"head weights {found}, expected {wanted}"
        )
        raise CheckpointError(f"{folder}: {what}")
    head.load_state_dict(tensors)
    return head


def _quiet() -> None:
    """No bars, and no report of weights that are not the backbone's: what is wrong with them is our
    error."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def architecture(model: RewardModel) -> str:
    """The class that the folder's config names."""
    if isinstance(model.score, nn.Sequential):
        return RELEASED
    return f"{type(model.backbone).__name__.removesuffix('Model')}ForSequenceClassification"


def save(
    model: RewardModel, weights: dict[str, Tensor], folder: Path, *, pad_token_id: int | None
) -> None:
    """Write config and weights; where transformers has the class, it loads them and gives the same
    rewards.

    `weights` are the model's, as its `state_dict` names them, from whatever devices they lay on.

    Raises:
        CheckpointError: If a weight is not finite.
    """
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{folder}: {broken[0]} holds NaN or infinite values; not saved")
    prefix = model.backbone.base_model_prefix
    named = {
        (
            name.replace("backbone", prefix, 1) if name.startswith("backbone.") else name
        ): tensor.contiguous()
        for name, tensor in weights.items()
    }
    _quiet()
    model.backbone.save_pretrained(folder, state_dict=named, max_shard_size=SHARD_SIZE)
    config = model.backbone.config.to_diff_dict()
    for gone in ("auto_map", "id2label", "label2id", "pad_token_id"):
        config.pop(gone, None)
    labels = {
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": "regression",
    }
    kind = {
        "architectures": [architecture(model)],
        "dtype": str(next(iter(weights.values())).dtype).removeprefix("torch."),
    }
    # serving engines return the raw reward for a regression, not its sigmoid
    config |= {**kind, **labels, "use_cache": False, "pad_token_id": pad_token_id}
    folders.write_atomically(
        folder / CONFIG, json.dumps(dict(sorted(config.items())), indent=2).encode() + b"\n"
    )
    for path in folder.glob("*.safetensors"):
        shutil.copymode(
            folder / CONFIG, path
        )  # as others of this user; safetensors lets nobody else read them


def pad_token(tokenizer: PreTrainedTokenizerBase, frame: chat.Frame) -> str | None:
    """A token to pad with that cannot be taken for the end of a text: plain transformers looks for
    the last other token."""
    template = str(tokenizer.chat_template)
    ends = (
        frame.end_token,
        tokenizer.eos_token,
    )  # a template may name the latter without its letters
    known = [
        token
        for token in tokenizer.get_added_vocab()
        if token not in ends and token not in template
    ]
    own = tokenizer.pad_token
    return (
        str(own)
        if own in known
        else next(iter(sorted(known, key=lambda token: ("pad" not in token, token))), None)
    )


def encoder_of(source: Source, config: PreTrainedConfig) -> Encoder:
    """How a folder's model reads text: as its `worldpm.json` says, or else as models of its layout
    were trained.

    Raises:
        CheckpointError: If tokenizer or description cannot be read, or the chat template is not the
            one of the training.
    """
    folder, tokenizer = source.folder, load_tokenizer(source)
    if (folder / DESCRIPTION).is_file():
        described = describe(folder)
        if chat.template_hash(tokenizer) != described["template_hash"]:
            raise CheckpointError(
                f"{folder}: the chat template is not the one it was trained with; restore the"
                " tokenizer's files"
            )
        frame = chat.Frame(described["end_token"], described["empty_system"])
        return Encoder(
            tokenizer,
            frame,
            Limits(described["max_length"], described["prompt_length"], trained=True),
        )
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = chat.on_a_fixed_day(tokenizer.chat_template)
    longest = int(min(positions_of(config), tokenizer.model_max_length))
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        return Encoder(tokenizer, chat.AS_THE_TEMPLATE_HAS_IT, Limits.of(longest))
    return Encoder(
        tokenizer,
        chat.Frame() if architecture == RELEASED else chat.frame_of(tokenizer),
        Limits.of(longest),
    )


def positions_of(config: PreTrainedConfig) -> int:
    """Tokens that the model was made for; `sys.maxsize` where its config sets none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


def write_description(
    folder: Path, encoder: Encoder, measured: Mapping[str, float], training: Json, lineage: Json
) -> None:
    """Write `worldpm.json`: how text is to be read, what rewards to expect, what training it had,
    and what the model was made of."""
    description = {
        **encoder.frame._asdict(),
        "template_hash": chat.template_hash(encoder.tokenizer),
        "max_length": encoder.limits.max_length,
        "prompt_length": encoder.limits.prompt_length,
        "reward_mean": measured["reward_mean"],
        "reward_std": measured["reward_std"],
        "temperature": measured["temperature"],
        "training": training,
        "lineage": lineage,
    }
    folders.write_atomically(folder / DESCRIPTION, folders.to_json(description))
