"""Feedback: wrong verdicts in an audit file beside the calibration, and how they move its threshold."""

import getpass
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from afclip_runtime.errors import UserError, counted, shown
from afclip_runtime.files import only_writer, read_json_lines, write_json_lines
from afclip_runtime.inspection.calibration import SUFFIX, Calibration, Threshold, from_normals, scale_of
from afclip_runtime.thresholds import Verdict, is_anomalous

Mark = Literal[Verdict, "undo"]
AUDIT = ".feedback.jsonl"  # end of the name of an audit file
OF_NORMALS = ("quantile", "tail_fit")  # methods of thresholds that feedback can move
LONGEST = 200  # maximum length of a recorded name


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of an audit file. Lines are added and never changed. Undoing a mark also adds a line.

    Attributes:
        number: Number of the line, from 1.
        date: Date and time in UTC.
        who: Author: the account, and the given name.
        mark: True kind of the image. `undo` withdraws the mark of the image.
        image: Identifier of the file.
        path: Path of the file, as given.
    """

    number: int
    date: str
    who: str
    mark: Mark
    image: str
    path: str


class Entry(Line, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line for a calibration.

    Attributes:
        score: Score of the image.
        verdict: The wrong verdict.
        calibration: Identifier of the calibration. Lines of another calibration have no effect.
        threshold_before: Threshold of image scores before this line.
        threshold_after: Threshold of image scores after this line.
        rule: Number of the rule that moved the threshold; see `moved`.
    """

    score: float
    verdict: Verdict
    calibration: str
    threshold_before: float
    threshold_after: float
    rule: int = 1

    @property
    def verdict_meant(self) -> Verdict | None:
        """True kind of the image; `None` if the mark was withdrawn."""
        return None if self.mark == "undo" else self.mark


def moved(calibration: Calibration, false_alarms: Sequence[float], missed: Sequence[float]) -> Threshold:
    """Returns the threshold of image scores of a calibration with feedback. This is rule 1.

    - False alarms are added to the normal scores, each clipped to the upper end of the threshold's interval. The
      threshold is then chosen again for the same false-positive rate. It does not decrease, and does not exceed the
      highest false alarm.
    - A missed anomaly lowers the threshold to just below its score. Missed anomalies below the interval have no effect,
      since no threshold of this calibration finds them. In a conflict with a false alarm, the missed anomaly counts.
    - k marks move the threshold by at most k / (k + 1) of the way to the end of its interval: 1 mark by 1/2, 2 marks by
      2/3. So it stays in its 90 % interval, and one wrong mark moves it by at most half of the way.

    Reported false alarms are not a random sample of normal images. Alone they would raise the threshold too far, which
    the interval prevents. For larger changes, calibrate again with the images.

    Args:
        calibration: The original calibration.
        false_alarms: Scores of normal images with the verdict anomalous.
        missed: Scores of anomalous images with the verdict normal.

    Raises:
        UserError: See `check_movable`.
    """
    image, interval = calibration.image, check_movable(calibration)
    low, high = interval
    assert calibration.good is not None
    normal = np.array(calibration.good.scores)
    value = image.value
    if false_alarms and image.fpr is not None:
        chosen = from_normals(np.concatenate([normal, np.minimum(false_alarms, high)]), image.fpr).value
        share = len(false_alarms) / (len(false_alarms) + 1)
        value = max(value, min(chosen, max(false_alarms), image.value + share * (high - image.value)))
    if reachable := [score for score in missed if score > low]:
        share = len(reachable) / (len(reachable) + 1)
        least = image.value - share * (image.value - low)
        value = min(value, max(least, float(np.nextafter(min(reachable), -np.inf))))
    return image if value == image.value else replace(image, value=value, scale=scale_of(value, normal))


def check_movable(calibration: Calibration) -> tuple[float, float]:
    """Returns the interval in which feedback can move the threshold of a calibration.

    Raises:
        UserError: The threshold was not chosen from normal images, or their scores were not kept.
    """
    image = calibration.image
    if image.method not in OF_NORMALS or image.interval is None:
        raise UserError(
            "feedback moves thresholds that come from a false-positive rate of normal images, and this one does not "
            f"({image.method}). Calibrate again with the images that were judged wrongly."
        )
    if calibration.good is None or not calibration.good.scores:
        raise UserError(
            "this calibration was made by an earlier version, which did not keep the normal images' scores. Calibrate "
            "again, then feedback can move its threshold."
        )
    return image.interval


def audit_file(calibrated_by: Path) -> Path:
    """Returns the audit file of a calibration: `head.feedback.jsonl` beside `head.calibration.json`."""
    stem = calibrated_by.name.removesuffix(SUFFIX).removesuffix(".json")
    return calibrated_by.with_name(stem + AUDIT)


