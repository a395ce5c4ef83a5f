"""A decoder with a scalar head, read at each response's end token: built from a size, loaded from and saved to folders."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config

from worldpm.field.errors import CheckpointError
from worldpm.formats import folders
from worldpm.parts.shared_prefix import ATTENTION, Plan, attend

WEIGHTS, HEAD = "model.safetensors", "score.weight"


class Size(NamedTuple):
    """A built-in model: the Qwen2 architecture, trained from scratch, with the settings that suit it."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary: int
    lr: float
    batch_pairs: int
    epochs: int
    decay: float


SIZES = {"tiny": Size(layers=4, width=192, heads=6, feed_forward=512, vocabulary=8192, lr=1e-3, batch_pairs=64, epochs=1, decay=0.4)}
"""`tiny`: about 3.3 million parameters, half of them embeddings."""


class RewardModel(nn.Module):
    """Rewards, in logits, of the responses of a planned row."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(backbone.config.hidden_size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=1 / (backbone.config.hidden_size + 1) ** 0.5)

    def forward(self, plan: Plan) -> Tensor:
        """Shape (R,), float32, in the order of the plan's responses."""
        hidden = self.backbone(
            input_ids=plan.input_ids, position_ids=plan.position_ids, attention_mask=None, use_cache=False, plan=plan
        ).last_hidden_state
        ends = hidden[0, plan.end_positions].float()
        # a product and a sum, so that autocast leaves the head in float32: bfloat16 rewards would tie
        rewards: Tensor = (ends * self.score.weight[0].float()).sum(dim=-1)
        return rewards


def build(size: Size, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> RewardModel:
    """A model of a built-in size with random weights; the same seed gives the same weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=32_768,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,  # type: ignore[call-arg]  # a keyword that every config takes
        problem_type="regression",  # serving engines return the raw reward for it, not its sigmoid
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RewardModel(_backbone(config))


def _backbone(config: PreTrainedConfig) -> PreTrainedModel:
    AttentionInterface.register(ATTENTION, attend)
    backbone: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation=ATTENTION, dtype=torch.float32
    )
    return backbone


def save(model: RewardModel, folder: Path) -> None:
    """Write config and weights as a `*ForSequenceClassification` folder that plain transformers loads, with the same rewards.

    Raises:
        CheckpointError: If a weight is not finite.
    """
    tensors = to_tensors(model)
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{folder}: {broken[0]} holds NaN or infinite values; not saved")
    config = model.backbone.config.to_diff_dict()
    kind = type(model.backbone).__name__.removesuffix("Model")
    config |= {"architectures": [f"{kind}ForSequenceClassification"], "dtype": "float32", "use_cache": False}
    folders.write_atomically(folder / "config.json", folders.to_json(dict(sorted(config.items()))))
    folders.write_atomically(folder / WEIGHTS, to_bytes(tensors, metadata={"format": "pt"}))


def to_tensors(model: RewardModel) -> dict[str, Tensor]:
    """The weights under the names that a `*ForSequenceClassification` folder gives them."""
    prefix = model.backbone.base_model_prefix
    tensors = {f"{prefix}.{name}": tensor.detach().contiguous() for name, tensor in model.backbone.state_dict().items()}
    return tensors | {HEAD: model.score.weight.detach().contiguous()}


def load(folder: Path, *, dtype: torch.dtype = torch.float32) -> RewardModel:
    """The model of a `*ForSequenceClassification` folder with one label, in evaluation mode.

    Raises:
        CheckpointError: If a file is missing or damaged, or a weight is missing or left over: never a random head.
    """
    path = folder / WEIGHTS
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a readable checkpoint ({error}); train it again or get it again") from error
    model = RewardModel(_backbone(config))
    load_tensors(model, tensors, path)
    return model.to(dtype).eval()


def load_tensors(model: RewardModel, tensors: dict[str, Tensor], path: Path) -> None:
    """Put saved weights into a model of the same shape.

    Raises:
        CheckpointError: If the names or shapes differ.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in to_tensors(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        shapes = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
        raise CheckpointError(
            f"{path}: weights do not fit the config: missing {missing[:3]}, left over {extra[:3]}, other shape {shapes[:3]}"
        )
    prefix = f"{model.backbone.base_model_prefix}."
    model.backbone.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name != HEAD})
    model.score.load_state_dict({"weight": tensors[HEAD]})
