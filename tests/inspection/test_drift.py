"""Drift: the stated rate of false alarms holds, and changes are found within the documented number of images."""

from importlib.resources import files

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from afclip_lightning import load
from afclip_lightning.inspection.adapt import FOLDS
from afclip_runtime.inspection.drift import FALSE_ALARMS, FEWEST, MOST_KEPT, Drift, NormalScores, _level, keep
from tests.support import REPOSITORY


def drawn(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def whole_run(kept: NormalScores | None, scores: np.ndarray) -> Drift:
    drift = Drift(kept)
    for score in scores:
        drift.add(score)
    drift.finish()
    return drift


def found_after(kept: NormalScores | None, scores: np.ndarray) -> int | None:
    """Returns the number of the image at which a drift is found; `None` without drift."""
    drift = Drift(kept)
    return next((drift.images for score in scores if drift.add(score)), None)


@pytest.mark.parametrize(("good", "stream"), [(8, 14), (20, 40), (200, 1000)])
@pytest.mark.parametrize("anomalous", [0.0, 0.5])
def test_false_alarms_of_whole_runs_keep_to_their_rate(good: int, stream: int, anomalous: float) -> None:
    alarms = 0
    for seed in range(400):
        scores = drawn(stream, 1000 + seed)
        scores[: int(anomalous * stream)] += 100
        alarms += whole_run(keep(drawn(good, seed)), np.random.default_rng(seed).permutation(scores)).alarms
    assert alarms <= 9  # of 400 at 1 %: more have a chance of 1 %


@pytest.mark.slow
@pytest.mark.parametrize("good", [20, 200])
def test_ten_thousand_stable_images_raise_no_more_alarms_than_promised(good: int) -> None:
    """Scores without a normal distribution; one image in twenty is anomalous, in bursts of 20."""
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng([good, seed])
        scores = rng.gamma(2.0, size=good + 10_000)
        for start in rng.choice(250, 25, replace=False) * 40:
            scores[good + start : good + start + 20] += 50
        alarms += found_after(keep(scores[:good]), scores[good:]) is not None
    assert alarms <= 4  # of 100 at 1 %: more have a chance of 0.4 %


def nearest(images: int, dimensions: int, stream: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns held-out scores of a memory's images, as `adapt` makes them, and scores of new images by the memory.

    An image is a point, and its score is the distance to the nearest point in the memory.
    """
    rng = np.random.default_rng([images, dimensions, stream, seed])
    normal, new = rng.normal(size=(images, dimensions)), rng.normal(size=(stream, dimensions))
    apart = np.linalg.norm(normal[:, None] - normal, axis=-1)
    fold = np.arange(images) % FOLDS
    apart[fold[:, None] == fold] = np.inf
    return apart.min(axis=1), np.linalg.norm(new[:, None] - normal, axis=-1).min(axis=1)


@pytest.mark.parametrize(
    ("images", "dimensions", "stream", "streams"),
    [
        (8, 1, 14, 400),
        (12, 2, 150, 400),
        (20, 1, 150, 400),
        (50, 8, 150, 400),
        pytest.param(8, 1, 1000, 1000, marks=pytest.mark.slow),
    ],
)
def test_false_alarms_on_held_out_scores_keep_to_their_rate(
    images: int, dimensions: int, stream: int, streams: int
) -> None:
    alarms = 0
    for seed in range(streams):
        held_out, new = nearest(images, dimensions, stream, seed)
        alarms += whole_run(keep(held_out, held_out=True), new).alarms
    assert alarms <= binom.ppf(0.99, streams, FALSE_ALARMS)


@pytest.mark.parametrize(("images", "most"), [(8, 320), (12, 240), (50, 100)])
def test_higher_scores_than_held_out_ones_are_found(images: int, most: int) -> None:
    """The same images, as far from the memory as another product; alone and after images without a change."""
    held_out, new = nearest(images, 2, 1000, 0)
    kept = keep(held_out, held_out=True)
    short = whole_run(kept, new[:30] + 10).alarm
    assert short is not None
    assert short.side == "higher"
    at = found_after(kept, np.concatenate([new[:500], new[500:] + 10]))
    assert at is not None
    assert 500 < at <= 500 + most


def test_lower_scores_than_held_out_ones_are_none() -> None:
    held_out, new = nearest(200, 2, 2000, 0)
    assert whole_run(keep(held_out), new * 0.5).alarms
    assert not whole_run(keep(held_out, held_out=True), new * 0.5).alarms


def test_levels_of_all_looks_add_up_to_the_promise() -> None:
    spent = np.cumsum([_level(look) for look in range(1, 2**16)])
    assert spent[-1] == pytest.approx(FALSE_ALARMS / 2 * 16 / 17)  # and the rest for those that come


@pytest.mark.parametrize("good", [8, 20, 200])
def test_other_products_are_told_in_a_short_run(good: int) -> None:
    kept = keep(drawn(good, 0))
    low, high = (whole_run(kept, drawn(14, 1, shift)).alarm for shift in (-10, 10))
    assert low is not None
    assert high is not None
    assert (low.side, high.side) == ("lower", "higher")
    assert "Of the last 14 images 14 lie in the normal range" in low.said
    assert "only 0 lie in the normal range" in high.said


@pytest.mark.parametrize(
    ("good", "shift", "most"),  # images within which nine of ten drifts are found; see docs/production.md
    [(50, -2, 90), (50, 4, 90), (200, -1, 410), (200, 1, 780), (200, 2, 260), (200, 4, 70), (1000, -1, 190)],
)
def test_a_shift_is_found_within_the_images_that_the_guide_states(good: int, shift: float, most: int) -> None:
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=1000 + most)
        scores[1000:] += shift
        at = found_after(keep(rng.normal(size=good)), scores)
        assert at is None or at > 1000
        found += at is not None
    assert found >= 15  # of 20 at 90 %: fewer have a chance of 1 %


def test_bursts_and_missed_anomalies_are_not_a_drift() -> None:
    kept, rng = keep(drawn(200, 0)), np.random.default_rng(1)
    scores = rng.normal(size=2000)
    scores[500:540] += 100  # a broken tool: 40 anomalous images in a row
    scores[1000:1500:2] += 100  # and every second one
    scores[1600:1900:20] += 1.5  # weak ones, most of them in the normal range
    assert found_after(kept, scores) is None
    assert found_after(kept, np.concatenate([scores, drawn(60, 2) + 100])) is not None


def test_a_drift_ends_when_images_look_normal_again() -> None:
    drift = Drift(keep(drawn(200, 0)))
    for score in drawn(300, 1, shift=4):
        drift.add(score)
    first = drift.alarm
    assert first is not None
    assert (first.side, first.image) == ("higher", 60)
    states = [drift.add(score) for score in drawn(200, 2)]
    assert states[0] is first
    assert states[-1] is None
    assert states.index(None) <= 100
    again = [drift.add(score) for score in drawn(200, 3, shift=-4)]
    assert again[-1] is not None
    assert (again[-1].side, drift.alarms) == ("lower", 2)


@pytest.mark.slow
def test_photos_in_another_light_are_found() -> None:
    """Bricks, shifted by a few pixels each time, through the embedded CLIP. Twice as bright, they differ."""
    pixels = np.asarray(Image.open(files("afclip_runtime.serving") / "web" / "sample.jpg").convert("L"), np.float64)
    rng = np.random.default_rng(0)

    def seen(images: int, light: float) -> list[np.ndarray]:
        corners = rng.integers(0, 8, (images, 2))
        cuts = [light * pixels[y : y + 160, x : x + 160] + rng.normal(0, 2, (160, 160)) for y, x in corners]
        return [np.repeat(np.clip(cut, 0, 255).astype(np.uint8)[..., None], 3, 2) for cut in cuts]

    config = REPOSITORY / "configs/anomalydino_demo.yaml"
    model = load(config, device="cpu", calibration=None, few_shot=seen(4, 1))
    kept = keep(np.array([found.score for found in model.predict_many(seen(50, 1))]))
    stable, bright = ([found.score for found in model.predict_many(seen(60, light))] for light in (1, 2))
    assert found_after(kept, np.array(stable)) is None
    assert found_after(kept, np.array(bright)) is not None


def test_a_stream_that_is_told_again_is_in_the_same_state() -> None:
    """The 9 digits of a float32 in a table are enough; scores of the normal images are recognised as equal."""
    normal, stream = drawn(100, 0).astype(np.float32), drawn(500, 1, 0.8).astype(np.float32)
    stream[::5] = normal
    kept = keep(normal)
    direct, told = Drift(kept), Drift(kept)
    for score in stream:
        direct.add(float(score))
        told.add(float(f"{score:.9g}"))
    assert np.array_equal(direct.counts, told.counts)
    assert direct.alarm == told.alarm


def test_what_is_kept() -> None:
    kept = keep(np.random.default_rng(0).permutation(np.arange(1.0, 21.0)))
    assert kept is not None
    assert kept.scores == tuple(np.arange(1.0, 21.0))
    assert kept.cuts() == ([4, 9, 14, 19], [4.0, 9.0, 14.0, 19.0])
    assert keep(np.arange(FEWEST - 1.0)) is None
    many = keep(drawn(MOST_KEPT + 1, 0))
    assert many is not None
    assert len(many.scores) == many.n == MOST_KEPT


def test_calibrations_of_earlier_versions_are_watched_too() -> None:
    scores = np.sort(drawn(200, 0))
    kept = NormalScores(200, (), float(scores[99]), float(scores[159]))
    assert found_after(kept, drawn(5000, 1)) is None
    assert found_after(kept, drawn(300, 2, 4)) == 60
    assert found_after(kept, drawn(300, 2, -2)) is not None


def test_nothing_to_compare_and_equal_scores() -> None:
    assert not whole_run(None, np.full(100, -9.0)).alarms
    assert not whole_run(keep(np.ones(50)), np.ones(500)).alarms  # equal scores speak for the calibration
    halves = np.repeat([1.0, 2.0], 50)
    assert not whole_run(keep(halves), np.random.default_rng(0).permutation(np.tile(halves, 10))).alarms


@pytest.mark.parametrize(
    "wrong", [{"n": 9, "scores": tuple(range(8))}, {"n": 8}, {"n": 8, "scores": (1, 2, 3, 4, 5, 6, 8, 7)}]
)
def test_damaged_scores_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="good"):
        NormalScores(**wrong)  # type: ignore[arg-type]
