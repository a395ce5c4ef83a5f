"""A decoder with a head that reads a reward at each response's end token.

Groups run as one row with a shared prefix where that is exact for the model, and else one row per
response.
"""

import copy
import logging
from collections.abc import Sequence
from itertools import groupby
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from worldpm.model.encoder import EncodedGroup
from worldpm.model.shared_prefix import ATTENTION, UnplannedLayerError, attend, plan_row
from worldpm.model.sizes import Size, config_of

logger = logging.getLogger(__name__)

SHAREABLE_LAYERS = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Rotary frequencies that depend on the longest sequence of a row: then a response's neighbours
would change its reward."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far the shared path may lie from the plain one on first use, in units of the reward or 1."""


class RewardModel(nn.Module):
    """Rewards, in logits, of the responses of groups."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = head
        self._no_split_modules = list(
            backbone._no_split_modules or ()
        )  # what sharding engines keep together
        self.shares_prefix: bool | None = None
        """Whether groups run as rows with a shared prefix; None until the first use has shown
        whether that is exact."""

    def forward(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """Shape (R,), float32, in the order of groups and responses. Every group must have a
        response."""
        if self.shares_prefix is None:
            self.share_prefix(_is_exact(self))
        ends = self._shared(groups) if self.shares_prefix else self._apart(groups)
        return self._read(ends)

    def share_prefix(self, share: bool) -> None:
        """Whether rows share a prefix from now on; if not, the model's own attention takes over, in
        recomputations too."""
        self.shares_prefix = share
        self.backbone.set_attn_implementation(ATTENTION if share else _own_attention(self.backbone))

    def _read(self, hidden: Tensor) -> Tensor:
        """Rewards of hidden states, shape (R, width), in float32 whatever the weights: bfloat16
        rewards would tie."""
        weights = {
            name: weight.to(hidden.device, torch.float32)
            for name, weight in self.score.named_parameters()
        }
        with torch.autocast(hidden.device.type, enabled=False):
            # no view of the head's output: FSDP2 puts its hooks on what a forward returns
            rewards: Tensor = torch.func.functional_call(
                self.score, weights, (hidden.float(),)
            ).sum(dim=-1)
        return rewards

    def _shared(self, groups: Sequence[EncodedGroup]) -> Tensor:
        plan = plan_row(groups, device=self.device)
        options = {"attention_mask": None, "use_cache": False, "plan": plan}
        hidden: Tensor = self.backbone(
            input_ids=plan.input_ids, position_ids=plan.position_ids, **options
        ).last_hidden_state
        if plan.calls < self.backbone.config.get_text_config().num_hidden_layers:
            raise UnplannedLayerError
        return hidden[0, plan.end_positions.to(hidden.device)]

    def _apart(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """One row per response; only rows of one length run together, so that there is no padding
        to go wrong."""
        sequences = [
            np.concatenate([group.prefix, suffix]).astype(np.int64)
            for group in groups
            for suffix in group.suffixes
        ]
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        ends = []
        for _, members in groupby(order, key=lambda i: len(sequences[i])):
            ids = torch.from_numpy(np.stack([sequences[i] for i in members])).to(self.device)
            ends.append(self.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, -1])
        place = torch.tensor(np.argsort(order), device=ends[0].device)
        return torch.cat(ends)[place]

    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        """Rewards, shape (B,), of rows of one length given as embeddings, shape (B, T, width), read
        at their last place."""
        shares = self.shares_prefix
        self.share_prefix(False)
        try:
            return self._read(
                self.backbone(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]
            )
        finally:
            if shares:
                self.share_prefix(True)

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return cast(torch.device, self.backbone.get_input_embeddings().weight.device)


def _is_exact(model: RewardModel) -> bool:
    """Whether a model can share prompts, by its config and by trying; where it cannot, one message
    says why."""
    config = model.backbone.config.get_text_config()
    why = unshareable(config)
    if why is None:
        training = model.training
        model.eval()
        with torch.no_grad():  # under the caller's autocast: what is checked is what will run
            why = _difference(model, config.vocab_size)
        model.train(training)
    if why is not None:
        logger.warning("%s: %s, so each response runs as a row of its own", config.model_type, why)
    return why is None


def _difference(model: RewardModel, vocabulary: int) -> str | None:
    """What the shared path gets wrong on two small groups of random tokens."""
    rng = np.random.default_rng(0)
    prompt, *responses, other = (rng.integers(0, vocabulary, length) for length in (12, 5, 3, 7, 4))
    groups = [
        EncodedGroup(prompt, responses, [0] * 3, [False] * 3),
        EncodedGroup(prompt[::-1], [other], [0], [False]),
    ]
    try:
        shared = model._read(model._shared(groups))
    except UnplannedLayerError:
        return "not every layer is attention"
    model.share_prefix(False)
    plain = model._read(model._apart(groups))
    model.share_prefix(True)
    worst = float((shared - plain).abs().max() / plain.abs().max().clamp(min=1))
    device = model.device.type
    dtype = (
        torch.get_autocast_dtype(device)
        if torch.is_autocast_enabled(device)
        else model.backbone.dtype
    )
    if worst > TOLERANCE[dtype]:  # NaN weights are found where rewards are used
        return f"its rewards differ by {worst:.2g} from those of separate rows"
    return None


def unshareable(config: PreTrainedConfig) -> str | None:
    """What a config says against a shared prefix."""
    if strange := sorted(set(getattr(config, "layer_types", None) or ()) - SHAREABLE_LAYERS):
        return f"it has {', '.join(strange)} layers"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {
        str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)
    }
    if length_dependent := sorted(kinds & LENGTH_DEPENDENT_ROPE):
        return (
            f"its rotary embedding ({', '.join(length_dependent)}) depends on the longest sequence"
            " of a row"
        )
    return None


def _own_attention(backbone: PreTrainedModel) -> str:
    """The attention that a model has without us."""
    return "sdpa" if backbone._supports_sdpa else "eager"


def compile_layers(model: RewardModel) -> None:
    """Fuse what lies between matrix products and attention; the first step then takes half a minute
    more."""
    for module in model.backbone.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def build(size: Size, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> RewardModel:
    """A model of a built-in size with random weights; the same seed gives the same weights."""
    config = config_of(size, vocabulary=len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    # ZeRO-3 would draw the weights in partitions, and so others
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    return from_config(config, seed=seed)


def from_config(config: PreTrainedConfig, *, seed: int) -> RewardModel:
    """A model of any decoder's config with random weights in float32; the config stays as it is,
    for it may be a running model's."""
    config = copy.deepcopy(config)
    AttentionInterface.register(ATTENTION, attend)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = AutoModel.from_config(
            without_dropout(config), attn_implementation=ATTENTION, dtype=torch.float32
        )  # type: ignore[no-untyped-call]
        return RewardModel(backbone, linear_head(config))


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with all dropout at 0: a response's reward must not be drawn by lot, nor a
    prompt's dropout be shared."""
    for name, value in vars(config).items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def linear_head(config: PreTrainedConfig) -> nn.Linear:
    """A fresh head, as `*ForSequenceClassification` has it: rewards start with a standard deviation
    of about 1."""
    width = config.get_text_config().hidden_size
    head = nn.Linear(width, 1, bias=False)
    nn.init.normal_(head.weight, std=1 / (width + 1) ** 0.5)
    return head


def released_head(config: PreTrainedConfig) -> nn.Sequential:
    """The head of the released WorldPM weights, to be filled from a checkpoint.

    Source: `modeling_qwen2_rm.py` of Qwen/WorldPM-72B.
    """
    width = config.get_text_config().hidden_size
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
