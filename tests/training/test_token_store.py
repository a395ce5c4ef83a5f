"""Tokens on disk: a store returns what was written, with any number of workers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import foreign_model
from tests.foreign_model import STRICT
from worldpm.model import chat, checkpoint, sources
from worldpm.model.costs import attended_pairs
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.tokenizer import train_tokenizer
from worldpm.records import Message, Preference, PreferenceGroup, Response
from worldpm.training import token_store
from worldpm.training.token_store import TokenStore

LIMITS = Limits(max_length=60, prompt_length=30)


def groups(number: int) -> list[PreferenceGroup]:
    return [
        PreferenceGroup(
            f"site/{i}",
            "test",
            "site",
            "train",
            (Message("user", f"the cat {i} " * (1 + i % 9)),),
            tuple(Response(f"sat {i} " * (1 + j)) for j in range(2 + i % 3)),
            (Preference(0, 1, 2.0, 0.75, 0.5), Preference(1, 0, 1.0)),
        )
        for i in range(number)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(
        ["the cat sat on the mat"] * 20, vocabulary=300, max_length=512
    ).save_pretrained(folder)
    return folder


def test_a_store_returns_the_encoded_groups(tokenizer: Path, tmp_path: Path) -> None:
    made = groups(1100)  # more than two batches of the file
    counts = token_store.write(
        tmp_path / "store", token_store.encode(made, tokenizer, chat.Frame(), LIMITS, Counter())
    )
    store = TokenStore([tmp_path / "store"])
    encoder = Encoder(checkpoint.load_tokenizer(sources.Source(tokenizer)), chat.Frame(), LIMITS)
    for i in (0, 511, 512, 1099):
        expected = encoder.encode(made[i].prompt, [r.content for r in made[i].responses])
        example = store[i]
        assert (example.name, example.preferences) == (made[i].group_id, made[i].preferences)
        assert list(example.encoded.prefix) == expected.prefix
        assert [list(suffix) for suffix in example.encoded.suffixes] == expected.suffixes
        assert (example.encoded.truncated, example.encoded.response_tokens) == (
            expected.truncated,
            expected.response_tokens,
        )
        assert (store.tokens[i], store.pairs[i], store.weights[i]) == (expected.tokens, 2, 1.5)
        assert (store.tokens_apart[i], store.attended_apart[i]) == (
            sum(g.tokens for g in expected.apart),
            attended_pairs(expected.apart),
        )
        assert store.attended[i] == attended_pairs([expected])
    assert (counts.groups, counts.pairs, counts.responses) == (1100, 2200, 3299)
    assert 0 < counts.truncated_responses < 3299


@pytest.mark.usefixtures("warm_workers")
def test_the_workers_make_the_same_bytes(tokenizer: Path, tmp_path: Path) -> None:
    made = groups(600)
    for name, workers in (("alone", 0), ("workers", 2)):
        token_store.write(
            tmp_path / name,
            token_store.encode(made, tokenizer, chat.Frame(), LIMITS, Counter(), workers=workers),
        )
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "workers").read_bytes()


def test_an_empty_store_has_no_groups(tmp_path: Path) -> None:
    token_store.write(tmp_path / "store", [])
    store = TokenStore([tmp_path / "store"])
    assert (len(store), len(store.tokens), float(np.sum(store.weights))) == (0, 0, 0.0)
    with pytest.raises(IndexError):
        store[0]


def test_pairs_of_equal_tokens_and_refused_groups_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    made = checkpoint.load_tokenizer(sources.Source(foreign_model.make(tmp_path / "model", STRICT)))
    made.save_pretrained(tmp_path / "strict")
    same, other = Response("again " * 80 + "a"), Response("again " * 80 + "b")
    turns = (Message("user", "a"), Message("user", "b"))
    pairs = (Preference(0, 1, 1.0, 1.0, 0.5), Preference(0, 2, 1.0, 1.0, 0.5))
    kinds = [
        ((Message("user", "a"),), (same, other, Response("c")), pairs),
        ((Message("user", "a"),), (same, other), pairs[:1]),
        (turns, (same, other, Response("c")), pairs),
    ]
    drops: Counter[str] = Counter()
    (example,) = token_store.encode(
        [PreferenceGroup(f"s/{i}", "test", "s", "train", *kind) for i, kind in enumerate(kinds)],
        tmp_path / "strict",
        chat.UNFRAMED,
        LIMITS,
        drops,
    )
    assert [(pair.chosen, pair.rejected, pair.weight) for pair in example.preferences] == [
        (0, 2, 1.0)
    ]
    assert drops == {
        "pair whose responses are the same tokens": 2,
        "group that the chat template refuses": 1,
    }
