"""Auto-J's pairwise test: 58 scenarios in eight groups, judged by people.

A row of `testdata_pairwise.jsonl`. The label is 0 if the first response is better, 1 if the second
is, and 2 for a tie:

    {"scenario": "chitchat", "label": 1, "prompt": "Hi!", "response 1": "Yes.", "response 2": "Hi!"}

Source: Li et al. 2023, arXiv 2310.05470; https://github.com/GAIR-NLP/auto-j, commit 2ae17a3,
`codes/leaderboard/pairwise_eval.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://github.com/GAIR-NLP/auto-j (`data/test/testdata_pairwise.jsonl`)"
GROUPS = {
    "Summarization": ("post_summarization", "text_summarization", "note_summarization"),
    "Exam Questions": (
        "math_reasoning",
        "solving_exam_question_with_math",
        "solving_exam_question_without_math",
    ),
    "Code": (
        "code_simplification",
        "code_generation",
        "explaining_code",
        "code_correction_rewriting",
        "code_to_code_translation",
    ),
    "Rewriting": (
        "text_simplification",
        "language_polishing",
        "instructional_rewriting",
        "text_correction",
        "paraphrasing",
    ),
    "Creative Writing": (
        "writing_song_lyrics",
        "writing_social_media_post",
        "writing_blog_post",
        "writing_personal_essay",
        "creative_writing",
        "writing_advertisement",
        "writing_marketing_materials",
        "writing_presentation_script",
        "counterfactual",
    ),
    "Functional Writing": (
        "writing_product_description",
        "writing_job_application",
        "writing_news_article",
        "writing_biography",
        "writing_email",
        "writing_legal_document",
        "writing_technical_document",
        "writing_scientific_paper",
        "functional_writing",
        "writing_cooking_recipe",
    ),
    "General Communication": (
        "asking_how_to_question",
        "open_question",
        "analyzing_general",
        "explaining_general",
        "seeking_advice",
        "recommendation",
        "value_judgement",
        "verifying_fact",
        "chitchat",
        "roleplay",
        "planning",
        "brainstorming",
    ),
    "NLP Tasks": (
        "ranking",
        "text_to_text_translation",
        "data_analysis",
        "classification_identification",
        "title_generation",
        "question_generation",
        "reading_comprehension",
        "keywords_extraction",
        "information_extraction",
        "topic_modeling",
        "others",
    ),
}
GROUP_OF = {scenario: group for group, scenarios in GROUPS.items() for scenario in scenarios}
"""Group of each scenario. A group is a subset of the benchmark."""
TIE = 2


class _Row(msgspec.Struct, frozen=True):
    """Two responses to a prompt."""

    scenario: str
    label: int
    prompt: str
    response_1: str = msgspec.field(name="response 1")
    response_2: str = msgspec.field(name="response 2")


def read(folder: Path) -> list[Item]:
    """The 1,019 pairs without ties, named by their row. Subsets are groups of scenarios.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the repository's format.
    """
    return parse(files(folder, "testdata_pairwise.jsonl", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    if row.label not in (0, 1, TIE):
        raise ValueError(f"label {row.label} is not 0, 1 or 2")
    if row.label == TIE:
        return  # neither response is better

    subset = GROUP_OF[row.scenario]
    yield two(subset, str(number), row.prompt, row.response_1, row.response_2, row.label)


def native(judged: Judged) -> dict[str, float]:
    """Agreement by group and over all pairs without tied labels; equal rewards are wrong. Auto-J's
    three-way agreement is left out, because it needs a threshold for ties."""
    # in the order of the authors' table, not of the file
    present = judged.subsets
    by_group = {name: strict_accuracy(judged.of(name)) for name in GROUPS if name in present}
    return {**by_group, "overall without ties": strict_accuracy(judged)}


AUTO_J = Benchmark(name="auto-j", home=HOME, read=read, native=native, domains={"subjective": ()})
