"""The checkpoint in the package loads by its name, and scores text of its forum."""

from pathlib import Path

import pytest

from worldpm import Scorer
from worldpm.model import sources

NAME = "worldpm/tiny-forum"
FOLDER = sources.CHECKPOINTS / "tiny-forum"
PROMPT = "How do I bake rye in the oven?"


def test_the_packaged_checkpoint_prefers_an_answer_on_topic() -> None:
    on_topic, off_topic = Scorer.load(NAME).rewards(
        PROMPT, ["Bake rye slowly.", "Prune roses slowly."]
    )
    assert on_topic > off_topic + 1


def test_the_packaged_checkpoint_is_small_and_its_card_names_its_limits() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "**This checkpoint cannot judge real answers.**" in card
    assert f'Scorer.load("{NAME}")' in card


def test_a_folder_of_the_user_goes_before_the_package(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worldpm").mkdir()
    (tmp_path / NAME).symlink_to(road / "checkpoint")
    own, packaged = Scorer.load(NAME), Scorer.load(FOLDER)
    assert own.rewards(PROMPT, ["a"]) == Scorer.load(road / "checkpoint").rewards(PROMPT, ["a"])
    assert own.rewards(PROMPT, ["a"]) != packaged.rewards(PROMPT, ["a"])
