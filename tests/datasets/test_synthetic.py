"""The drawn dataset: reproducible, exactly labelled, and never half written or silently stale."""

import json
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from afclip_lightning.data.images import read_image, read_mask
from afclip_lightning.datasets import procedural, synthetic
from afclip_lightning.datasets.procedural import (
    AREA,
    CATEGORIES,
    DEFECTS,
    VISIBLE,
    draw_defect,
    expose,
    picture,
    render,
)
from afclip_lightning.datasets.synthetic import SYNTHETIC_TEST, SYNTHETIC_TRAIN, Synthetic
from afclip_runtime.errors import DatasetError

SMALL: dict[str, Any] = {"image_size": 64, "train_normal": 2, "test_normal": 2, "test_anomalous": 7, "num_workers": 0}
PAIRS = [(category, kind) for category, product in CATEGORIES.items() for kind in product.defects]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def drawn(tmp_path: Path) -> Synthetic:
    dataset = Synthetic(tmp_path / "set", ["gear", "metal"], **SMALL)
    dataset.prepare_data()
    return dataset


# --- the catalogue


def test_halves_are_disjoint_and_alike_in_kind() -> None:
    assert len(SYNTHETIC_TRAIN) == len(SYNTHETIC_TEST) == 6
    assert not set(SYNTHETIC_TRAIN) & set(SYNTHETIC_TEST)
    assert set(SYNTHETIC_TRAIN + SYNTHETIC_TEST) == set(CATEGORIES)
    for half in (SYNTHETIC_TRAIN, SYNTHETIC_TEST):
        assert sum(CATEGORIES[category].texture for category in half) == 3


def test_defects_are_many_and_all_used() -> None:
    assert len(DEFECTS) >= 8
    assert {kind for _, kind in PAIRS} == set(DEFECTS)
    assert all(len(set(product.defects)) >= 4 for product in CATEGORIES.values())


# --- pictures


@pytest.mark.parametrize("category", CATEGORIES)
def test_product(category: str) -> None:
    image, foreground = render(category, np.random.default_rng(0), 64)
    other, _ = render(category, np.random.default_rng(1), 64)
    assert image.shape == (3, 64, 64)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert foreground.all() if CATEGORIES[category].texture else 0.1 < foreground.mean() < 0.9
    assert np.abs(image - other).mean() > 0.005  # products vary


def test_categories_look_different() -> None:
    pictures = [picture(category, None, [0], 64)[0].astype(int) for category in CATEGORIES]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert np.abs(first - second).mean() > 10


@pytest.mark.parametrize(("category", "kind"), PAIRS)
def test_mask_is_exact(category: str, kind: str) -> None:
    image, foreground = render(category, np.random.default_rng(2), 64)
    for seed, strength in enumerate((0.0, 0.5, 1.0)):
        changed, mask = draw_defect(kind, image, foreground, np.random.default_rng(seed), strength)
        assert changed.dtype == np.float32
        assert mask.dtype == bool
        assert AREA[0] <= mask.mean() <= AREA[1]
        assert (mask & foreground).any()
        difference = np.abs(changed - image).max(axis=0)
        assert not difference[~mask].any()
        # Tidying the mask adds pixels that look the same, never most of it even on so small an image.
        assert (difference[mask] > VISIBLE).mean() > 0.55
        before, after = (expose(i, np.random.default_rng(3)) for i in (image, changed))
        assert np.array_equal(before[~mask], after[~mask])
        assert not np.array_equal(before[mask], after[mask])


