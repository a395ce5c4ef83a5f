"""A decoder with a head that reads a reward at each response's end token.

Groups run as one row with a shared prefix if that is exact for the model, or else as one row per
response.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
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

from worldpm.errors import first_line
from worldpm.model.encoder import EncodedGroup
from worldpm.model.frozen_states import FrozenStates
from worldpm.model.shared_prefix import (
    ATTENTION,
    UnplannedLayerError,
    attend,
    plan_row,
    run_row,
)
from worldpm.model.sizes import Size, config_of

logger = logging.getLogger(__name__)

SHAREABLE_LAYERS = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Rotary frequencies that depend on the longest sequence of a row: in a shared row, other responses
would change a reward."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference between the shared path and the plain one on first use, as a share of the
largest reward or of 1, and in half precision of the rounding scale; see `_rounding_scale`."""

STATES_TOLERANCE = 1e-5
"""Largest such difference between a model that reads the states of its frozen layers and one that
runs them."""


class RewardModel(nn.Module):
    """Rewards, in logits, of the responses of groups."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = head
        # layers that sharding engines must not split
        self._no_split_modules = list(backbone._no_split_modules or ())
        self.shares_prefix: bool | None = None
        """Whether groups run as rows with a shared prefix; None before the first use, which checks
        that it is exact."""
        self.frozen_states: FrozenStates | None = None
        """States of frozen layers, which then do not run; None if all layers run."""

    def forward(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """Shape (R,), float32, in the order of groups and responses. Every group must have a
        response."""
        if self.shares_prefix is None:
            self.share_prefix(_is_exact(self))

        if not self.shares_prefix:
            return self._read(self._apart(groups))
        return self._read(self._shared(groups, self.frozen_states))

    def share_prefix(self, share: bool) -> None:
        """Set whether rows share a prefix; otherwise the model uses its usual attention, also in
        recomputations."""
        self.shares_prefix = share
        attention = ATTENTION if share else _plain_attention(self.backbone)
        self.backbone.set_attn_implementation(attention)

    @contextmanager
    def separate_rows(self) -> Iterator[None]:
        """A context in which the model reads plain rows with its usual attention."""
        before = self.shares_prefix
        self.share_prefix(False)
        try:
            yield
        finally:
            self.share_prefix(before is not False)
            # None means unknown, not shared: the first use must still check it
            self.shares_prefix = before

    def _read(self, hidden: Tensor) -> Tensor:
        """Rewards of hidden states, shape (R, width), computed in float32: bfloat16 rewards would
        tie."""
        weights = {
            name: weight.to(hidden.device, torch.float32)
            for name, weight in self.score.named_parameters()
        }

        with torch.autocast(hidden.device.type, enabled=False):
            # a sum, not a view of the head's output, because FSDP2 hooks the results of a forward
            rewards: Tensor = torch.func.functional_call(
                self.score, weights, (hidden.float(),)
            ).sum(dim=-1)
        return rewards

    def keep_states(self, count: int, folder: Path) -> None:
        """Keep the states of the first `count` layers in a folder from now on, and run these layers
        only for states that are not there. The layers must not change.

        A model that shares no prompts, or whose later layers need more than these states, runs all
        layers as before, with a warning. Call this where the compute type is set.
        """
        model_type = self.backbone.config.model_type
        if self.shares_prefix is None:
            self.share_prefix(_is_exact(self))
        if not self.shares_prefix:
            logger.warning("%s: shares no prompts, so its frozen layers run each time", model_type)
            return

        states = FrozenStates(self.backbone, count, folder, _compute_type(self))
        if (fault := _fault_of_states(self, states)) is not None:
            logger.warning("%s: %s, so its frozen layers run each time", model_type, fault)
            return
        self.frozen_states = states

    def _shared(self, groups: Sequence[EncodedGroup], states: FrozenStates | None = None) -> Tensor:
        plan = plan_row(groups, device=self.device)
        if states is None:
            hidden = run_row(self.backbone, plan)
        else:
            with states.given_to(groups):
                hidden = run_row(self.backbone, plan, skipped=states.count)
        return hidden[0, plan.end_positions.to(hidden.device)]

    def _apart(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """One row per response; only rows of one length run together, so that no padding is
        needed."""
        sequences = []
        for group in groups:
            for suffix in group.suffixes:
                sequences.append(np.concatenate([group.prefix, suffix]).astype(np.int64))
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))

        ends = []
        for _, indices in groupby(order, key=lambda i: len(sequences[i])):
            ids = torch.from_numpy(np.stack([sequences[i] for i in indices])).to(self.device)
            ends.append(self.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, -1])

        # restore the order of groups and responses
        original_order = torch.tensor(np.argsort(order), device=ends[0].device)
        return torch.cat(ends)[original_order]

    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        """Rewards, shape (B,), of rows of one length given as embeddings, shape (B, T, width), read
        at their last position."""
        with self.separate_rows():
            hidden = self.backbone(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            return self._read(hidden[:, -1])

    @property
    def device(self) -> torch.device:
        """The device for token ids."""
        return cast(torch.device, self.backbone.get_input_embeddings().weight.device)


def _is_exact(model: RewardModel) -> bool:
    """Whether a model can share prompts, by its config and by a trial; if not, a warning gives the
    reason."""
    config = model.backbone.config.get_text_config()
    reason = unshareable(config)
    if reason is None:
        was_training = model.training
        model.eval()
        # the trial runs under the caller's autocast, like later rows
        with torch.no_grad():
            reason = _difference(model, config.vocab_size)
        model.train(was_training)

    if reason is None:
        return True
    logger.warning("%s: %s, so each response runs as a separate row", config.model_type, reason)
    return False


def _difference(model: RewardModel, vocabulary: int) -> str | None:
    """The fault of the shared path on two small groups of random tokens; None if it is exact."""
    groups = _trial_groups(vocabulary)
    try:
        shared = model._read(model._shared(groups))
    except UnplannedLayerError:
        return "not every layer is attention"
    with model.separate_rows():
        hidden = model._apart(groups)
        plain = model._read(hidden)

    compute_type = _compute_type(model)
    scale = 1.0 if compute_type == torch.float32 else _rounding_scale(model, hidden)
    worst = _relative_difference(shared, plain, least=scale)
    # NaN passes here, because the code that uses a reward checks that it is finite
    if worst > TOLERANCE[compute_type]:
        return f"its rewards differ by {worst:.2g} from those of separate rows"
    return None


def _fault_of_states(model: RewardModel, states: FrozenStates) -> str | None:
    """The reason why a model must run its frozen layers; None if their states are enough."""
    groups = _trial_groups(model.backbone.config.get_text_config().vocab_size)
    try:
        with torch.no_grad():
            whole = model._read(model._shared(groups))
            of_states = model._read(model._shared(groups, states))
    # some layers read keys of lower layers, or states of another shape: each fails differently
    except Exception as error:
        return f"its layers need more than the states of those below ({first_line(error)})"
    finally:
        # the trial's tokens are random
        states.forget()

    worst = _relative_difference(of_states, whole)
    return f"its rewards would differ by {worst:.2g}" if worst > STATES_TOLERANCE else None


def _trial_groups(vocabulary: int) -> list[EncodedGroup]:
    """Two small groups of random tokens."""
    rng = np.random.default_rng(0)
    prompt, *responses = (rng.integers(0, vocabulary, length) for length in (12, 5, 3, 7, 4))
    return [
        EncodedGroup(prompt, responses[:3], [0] * 3, [False] * 3),
        EncodedGroup(prompt[::-1], responses[3:], [0], [False]),
    ]


def _relative_difference(rewards: Tensor, exact: Tensor, *, least: float = 1.0) -> float:
    """The largest difference, as a share of the largest reward or of `least`."""
    return float((rewards - exact).abs().max() / exact.abs().max().clamp(min=least))


def _rounding_scale(model: RewardModel, hidden: Tensor) -> float:
    """The size of rewards that rounding scales with, at least 1: the root of the sum of squares of
    each state's part in its reward.

    A reward can be near 0 although large parts cancel in it, as with a fresh head of large weights.
    Rounding then moves it by a share of the parts, not of the reward.
    """
    with torch.enable_grad():
        states = hidden.detach().float().requires_grad_()
        (slopes,) = torch.autograd.grad(model._read(states).sum(), states)
    return max(1.0, float((states.detach() * slopes).norm(dim=-1).max()))


def _compute_type(model: RewardModel) -> torch.dtype:
    """The type of matrix products: autocast's type, or the type of the weights."""
    device = model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtype: torch.dtype = model.backbone.dtype
    return dtype


