"""The description of a checkpoint, `worldpm.json`: its limits and frame for texts, its rewards, its
training and its lineage.

    {"end_token": "<|endoftext|>", "empty_system": true, "template_hash": "5d...",
     "max_length": 2048, "prompt_length": 1024,
     "reward_mean": 0.1, "reward_std": 1.3, "temperature": 0.9,
     "training": {"run": "0f...", "family": "built-in", "non_embedding": 1180000, "step": 40, ...},
     "lineage": {"model": "tiny", "groups": [{"name": "groups", "bytes": 81, "sha256": "77..."}]}}
"""

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from worldpm.errors import CheckpointError
from worldpm.model import chat
from worldpm.model.encoder import Encoder
from worldpm.storage.json_files import Json, to_json, write_atomically
from worldpm.storage.manifest import Input

DESCRIPTION = "worldpm.json"
REQUIRED = ("template_hash", "end_token", "empty_system", "max_length", "prompt_length")
"""Fields that determine rewards; a checkpoint without them cannot be read as in training."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The training of a checkpoint until its step, for scaling laws."""

    run: str
    """Hash of the settings and inputs of the run; its snapshots share it."""
    family: str
    """Runs of one family can share a law: `built-in`, or the type of a model that was trained
    further."""
    non_embedding: int
    """Parameters that are not embeddings, the N of scaling laws."""
    frozen_layers: int = 0
    """Layers, from the embeddings up, that training left unchanged; part of `non_embedding`."""
    step: int
    """Optimizer steps."""
    pairs: int
    """Preference pairs, repeated ones counted each time."""
    effective_pairs: float
    """Sum of the weights of these pairs, the D of scaling laws."""
    tokens: int
    """Tokens; a prompt counts once for all its responses."""
    flops: int
    """Operations of forward and backward, the C of scaling laws."""


@dataclass(frozen=True)
class Lineage:
    """The model and the data that a checkpoint was made from."""

    model: str
    """A built-in size, a folder, or a hub id."""
    groups: tuple[Input, ...] = ()
    """Folders and files of preferences, in the order given."""


@dataclass(frozen=True)
class RewardStatistics:
    """Rewards of a checkpoint on validation groups, or on train groups if there are none."""

    mean: float
    """In logits."""
    std: float
    """Population standard deviation, in logits."""
    temperature: float
    """Divides margins into log odds; above 0."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The contents of `worldpm.json`; its fields are the file's keys, in order."""

    end_token: str | None
    """Token at the end of every text, if it is not already last; None reads the text of the chat
    template unchanged."""
    empty_system: bool
    """Whether a prompt without a system turn gets an empty one."""
    template_hash: str
    """Hash of the chat template that the model was trained with."""
    max_length: int
    """Tokens of prompt plus one response."""
    prompt_length: int
    """Tokens that a prompt is cut to."""
    reward_mean: float | None = None
    """On validation groups, in logits; None if unknown."""
    reward_std: float | None = None
    """On validation groups, in logits; None if unknown."""
    temperature: float | None = None
    """Divides margins into log odds; None if it was not fitted."""
    training: TrainingRecord | None = None
    """None if it was not recorded."""
    lineage: Lineage | None = None
    """None if it was not recorded."""


def describe_encoder(
    encoder: Encoder,
    rewards: RewardStatistics,
    *,
    training: TrainingRecord | None = None,
    lineage: Lineage | None = None,
) -> Description:
    """The description of a model that reads text through `encoder`."""
    return Description(
        end_token=encoder.frame.end_token,
        empty_system=encoder.frame.empty_system,
        template_hash=chat.template_hash(encoder.tokenizer),
        max_length=encoder.limits.max_length,
        prompt_length=encoder.limits.prompt_length,
        reward_mean=rewards.mean,
        reward_std=rewards.std,
        temperature=rewards.temperature,
        training=training,
        lineage=lineage,
    )


def write_description(folder: Path, description: Description) -> None:
    """Write `worldpm.json` atomically."""
    content: Json = msgspec.to_builtins(description)
    # only fields of inputs have no key if they are None
    if description.lineage is not None:
        content["lineage"]["groups"] = [
            input_to_json(group) for group in description.lineage.groups
        ]
    write_atomically(folder / DESCRIPTION, to_json(content))


def read_description(folder: Path) -> Description:
    """The description of a checkpoint; unknown keys are ignored.

    Raises:
        CheckpointError: If the file cannot be read, lacks a required field, or has a value of
            another type.
    """
    path = folder / DESCRIPTION
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from error

    # name all missing fields in one message
    if missing := [name for name in REQUIRED if name not in content]:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}")

    # an empty record counts as not recorded
    recorded = {name: value for name, value in content.items() if value != {}}
    try:
        return msgspec.convert(recorded, Description)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: not readable ({error})") from error


def input_to_json(entry: Input) -> dict[str, str | int]:
    """The fields of a folder or file that were set; those that are None have no key."""
    plain: Json = msgspec.to_builtins(entry)
    return {name: value for name, value in plain.items() if value is not None}
