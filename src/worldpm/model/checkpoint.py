"""Folders of reward models: load them without running their code, and save them.

Two layouts are read and written: `*ForSequenceClassification` with one label, and the released
WorldPM's `Qwen2ForRewardModel` with a head of two layers. Weights are safetensors, one file or
shards with their index. A line of an index: `"score.weight": "model-00002-of-00002.safetensors"`.
"""

import json
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from worldpm.errors import CheckpointError, first_line
from worldpm.model import chat
from worldpm.model.description import DESCRIPTION, read_description
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.reward_model import RewardModel, linear_head, released_head, without_dropout
from worldpm.model.shared_prefix import ATTENTION, attend
from worldpm.model.sources import Source
from worldpm.storage.json_files import read_json, write_atomically

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HEAD = "score."
LM_HEADS = ("lm_head.", "embed_out.")
"""Heads of language models, which are not loaded."""
RELEASED = "Qwen2ForRewardModel"
SHARD_SIZE = "5GB"


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        CheckpointError: If there is none, or it does not map its tokens to characters.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=source.remote_code
        )
    # a torn file raises whatever its parser does
    except Exception as error:
        raise CheckpointError(f"{source.folder}: no readable tokenizer ({error})") from error

    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{source.folder}: the tokenizer has no tokenizer.json, which maps tokens to"
            " characters. Add that file."
        )
    return tokenizer


def load(
    source: Source,
    *,
    dtype: torch.dtype | None = torch.float32,
    fresh_head: bool = False,
    across_devices: bool = False,
) -> RewardModel:
    """The model of a folder, in evaluation mode; `dtype` None keeps that of its weights.

    `fresh_head` gives a language model a random head, to be trained; a reward model without its
    head is always refused. `across_devices` spreads the layers over all devices, and over memory
    where they are full.

    Raises:
        CheckpointError: If a file is missing or damaged, or a weight is missing or left over: never
            a random head.
    """
    config = load_config(source)
    weight_files = _weight_files(source.folder)

    # the head first: it is small, and a folder without one is refused before gigabytes are read
    head = _head(source.folder, config, weight_files, fresh=fresh_head)
    backbone = _backbone(source, config, dtype=dtype, across_devices=across_devices)
    return RewardModel(backbone, head).eval()


def _backbone(
    source: Source, config: PreTrainedConfig, *, dtype: torch.dtype | None, across_devices: bool
) -> PreTrainedModel:
    """The decoder with its weights; all of them must fit the config."""
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

    _check_weights(source.folder, report)
    model: PreTrainedModel = backbone
    return model


def _check_weights(folder: Path, report: Mapping[str, Collection[object]]) -> None:
    """Refuse weights that do not fit the config; transformers would fill up missing ones at
    random."""
    unexpected = sorted(map(str, report["unexpected_keys"]))
    # heads are not part of the backbone
    left_over = [name for name in unexpected if not name.startswith((HEAD, *LM_HEADS))]
    missing = sorted(map(str, report["missing_keys"]))
    shapes = sorted(map(str, report["mismatched_keys"]))

    if missing or left_over or shapes:
        raise CheckpointError(
            f"{folder}: weights do not fit the config: missing {missing[:3]}, left over"
            f" {left_over[:3]}, other shape {shapes[:3]}"
        )


def load_config(source: Source) -> PreTrainedConfig:
    """The folder's config.

    Raises:
        CheckpointError: If it is not that of a known model, or needs the folder's own code, which
            was not allowed.
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
        # transformers raises OSError where the file is not JSON
        content = read_json(path) if not isinstance(error, OSError) else {}
        if content.get("auto_map") and not source.remote_code:
            raise CheckpointError(
                f"{source.folder}: its architecture is Python of its own, which is not run; "
                "read it, and then allow it with --remote-code and --revision COMMIT"
            ) from error
        raise CheckpointError(
            f"{path}: not a config of a known model ({first_line(error)})"
        ) from error
    return config


def _weight_files(folder: Path) -> dict[str, Path]:
    """The file that holds each weight, by the weight's name.

    Raises:
        CheckpointError: If there is no safetensors file, or a shard is missing or damaged.
    """
    if (folder / INDEX).is_file():
        return _shard_files(folder)

    path = folder / WEIGHTS
    if not path.is_file():
        _refuse_pickle(folder)
        raise CheckpointError(f"{folder}: it has no {WEIGHTS}; get the folder again")

    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); get the folder again") from error


def _shard_files(folder: Path) -> dict[str, Path]:
    """The shard that holds each weight, as the index lists them."""
    shards: dict[str, str] | None = read_json(folder / INDEX).get("weight_map")
    if not shards:
        raise CheckpointError(f"{folder / INDEX}: it has no weight_map; get the folder again")

    paths = {name: folder / file for name, file in shards.items()}
    if absent := sorted({path.name for path in paths.values() if not path.is_file()}):
        raise CheckpointError(
            f"{folder}: {len(absent)} shards are missing ({', '.join(absent[:3])}); get the"
            " folder again"
        )
    return paths


def _refuse_pickle(folder: Path) -> None:
    """Name the pickled weights of a folder that has no others."""
    pickled = [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt*"))]
    if pickled:
        raise CheckpointError(
            f"{folder}: its weights are pickle ({pickled[0].name}), which can run code; have them"
            " converted to safetensors, for instance by"
            " https://huggingface.co/spaces/safetensors/convert"
        )


def _head(
    folder: Path, config: PreTrainedConfig, weight_files: dict[str, Path], *, fresh: bool
) -> nn.Module:
    """The head with its weights, in float32; a random one for a language model if `fresh`."""
    tensors = _head_tensors(weight_files)
    architecture = (config.architectures or ["?"])[0]
    is_reward_model = architecture.endswith(("ForSequenceClassification", "ForRewardModel"))
    if not tensors and not is_reward_model and fresh:
        return linear_head(config)

    if not tensors:
        hint = (
            "its weights are not whole"
            if is_reward_model
            else "it is not a reward model. Make one of it with `worldpm train --model`."
        )
        raise CheckpointError(f"{folder}: {architecture} without head weights ({HEAD}*): {hint}")

    # a folder may have the released head under another architecture's name
    has_two_layers = "0.weight" in tensors or architecture == RELEASED
    head = released_head(config) if has_two_layers else linear_head(config)
    _check_head(folder, head, tensors)
    head.load_state_dict(tensors)
    return head


def _head_tensors(weight_files: dict[str, Path]) -> dict[str, Tensor]:
    """The weights of the head by their names in it, in float32."""
    tensors = {}
    for name, path in weight_files.items():
        if not name.startswith(HEAD):
            continue
        try:
            with safe_open(path, framework="pt") as file:
                tensors[name.removeprefix(HEAD)] = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); get the folder again") from error
    return tensors


def _check_head(folder: Path, head: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse weights of another shape than the head's."""
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes == expected:
        return

    # the last layer has a row for each label
    rows = [shape[0] for name, shape in shapes.items() if name in ("weight", "2.weight")]
    if rows and rows[0] != 1:
        raise CheckpointError(f"{folder}: {rows[0]} labels, and a reward model has one")
    raise CheckpointError(f"{folder}: head weights {shapes}, expected {expected}")


