"""Folders of reward models: load them without running their code, and save them.

Two layouts are read and written: `*ForSequenceClassification` with one label, and the released
WorldPM's `Qwen2ForRewardModel` with a head of two layers. Other formats are only read: adapters of
PEFT, which are merged into their base model, and GGUF files of language models.
"""

import json
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
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
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from worldpm import extras
from worldpm.errors import CheckpointError, ConfigError, first_line
from worldpm.model import chat, gguf_files, heads, quantization, vocabulary
from worldpm.model.adapter_folders import Adapter
from worldpm.model.description import DESCRIPTION, read_description
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.heads import RELEASED
from worldpm.model.quantization import Bits
from worldpm.model.reward_model import RewardModel, linear_head, without_dropout
from worldpm.model.shared_prefix import ATTENTION, attend
from worldpm.model.sources import Source
from worldpm.model.weight_files import CONFIG as CONFIG
from worldpm.model.weight_files import WeightFiles
from worldpm.storage.json_files import read_json, write_atomically
from worldpm.storage.manifest import MANIFEST, verified_files

SHARD_SIZE = "5GB"


Activation = Literal["identity", "sigmoid"]
"""The function that engines apply to a reward by default."""


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        CheckpointError: If there is none, or it does not map its tokens to characters.
    """
    source = source.with_tokenizer
    try:
        with _location(source) as location:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                **location, local_files_only=True, trust_remote_code=source.remote_code
            )
    # the parser of a damaged file may raise any error
    except Exception as error:
        raise CheckpointError(f"{source.folder}: no readable tokenizer ({error})") from error

    tokenizer.chat_template = chat.template_of(
        tokenizer, source.chat_template, source.template_name
    )
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
    quantize: Bits | None = None,
    device: torch.device | None = None,
) -> RewardModel:
    """Load the model of a folder, in evaluation mode. `dtype` None keeps the type of its weights,
    except that float64 becomes float32.

    `fresh_head` gives a language model a random head, to be trained; a reward model without its
    head is always rejected. `across_devices` spreads the layers over all devices, and over main
    memory if they are full. `quantize` reads the linear layers of the backbone in fewer bits, onto
    `device`. An adapter is merged into its base model.

    Raises:
        CheckpointError: If a file is missing or damaged, or a weight is missing or left over.
        ConfigError: If a package that reads an adapter, spreads layers or quantizes is not
            installed, or if the source's format cannot be quantized.
    """
    if quantize is not None and (source.is_gguf or source.base is not None):
        kind = "a GGUF file" if source.is_gguf else "an adapter, which is merged into its base"
        raise ConfigError(
            f"--quantize: {source.folder} is {kind}. Save a checkpoint of it first (`worldpm"
            " train` or `worldpm export`)."
        )
    if source.base is not None:
        return _load_adapter(
            source, source.base, dtype=dtype, fresh_head=fresh_head, across_devices=across_devices
        )

    config = load_config(source)
    # read the head first: it is small, and a folder without it fails before gigabytes are read
    head = _head(source, config, fresh=fresh_head)
    placement: dict[str, Any] = {"device_map": "auto" if across_devices else None}
    if across_devices:
        # transformers uses it to place the layers
        extras.load("accelerate", extra="train", needed_by="--across-devices")
    if quantize is not None:
        compute_type = dtype or checkpoint_dtype(config)
        placement = quantization.settings(quantize, compute_type, device or torch.device("cpu"))
    backbone = _backbone(source, config, dtype=dtype, placement=placement)
    if quantize is not None:
        quantization.check(backbone, source.folder)
        quantization.forget(backbone)
    return RewardModel(backbone, head).eval()


def _load_adapter(
    source: Source,
    base: Source,
    *,
    dtype: torch.dtype | None,
    fresh_head: bool,
    across_devices: bool,
) -> RewardModel:
    """The base model with the adapter in its weights."""
    if (base.folder / MANIFEST).is_file():
        verified_files(base.folder)
    adapter = Adapter.read(source.folder)
    if not fresh_head:
        adapter.refuse_without_head(load_config(base))

    model = load(base, dtype=dtype, fresh_head=True, across_devices=across_devices)
    return adapter.merged(model, widen=dtype is None).eval()


def _head(source: Source, config: PreTrainedConfig, *, fresh: bool) -> nn.Module:
    """The head with its weights, in float32; a random head for a language model if `fresh`."""
    if not source.is_gguf:
        return heads.find(WeightFiles.find(source.folder, config), config, fresh=fresh)
    if not fresh:
        raise gguf_files.without_head(source.folder)
    return linear_head(config)


@contextmanager
def _location(source: Source) -> Iterator[dict[str, str]]:
    """Keywords of transformers' `from_pretrained` that locate a model."""
    if not source.is_gguf:
        yield {"pretrained_model_name_or_path": str(source.folder)}
        return
    with gguf_files.alone(source.folder) as location:
        yield location