def known_by(calibration: Calibration) -> str:
    """Returns the identifier of a calibration in an audit file, 16 hexadecimal digits."""
    made = calibration.origin
    facts = [calibration.checkpoint, calibration.image.value, calibration.image.n, made and [made.product, made.date]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class Feedback:
    """The feedback on a calibration.

    Args:
        calibration: The original calibration. It is never changed.
        path: The audit file. `None` keeps the feedback in memory, for a calibration without a file.

    Attributes:
        before: The original calibration.
        calibration: The calibration with the feedback.
        entries: All lines, also those of earlier calibrations.

    Raises:
        UserError: The file cannot be read, or the threshold cannot be moved.
    """

    def __init__(self, calibration: Calibration, path: Path | None) -> None:
        self.before = self.calibration = calibration
        self.path = path
        self.key = known_by(calibration)
        self.entries: list[Entry] = []
        self._read()

    def _read(self) -> None:
        if self.path and self.path.exists():
            remedy = "Put the file aside; the calibration then holds without feedback."
            self._take([entry for _, entry in read_json_lines(self.path, Entry, remedy=remedy)])

    def _take(self, entries: list[Entry]) -> None:
        self.entries, self.calibration = entries, self._moved_by(entries)

    @property
    def marks(self) -> dict[str, Entry]:
        """The valid marks by image. The last line of an image counts; `undo` withdraws its mark."""
        return self._marks_of(self.entries)

    def _marks_of(self, entries: Sequence[Entry]) -> dict[str, Entry]:
        last = {entry.image: entry for entry in entries if entry.calibration == self.key}
        return {image: entry for image, entry in last.items() if entry.mark != "undo"}

    def _moved_by(self, entries: Sequence[Entry]) -> Calibration:
        marks = self._marks_of(entries).values()
        if not marks:
            return self.before
        scores = {kind: [entry.score for entry in marks if entry.mark == kind] for kind in ("normal", "anomalous")}
        return replace(self.before, image=moved(self.before, scores["normal"], scores["anomalous"]))

    def mark(self, mark: Mark, image: str, path: str, score: float, who: str = "") -> Entry:
        """Marks the verdict of an image as wrong, or withdraws the mark. Returns the new line.

        Args:
            mark: True kind of the image, or `undo`.
            image: Identifier of the file.
            path: Path of the file, for the record.
            score: Score of the image.
            who: Name of the author, in addition to the account of this process.

        Raises:
            UserError: The verdict of the image is already right, there is nothing to undo, the threshold cannot be
                moved, or the file cannot be written. Then nothing has changed.
        """
        with only_writer(self.path.parent) if self.path else nullcontext():
            self._read()  # another process may have written since
            entries = [*self.entries, self._next(mark, image, path, score, who)]
            after = self._moved_by(entries).image.value
            entries[-1] = msgspec.structs.replace(entries[-1], threshold_after=after)
            if self.path:
                write_json_lines(self.path, [msgspec.to_builtins(entry) for entry in entries])
            self._take(entries)
        return entries[-1]

    def _next(self, mark: Mark, image: str, path: str, score: float, who: str) -> Entry:
        """Returns the line of a mark, with the threshold before it."""
        check_movable(self.before)
        score = float(np.float32(score))
        now, known = self.calibration.image.value, self.marks.get(image)
        verdict: Verdict = "anomalous" if is_anomalous(score, now) else "normal"
        if mark == "undo" and known is None:
            raise UserError(f"{shown(path)}: it has no mark, so there is nothing to undo.")
        if known is not None and mark == known.mark:
            raise UserError(
                f"{shown(path)}: is already marked as {mark} (line {known.number}). Use undo to withdraw the mark."
            )
        if known is None and mark == verdict:
            raise UserError(
                f"{shown(path)}: the verdict is {verdict} already (score {score:.6g}, threshold {now:.6g}). Mark "
                "images whose verdict is wrong."
            )
        return Entry(
            **facts_of(self.entries, mark, image, path, who),
            score=score,
            verdict=known.verdict if known is not None else verdict,
            calibration=self.key,
            threshold_before=now,
            threshold_after=now,
        )

    def __str__(self) -> str:
        others = sum(entry.calibration != self.key for entry in self.entries)
        said = []
        if marks := self.marks:
            before, now = self.before.image.value, self.calibration.image.value
            said.append(f"{counted(len(marks), 'mark')} of feedback: threshold {now:.6g}, {before:.6g} without")
        if others:
            said.append(f"{counted(others, 'line')} of {self.path} on an earlier calibration: not used")
        return "; ".join(said)


def facts_of(before: Sequence[Line], mark: Mark, image: str, path: str, who: str) -> dict[str, Any]:
    """Returns the fields of every line of an audit file; see `Line`."""
    return {
        "number": len(before) + 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "who": ", ".join(filter(None, (_account(), who.strip()[:LONGEST]))),
        "mark": mark,
        "image": image,
        "path": path[-LONGEST:],
    }


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may have a user without a name
        return ""
