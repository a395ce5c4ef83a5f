"""A model reads the tokens of its own chat template, for templates of every shape."""

import copy
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from worldpm.errors import CheckpointError, ConfigError, TemplateRefusalError
from worldpm.model import chat, template_trial
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.tokenizer import train_tokenizer
from worldpm.records import Message

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
"""Refuses system turns, and turns that do not alternate."""
KEEP_LAST_THOUGHT = (
    "{% set body = m.content %}{% set thought = '' %}{% if '</think>' in body %}"
    "{% set thought = body.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set body = body.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
)
"""Removes the thinking from an assistant's message, as the templates of Qwen3 and GLM do."""

SHAPES = {
    "chatml": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END,
    "chatml with bos": "{{ bos_token }}" + LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n" + END,
    "qwen2.5": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}" + LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END,
    "qwen3": LOOP + "{% if m.role == 'assistant' %}" + KEEP_LAST_THOUGHT + "<|im_start|>assistant\n"
    "{% if loop.last or thought %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ body }}"
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}" + END,
    "llama 3": "{{ bos_token }}" + LOOP + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>" + END,
    "llama 3 with a date": "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today Date: {{ strftime_now('%d %b %Y') }}<|eot_id|>" + LOOP + "<|start_header_id|>"
    "{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>" + END,
    "gemma 2": "{{ bos_token }}" + ALTERNATING + LOOP + "<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    + END,
    "gemma 3": "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n" + END,
    "mistral": "{{ bos_token }}" + ALTERNATING + LOOP + "{% if m.role == 'user' %}[INST] "
    "{{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}" + END,
    "phi 3": LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END,
    "phi 4": LOOP + "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>" + END,
    "glm 4": "[gMASK]<sop>"
    + LOOP
    + "{% if m.role == 'assistant' %}"
    + KEEP_LAST_THOUGHT
    + "<|assistant|>\n<think>{{ thought }}</think>\n{{ body.strip() }}{% else %}<|{{ m.role }}|>\n"
    "{{ m.content }}{% endif %}" + END + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "deepseek": "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}</s>"
    "{% else %}{{ m.content }}{% endif %}"
    + END
    + "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
    "command r": "{{ bos_token }}" + LOOP + "<|START_OF_TURN_TOKEN|>"
    "{{ '<|CHATBOT_TOKEN|>' if m.role == 'assistant' else '<|USER_TOKEN|>' }}"
    "{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>" + END,
    "gpt-oss": "<|start|>system<|message|>Date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    + LOOP
    + "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>{{ m.role }}<|message|>"
    "{{ m.content }}<|end|>{% endif %}" + END,
    "smollm": "{% if messages[0].role != 'system' %}<|im_start|>system\nA helper.<|im_end|>\n"
    "{% endif %}" + LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END,
    "olmo": "{{ bos_token }}" + LOOP + "<|{{ m.role }}|>\n{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' and loop.last else '\n' }}" + END,
    "plain": chat.PLAIN_TEMPLATE,
}
"""Templates of these tests in the shapes of published ones."""

CONVERSATIONS: dict[str, tuple[list[tuple[str, str]], list[str]]] = {
    "one turn": ([("user", "the cat?")], ["sat", "  padded \n", "<b>a</b> &amp; <i>x</i>", "<"]),
    "unicode": ([("user", "\u732b \u00e9e\u0301?")], ["\u5ea7\u3063\u305f \U0001f408", "\u200b."]),
    "system": ([("system", "be kind"), ("user", "the cat?")], ["sat"]),
    "many turns": (
        [("user", "a"), ("assistant", "<think>\nq\n</think>\n\nb"), ("user", " c\n")],
        ["sat", "<p>html</p>"],
    ),
    "thinking": (
        [("user", "a")],
        ["<think>\nhm\n</think>\n\nyes", "<think>x</think>y", "</think>z", "<think>\nopen"],
    ),
    "two in a row": ([("user", "a"), ("user", "b")], ["c"]),
    "tool": ([("user", "a"), ("assistant", "b"), ("tool", '{"x": 1}')], ["c"]),
    "empty": ([("user", "a")], [""]),
}
TOKEN = re.compile(r"<\|[^|<>\s{]{1,40}\|>|</?[a-z_]{1,30}>|\[/?[A-Za-z]{2,30}\]|<\|?[a-z_]+\|?>")
WORDS = re.compile(r"</?(think|tool_call|tool_response|tools|b|i|p)>")
"""Tags that are tokens in some models, but not special tokens."""
BOS = ("<|begin_of_text|>", "<bos>", "<s>")
ROLES = [f"<|{role}|>" for role in ("system", "user", "assistant", "tool")]
ROOMY = Limits(max_length=100_000, prompt_length=50_000)


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return train_tokenizer(
        ["the cat sat on the mat and the dog ran"] * 20, vocabulary=400, max_length=100_000
    )


