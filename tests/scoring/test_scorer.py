"""The scorer as Python users call it: the inputs that it accepts and refuses, and equal rewards on
every path."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import worldpm
from tests import foreign_model
from worldpm import Message, Scorer
from worldpm.errors import DataError, TemplateRefusalError
from worldpm.scoring.scorer import Refused, Request, Scored

PROMPT, RESPONSES = "How many grams?", ["About 14.", "The lazy dog."]


@pytest.fixture(scope="module")
def scorer(road: Path) -> Scorer:
    return Scorer.load(road / "checkpoint")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_model.make(tmp_path_factory.mktemp("strict"), foreign_model.STRICT)


def test_prompts_are_texts_messages_or_dictionaries(scorer: Scorer) -> None:
    rewards = scorer.rewards(PROMPT, RESPONSES)
    assert scorer.rewards([Message("user", PROMPT)], RESPONSES) == rewards
    assert scorer.rewards([{"role": "user", "content": PROMPT}], RESPONSES) == rewards


def test_responses_are_lists_tuples_or_columns(scorer: Scorer) -> None:
    rewards = scorer.rewards(PROMPT, RESPONSES)
    assert scorer.rewards(PROMPT, tuple(RESPONSES)) == rewards
    assert scorer.rewards(PROMPT, np.array(RESPONSES)) == rewards
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert scorer.rewards(PROMPT, pandas.Series(RESPONSES)) == rewards


def test_responses_of_polars_are_accepted(scorer: Scorer) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    rewards = scorer.rewards(PROMPT, RESPONSES)
    assert scorer.rewards(PROMPT, polars.Series(RESPONSES)) == rewards


def test_one_text_as_responses_is_an_error(scorer: Scorer) -> None:
    with pytest.raises(
        TypeError, match=r"responses: a single str was given\. Give a list of texts\."
    ):
        scorer.rewards(PROMPT, "About 14.")


def test_a_missing_response_is_an_error_that_names_it(scorer: Scorer) -> None:
    with pytest.raises(TypeError, match=r"responses\[1\]: nan is not a text"):
        scorer.rewards(PROMPT, ["About 14.", float("nan")])  # type: ignore[list-item]


def test_a_message_without_text_is_an_error(scorer: Scorer) -> None:
    with pytest.raises(TypeError, match="the role 'user' and the content None"):
        scorer.rewards([{"role": "user", "content": None}], RESPONSES)


def test_many_prompts_are_streamed_in_order(scorer: Scorer) -> None:
    pairs = [(f"{PROMPT} {i}", RESPONSES[: 1 + i % 2]) for i in range(70)]
    many = list(scorer.rewards_many(iter(pairs), progress=True))
    assert [len(rewards) for rewards in many] == [1 + i % 2 for i in range(70)]
    assert many[69] == pytest.approx(scorer.rewards(*pairs[69]), abs=1e-5)


def test_a_scorer_describes_itself_and_the_package_has_a_version(scorer: Scorer) -> None:
    assert "parameters, float32 on cpu, at most 256 tokens)" in repr(scorer)
    assert worldpm.__version__.count(".") >= 1


def test_texts_that_are_equal_tokens_after_a_cut_tie_to_the_last_bit(scorer: Scorer) -> None:
    cutting = scorer.cutting(64)
    start = "the same words again and again " * 40
    responses = [f"{start} {number}" for number in range(7)]
    answer = cutting.answer(Request("x", [Message("user", "word " * 9)], responses))
    assert len(set(answer.rewards)) == 1
    assert answer.truncated == [True] * 7


def test_a_reward_depends_only_on_its_prompt_and_response_even_if_another_is_cut(
    scorer: Scorer,
) -> None:
    cutting = scorer.cutting(100)
    prompt, responses = "word " * 20, ["short", "long " * 300]
    together = cutting.rewards(prompt, responses)
    apart = [cutting.rewards(prompt, [response])[0] for response in responses]
    assert together == pytest.approx(apart, abs=1e-5)
    assert cutting.rewards(prompt, ["short"]) == pytest.approx(
        scorer.rewards(prompt, ["short"]), abs=1e-5
    )


def test_only_the_conversation_that_the_template_refuses_is_refused(strict: Path) -> None:
    scorer = Scorer.load(strict)
    one, two = [Message("user", "a")], [Message("user", "a"), Message("user", "b")]
    requests = [Request(f"line {i}", prompt, ["c"]) for i, prompt in enumerate((one, two, one))]
    first, refused, last = scorer.score(requests)
    assert isinstance(first, Scored)
    assert first == last
    assert refused == Refused(
        "line 1",
        "the chat template rejects it (roles must alternate). Use the roles and the order of turns"
        " that the model expects.",
    )
    with pytest.raises(TemplateRefusalError, match=r"^input: the chat template rejects it"):
        scorer.rewards(two, ["c"])
    with pytest.raises(DataError, match=r"^input 1: the chat template rejects it"):
        list(scorer.rewards_many([(one, ["c"]), (two, ["c"])]))


@pytest.mark.parametrize("template", [foreign_model.CHATML, foreign_model.STRICT])
def test_a_reward_is_that_of_plain_transformers(tmp_path: Path, template: str) -> None:
    folder = foreign_model.make(tmp_path, template)
    expected = [
        foreign_model.plain_reward(
            folder,
            [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}],
        )
        for response in RESPONSES
    ]
    assert Scorer.load(folder).rewards(PROMPT, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_rendered_text_gets_no_begin_token_that_its_template_does_not_write(
    tmp_path: Path,
) -> None:
    scorer = Scorer.load(foreign_model.make(tmp_path))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(scorer.encoder.tokenizer.apply_chat_template(turns, tokenize=False))
    (group,) = scorer.encoder.read_texts([text])
    encoded = scorer.encoder.encode([Message("user", "a")], ["b"])
    assert [*group.prefix, *group.suffixes[0]] == [*encoded.prefix, *encoded.suffixes[0]]


def test_rendered_text_gets_the_begin_token_that_a_client_removed(strict: Path) -> None:
    scorer = Scorer.load(strict)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(scorer.encoder.tokenizer.apply_chat_template(turns, tokenize=False))
    groups = scorer.encoder.read_texts([text, text.removeprefix("<|begin|>")])
    one, two = [[*group.prefix, *suffix] for group in groups for suffix in group.suffixes]
    assert one == two


def test_tool_calls_are_read_as_the_template_renders_them(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}"
        "<|im_end|>\n{% endfor %}"
    )
    folder = foreign_model.make(tmp_path, template)
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look"}}]},
        {"role": "tool", "content": "14", "name": "look"},
        {"role": "assistant", "content": "b"},
    ]
    expected = foreign_model.plain_reward(folder, turns)
    assert Scorer.load(folder).rewards(turns[:-1], ["b"]) == pytest.approx([expected], abs=1e-5)


def test_threads_share_a_scorer_from_its_first_use_on(road: Path) -> None:
    expected = Scorer.load(road / "checkpoint").rewards("Bread?", ["Yes.", "No."])
    scorer = Scorer.load(road / "checkpoint")
    copy = scorer.cutting()
    with ThreadPoolExecutor(8) as threads:
        jobs = [
            threads.submit(one.rewards, "Bread?", ["Yes.", "No."])
            for _ in range(40)
            for one in (scorer, copy)
        ]
    assert all(job.result() == pytest.approx(expected, abs=1e-5) for job in jobs)
