"""The test sets of the paper on WorldPM: twelve by domain, its eighteen subtasks, and safety apart,
as views of six benchmarks.

Source: WorldPM, arXiv 2505.10527, sections 3.2 and 4, tables 2 and 3. How the paper draws on each
set is partly inferred from the sizes that its decimals allow; where it does not say, the choice
stands here.
"""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from worldpm.benchmarks import rewardbench1
from worldpm.benchmarks.items import Item, Judged
from worldpm.benchmarks.metrics import metrics
from worldpm.records import Preference

Json = dict[str, Any]

NEEDS = ("rm-bench", "offsetbias", "rewardbench1", "ppe", "helpsteer2", "rmb")
ORIGINAL = 1
"""Which of RM-Bench's three styles is taken as the original response, in chosen and rejected alike;
the paper does not say."""


class View(NamedTuple):
    """Some items of a benchmark, and which of their pairs count."""

    benchmark: str
    keep: Callable[[Item], bool]
    one_style: bool = False


def _of(*subsets: str) -> Callable[[Item], bool]:
    return lambda item: item.subset in subsets


def _without_haiku(item: Item) -> bool:
    """PPE's MBPP-Plus without the samples of Claude 3 Haiku, whose right answers are short by
    far."""
    return item.subset == "mbpp_plus" and "haiku" not in item.item.lower()


def _rm_bench(*domains: str) -> View:
    return View("rm-bench", _of(*domains), one_style=True)


def _section(name: str) -> View:
    return View("rewardbench1", _of(*rewardbench1.SECTIONS[name]))


VIEWS = {
    "RM-Bench Chat": _rm_bench("chat"),
    "OffsetBias": View("offsetbias", lambda item: True),
    "LLMBar": View("rewardbench1", _of(*rewardbench1.LLMBAR)),
    "MBPP-Plus": View("ppe", _without_haiku),
    "MMLU-Pro": View("ppe", _of("mmlu_pro")),
    "GPQA": View("ppe", _of("gpqa")),
    "IFEval": View("ppe", _of("ifeval")),
    "HumanEvalPack": _rm_bench("code"),
    "MATH": _rm_bench("math"),
    "PPE Human": View("ppe", _of("human")),
    "HelpSteer2": View("helpsteer2", _of("helpfulness")),
    "RMB Helpfulness": View("rmb", _of("pairwise Helpfulness")),
    "RMB Harmlessness": View("rmb", _of("pairwise Harmlessness")),
    "RewardBench Safety": _section("Safety"),
    "RM-Bench Safety Response": _rm_bench("safety-response"),
    "RM-Bench Safety Refuse": _rm_bench("safety-refuse"),
    "PPE MATH": View("ppe", _of("math")),
    "RewardBench Chat": _section("Chat"),
    "RewardBench Chat Hard": _section("Chat Hard"),
    "RewardBench Reasoning": _section("Reasoning"),
}
DOMAINS = {
    "adversarial": ("RM-Bench Chat", "OffsetBias", "LLMBar"),
    "objective": ("MBPP-Plus", "MMLU-Pro", "GPQA", "IFEval", "HumanEvalPack", "MATH"),
    "subjective": ("PPE Human", "HelpSteer2", "RMB Helpfulness"),
    "safety": (
        "RMB Harmlessness",
        "RewardBench Safety",
        "RM-Bench Safety Response",
        "RM-Bench Safety Refuse",
    ),
}
"""The twelve of its main figure, and safety, which it shows apart."""
SUBTASKS = {
    "PPE": ("PPE Human", "MBPP-Plus", "GPQA", "IFEval", "PPE MATH", "MMLU-Pro"),
    "RMB": ("RMB Helpfulness", "RMB Harmlessness"),
    "RewardBench": (
        "RewardBench Chat",
        "RewardBench Chat Hard",
        "RewardBench Reasoning",
        "RewardBench Safety",
    ),
    "RM-Bench": (
        "RM-Bench Chat",
        "HumanEvalPack",
        "MATH",
        "RM-Bench Safety Response",
        "RM-Bench Safety Refuse",
    ),
    "OffsetBias": ("OffsetBias",),
}
"""The eighteen of its tables 2 and 3."""


def judge(judged: Mapping[str, Judged]) -> Json:
    """Metrics of every test set, and the domains' and subtasks' plain means; `judged` has the
    benchmarks of NEEDS.

    A set without items is left out and named under `missing`. Beside each set of RM-Bench stand the
    accuracies with the other two styles as the original.
    """
    chosen = {name: judged[view.benchmark].only(view.keep) for name, view in VIEWS.items()}
    sets = {name: _metrics(VIEWS[name], mine) for name, mine in chosen.items() if mine.items}
    return {
        "test_sets": sets,
        "missing": [name for name in VIEWS if name not in sets],
        "domains": {domain: _mean(sets, names) for domain, names in DOMAINS.items()},
        "subtasks": {benchmark: _mean(sets, names) for benchmark, names in SUBTASKS.items()},
    }


def _mean(sets: Mapping[str, Json], names: tuple[str, ...]) -> Json:
    """Plain means over the sets that are there; None without any."""
    there = [name for name in names if name in sets]
    means = {
        key: fmean(sets[name][key] for name in there) if there else None
        for key in ("accuracy", "loss_nats")
    }
    return {**means, "test_sets": there}


def _metrics(view: View, chosen: Judged) -> Json:
    if not view.one_style:
        return metrics(*chosen[:2])
    found = {
        style: metrics([_styled(item, style) for item in chosen.items], chosen.rewards)
        for style in range(3)
    }
    others = {style: one["accuracy"] for style, one in found.items() if style != ORIGINAL}
    return {**found[ORIGINAL], "accuracy_with_other_originals": others}


def _styled(item: Item, style: int) -> Item:
    """The one pair of an item of RM-Bench whose sides both have the style."""
    return item._replace(preferences=(Preference(style, 3 + style, 1.0),))
