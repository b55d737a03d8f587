"""Feedback that adds falsely reported normal images to the few-shot images, and keeps an audit file beside them."""

import shutil
from pathlib import Path

import msgspec

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import atomic_path, fingerprint, only_writer, read_json_lines, write_json_lines
from afclip_runtime.inspection.feedback import Line, Mark, facts_of

FOLDER, AUDIT = "feedback", "feedback.jsonl"  # in the folder of few-shot images


class Copied(Line, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of the audit file on a few-shot image.

    Attributes:
        copy: Name of the copy beside the audit file.
    """

    copy: str


def mark_few_shot(few_shot: Path, mark: Mark, image: Path, who: str = "") -> Copied:
    """Copies a normal image to the few-shot images, or removes that copy, and returns the new line of the audit file.

    When a model is loaded, its memory is fitted on all images of the folder, so the copy takes effect at the next load.

    Args:
        few_shot: Folder of the few-shot images.
        mark: `normal` or `undo`.
        image: File of the image.
        who: Name of the person, recorded beside the account of this process.

    Raises:
        UserError: The image is marked as anomalous, was copied before, or has no copy to undo; or a file cannot be read
            or written.
    """
    if mark == "anomalous":
        raise UserError(f"{shown(image)}: few-shot images are normal ones. Mark it as anomalous for the threshold.")
    known, place = fingerprint(image), few_shot / FOLDER
    with only_writer(place):
        audit = place / AUDIT
        lines = [line for _, line in read_json_lines(audit, Copied)] if audit.exists() else []
        last = next((line for line in reversed(lines) if line.image == known), None)
        is_there = last is not None and last.mark == "normal"
        if is_there and mark == "normal":
            raise UserError(f"{shown(image)}: is among the few-shot images already ({shown(place)}). Undo removes it.")
        if not is_there and mark == "undo":
            raise UserError(f"{shown(image)}: did not join the few-shot images, so there is nothing to undo.")
        name = last.copy if last else known + image.suffix.lower()
        if mark == "normal":
            with atomic_path(place / name) as temporary:
                shutil.copyfile(image, temporary)
        line = Copied(**facts_of(lines, mark, known, str(image), who), copy=name)
        write_json_lines(audit, [msgspec.to_builtins(one) for one in [*lines, line]])
        if mark == "undo":
            (place / name).unlink(missing_ok=True)
    return line
