"""Copies among the images that a calibration is made from: each image counts once."""

import sys
from pathlib import Path

from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import sha256_of
from afclip_runtime.images.find import walk_images

Labelled = list[tuple[Path, bool]]
"""Images, and whether each is anomalous."""


def without_copies(labelled: Labelled, few_shot_dir: Path | None) -> Labelled:
    """Returns images without copies, and says how many there were.

    Raises:
        UserError: One cannot be read; has copies with both labels; or is one of the few-shot images: to the
            model these are normal beyond all others.
    """
    few_shot = (
        set() if few_shot_dir is None else {sha256_of(path, error=DatasetError) for path in walk_images(few_shot_dir)}
    )
    found: dict[str, tuple[Path, bool]] = {}
    for path, label in labelled:
        digest = sha256_of(path, error=DatasetError)
        if digest in few_shot:
            raise UserError(
                f"{path} is one of --few_shot_dir too: a threshold from images that the model compares with is too low."
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
