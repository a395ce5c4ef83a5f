"""Built-in sizes: small Qwen2 models that are trained from scratch, with the settings that suit
them."""

import math
from typing import NamedTuple

from transformers import Qwen2Config

from worldpm.options.train import WIDTHS


class Size(NamedTuple):
    """A built-in model and its training settings: the Qwen2 architecture, trained from scratch."""

    layers: int
    width: int
    """Numbers in a hidden state."""
    heads: int
    """Heads of queries; keys and values have the same number."""
    feed_forward: int
    """Width between the two products of a feed-forward layer."""
    vocabulary: int
    """Most tokens of the tokenizer."""
    lr: float
    """Peak learning rate."""
    batch_pairs: int
    """Pairs in a step."""
    epochs: int
    decay: float
    """Share of the steps in which the learning rate falls, 0 to 1."""


POSITIONS = 32_768
"""Positions of a built-in model, in tokens."""


def _rung(width: int) -> Size:
    """One size of a ladder: a layer for each 32 of width, so that N = 12 layers width^2 grows with
    the cube of the width."""
    return Size(
        layers=max(1, round(width / 32)),
        width=width,
        heads=width // math.gcd(width, 32),
        feed_forward=8 * round(width / 3),
        vocabulary=8192,
        lr=1e-3 * min(1.0, 128 / width),
        batch_pairs=128,
        epochs=1,
        decay=0.0,
    )


SIZES = {
    "tiny": Size(
        layers=4,
        width=192,
        heads=6,
        feed_forward=512,
        vocabulary=8192,
        lr=1e-3,
        batch_pairs=64,
        epochs=1,
        decay=0.4,
    ),
    **{f"w{width}": _rung(width) for width in WIDTHS},
}
"""`tiny`: about 3.3 million parameters, half of them embeddings. `w16` to `w640`: rungs of a
ladder, by one rule, with 3 thousand to 98 million parameters that are not embeddings."""


def config_of(size: Size, *, vocabulary: int) -> Qwen2Config:
    """The config of a built-in size."""
    # the usual 0.02 suits widths beyond 2000; with it, narrow models learn nothing for a long time
    initializer_range = size.width**-0.5
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        initializer_range=initializer_range,
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