def tokenizer_of(base: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that has the tokens of a template."""
    tokenizer = copy.deepcopy(base)
    for name in sorted({*TOKEN.findall(template), *ROLES, "<think>", "</think>", "<s>", "</s>"}):
        special = not WORDS.fullmatch(name)
        token = AddedToken(name, special=special, normalized=False)
        tokenizer.add_tokens([token], special_tokens=special)
    tokenizer.bos_token = next(name for name in BOS if name in tokenizer.get_added_vocab())
    tokenizer.chat_template = chat.on_a_fixed_day(template)
    return tokenizer


def shipped() -> Iterator[Path]:
    """Chat templates in the package of TRL."""
    trl = find_spec("trl")
    if trl is not None and trl.origin is not None:
        yield from sorted((Path(trl.origin).parent / "chat_templates").glob("*.jinja"))


def takes_text(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a template accepts a text as the content of a message. Some templates of models for
    images accept only a list of parts."""
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    try:
        return "sat" in str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:
        return False


def reference(
    tokenizer: PreTrainedTokenizerFast,
    frame: chat.Frame,
    prompt: Sequence[tuple[str, str]],
    response: str,
) -> list[int]:
    """Tokens that plain transformers reads. The frame is an empty system turn and the end token."""
    turns = [{"role": role, "content": content} for role, content in prompt]
    if frame.empty_system and prompt[0][0] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    turns.append({"role": "assistant", "content": response})
    parts = [
        {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]}
        for turn in turns
    ]
    taken = turns if takes_text(tokenizer) else parts
    text = str(tokenizer.apply_chat_template(taken, tokenize=False))  # type: ignore[arg-type]
    if frame.end_token is not None:
        text = text.rstrip()
        text += "" if text.endswith(frame.end_token) else frame.end_token
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def check_as_transformers(tokenizer: PreTrainedTokenizerFast, frame: chat.Frame) -> int:
    """Compare all conversations. Return the number that the template accepts."""
    encoder, taken = Encoder(tokenizer, frame, ROOMY), 0
    for prompt, responses in CONVERSATIONS.values():
        messages = [Message(role, content) for role, content in prompt]
        for response in responses:
            try:
                expected = reference(tokenizer, frame, prompt, response)
            except Exception:
                with pytest.raises(TemplateRefusalError):
                    encoder.encode(messages, [response])
                continue

            group = encoder.encode(messages, [response])
            assert [*group.prefix, *group.suffixes[0]] == expected, (prompt, response)
            taken += 1
    return taken


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_those_of_transformers(base: PreTrainedTokenizerFast, shape: str) -> None:
    tokenizer = tokenizer_of(base, SHAPES[shape])
    for frame in (chat.frame_of(tokenizer), chat.UNFRAMED):
        assert check_as_transformers(tokenizer, frame) >= 9


@pytest.mark.skipif(not list(shipped()), reason="TRL, which has the templates, is not installed")
@pytest.mark.parametrize("path", list(shipped()), ids=lambda path: path.stem)
def test_tokens_of_shipped_templates_are_those_of_transformers(
    base: PreTrainedTokenizerFast, path: Path
) -> None:
    tokenizer = tokenizer_of(base, path.read_text(encoding="utf-8"))
    for frame in (chat.frame_of(tokenizer), chat.UNFRAMED):
        check_as_transformers(tokenizer, frame)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_special_token_in_a_post_is_text_and_changes_nothing_else(
    base: PreTrainedTokenizerFast, shape: str
) -> None:
    tokenizer = tokenizer_of(base, SHAPES[shape])
    frame = chat.frame_of(tokenizer)
    encoder = Encoder(tokenizer, frame, ROOMY)
    special = set(map(tokenizer.convert_tokens_to_ids, chat.special_tokens(tokenizer)))

    def read(word: str) -> list[int]:
        group = encoder.encode(
            [Message("user", f"x {word} y{word}")], [f"{word} <think>{word}</think> {word}"]
        )
        return [*group.prefix, *group.suffixes[0]]

    control = [token for token in read("z") if token in special]
    for token in chat.special_tokens(tokenizer):
        ids = read(token)
        assert [one for one in ids if one in special] == control, token
        turns = [Message("user", f"x {token} y{token}")]
        (conversation,) = chat.render(
            tokenizer, turns, [f"{token} <think>{token}</think> {token}"], frame=frame
        )
        assert tokenizer.decode(ids) == tokenizer.decode(
            tokenizer(conversation.text, add_special_tokens=False)["input_ids"]
        )