def _quiet() -> None:
    """Silence transformers' bars, and its report of left-over weights: our error names them."""
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

    `weights` are the model's, as its `state_dict` names them, from any devices.

    Raises:
        CheckpointError: If a weight is not finite.
    """
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{folder}: {broken[0]} holds NaN or infinite values; not saved")

    # `*ForSequenceClassification` calls its backbone `model`, `transformer`, ...
    prefix = model.backbone.base_model_prefix
    named = {}
    for name, tensor in weights.items():
        is_backbone = name.startswith("backbone.")
        saved_name = name.replace("backbone", prefix, 1) if is_backbone else name
        named[saved_name] = tensor.contiguous()
    _quiet()
    model.backbone.save_pretrained(folder, state_dict=named, max_shard_size=SHARD_SIZE)

    dtype = next(iter(weights.values())).dtype
    _write_config(model, folder, dtype=dtype, pad_token_id=pad_token_id)
    # safetensors makes its files readable for their owner only
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / CONFIG, path)


def _write_config(
    model: RewardModel, folder: Path, *, dtype: torch.dtype, pad_token_id: int | None
) -> None:
    """Write the backbone's config as that of a reward model."""
    config = model.backbone.config.to_diff_dict()
    for name in ("auto_map", "id2label", "label2id", "pad_token_id"):
        config.pop(name, None)

    config |= {
        "architectures": [architecture(model)],
        "dtype": str(dtype).removeprefix("torch."),
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        # serving engines return the raw reward for a regression, not its sigmoid
        "problem_type": "regression",
        "use_cache": False,
        "pad_token_id": pad_token_id,
    }
    content = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
    write_atomically(folder / CONFIG, content.encode())


def pad_token(tokenizer: PreTrainedTokenizerBase, frame: chat.Frame) -> str | None:
    """A token to pad with that never ends a text: transformers looks for the last token that is not
    the pad token. None if the tokenizer has no such token."""
    template = str(tokenizer.chat_template)
    # a template may name the eos_token without its letters
    ends = (frame.end_token, tokenizer.eos_token)
    added = tokenizer.get_added_vocab()
    unused = [token for token in added if token not in ends and token not in template]
    if tokenizer.pad_token in unused:
        return str(tokenizer.pad_token)

    # tokens that are meant for padding first
    unused.sort(key=lambda token: ("pad" not in token, token))
    return unused[0] if unused else None


def encoder_of(source: Source, config: PreTrainedConfig) -> Encoder:
    """How a folder's model reads text: by its `worldpm.json`, or else like the models of its layout
    were trained.

    Raises:
        CheckpointError: If tokenizer or description cannot be read, or the chat template is not the
            one of the training.
    """
    folder, tokenizer = source.folder, load_tokenizer(source)
    if (folder / DESCRIPTION).is_file():
        return _described_encoder(folder, tokenizer)

    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = chat.on_a_fixed_day(tokenizer.chat_template)
    limits = Limits.of(int(min(positions_of(config), tokenizer.model_max_length)))

    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        return Encoder(tokenizer, chat.UNFRAMED, limits)
    if architecture == RELEASED:
        return Encoder(tokenizer, chat.Frame(), limits)
    return Encoder(tokenizer, chat.frame_of(tokenizer), limits)


def _described_encoder(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder that a checkpoint's `worldpm.json` describes."""
    description = read_description(folder)
    if chat.template_hash(tokenizer) != description.template_hash:
        raise CheckpointError(
            f"{folder}: the chat template is not the one it was trained with; restore the"
            " tokenizer's files"
        )

    frame = chat.Frame(description.end_token, description.empty_system)
    limits = Limits(description.max_length, description.prompt_length, trained=True)
    return Encoder(tokenizer, frame, limits)


def positions_of(config: PreTrainedConfig) -> int:
    """Positions that the model was made for; `sys.maxsize` if its config sets none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)
