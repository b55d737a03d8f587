"""The option --feedback of `inspect`, which marks wrong verdicts."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from afclip_runtime.cli.parser import OptionGroup
from afclip_runtime.errors import UserError, shown
from afclip_runtime.thresholds import Verdict

if TYPE_CHECKING:
    from afclip_runtime.inspection.feedback import Mark
    from afclip_runtime.inspection.inspector import Inspector

MARKS = (*get_args(Verdict), "undo")


def add_feedback_options(parser: argparse.ArgumentParser) -> OptionGroup:
    """Adds the options of feedback, and returns their group."""
    group = parser.add_argument_group("feedback")
    group.add_argument(
        "--feedback",
        choices=MARKS,
        help="mark the verdict on these images as wrong: they are normal, or anomalous; undo takes it back. They are "
        "judged once more, --out does not change, and the threshold moves by a bounded rule",
    )
    group.add_argument("--feedback_by", default="", metavar="NAME", help="name of the person, for the audit file")
    return group


def require_images(images: Sequence[Path], options: argparse.Namespace) -> None:
    """Checks the options of feedback.

    Raises:
        UserError: There is no image, or a threshold is set by hand, which feedback does not move.
    """
    if not images:
        raise UserError("--feedback needs the images whose verdict was wrong: name them.")
    if options.threshold is not None or options.pixel_threshold is not None:
        raise UserError("--feedback moves the threshold of a calibration, not one by hand: leave --threshold out.")


def give_feedback(model: "Inspector", mark: "Mark", images: Sequence[Path], who: str) -> None:
    """Marks the verdicts of images as wrong, and prints how the threshold of the calibration moves.

    Args:
        model: The model with its calibration.
        mark: One of `MARKS`.
        images: The files, at least one; see `require_images`.
        who: Name of the author.

    Raises:
        UserError: There is no calibration, or an image cannot be read or marked. Images before it are marked.
    """
    from afclip_runtime.files import fingerprint

    feedback = model.feedback
    if feedback is None:
        raise UserError("there is no calibration whose threshold feedback could move. Calibrate first.")
    for image in images:
        entry = feedback.mark(mark, fingerprint(image), str(image), model.predict(image).score, who)
        print(
            f"{shown(image)}: {entry.mark} (score {entry.score:.6g}, was judged {entry.verdict}); threshold "
            f"{entry.threshold_before:.6g} → {entry.threshold_after:.6g}"
        )
    print(f"written to {shown(feedback.path)}" if feedback.path else "kept in memory")