def test_text_around_a_literal_token_is_read_as_without_it(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_of(base, SHAPES["chatml"])
    encoder = Encoder(tokenizer, chat.frame_of(tokenizer), ROOMY)
    (sequence,) = encoder.read([Message("user", "the cat <|im_end|> sat")], ["on the mat"])
    words = "the cat <|im_end|> sat"
    ((start, end),) = sequence.prompt_words
    assert tokenizer.decode(sequence.ids[start:end]) == words
    assert tokenizer.decode(sequence.ids[sequence.prompt_end : sequence.response_end]) == (
        "on the mat"
    )


def test_one_of_several_templates_is_chosen_by_its_name(base: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = {"default": "a", "rag": "b"}
    assert chat.template_of(tokenizer, None, None) == "a"
    assert chat.template_of(tokenizer, None, "rag") == "b"
    with pytest.raises(ConfigError, match=r"--template-name tool: .* It has default, rag\."):
        chat.template_of(tokenizer, None, "tool")


def test_a_template_may_be_given_as_a_file_or_by_name(
    base: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    asked = str(tmp_path / "mine.jinja")
    assert chat.template_of(base, asked, None) == "{{ messages[0].content }}"
    assert chat.template_of(base, "plain", None) == chat.PLAIN_TEMPLATE
    with pytest.raises(ConfigError, match=r"--chat-template none: .* one of plain, chatml"):
        chat.template_of(base, "none", None)


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 'a' * 10**10 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}{{ n.x }}",
        "{{ messages[0].content.ljust(10**9) }}",
    ],
    ids=["product", "loops", "doubling", "padding"],
)
def test_a_template_that_needs_too_much_time_or_memory_is_refused(
    base: PreTrainedTokenizerFast, bomb: str
) -> None:
    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = bomb
    with pytest.raises(CheckpointError, match=r"not safe to fill: it (writes|runs)"):
        chat.template_of(tokenizer, None, None)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_common_template_passes_the_trial(shape: str) -> None:
    assert template_trial.fault_of(SHAPES[shape]) is None


@pytest.mark.parametrize(
    ("template", "seconds", "most_bytes", "is_ended"),
    [
        ("{{ messages[0].content }}", 5, 1 << 30, False),
        ("{% set a = 'a' * 10**9 %}" + 9 * "{% set b = a ~ 'b' %}", 99, 1 << 28, True),
        (2 * "{% for i in range(9**5) %}" + 2 * "{% endfor %}", 1, 1 << 30, True),
    ],
    ids=["harmless", "memory", "time"],
)
def test_without_limits_of_the_system_the_parent_ends_a_trial(
    monkeypatch: pytest.MonkeyPatch, template: str, seconds: int, most_bytes: int, is_ended: bool
) -> None:
    child = (  # psutil itself needs the module on POSIX
        "import sys, runpy, psutil; sys.modules['resource'] = None;"
        f" runpy.run_path({template_trial.__file__!r}, run_name='__main__')"
    )
    monkeypatch.setattr(template_trial, "COMMAND", (sys.executable, "-I", "-c", child))
    monkeypatch.setattr(template_trial, "HAS_LIMITS", False)
    monkeypatch.setattr(template_trial, "psutil", psutil, raising=False)
    monkeypatch.setattr(template_trial, "CPU_SECONDS", seconds)
    monkeypatch.setattr(template_trial, "MEMORY_BYTES", most_bytes)
    fault = template_trial.fault_of.__wrapped__(template)
    assert (fault is not None and "ends its process" in fault) == is_ended


def test_a_text_that_outgrows_its_messages_is_refused(base: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = "{% if 'boom' in messages[0].content %}{{ 'a' * 10**7 }}{% endif %}b"
    encoder = Encoder(tokenizer, chat.UNFRAMED, ROOMY)
    with pytest.raises(TemplateRefusalError, match="into 10,000,001 characters"):
        encoder.encode([Message("user", "boom")], ["b"])


def test_a_special_token_in_a_tool_call_is_refused(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_of(base, SHAPES["chatml"])
    encoder = Encoder(tokenizer, chat.frame_of(tokenizer), ROOMY)
    calls = [{"function": {"name": "look", "arguments": "<|im_end|>"}}]
    turn = Message.of({"role": "assistant", "content": None, "tool_calls": calls})
    with pytest.raises(TemplateRefusalError, match="another key of a message contains"):
        encoder.encode([Message("user", "a"), turn], ["b"])


def test_a_removed_bos_token_is_added_again_to_conversations_but_not_to_plain_text(
    base: PreTrainedTokenizerFast,
) -> None:
    def texts_of(template: str, bos: str) -> Callable[[str], str]:
        tokenizer = tokenizer_of(base, template)
        tokenizer.bos_token = bos
        encoder = Encoder(tokenizer, chat.UNFRAMED, ROOMY)

        def read(text: str) -> str:
            (group,) = encoder.read_texts([text])
            return str(tokenizer.decode([*group.prefix, *group.suffixes[0]]))

        return read

    llama = texts_of(SHAPES["llama 3"], "<|begin_of_text|>")
    turn = "<|start_header_id|>user<|end_header_id|>\n\nthe cat<|eot_id|>"
    assert llama(turn) == llama(f"<|begin_of_text|>{turn}") == f"<|begin_of_text|>{turn}"
    assert llama("the cat") == "<|begin_of_text|>the cat"

    # the bos_token begins every turn: text without any is not a conversation
    chatml = texts_of("{% for m in messages %}" + CHATML_TURN + "{% endfor %}", "<|im_start|>")
    turns = "<|im_start|>user\nthe cat<|im_end|><|im_start|>assistant\nsat<|im_end|>"
    assert chatml(turns) == chatml(turns.removeprefix("<|im_start|>")) == turns
    assert chatml("the cat") == "the cat"


CHATML_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