def _backbone(
    source: Source,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | None,
    placement: Mapping[str, Any],
) -> PreTrainedModel:
    """The decoder with its weights; all of them must fit the config. `placement` has transformers'
    keywords for devices and quantization."""
    AttentionInterface.register(ATTENTION, attend)
    _quiet()
    weights = None if source.is_gguf else WeightFiles.find(source.folder, config)
    renamings = weights.renamings if weights else {}
    try:
        with _location(source) as location:
            backbone, report = AutoModel.from_pretrained(
                **location,
                config=without_dropout(config),
                attn_implementation=ATTENTION,
                dtype=dtype or "auto",
                use_safetensors=True,
                output_loading_info=True,
                # the report lists them
                ignore_mismatched_sizes=True,
                key_mapping=renamings,
                local_files_only=True,
                trust_remote_code=source.remote_code,
                **placement,
            )
    except Exception as error:
        raise CheckpointError(
            f"{source.folder}: its weights cannot be read ({first_line(error)}). Get the folder"
            " again."
        ) from error

    if weights and (tied := _fill_embedding(backbone, weights)) in report["missing_keys"]:
        report["missing_keys"].remove(tied)
    _check_weights(source.folder, report)
    model: PreTrainedModel = gguf_files.plain(backbone) if source.is_gguf else backbone
    if renamings:
        # transformers would restore the wrappers' names when it saves
        vars(model).pop("_weight_conversions", None)
    if model.dtype == torch.float64:
        # rewards are always float32
        nn.Module.float(model)
    return model


def checkpoint_dtype(config: PreTrainedConfig) -> torch.dtype:
    """The type of the weights by the config; float32 if it names none, or float64."""
    dtype = config.get_text_config().dtype or config.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


def _fill_embedding(model: PreTrainedModel, weights: WeightFiles) -> str | None:
    """Fill the embedding from a language model's head if the files have the tied weight only under
    the head's name. Return the name of the embedding, or None if it was not filled."""
    embedding = model.get_input_embeddings()
    path = next(path for path, module in model.named_modules() if module is embedding)
    name = f"{path}.weight"
    head = next((head for head in heads.LM_WEIGHTS if head in weights.names), None)
    is_stored = any(stored.endswith(name) for stored in weights.names)
    if is_stored or head is None or not model.config.get_text_config().tie_word_embeddings:
        return None

    tensor, parameter = weights.tensor(head), model.get_parameter(name)
    if tensor.shape != parameter.shape:
        return None
    with torch.no_grad():
        parameter.copy_(tensor)
    return name


def _check_weights(folder: Path, report: Mapping[str, Collection[object]]) -> None:
    """Reject weights that do not fit the config; transformers would fill missing weights at
    random."""
    unexpected = sorted(map(str, report["unexpected_keys"]))
    # heads are not part of the backbone
    left_over = [name for name in unexpected if not name.startswith((heads.HEAD, *heads.LM_HEADS))]
    missing = sorted(map(str, report["missing_keys"]))
    mismatched = cast(Collection[tuple[str, torch.Size, torch.Size]], report["mismatched_keys"])
    shapes = [
        f"{name} {tuple(stored)}, not {tuple(expected)}" for name, stored, expected in mismatched
    ]
    damaged = sorted(map(str, report.get("error_msgs", ())))

    if missing or left_over or shapes or damaged:
        raise CheckpointError(
            f"{folder}: weights do not fit the config: missing {missing[:3]}, left over"
            f" {left_over[:3]}, other shape {sorted(shapes)[:3] or damaged[:3]}. Get the folder"
            f" again, or correct its {CONFIG}."
        )


def load_config(source: Source) -> PreTrainedConfig:
    """The folder's config.

    Raises:
        CheckpointError: If it is not the config of a known model, or needs code of the folder that
            was not allowed.
    """
    if source.base is not None:
        return Adapter.read(source.folder).config_of(load_config(source.base))

    path = source.folder if source.is_gguf else source.folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{source.folder}: not a checkpoint (it has no {CONFIG}). `worldpm train` makes one."
        )

    try:
        with _location(source) as location:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                **location, local_files_only=True, trust_remote_code=source.remote_code
            )
    except Exception as error:
        # transformers raises OSError if the file is not JSON
        is_json = not (source.is_gguf or isinstance(error, OSError))
        content = read_json(path) if is_json else {}
        if content.get("auto_map") and not source.remote_code:
            raise CheckpointError(
                f"{source.folder}: its architecture is Python code in the folder, which is not run."
                " Read it, and then allow it with --remote-code and --revision COMMIT."
            ) from error
        raise CheckpointError(
            f"{path}: not a config of a known model ({first_line(error)})"
        ) from error

    _check_decoder(source.folder, config)
    return config


