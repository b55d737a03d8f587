"""Images that are judged together: against a loop over groups, whatever the order of the images."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.metrics.groups import Group, groups_of, records_of, with_groups
from afclip_lightning.metrics.image_counts import CategoryCounts
from afclip_lightning.metrics.intervals import Settings, interval, intervals_of, resampled
from afclip_lightning.results import ImageScore, Row, shown_columns, with_means
from tests.reference import metrics_naive as naive

SCORES = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 0.75, 7.0])  # with ties
VIEWS = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(0, 1), SCORES), max_size=20)
KEY = "parts", "nut"


def images(views, key=KEY):
    return [
        ImageScore(*key, f"{i:02}.png", label, score, score, True, group=group)
        for i, (group, label, score) in enumerate(views)
    ]


def row(*key):
    return Row(*key, normal=1, anomalous=1, metrics={"image_auroc": 0.5})


def by_loop(views, rule):
    """Returns the labels and scores of groups. An image without a group is a group."""
    labels, scores = [], []
    for name in dict.fromkeys(group or i for i, (group, _, _) in enumerate(views)):
        members = [(label, score) for i, (group, label, score) in enumerate(views) if (group or i) == name]
        labels.append(1 if any(label == 1 for label, _ in members) else 0)
        total = members[0][1]
        for _, score in members[1:]:
            total = total + score if rule == "mean" else score if score > total else total
        scores.append(total / len(members) if rule == "mean" else total)
    return scores, labels


@pytest.mark.parametrize("rule", ["highest", "mean"])
@given(views=VIEWS)
@settings(max_examples=60, deadline=None)
def test_metrics_are_those_of_a_loop(rule, views):
    groups = groups_of(images(views), rule)
    (found,) = with_groups([row(*KEY)], groups)
    names = [group for group, _, _ in views if group]
    if len(names) == len(set(names)):
        assert groups == {}
    scores, labels = by_loop(views, rule)
    if not groups or len(set(labels)) < 2:
        assert found.metrics == {"image_auroc": 0.5}
        assert not found.thresholds
        return
    assert found.metrics["group_auroc"] == pytest.approx(naive.auroc(scores, labels))
    assert found.metrics["group_ap"] == pytest.approx(naive.average_precision(scores, labels))
    best = found.thresholds["group_f1_max"]
    assert found.metrics["group_f1_max"] == pytest.approx(naive.f1_max(scores, labels))
    called = [int(score > best) for score in scores]
    right = sum(a and b for a, b in zip(called, labels, strict=True))
    assert 2 * right / (sum(called) + sum(labels)) == pytest.approx(found.metrics["group_f1_max"])


def test_an_object_is_anomalous_where_one_view_is():
    views = [("a", 0, 0.9), ("a", 1, 0.1), ("b", 0, 0.3), ("", 0, 0.2), ("", 1, 0.4)]
    assert groups_of(images(views))[KEY] == [
        Group("03.png", 0, 0.2, 1),
        Group("04.png", 1, 0.4, 1),
        Group("a", 1, 0.9, 2),
        Group("b", 0, 0.3, 1),
    ]


def test_a_group_that_is_called_as_an_image_is_not_that_image():
    views = [("01.png", 0, 0.3), ("", 1, 0.5), ("01.png", 0, 0.2)]
    assert sorted(groups_of(images(views))[KEY]) == [Group("01.png", 0, 0.3, 2), Group("01.png", 1, 0.5, 1)]


def test_groups_are_of_one_category_and_the_order_of_images_is_nothing():
    views = [(name, label, score) for name, label, score in zip("aabbcc", [0, 0, 1, 0, 0, 1], range(6), strict=True)]
    both = [*images(views), *images(views[:2], ("parts", "bolt")), *images([("", 0, 1.0)], ("parts", "pin"))]
    expected = groups_of(both, "mean")
    assert {key: len(groups) for key, groups in expected.items()} == {("parts", "nut"): 3, ("parts", "bolt"): 1}
    random.Random(0).shuffle(both)
    assert groups_of(both, "mean") == expected


def test_the_mean_is_over_the_categories_that_have_groups_of_both_kinds():
    views = [(name, int(name > "c"), score) for score, name in enumerate("aabbccddee")]
    groups = groups_of([*images(views), *images(views[:4], ("parts", "bolt"))])
    rows = with_means(with_groups([row("parts", "nut"), row("parts", "bolt"), row("parts", "pin")], groups))
    assert [r.metrics.get("group_auroc") for r in rows] == [1.0, None, None, 1.0]
    assert rows[-1].categories["group_auroc"] == 1
    assert shown_columns(rows)[-1] == "group_auroc"


def test_intervals_draw_whole_groups():
    rng = np.random.default_rng(0)
    views = [(f"{i // 3:02}", int(i >= 30), score) for i, score in enumerate(rng.normal(np.arange(60) >= 30))]
    groups = groups_of(images(views))
    records = records_of({KEY: [Group(image.image, image.label, image.score, 1) for image in images(views)]})
    found = intervals_of(records, Settings(200), groups=records_of(groups)).by_row
    (whole,) = with_groups([row(*KEY)], groups)
    alone = resampled(CategoryCounts.of(records_of(groups)[KEY]), 200, (0, *KEY, "groups"))["image_auroc"]
    assert alone.value == whole.metrics["group_auroc"]
    assert len(alone.without[0]) == len(alone.without[1]) == 10
    for key in (KEY, ("parts", "mean")):
        low, high = found[key]["group_auroc"]
        assert low < alone.value < high
        assert (low, high) == pytest.approx(interval(alone))


def test_few_groups_have_no_interval():
    views = [(name, int(name > "b"), float(score)) for score, name in enumerate("aabbccdd" * 2)]
    found = intervals_of(
        records_of({KEY: [Group(i.image, i.label, i.score, 1) for i in images(views)]}),
        Settings(100),
        groups=records_of(groups_of(images(views))),
    )
    assert "group_auroc" not in found.by_row[KEY]
    assert "image_auroc" in found.by_row[KEY]
    note = "No interval of the groups of parts/nut: it has 2 normal and 2 anomalous groups of images"
    assert found.notes == [f"{note}, and an interval needs 5 of each."]
