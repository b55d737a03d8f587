"""Feedback: how far marks move a threshold, what is recorded, and undoing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from afclip_lightning.inspection.few_shot_feedback import mark_few_shot
from afclip_runtime.errors import UserError, WriteError
from afclip_runtime.inspection.calibration import Calibration, fixed, from_normals, origin
from afclip_runtime.inspection.drift import NormalScores, keep
from afclip_runtime.inspection.feedback import Feedback, audit_file, moved


def calibrated(n: int = 200, seed: int = 0, fpr: float = 0.01) -> Calibration:
    scores = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    return Calibration(from_normals(scores, fpr), None, "abc", {}, origin("bolt", "bolts", n), keep(scores))


def ends(calibration: Calibration) -> tuple[float, float, float]:
    assert calibration.image.interval is not None
    low, high = calibration.image.interval
    return low, calibration.image.value, high


@pytest.mark.parametrize("n", [8, 20, 200, 2000])
@pytest.mark.parametrize("seed", range(5))
def test_one_wrong_mark_moves_the_threshold_at_most_half_of_the_way(n: int, seed: int) -> None:
    made = calibrated(n, seed)
    low, value, high = ends(made)
    for score in (value + 1e-6, high, 1e9):
        assert value <= moved(made, [score], []).value <= (value + high) / 2
    for score in (-1e9, low, low + 1e-6, value):
        assert (low + value) / 2 <= moved(made, [], [score]).value <= value


@pytest.mark.parametrize("n", [8, 20, 200, 2000])
def test_no_number_of_marks_moves_it_out_of_its_interval(n: int) -> None:
    made = calibrated(n)
    low, value, high = ends(made)
    rng = np.random.default_rng(0)
    for _ in range(20):
        alarms, missed = rng.normal(value, 3, rng.integers(0, 50)), rng.normal(value, 3, rng.integers(0, 50))
        alarms = alarms[alarms > value]
        found = moved(made, list(alarms), list(missed)).value
        assert low <= found <= high
        assert found <= moved(made, list(alarms), []).value  # a missed anomaly never raises it
        assert moved(made, list(alarms), []).value >= value  # nor does a false alarm lower it


def test_false_alarms_are_a_quantile_with_the_normal_images() -> None:
    """With 2,000 images and 1 % the threshold is an order statistic: each false alarm above it is one more above."""
    made = calibrated(2000)
    assert made.good is not None
    for count in range(1, 6):
        alarms = list(np.linspace(3.9, 4.0, count))  # in float64: equal to none of the normal images
        wanted = np.sort([*made.good.scores, *np.minimum(alarms, ends(made)[2])])
        rank = int(np.ceil((2000 + count + 1) * 0.99))
        assert moved(made, alarms, []).value == pytest.approx(wanted[rank - 1])


def test_a_missed_anomaly_is_found_from_then_on_and_one_that_cannot_be_changes_nothing() -> None:
    made = calibrated(200)
    low, value, high = ends(made)
    near = (low + 3 * value) / 4
    assert near > moved(made, [], [near]).value > near - 1e-9
    assert moved(made, [], [low - 1]).value == value
    assert moved(made, [high], [near]).value < near  # where marks disagree, the missed anomaly counts
    assert moved(made, [], []).value == value


def test_the_audit_file_keeps_every_line_and_undo_restores_the_threshold(tmp_path: Path) -> None:
    made = calibrated()
    path = tmp_path / "head.feedback.jsonl"
    one, low = Feedback(made, path), made.image.value
    first = one.mark("normal", "1" * 16, "a.png", 9.0, "Ada")
    assert first.threshold_before == low < first.threshold_after == one.calibration.image.value
    again = Feedback(made, path)  # another process
    assert again.calibration == one.calibration
    again.mark("normal", "2" * 16, "b.png", 9.0)
    one.mark("undo", "2" * 16, "b.png", 9.0)  # which has not seen the line of the other before
    assert one.calibration.image.value == first.threshold_after
    last = one.mark("undo", "1" * 16, "a.png", 9.0)
    assert last.threshold_after == low
    assert one.calibration == made
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["number"], line["mark"], line["image"][0]) for line in lines] == [
        (1, "normal", "1"),
        (2, "normal", "2"),
        (3, "undo", "2"),
        (4, "undo", "1"),
    ]
    assert lines[0]["who"].endswith("Ada")
    assert {line["verdict"] for line in lines} == {"anomalous"}
    assert str(one) == ""


def test_a_mark_that_cannot_be_written_down_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = calibrated()
    feedback = Feedback(made, tmp_path / "head.feedback.jsonl")

    def full(*_: object) -> None:
        raise WriteError("the disk is full")

    monkeypatch.setattr("afclip_runtime.inspection.feedback.write_json_lines", full)
    with pytest.raises(WriteError):
        feedback.mark("normal", "1" * 16, "a.png", 9.0)
    assert (feedback.calibration, feedback.marks, feedback.entries) == (made, {}, [])


def test_marks_that_say_nothing_are_refused_and_the_last_word_counts(tmp_path: Path) -> None:
    made = calibrated()
    feedback = Feedback(made, tmp_path / "head.feedback.jsonl")
    for mark, score, words in (
        ("anomalous", 9.0, "the verdict is anomalous already"),
        ("normal", -9.0, "the verdict is normal already"),
        ("undo", 9.0, "nothing to undo"),
    ):
        with pytest.raises(UserError, match=words):
            feedback.mark(mark, "1" * 16, "a.png", score)  # type: ignore[arg-type]
    assert not (tmp_path / "head.feedback.jsonl").exists()
    feedback.mark("normal", "1" * 16, "a.png", 9.0)
    with pytest.raises(UserError, match="is already marked as normal"):
        feedback.mark("normal", "1" * 16, "copy.png", 9.0)
    feedback.mark("anomalous", "1" * 16, "a.png", 9.0)  # that was a mistake: it is one after all
    assert feedback.calibration == made
    assert [entry.mark for entry in feedback.marks.values()] == ["anomalous"]


def test_feedback_holds_for_its_calibration_only(tmp_path: Path) -> None:
    path = tmp_path / "head.feedback.jsonl"
    Feedback(calibrated(), path).mark("normal", "1" * 16, "a.png", 9.0)
    other = Feedback(calibrated(seed=1), path)
    assert other.calibration == calibrated(seed=1)
    assert "1 line" in str(other)
    assert "earlier calibration" in str(other)
    other.mark("normal", "1" * 16, "a.png", 9.0)
    assert len(Feedback(calibrated(seed=1), path).entries) == 2


def test_thresholds_that_feedback_cannot_move_are_reported() -> None:
    made = calibrated()
    by_hand = replace(made, image=fixed(1.0, np.zeros(3)))
    old = replace(made, good=NormalScores(200, (), 0.0, 0.8))
    for calibration, words in ((by_hand, "does not"), (old, "earlier version"), (replace(made, good=None), "earlier")):
        feedback = Feedback(calibration, None)
        with pytest.raises(UserError, match=words):
            feedback.mark("normal", "1" * 16, "a.png", 9.0)
        assert feedback.calibration is calibration


def test_a_damaged_audit_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "head.feedback.jsonl"
    path.write_text('{"number": 1}\n')
    with pytest.raises(UserError, match=r"head\.feedback\.jsonl, line 1"):
        Feedback(calibrated(), path)


def test_where_the_audit_file_lies() -> None:
    assert audit_file(Path("run/head.bolt.calibration.json")) == Path("run/head.bolt.feedback.jsonl")
    assert audit_file(Path("bundle/bundle.json")) == Path("bundle/bundle.feedback.jsonl")


def test_images_join_the_few_shot_images_and_leave_them_again(tmp_path: Path) -> None:
    few_shot, image = tmp_path / "few_shot", tmp_path / "a.PNG"
    few_shot.mkdir()
    image.write_bytes(b"a picture")
    line = mark_few_shot(few_shot, "normal", image, "Ada")
    copy = few_shot / "feedback" / line.copy
    assert (copy.read_bytes(), copy.suffix) == (b"a picture", ".png")
    with pytest.raises(UserError, match="already"):
        mark_few_shot(few_shot, "normal", image)
    with pytest.raises(UserError, match="few-shot images are normal ones"):
        mark_few_shot(few_shot, "anomalous", image)
    mark_few_shot(few_shot, "undo", image)
    assert not copy.exists()
    with pytest.raises(UserError, match="nothing to undo"):
        mark_few_shot(few_shot, "undo", image)
    lines = [json.loads(line) for line in (few_shot / "feedback/feedback.jsonl").read_text().splitlines()]
    assert [line["mark"] for line in lines] == ["normal", "undo"]
