"""The test sets of the WorldPM paper as views of six benchmarks: twelve by domain, eighteen
subtasks, and safety separately.

Source: WorldPM, arXiv 2505.10527, sections 3.2 and 4, tables 2 and 3. The paper does not fully
describe its use of each set. Some choices are inferred from the set sizes that its decimals allow;
comments explain them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from worldpm.benchmarks import rewardbench1
from worldpm.benchmarks.items import Item, Judged
from worldpm.benchmarks.measures import PresetMean, PresetMeasures, PresetResult
from worldpm.benchmarks.metrics import metrics
from worldpm.records import Preference

NEEDS = ("rm-bench", "offsetbias", "rewardbench1", "ppe", "helpsteer2", "rmb")
"""The benchmarks of the views."""
STYLES = 3
"""Number of styles of each response in RM-Bench."""
ORIGINAL_STYLE = 1
"""Index of the RM-Bench style that counts as the original, for chosen and rejected responses. The
paper does not name the style."""


@dataclass(frozen=True)
class View:
    """Some items of a benchmark, with all their pairs or only some."""

    benchmark: str
    """Name of the benchmark."""
    keep: Callable[[Item], bool]
    """Whether an item belongs to the view."""
    one_style: bool = False
    """Whether only the pair of the original style counts, instead of all nine pairs of an RM-Bench
    item."""


def _of(*subsets: str) -> Callable[[Item], bool]:
    return lambda item: item.subset in subsets


def _without_haiku(item: Item) -> bool:
    """Select PPE's MBPP-Plus without the samples of Claude 3 Haiku, whose right answers are much
    shorter."""
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
    # RM-Bench takes its code from HumanEvalPack and its mathematics from MATH
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
"""The twelve test sets of the paper's main figure, and safety, which the paper shows separately."""
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
"""The eighteen subtasks of the paper's tables 2 and 3."""


def judge(judged: Mapping[str, Judged]) -> PresetResult:
    """Measures of every test set, and plain means over domains and subtasks. `judged` has the
    benchmarks of NEEDS.

    Sets without items are left out and listed in `missing`. Sets of RM-Bench also get the
    accuracies with each of the other two styles as the original.
    """
    test_sets: dict[str, PresetMeasures] = {}
    for name, view in VIEWS.items():
        # a benchmark may lack the subsets of a view, or --strata may not have drawn its items
        of_view = judged[view.benchmark].only(view.keep)
        if of_view.items:
            test_sets[name] = measures_of(view, of_view)

    return PresetResult(
        test_sets=test_sets,
        missing=[name for name in VIEWS if name not in test_sets],
        domains={domain: _mean(test_sets, names) for domain, names in DOMAINS.items()},
        subtasks={benchmark: _mean(test_sets, names) for benchmark, names in SUBTASKS.items()},
    )


def _mean(test_sets: Mapping[str, PresetMeasures], names: tuple[str, ...]) -> PresetMean:
    """Plain means over the named sets that have items."""
    # the result lists its sets, so that a mean over fewer sets is recognizable
    present = [name for name in names if name in test_sets]
    if not present:
        return PresetMean(accuracy=None, loss_nats=None, test_sets=[])

    return PresetMean(
        accuracy=fmean(test_sets[name].accuracy for name in present),
        loss_nats=fmean(test_sets[name].loss_nats for name in present),
        test_sets=present,
    )


def measures_of(view: View, judged: Judged) -> PresetMeasures:
    """Measures of a view's items."""
    if not view.one_style:
        return PresetMeasures(**vars(metrics(judged)))

    by_style = [metrics(_in_style(judged, style)) for style in range(STYLES)]
    accuracies = {
        str(style): measures.accuracy
        for style, measures in enumerate(by_style)
        if style != ORIGINAL_STYLE
    }
    return PresetMeasures(
        **vars(by_style[ORIGINAL_STYLE]), accuracy_with_other_originals=accuracies
    )


def _in_style(judged: Judged, style: int) -> Judged:
    """RM-Bench items with only the pair of the given style."""
    # three chosen responses come first, then three rejected ones, both in the order of styles
    pair = Preference(style, STYLES + style, 1.0)
    items = [replace(item, preferences=(pair,)) for item in judged.items]
    return replace(judged, items=items)
