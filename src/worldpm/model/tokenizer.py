"""A byte-level BPE tokenizer, trained on the train split's text, in the Qwen chat format."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from worldpm.model.chat import END_TOKEN, PAD_TOKEN, QWEN_TEMPLATE, TURN_END, TURN_START

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pieces that text is cut into before merging; every digit is a piece. Source: Qwen2's tokenizer,
`pretokenize_regex`."""

ROLES = ["system\n", "user\n", "assistant\n"]
ROLE_REPEATS = 1000
"""How often each role is added to the texts, so that it becomes one token."""


def train_tokenizer(
    texts: Iterable[str], *, vocabulary: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens; fewer if the texts give fewer merges.

    Its pad token is used for nothing else, so it cannot be mistaken for the end token.
    """
    bpe = Tokenizer(models.BPE())
    # composed and decomposed letters become the same tokens
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()

    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_TOKEN, TURN_START, TURN_END, PAD_TOKEN],
        # all 256 bytes, so that every text has tokens
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(chain(texts, ROLES * ROLE_REPEATS), trainer)

    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files with its chat template.

    Raises:
        OSError: If they cannot be written, as on a full disk.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # the library raises errors of the operating system as plain exceptions
        if "os error" not in str(error):
            raise
        raise OSError(f"{folder}: {error}") from error
