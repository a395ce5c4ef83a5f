"""Tokens of a tokenizer that have no row in the model's embedding, and would make it fail."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from worldpm.errors import CheckpointError
from worldpm.model.encoder import Encoder


def check(folder: Path, encoder: Encoder, config: PreTrainedConfig) -> None:
    """Reject a tokenizer with more ids than the embedding has rows.

    Special tokens that the template does not write are an exception: they are removed from the
    tokenizer. Gemma 3 1B, for instance, has one for images, and no row for it.

    Raises:
        CheckpointError: If a text could have an id without a row.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    tokenizer = encoder.tokenizer
    ids = tokenizer.get_vocab()
    largest = max(ids.values(), default=0)
    if rows is None or largest < rows:
        return

    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    template = str(tokenizer.chat_template or "")
    written = {tokenizer.bos_token, tokenizer.eos_token, encoder.frame.end_token}
    without_row = {token for token, number in ids.items() if number >= rows}
    if any(token in template for token in without_row) or not without_row <= special - written:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {largest}, but the embedding has {rows} rows,"
            f" for ids up to {rows - 1}. Put the model's tokenizer into the folder, or resize"
            " the embedding with transformers' `resize_token_embeddings`."
        )
    _remove(tokenizer, rows)


def _remove(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Remove the added tokens with ids from `rows` on from a tokenizer."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