@pytest.mark.parametrize("category", [c for c, product in CATEGORIES.items() if not product.texture])
def test_surface_defects_lie_on_the_object(category: str) -> None:
    image, foreground = render(category, np.random.default_rng(4), 64)
    near = cv2.dilate(foreground.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    for kind in set(CATEGORIES[category].defects) - {"chip", "fibre", "warp"}:
        _, mask = draw_defect(kind, image, foreground, np.random.default_rng(5), 1.0)
        assert not (mask & ~near).any()


def test_strength_makes_a_defect_stronger() -> None:
    image, foreground = render("metal", np.random.default_rng(0), 64)
    for kind in CATEGORIES["metal"].defects:
        sums = []
        for strength in (0.0, 1.0):
            draws = (draw_defect(kind, image, foreground, np.random.default_rng(i), strength)[0] for i in range(6))
            sums.append(sum(np.abs(changed - image).sum() for changed in draws))
        assert sums[1] > 2 * sums[0], kind


def test_strength_is_drawn_for_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    strengths: list[float] = []

    def spy(kind: str, image: Any, foreground: Any, rng: Any, strength: float) -> Any:
        strengths.append(strength)
        return draw_defect(kind, image, foreground, rng, strength)

    monkeypatch.setattr(procedural, "draw_defect", spy)
    for index in range(20):
        picture("metal", "stain", [index], 64)
    assert len(set(strengths)) == 20
    assert 0 <= min(strengths) < 0.2
    assert 0.8 < max(strengths) <= 1


def test_flawless_twin_is_the_same_outside_the_mask() -> None:
    image, mask = picture("capsule", "stain", [1, 2, 3], 64)
    twin, empty = picture("capsule", None, [1, 2, 3], 64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert not empty.any()
    assert mask.any()
    assert np.array_equal(image[~mask], twin[~mask])
    assert not np.array_equal(image, twin)


def test_picture_depends_on_the_entropy_and_not_on_threads() -> None:
    threads = cv2.getNumThreads()
    try:
        for category, product in CATEGORIES.items():
            pictures = []
            for count in (1, 4):
                cv2.setNumThreads(count)
                pictures.append(picture(category, product.defects[0], [7, 1], 96))
            assert np.array_equal(pictures[0][0], pictures[1][0])
            assert np.array_equal(pictures[0][1], pictures[1][1])
    finally:
        cv2.setNumThreads(threads)
    assert not np.array_equal(picture("wood", None, [7, 1], 64)[0], picture("wood", None, [7, 2], 64)[0])


# --- on disk


def test_same_bytes_whatever_else_is_drawn(drawn: Synthetic, tmp_path: Path) -> None:
    again = Synthetic(tmp_path / "again", ["metal"], **SMALL)
    again.prepare_data()
    first = contents(drawn.root / "metal")
    assert first == contents(again.root / "metal")
    assert len(first) == 2 + 2 + 2 * 7 + 1
    other = Synthetic(tmp_path / "other", ["metal"], seed=1, **SMALL)
    other.prepare_data()
    assert contents(other.root / "metal")["train/good/000.png"] != first["train/good/000.png"]


def test_no_image_occurs_twice(drawn: Synthetic) -> None:
    images = [s.image_path.read_bytes() for split in ("train", "test") for s in drawn.samples(split)]
    assert len(set(images)) == len(images)


def test_layout_is_read_back(drawn: Synthetic) -> None:
    drawn.setup("test")
    assert [s.label for s in drawn.samples("train")] == [0] * 4
    test = drawn.samples("test")
    assert Counter((s.dataset, s.category, s.label) for s in test) == {
        ("synthetic", category, label): count for category in ("gear", "metal") for label, count in ((0, 2), (1, 7))
    }
    kinds = Counter((s.category, s.image_path.parent.name) for s in test if s.label)
    for category in ("gear", "metal"):
        counts = [kinds[category, kind] for kind in CATEGORIES[category].defects]
        assert sum(counts) == 7
        assert max(counts) - min(counts) <= 1
    for sample in test:
        assert read_image(sample.image_path).shape == (64, 64, 3)
        assert sample.mask_known
        assert (sample.mask_path is None) == (sample.label == 0)
        if sample.mask_path:
            assert AREA[0] <= read_mask(sample.mask_path).mean() <= AREA[1]
            assert set(np.unique(np.asarray(Image.open(sample.mask_path)))) == {0, 255}


def test_categories_are_known_before_they_are_drawn(tmp_path: Path) -> None:
    dataset = Synthetic(tmp_path / "nowhere")
    assert dataset.find_categories() == [*SYNTHETIC_TRAIN, *SYNTHETIC_TEST]
    assert dataset.name == "synthetic"
    assert not dataset.is_absent()
    dataset.check()
    assert not dataset.root.exists()
    with pytest.raises(DatasetError, match="nowhere"):
        dataset.setup("test")


def test_only_what_is_absent_is_drawn(drawn: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(drawn.root)
    more = Synthetic(drawn.root, ["gear", "leather"], **SMALL)
    more.prepare_data()
    assert {k: v for k, v in contents(drawn.root).items() if not k.startswith("leather/")} == before
    monkeypatch.setattr(synthetic, "picture", None)  # drawing anything now would fail
    more.prepare_data()


@pytest.mark.parametrize("change", [{"seed": 5}, {"image_size": 96}, {"test_anomalous": 8}])
def test_other_settings_are_refused(drawn: Synthetic, change: dict[str, Any]) -> None:
    before = contents(drawn.root)
    other = Synthetic(drawn.root, ["metal"], **{**SMALL, **change})
    for act in (other.check, other.prepare_data, lambda: other.setup("test")):
        with pytest.raises(DatasetError) as caught:
            act()
        message = str(caught.value)
        (name, value), there = *change.items(), drawn.settings
        assert str(drawn.root / "metal") in message
        assert "delete" in message
        assert "`root`" in message
        assert f'"{name}": {value}' in message
        assert f'"{name}": {there[name]}' in message
    assert contents(drawn.root) == before
    Synthetic(drawn.root, ["wood"], **{**SMALL, **change}).check()  # a category not in use does not matter


@pytest.mark.parametrize("record", [None, "{", json.dumps({"seed": 0})])
def test_foreign_folder_is_refused(drawn: Synthetic, record: str | None) -> None:
    path = drawn.root / "gear" / "synthetic.json"
    path.unlink()
    if record is not None:
        path.write_text(record)
    with pytest.raises(DatasetError, match="gear"):
        drawn.prepare_data()


def test_interruption_leaves_no_half_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Synthetic(tmp_path / "set", ["metal", "gear"], **SMALL)
    drawn = 0

    def interrupted(category: str, *rest: object) -> object:
        nonlocal drawn
        drawn += category == "gear"
        if drawn > 3:
            raise KeyboardInterrupt
        return picture(category, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "picture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dataset.prepare_data()
    assert [p.name for p in dataset.root.iterdir()] == ["metal"]
    dataset.prepare_data()
    dataset.setup("test")
    assert len(dataset.samples("test")) == 2 * (2 + 7)


def test_leftovers_of_a_killed_run_do_no_harm(drawn: Synthetic) -> None:
    (drawn.root / ".wood-abc" / "wood" / "test").mkdir(parents=True)
    dataset = Synthetic(drawn.root, ["wood"], **SMALL)
    dataset.prepare_data()
    dataset.setup("test")
    assert len(dataset.samples("test")) == 9


def test_the_first_of_two_writers_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Synthetic(tmp_path / "set", ["metal"], **SMALL)
    fast = Synthetic(tmp_path / "set", ["metal"], **SMALL)
    first, before = Lock(), {}

    def overtaken(*args: object) -> object:
        if first.acquire(blocking=False):  # pictures are drawn by several threads
            monkeypatch.setattr(synthetic, "picture", picture)
            fast.prepare_data()
            (fast.root / "metal" / "mark").touch()
            before.update(contents(fast.root / "metal"))
        return picture(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic, "picture", overtaken)
    slow.prepare_data()
    assert contents(slow.root / "metal") == before
    assert [p.name for p in slow.root.iterdir()] == ["metal"]


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DatasetError, match="Choose another `root`"):
            Synthetic(root, ["metal"], **SMALL).prepare_data()


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"image_size": 8}, {"train_normal": 0}, {"test_anomalous": 0}])
def test_arguments_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Synthetic(**wrong)
