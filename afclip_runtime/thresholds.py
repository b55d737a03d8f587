"""What thresholds are: the one rule for them, and those that come with a head."""

from typing import TYPE_CHECKING, Annotated, Literal, overload

import msgspec

if TYPE_CHECKING:
    import numpy as np

Positive = Annotated[float, msgspec.Meta(gt=0)]
ThresholdFrom = Literal["calibration", "default", "hand"]  # `default`: it comes with a head, for any product
Verdict = Literal["normal", "anomalous"]


@overload
def is_anomalous(score: float, threshold: float) -> bool: ...


@overload
def is_anomalous(score: "np.ndarray", threshold: float) -> "np.ndarray": ...


def is_anomalous(score: "float | np.ndarray", threshold: float) -> "bool | np.ndarray":
    """Returns whether a score, or each value of an array, is anomalous: above the threshold. One that equals it is not.

    This is the one rule of the package. A calibrated threshold may be the score of a normal image, which is no alarm
    then. The threshold of the best F1 is the number just below the lowest score that it calls anomalous.

    Args:
        score: Of an image or a pixel, or any array of them.
        threshold: In the same unit.
    """
    # NumPy would round the threshold to an array's float32, beyond the score just above or below it.
    return (score if isinstance(score, float) else score.astype(float)) > threshold


class DefaultThreshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A threshold that comes with a head.

    Attributes:
        value: What lies above it is anomalous, and what equals it is not; see `is_anomalous`.
        scale: Unit of `probability`: the distance to a typical normal value over log 9; `None` where it is not known.
    """

    value: float
    scale: Positive | None = None


class DefaultThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The thresholds that come with a head: for products that it was not calibrated on, and so a first guess.

    They hold for zero-shot scores of whole images.

    Attributes:
        chosen: How and on what they were chosen, in a sentence.
        image: Of image scores; `None` for none.
        pixel: Of the values of maps; `None` for none.
    """

    chosen: str
    image: DefaultThreshold | None = None
    pixel: DefaultThreshold | None = None
