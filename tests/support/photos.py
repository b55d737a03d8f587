"""Photos for tests: those in scikit-image's package, unchanged and with a drawn defect."""

import numpy as np
import pytest


def photos() -> list[np.ndarray]:
    """Eight photos `[H, W, 3]`, uint8, of several shapes; every other one has a bright scratch.

    The test is skipped where scikit-image is not installed.
    """
    data = pytest.importorskip("skimage.data", reason="needs scikit-image: install the extra `real`")
    found = []
    for whole in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        small = np.ascontiguousarray(whole[::4, ::4])
        scratched = small.copy()
        scratched[len(small) // 3 : len(small) // 3 + 4, 10:60] = 255
        found += [small, scratched]
    return found
