"""Heads of reward models in folders: find and check them, and reject other heads."""

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedConfig

from worldpm.errors import CheckpointError
from worldpm.model.reward_model import linear_head, released_head
from worldpm.model.weight_files import WeightFiles

HEAD = "score."
LM_HEADS = ("lm_head.", "embed_out.")
LM_WEIGHTS = tuple(f"{name}weight" for name in LM_HEADS)
"""Heads of language models, which are not loaded."""
VALUE_HEAD, VALUE_HEAD_FILES = "v_head.", "value_head.*"
"""TRL's name for a head of one value for each token, and LLaMA-Factory's files with one."""
RELEASED = "Qwen2ForRewardModel"


def architecture_of(config: PreTrainedConfig) -> str:
    """The class that a config names; `?` if it names none, as in a GGUF file."""
    return str((config.architectures or ["?"])[0])


def is_reward_model(config: PreTrainedConfig) -> bool:
    """Whether a config belongs to a model with a reward head."""
    return architecture_of(config).endswith(("ForSequenceClassification", "ForRewardModel"))


def find(weights: WeightFiles, config: PreTrainedConfig, *, fresh: bool) -> nn.Module:
    """The head with its weights, in float32; a random head for a language model if `fresh`.

    Raises:
        CheckpointError: If there is none, or it is not the head of a reward model.
    """
    refuse_value_head(weights.folder, list(weights.names))
    if tensors := weights.read(HEAD):
        return of(tensors, weights.folder, config)
    if fresh and not is_reward_model(config):
        return linear_head(config)

    folder, name = weights.folder, architecture_of(config)
    hint = (
        "its weights are incomplete. Get the folder again."
        if is_reward_model(config)
        else "it is not a reward model. Make one from it with `worldpm train --model`."
    )
    raise CheckpointError(f"{folder}: {name} without head weights ({HEAD}*): {hint}")


def of(tensors: dict[str, Tensor], folder: Path, config: PreTrainedConfig) -> nn.Module:
    """The head with these weights, which have their names in the head.

    Raises:
        CheckpointError: If they have the shapes of another head.
    """
    # a folder may have the released head under another architecture's name
    has_two_layers = "0.weight" in tensors or architecture_of(config) == RELEASED
    head = released_head(config) if has_two_layers else linear_head(config)
    _check_shapes(folder, head, tensors)
    head.load_state_dict(tensors)
    return head


def _check_shapes(folder: Path, head: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Reject weights of another shape than the head's."""
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes == expected:
        return

    # the last layer has a row for each label
    rows = {name: shape[0] for name, shape in shapes.items() if name in ("weight", "2.weight")}
    for name, labels in rows.items():
        if labels != 1:
            raise CheckpointError(
                f"{folder}: its head has {labels} labels, but a reward model has one. Save the row"
                f" of one label as {HEAD}{name}, or train the language model that it was made from"
                " with `worldpm train --model`."
            )
    raise CheckpointError(
        f"{folder}: its head has weights {shapes}, but {expected} are expected. Choose a model"
        " with a head of one of these layouts: a linear layer, or WorldPM's two layers."
    )


def refuse_value_head(folder: Path, names: list[str]) -> None:
    """Reject a value head, in the weights or in a file beside them.

    Raises:
        CheckpointError: If there is one.
    """
    # if there are reward weights, a value head does not matter
    if any(name.startswith(HEAD) for name in names):
        return

    beside = next(folder.glob(VALUE_HEAD_FILES), None)
    if beside or any(name.startswith(VALUE_HEAD) for name in names):
        value_head = beside.name if beside else f"{VALUE_HEAD}*"
        raise CheckpointError(
            f"{folder}: has a value head ({value_head}), which PPO trains to predict returns and"
            " LLaMA-Factory trains as a reward; the weights do not show which. If it is a reward,"
            " save the model as a *ForSequenceClassification with v_head.summary.weight as its"
            f" {HEAD}weight. Otherwise remove it."
        )