def _check_decoder(folder: Path, config: PreTrainedConfig) -> None:
    """Reject models whose last token does not read all others, or is read by others."""
    text = config.get_text_config()
    is_encoder = text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        text, "is_decoder", False
    )
    # `vision` applies only to the tokens of images
    reads_ahead = getattr(text, "use_bidirectional_attention", False) in (True, "all")
    if is_encoder or reads_ahead or getattr(config, "is_encoder_decoder", False):
        name = heads.architecture_of(config)
        raise CheckpointError(
            f"{folder}: an encoder ({name}), but rewards are read at the last token of a decoder."
            " Choose a decoder, such as Llama or Qwen."
        )


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
    """Write config and weights; if transformers has the class, it loads them and gives the same
    rewards.

    `weights` are the model's, under the names of its `state_dict`, on any devices.

    Raises:
        CheckpointError: If a weight is not finite.
    """
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{folder}: {broken[0]} has NaN or infinite values; not saved")

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
    # safetensors makes its files readable only for their owner
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / CONFIG, path)


def _write_config(
    model: RewardModel, folder: Path, *, dtype: torch.dtype, pad_token_id: int | None
) -> None:
    """Write the backbone's config as that of a reward model."""
    config = model.backbone.config.to_diff_dict()
    for name in ("auto_map", "id2label", "label2id", "pad_token_id", "transformers_weights"):
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
    """A pad token that never ends a text, because transformers reads the reward at the last token
    that is not the pad token. None if the tokenizer has no such token."""
    template = str(tokenizer.chat_template)
    # a template may write the eos_token by a variable
    ends = (frame.end_token, tokenizer.eos_token)
    added = tokenizer.get_added_vocab()
    unused = [token for token in added if token not in ends and token not in template]
    if tokenizer.pad_token in unused:
        return str(tokenizer.pad_token)

    # prefer tokens that are meant for padding
    unused.sort(key=lambda token: ("pad" not in token, token))
    return unused[0] if unused else None


def encoder_of(source: Source, config: PreTrainedConfig) -> Encoder:
    """The encoder of a folder's model: from its `worldpm.json`, or else the encoder with which
    models of its layout were trained.

    Raises:
        CheckpointError: If tokenizer or description cannot be read, the chat template differs from
            the one in training, or the tokenizer has ids without a row in the embedding.
    """
    encoder = _encoder_as_trained(source, config)
    vocabulary.check(source.folder, encoder, config)
    return encoder


def _encoder_as_trained(source: Source, config: PreTrainedConfig) -> Encoder:
    """The encoder of a folder, whose tokenizer may have more ids than the embedding."""
    folder, tokenizer = source.with_tokenizer.folder, load_tokenizer(source)
    if (folder / DESCRIPTION).is_file():
        return _described_encoder(folder, tokenizer)

    if tokenizer.chat_template is not None:
        tokenizer.chat_template = chat.on_a_fixed_day(str(tokenizer.chat_template))
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
            f"{folder}: the chat template differs from the one in training. Restore the tokenizer's"
            " files."
        )

    frame = chat.Frame(description.end_token, description.empty_system)
    limits = Limits(description.max_length, description.prompt_length)
    return Encoder(tokenizer, frame, limits)


def positions_of(config: PreTrainedConfig) -> int:
    """The number of positions of the model; `sys.maxsize` if its config sets none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


def activation_of(config: PreTrainedConfig) -> Activation:
    """The function that engines apply to a one-label model's rewards by default: none if its config
    is a regression's, else a sigmoid.

    Source: vLLM 0.32, `model_executor/layers/pooler/activations.py`.
    """
    problem = getattr(config, "problem_type", None)
    if problem is not None:
        return "identity" if problem == "regression" else "sigmoid"

    # cross-encoders name a class of torch
    of_set = getattr(config, "sentence_transformers", None) or {}
    older = getattr(config, "sbert_ce_default_activation_function", None)
    named = str(of_set.get("activation_fn", older))
    return "identity" if named.endswith(".Identity") else "sigmoid"
