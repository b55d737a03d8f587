"""Normal images that are given one by one, and the calibration that comes from them."""

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
    """What is kept of normal images: their scores and the highest values of their maps, not the images.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tail = PixelTail(most, PIXEL_FPR)
        self.scores: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self.scores)

    def holds(self, file: bytes) -> bool:
        """Returns whether an equal file was added."""
        return digest(file) in self.scores

    def add(self, file: bytes, found: Inspection) -> None:
        """Adds what the model says of a normal image.

        Raises:
            UserError: There are as many as there may be.
        """
        if len(self.scores) >= self.most:
            raise UserError(
                f"There are {self.most} normal images, which is the limit. Calibrate, or remove them first."
            )
        self.scores[digest(file)] = found.score
        self.tail.add(found.inspected)

    def calibration(self, model: Inspector, fpr: float) -> Calibration:
        """Returns the calibration of a model whose scores these are.

        Args:
            model: The model.
            fpr: Share of normal images that will exceed the threshold, in (0, 0.5].

        Raises:
            DatasetError: They are too few.
        """
        require(len(self))
        scores = np.array(list(self.scores.values()))
        made = origin(model.category, SOURCE, len(self))
        image, pixel = from_normals(scores, fpr), self.tail.threshold()
        return Calibration(image, pixel, model.checkpoint, model.settings, made, keep(scores), model.roi)


def digest(file: bytes) -> bytes:
    """Returns what tells a file from others."""
    return hashlib.blake2b(file, digest_size=16).digest()
