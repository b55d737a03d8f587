"""Removal of copies among the images of a calibration, so that each image counts once."""

import sys
from pathlib import Path

from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import sha256_of
from afclip_runtime.images.find import walk_images

Labelled = list[tuple[Path, bool]]
"""Images with their labels: whether the image is anomalous."""


def without_copies(labelled: Labelled, few_shot_dir: Path | None) -> Labelled:
    """Returns the images without copies, and prints the number of copies.

    Raises:
        UserError: An image cannot be read, has copies with both labels, or is one of the few-shot images, whose scores
            are too low.
    """
    few_shot = (
        set() if few_shot_dir is None else {sha256_of(path, error=DatasetError) for path in walk_images(few_shot_dir)}
    )
    found: dict[str, tuple[Path, bool]] = {}
    for path, label in labelled:
        digest = sha256_of(path, error=DatasetError)
        if digest in few_shot:
            raise UserError(
                f"{path} is also in --few_shot_dir: a threshold from images that the model compares with is too low."
            )
        first, known = found.setdefault(digest, (path, label))
        if known != label:
            raise UserError(f"{path} is a copy of {first}, and one is called normal and the other anomalous. Keep one.")
    if copies := len(labelled) - len(found):
        said = (
            "1 image is a copy of another one, and is"
            if copies == 1
            else f"{copies} images are copies of others, and are"
        )
        print(f"note: {said} counted once.", file=sys.stderr)
    return list(found.values())
