"""Preferences of groups become index tensors."""

import pytest
import torch

from worldpm.records import Preference
from worldpm.stats.pairs import pairs_of


def test_indices_count_the_responses_of_all_groups() -> None:
    first = [Preference(0, 1, 2.0, probability=0.7, weight=0.5), Preference(2, 1, 1.0)]
    second = [Preference(1, 0, 3.0)]
    pairs = pairs_of([(3, first), (2, second)])

    assert pairs.chosen.tolist() == [0, 2, 4]
    assert pairs.rejected.tolist() == [1, 1, 3]
    assert pairs.strength.tolist() == [2.0, 1.0, 3.0]
    assert pairs.probability.tolist() == pytest.approx([0.7, 1.0, 1.0])
    assert pairs.weight.tolist() == [0.5, 1.0, 1.0]
    assert pairs.chosen.dtype == torch.int64


def test_groups_without_preferences_are_an_error() -> None:
    with pytest.raises(ValueError, match="no preferences"):
        pairs_of([(2, [])])
