"""Images of `features build` of which some end the process that computes their features, for the launcher's workers."""

import os
import signal
from collections.abc import Sequence

from afclip_lightning.engine.feature_chunks import RunImages, images_of_run


def deadly_images(args: Sequence[str], deadly: str, begun: bool) -> RunImages:
    """Returns the images of a run, of which a chunk with this text in its description is deadly.

    Args:
        args: See `images_of_run`.
        deadly: The text.
        begun: See `images_of_run`.
    """
    images = images_of_run(args, begun)
    compute = images.compute

    def watched(number: int) -> None:
        if deadly in images.files(number):
            os.kill(os.getpid(), signal.SIGKILL)
        compute(number)

    images.compute = watched  # type: ignore[method-assign]
    return images
