"""Feedback: verdicts that were wrong, in an audit file beside the calibration, and how far they move its threshold."""

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
AUDIT = ".feedback.jsonl"  # what an audit file's name ends with
OF_NORMALS = ("quantile", "tail_fit")  # methods of thresholds that feedback can move
LONGEST = 200  # letters of a name that is written down


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of an audit file. Lines are added and never changed, so undoing a mark adds one too.

    Attributes:
        number: Of the line, from 1.
        date: When, in UTC.
        who: Who said so: the account, and the name that was given.
        mark: What the image is; `undo` takes back what was said of it.
        image: What the file is known by.
        path: Of the file, as it was given.
    """

    number: int
    date: str
    who: str
    mark: Mark
    image: str
    path: str


class Entry(Line, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line on a calibration.

    Attributes:
        score: Of the image.
        verdict: That was wrong.
        calibration: What the calibration is known by; lines of another one move nothing.
        threshold_before: Of image scores, when it was said.
        threshold_after: Likewise, from then on.
        rule: Of thresholds, by its number; see `moved`.
    """

    score: float
    verdict: Verdict
    calibration: str
    threshold_before: float
    threshold_after: float
    rule: int = 1

    @property
    def verdict_meant(self) -> Verdict | None:
        """What the image is; `None` if that was taken back."""
        return None if self.mark == "undo" else self.mark


def moved(calibration: Calibration, false_alarms: Sequence[float], missed: Sequence[float]) -> Threshold:
    """Returns the threshold of image scores that a calibration has with feedback. This is rule 1.

    - False alarms join the normal images, each at most as high as the upper end of the threshold's interval, and the
      threshold is chosen anew for the same false-positive rate. It never falls by that, and never rises above the
      highest false alarm.
    - A missed anomaly lowers the threshold to just below its score. Those that lie below the interval's lower end move
      nothing: no threshold of this calibration finds them. Where the two disagree, the missed anomaly counts.
    - k marks move the threshold at most k / (k + 1) of the way to the end of its interval: one half of it, two two
      thirds. So it never leaves the interval in which it lies anyway with a confidence of 90 %, and one wrong mark does
      at most half of that.

    False alarms that are told of are no random sample of normal images, and so alone would raise the threshold too far;
    the interval holds them back. Beyond, calibrate again with the images.

    Args:
        calibration: As it was made.
        false_alarms: Scores of normal images that were judged anomalous.
        missed: Scores of anomalous images that were judged normal.

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
    """Returns the interval within which feedback moves a calibration's threshold.

    Raises:
        UserError: The threshold does not come from normal images whose scores were kept.
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
    """Returns where the feedback on a calibration lies: `head.feedback.jsonl` beside `head.calibration.json`."""
    stem = calibrated_by.name.removesuffix(SUFFIX).removesuffix(".json")
    return calibrated_by.with_name(stem + AUDIT)


def known_by(calibration: Calibration) -> str:
    """Returns what a calibration is known by in an audit file, 16 hexadecimal digits."""
    made = calibration.origin
    facts = [calibration.checkpoint, calibration.image.value, calibration.image.n, made and [made.product, made.date]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class Feedback:
    """The feedback on a calibration.

    Args:
        calibration: As it was made; it is never changed.
        path: The audit file; `None` keeps the feedback in memory, for a calibration that is in no file.

    Attributes:
        before: The calibration as it was made.
        calibration: The calibration with the feedback.
        entries: All lines, those on earlier calibrations among them.

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
        """The marks that hold, by image: the last line on an image counts, and `undo` takes it back."""
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
        """Notes that an image was judged wrongly, or takes that back, and returns the new line.

        Args:
            mark: What the image is, or `undo`.
            image: What the file is known by.
            path: Of the file, to be written down.
            score: Of the image.
            who: Says so, beside the account of this process.

        Raises:
            UserError: The verdict on the image is right as it is, there is nothing to undo, the threshold cannot be
                moved, or the file cannot be written; nothing has changed then.
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
        """Returns the line of a mark; the threshold in it is that before."""
        check_movable(self.before)
        score = float(np.float32(score))
        now, known = self.calibration.image.value, self.marks.get(image)
        verdict: Verdict = "anomalous" if is_anomalous(score, now) else "normal"
        if mark == "undo" and known is None:
            raise UserError(f"{shown(path)}: nobody said that its verdict is wrong, so there is nothing to undo.")
        if known is not None and mark == known.mark:
            raise UserError(f"{shown(path)}: was marked as {mark} before (line {known.number}). Undo takes it back.")
        if known is None and mark == verdict:
            raise UserError(
                f"{shown(path)}: is judged {verdict} already (score {score:.6g}, threshold {now:.6g}). Mark images "
                "whose verdict is wrong."
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
    """Returns what every line of an audit file says; see `Line`."""
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
