"""Folders of PEFT adapters, made by TRL and others: small weights beside those of a base model.

{"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "../base",
 "revision": null, "modules_to_save": ["score"], "r": 16, ...}
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from worldpm.errors import CheckpointError, DataError, first_line
from worldpm.model import adapters, heads
from worldpm.model.reward_model import RewardModel
from worldpm.model.weight_files import INDEX, WEIGHTS, names_in, read_tensor, unwrapped
from worldpm.storage.json_files import read_record

CONFIG, ADAPTER, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX, NAME = "base_model.model.", "default"
"""PEFT's names for the model that an adapter is in, and for an adapter without a name."""
NOT_MERGED = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT")
EMBEDDING = "embed_tokens.weight"
"""End of the name of the embedding, which PEFT saves whole if its rows were changed."""
HEADS = ("score", "classifier", "lm_head", "embed_out")
"""Names of heads in `modules_to_save`."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The fields of `adapter_config.json` that are read here; PEFT reads the others."""

    peft_type: str
    base_model_name_or_path: str
    """A folder, or a hub id."""
    revision: str | None = None
    """Revision of the hub id."""
    task_type: str | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter in its folder."""

    folder: Path
    config: AdapterConfig

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the adapter of a folder that has an `adapter_config.json`.

        Raises:
            CheckpointError: If the config lacks a field, or the folder also has a whole model.
        """
        whole = next((name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)
        if whole is not None:
            raise CheckpointError(
                f"{folder}: has a whole model ({whole}) and an adapter ({CONFIG}), which may be"
                f" merged into the model already. If it is, remove {CONFIG}. If not, move the"
                " adapter into another folder."
            )

        try:
            config = read_record(folder / CONFIG, AdapterConfig)
        except DataError as error:
            raise CheckpointError(str(error)) from error
        if config.peft_type in NOT_MERGED:
            raise CheckpointError(
                f"{folder}: its adapter ({config.peft_type}) puts learned tokens before each text,"
                " which cannot be merged into weights. Train an adapter that changes weights, such"
                " as LoRA."
            )
        if not config.base_model_name_or_path:
            raise CheckpointError(
                f"{folder / CONFIG}: names no base model. Give its folder or hub id as"
                " base_model_name_or_path."
            )
        return cls(folder, config)

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each weight in the file, by its name in the base model.

        Raises:
            CheckpointError: If the safetensors file is missing or damaged.
        """
        path = self.folder / ADAPTER
        if not path.is_file():
            is_pickle = (self.folder / PICKLED).is_file()
            reason = f"are pickle ({PICKLED}), which can run code" if is_pickle else "are missing"
            raise CheckpointError(
                f"{self.folder}: the adapter's weights {reason}. Save the adapter as {ADAPTER},"
                " as newer versions of PEFT do."
            )
        return {unwrapped(name).removeprefix(PREFIX): name for name in names_in(path)}

    def tensor(self, name: str) -> Tensor:
        """A weight, in its stored type, by its name in the base model."""
        return read_tensor(self.folder / ADAPTER, self.names[name])

    @property
    def head_names(self) -> list[str]:
        """Names of the weights of a head that was trained in full with the adapter, if any."""
        return [name for name in self.names if name.startswith(heads.HEAD) and "lora_" not in name]

    def config_of(self, base: PreTrainedConfig) -> PreTrainedConfig:
        """Change the config of the base model to that of the merged model, and return it."""
        if self.head_names and not heads.is_reward_model(base):
            family = base.model_type
            name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(family)
            base.architectures = [name or f"{family}ForSequenceClassification"]

        embedding = next((name for name in self.names if name.endswith(EMBEDDING)), None)
        if embedding is not None:
            base.get_text_config().vocab_size = len(self.tensor(embedding))
        return base

    def refuse_without_head(self, base: PreTrainedConfig) -> None:
        """Reject an adapter of a language model where a reward model is needed.

        Raises:
            CheckpointError: If neither the adapter nor its base model has a head.
        """
        if self.head_names or heads.is_reward_model(base):
            return

        heads.refuse_value_head(self.folder, list(self.names))
        hint = (
            "its weights are incomplete. Save it with modules_to_save=['score']."
            if self.config.task_type == "SEQ_CLS"
            else "it is not a reward model. Make one from it with `worldpm train --model`."
        )
        raise CheckpointError(
            f"{self.folder}: an adapter without head weights ({heads.HEAD}*): {hint}"
        )

    def merged(self, base: RewardModel, *, widen: bool) -> RewardModel:
        """Merge the adapter, and its head if it has one, into the base model; `base` is changed.
        `widen` uses a wider type, because bfloat16 would round parts of the adapter away.

        Raises:
            ConfigError: If PEFT is not installed.
            CheckpointError: If the adapter does not fit the base model, or cannot be merged.
        """
        peft = adapters.package(str(self.folder))
        backbone, head = base.backbone, base.score
        if names := self.head_names:
            tensors = {name.removeprefix(heads.HEAD): self.tensor(name).float() for name in names}
            head = heads.of(tensors, self.folder, backbone.config)

        # the head of a language model is not needed
        skipped = (*names, *(name for name in self.names if name.startswith(heads.LM_HEADS)))
        weights = {name: self.tensor(name) for name in self.names if name not in skipped}
        if widen:
            nn.Module.to(backbone, _wider(backbone.dtype, weights))
        try:
            _merge(peft, self.folder, backbone, head, weights)
        # PEFT passes on any error of its layers
        except Exception as error:
            raise CheckpointError(
                f"{self.folder}: its adapter ({self.config.peft_type}) does not fit the base model"
                f" {self.config.base_model_name_or_path}, or cannot be merged"
                f" ({first_line(error)}). Merge it with PEFT, and save the whole model."
            ) from error

        self.config_of(backbone.config)
        # PEFT froze all weights
        return RewardModel(backbone, head).requires_grad_(True)


def _wider(dtype: torch.dtype, weights: Mapping[str, Tensor]) -> torch.dtype:
    """The type for the sums of weights of `dtype` and the weights of the adapter."""
    for tensor in weights.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.float32 if dtype == torch.float64 else dtype


def _merge(
    peft: Any,
    folder: Path,
    backbone: PreTrainedModel,
    head: nn.Module,
    weights: dict[str, Tensor],
) -> None:
    """Add the adapter to the weights of backbone and head.

    Raises:
        ValueError: If weights of the adapter are missing or left over.
    """
    prefix = f"{backbone.base_model_prefix}."
    if not any(name.startswith(prefix) for name in weights):
        # the adapter was trained on a model without a head
        weights = {prefix + name: tensor for name, tensor in weights.items()}
    rows = weights.get(f"{prefix}{EMBEDDING}")
    if rows is not None:
        backbone.resize_token_embeddings(len(rows), mean_resizing=False)

    config = peft.PeftConfig.from_pretrained(str(folder))
    # PEFT must not make a head
    config.task_type, config.inference_mode = None, True
    whole = [name for name in config.modules_to_save or () if name not in HEADS]
    config.modules_to_save = whole or None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.PeftModel(_as_language_model(backbone, head), config)
        stored = {PREFIX + name: tensor for name, tensor in weights.items()}
        result = peft.set_peft_model_state_dict(tuned, stored)
        missing = [name for name in result.missing_keys if f".{NAME}" in name]
        if missing or result.unexpected_keys:
            raise ValueError(f"missing {missing[:3]}, left over {result.unexpected_keys[:3]}")
        tuned.merge_and_unload()


def _as_language_model(backbone: PreTrainedModel, head: nn.Module) -> PreTrainedModel:
    """The model with its parts under their names in adapter files, which are the names in
    transformers' classes."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(backbone.config)  # type: ignore[no-untyped-call]
    setattr(model, backbone.base_model_prefix, backbone)
    model.score = head
    return model
