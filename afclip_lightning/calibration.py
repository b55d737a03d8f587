"""Thresholds from good images or labelled ones, with their uncertainty, and the file that keeps them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afclip_lightning.errors import CheckpointError, DatasetError
from afclip_lightning.files import write_json

SUFFIX = ".calibration.json"


@dataclass(frozen=True)
class Threshold:
    """A threshold, and how it came about.

    Attributes:
        value: What lies above it is anomalous.
        scale: Distance to a typical good value over log 9, the unit of `probability`; `None` where no good image was
            seen.
        method: `quantile`, `tail_fit`, `pixel_quantile`, `f1`, `balanced` or `fixed`.
        n: Images that it comes from.
        fpr: Share of good images, or of their pixels, that it was chosen to let through as anomalous; measured where
            it was chosen otherwise; `None` where no good image was seen.
        interval: Within which the threshold lies, at `confidence`; `None` where it was fixed by hand.
        confidence: Of the interval.
    """

    value: float
    scale: float | None
    method: str
    n: int
    fpr: float | None
    interval: tuple[float, float] | None
    confidence: float = 0.9


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one checkpoint, seen in one way.

    Attributes:
        image: Of image scores.
        pixel: Of the values of maps; `None` without good images.
        checkpoint: Fingerprint of the checkpoint.
        settings: What else the scores depend on: tiles, category, few-shot images, features.
    """

    image: Threshold
    pixel: Threshold | None
    checkpoint: str
    settings: dict[str, Any]

    def save(self, path: Path) -> None:
        """Writes the calibration in one step.

        Raises:
            UserError: The file cannot be written.
        """
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Returns a calibration that `save` wrote.

        Raises:
            DatasetError: The file cannot be read, or is no calibration.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            image, pixel = (None if content[key] is None else _threshold(content[key]) for key in ("image", "pixel"))
            assert image is not None
            return cls(image, pixel, content["checkpoint"], content["settings"])
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise DatasetError(f"{path}: cannot be read as a calibration ({error!r}). Calibrate again.") from error

    def check(self, path: Path, checkpoint: str, settings: Mapping[str, Any]) -> None:
        """Refuses a checkpoint or settings other than those that were calibrated.

        Args:
            path: The calibration, for the message.
            checkpoint: Fingerprint of the checkpoint in use.
            settings: Those in use.

        Raises:
            CheckpointError: Names every difference.
        """
        problems = [] if checkpoint == self.checkpoint else ["another checkpoint"]
        mine, now = (json.loads(json.dumps(values)) for values in (self.settings, settings))
        problems += [
            f"{name}: {mine.get(name)!r} when calibrated, {now.get(name)!r} now"
            for name in sorted(mine.keys() | now.keys())
            if mine.get(name) != now.get(name)
        ]
        if problems:
            raise CheckpointError(
                f"{path} does not fit what is in use now:\n  " + "\n  ".join(problems) + "\n"
                "Thresholds hold for the scores that they were made from. Calibrate again, or go without calibration."
            )


def _threshold(content: dict[str, Any]) -> Threshold:
    interval = content.pop("interval")
    return Threshold(**content, interval=interval and (interval[0], interval[1]))


def fingerprint(content: bytes) -> str:
    """Returns what a checkpoint's content is known by, 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def probability(values: np.ndarray, threshold: float, scale: float) -> np.ndarray:
    """Returns scores or maps on a scale from 0 to 1, in their type: a logistic curve that is 0.5 at the threshold.

    A typical good value gets 0.1, and one as far above the threshold 0.9. It rises with the score, and is no frequency.

    Args:
        values: Scores, of any shape.
        threshold: Of them.
        scale: Of the threshold, positive.
    """
    exponent = np.clip((values - threshold) / scale, -80, 80)
    return np.asarray(1 / (1 + np.exp(-exponent)), dtype=values.dtype)