def unshareable(config: PreTrainedConfig) -> str | None:
    """The reason in a config why prefixes cannot be shared; None if there is none."""
    other_layers = set(getattr(config, "layer_types", None) or ()) - SHAREABLE_LAYERS
    if other_layers:
        return f"it has {', '.join(sorted(other_layers))} layers"

    # parameters for all layers, or a dictionary of parameters for each kind of layer
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    kinds = {str(part.get("rope_type")) for part in parts} & LENGTH_DEPENDENT_ROPE
    if kinds:
        return (
            f"its rotary embedding ({', '.join(sorted(kinds))}) depends on the longest sequence"
            " of a row"
        )
    return None


def _plain_attention(backbone: PreTrainedModel) -> str:
    """The attention that transformers would choose for a model."""
    return "sdpa" if backbone._supports_sdpa else "eager"


def compile_layers(model: RewardModel) -> None:
    """Fuse the operations between matrix products and attention; the first step then takes half a
    minute longer."""
    for module in model.backbone.modules():
        # layers that read their states from disk must stay replaceable
        is_trained = any(weight.requires_grad for weight in module.parameters())
        if isinstance(module, GradientCheckpointingLayer) and is_trained:
            module.compile(dynamic=True)


def build(size: Size, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> RewardModel:
    """A model of a built-in size with random weights; the same seed gives the same weights."""
    config = config_of(size, vocabulary=len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    # ZeRO-3 would draw the weights in partitions, and thus different weights
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    return from_config(config, seed=seed)


def from_config(config: PreTrainedConfig, *, seed: int) -> RewardModel:
    """A model of any decoder's config with random weights in float32; the config, which may be a
    running model's, is copied."""
    config = copy.deepcopy(config)
    AttentionInterface.register(ATTENTION, attend)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = AutoModel.from_config(
            without_dropout(config), attn_implementation=ATTENTION, dtype=torch.float32
        )  # type: ignore[no-untyped-call]
        return RewardModel(backbone, linear_head(config))


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with all dropout set to 0. Dropout would make rewards random, and all responses of
    a prompt would share it."""
    for name, value in vars(config).items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def linear_head(config: PreTrainedConfig) -> nn.Linear:
    """A random head in the layout of `*ForSequenceClassification`: rewards start with a standard
    deviation of about 1."""
    width = config.get_text_config().hidden_size
    head = nn.Linear(width, 1, bias=False)
    nn.init.normal_(head.weight, std=1 / (width + 1) ** 0.5)
    return head


def released_head(config: PreTrainedConfig) -> nn.Sequential:
    """The head of the released WorldPM, to be filled with weights from a checkpoint.

    Source: `modeling_qwen2_rm.py` of Qwen/WorldPM-72B.
    """
    width = config.get_text_config().hidden_size
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
