"""Calibration from normal images that are added one by one."""

import hashlib

import numpy as np

from afclip_runtime.errors import UserError
from afclip_runtime.inspection.calibration import Calibration, from_normals, origin, require
from afclip_runtime.inspection.drift import keep
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.inspection.pixel_tail import PixelTail
from afclip_runtime.inspection.verdict import Inspection

SOURCE = "the page"
PIXEL_FPR = 0.001


class Collected:
    """Scores of normal images and the highest values of their maps. The images themselves are not kept.

    Args:
        most: Maximum number of images.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tail = PixelTail(most, PIXEL_FPR)
        self.scores: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self.scores)

    def holds(self, file: bytes) -> bool:
        """Returns whether an identical file was added."""
        return digest(file) in self.scores

    def add(self, file: bytes, found: Inspection) -> None:
        """Adds the result of the model for a normal image.

        Raises:
            UserError: The maximum number is reached.
        """
        if len(self.scores) >= self.most:
            raise UserError(
                f"There are {self.most} normal images, which is the limit. Calibrate, or remove them first."
            )
        self.scores[digest(file)] = found.score
        self.tail.add(found.inspected)

    def calibration(self, model: Inspector, fpr: float) -> Calibration:
        """Returns a calibration from the collected scores.

        Args:
            model: The model that gave the scores.
            fpr: Share of normal images that will exceed the threshold, in (0, 0.5].

        Raises:
            DatasetError: There are too few images.
        """
        require(len(self))
        scores = np.array(list(self.scores.values()))
        made = origin(model.category, SOURCE, len(self))
        image, pixel = from_normals(scores, fpr), self.tail.threshold()
        return Calibration(image, pixel, model.checkpoint, model.settings, made, keep(scores), model.roi)


def digest(file: bytes) -> bytes:
    """Returns a digest of a file, to recognise copies."""
    return hashlib.blake2b(file, digest_size=16).digest()
