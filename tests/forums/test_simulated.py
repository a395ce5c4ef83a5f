"""The simulated forum: what is planted, what the votes do with it, and how it compares with real
forums."""

import re
from collections.abc import Iterator

import pytest

from worldpm.benchmarks.items import Item, Judged
from worldpm.benchmarks.metrics import accuracy, metrics
from worldpm.evaluation import planted, tfidf
from worldpm.forums import hobbies
from worldpm.forums.hobbies import Truth
from worldpm.options.group import GroupRules
from worldpm.preferences.grouping import Tally, group_thread
from worldpm.records import Preference

Forum = list[tuple[Item, tuple[Truth, ...]]]


@pytest.fixture(scope="module")
def forum() -> Forum:
    """3,000 threads as items of all their pairs, each with its truth in the order of the
    responses."""
    return list(items_of(3000))


def items_of(threads: int) -> Iterator[tuple[Item, tuple[Truth, ...]]]:

    for thread, truths in hobbies.simulate(threads, seed=11):
        group = group_thread(thread, GroupRules(), Tally())
        if group is not None:
            # repeated answers are left out
            truth = {of_response.response_id: of_response for of_response in truths}
            yield (
                Item(
                    group.site,
                    group.group_id,
                    group.group_id,
                    group.prompt,
                    group.responses,
                    group.preferences,
                ),
                tuple(truth[response.meta["response_id"]] for response in group.responses),
            )


def test_a_thread_is_the_same_however_many_are_made() -> None:
    assert hobbies.simulate(5, seed=3) == hobbies.simulate(9, seed=3)[:5]
    assert hobbies.simulate(2, seed=3) != hobbies.simulate(2, seed=4)


def test_the_parts_add_up_and_the_crowd_likes_longer_texts(forum: Forum) -> None:
    for item, truths in forum[:200]:
        for response, truth in zip(item.responses, truths, strict=True):
            assert truth.response_id == response.meta["response_id"]
            assert truth.quality == pytest.approx(
                truth.adversarial + truth.objective + truth.subjective
            )
            assert truth.adversarial in (
                0.0,
                -hobbies.OFF_TOPIC_COST,
                -hobbies.CUT_COST,
                -hobbies.OFF_TOPIC_COST - hobbies.CUT_COST,
            )
            assert truth.objective in (0.0, hobbies.RIGHT_GAIN)
            doubled = hobbies.LENGTH_BIAS * (len(response.content.split())).bit_length()
            assert truth.quality < truth.appeal <= truth.quality + doubled


def test_an_off_topic_answer_is_about_another_hobby_and_a_right_one_gives_the_method() -> None:
    for thread, truths in hobbies.simulate(200, seed=5):
        topic = hobbies.TOPICS[int(thread.tags[0].removeprefix("topic"))]
        things = {topic.slow, topic.quick}
        (thing,) = things & set(re.findall(r"\w+", thread.title))
        right, wrong = (hobbies.SLOW, hobbies.QUICK)[:: 1 if thing == topic.slow else -1]
        for answer, truth in zip(thread.responses, truths, strict=True):
            tokens = set(re.findall(r"\w+", answer.body))
            if truth.adversarial == 0:
                assert tokens & {*things, topic.tool, topic.action}
                assert answer.body.rstrip("*").endswith((".", "!"))
                assert bool(tokens & {*right}) == (truth.objective > 0)
                assert bool(tokens & {*wrong}) == (truth.objective == 0)
            if truth.adversarial <= -hobbies.OFF_TOPIC_COST:
                assert not tokens & {*things, topic.tool}
                assert truth.objective == 0


def test_it_is_as_biased_as_real_forums(forum: Forum) -> None:
    items = [item for item, _ in forum]
    nulls = metrics(Judged(items, [[0.0] * len(item.responses) for item in items])).nulls
    assert 0.58 <= (nulls["longer"] or 0) <= 0.64
    assert 0.62 <= (nulls["earlier"] or 0) <= 0.73


def test_the_vote_ceiling_is_below_085_and_far_above_a_bag_of_words(forum: Forum) -> None:
    train, test = forum[:2000], forum[2000:]
    items = [item for item, _ in test]
    ceiling = accuracy(Judged(items, [[t.appeal for t in truths] for _, truths in test]))
    regression = tfidf.fit([item for item, _ in train])
    bag_of_words = accuracy(Judged(items, [regression(item) for item in items]))
    assert ceiling <= 0.85
    assert 0.5 < bag_of_words <= ceiling - 0.10


def test_no_reader_of_the_text_beats_the_ceiling_by_knowing_quality_alone(forum: Forum) -> None:
    items = [item for item, _ in forum]
    by_appeal, by_quality = (
        [[getattr(t, kind) for t in truths] for _, truths in forum]
        for kind in ("appeal", "quality")
    )
    assert accuracy(Judged(items, by_quality)) <= accuracy(Judged(items, by_appeal))


def truth_of(
    name: str, adversarial: float, objective: float, subjective: float, bonus: float = 0.0
) -> Truth:
    quality = adversarial + objective + subjective
    return Truth(name, adversarial, objective, subjective, quality, quality + bonus)


def test_a_pair_belongs_to_the_part_in_which_it_differs_most() -> None:
    complete, cut, wrong = (
        truth_of("a", 0, 1.3, 0.1),
        truth_of("b", -1.9, 1.3, 0.4),
        truth_of("c", 0, 0, 0.1),
    )
    assert planted.domain_of(complete, cut) == "adversarial"
    assert planted.domain_of(complete, wrong) == "objective"
    assert planted.domain_of(complete, truth_of("d", 0, 1.3, 0.4)) == "subjective"
    assert planted.domain_of(complete, complete) is None


def test_truth_is_judged_against_votes_and_against_quality(forum: Forum) -> None:
    items, truth = (
        [item for item, _ in forum[:400]],
        {t.response_id: t for _, truths in forum for t in truths},
    )
    perfect = [[truth[r.meta["response_id"]].quality for r in item.responses] for item in items]
    appeal = [[truth[r.meta["response_id"]].appeal for r in item.responses] for item in items]
    results = planted.judge(items, appeal, {"quality": perfect}, truth)
    assert {
        domain: result.way_to_ceiling for domain, result in results["votes"].items()
    } == pytest.approx({"overall": 1, "adversarial": 1, "objective": 1, "subjective": 1})

    by_quality = results["quality"]["overall"]
    assert by_quality.others["quality"] == by_quality.ceiling == 1.0
    assert by_quality.way_to_ceiling < 1.0  # the crowd's taste is not quality

    pairs = [results["votes"][domain].model.n for domain in ("overall", *planted.DOMAINS)]
    assert pairs[0] >= sum(pairs[1:]) > 0.9 * pairs[0]


def test_quality_pairs_are_all_pairs_of_different_quality() -> None:
    item, _ = next(items_of(1))
    truths = [truth_of(r.meta["response_id"], 0, 0, float(i)) for i, r in enumerate(item.responses)]
    pairs = planted._by_quality(item, truths).preferences
    k = len(truths)
    assert len(pairs) == k * (k - 1) // 2
    assert all(isinstance(p, Preference) and p.chosen > p.rejected for p in pairs)
    assert sum(p.weight for p in pairs) == pytest.approx(1)
