"""Files that appear late, as on a shared file system that lags."""

import threading
from pathlib import Path


def come_late(*paths: Path) -> threading.Timer:
    """Hides existing files for a while, like a shared file system that lags."""
    hidden = [path.rename(path.with_name(f"{path.name}.hidden")) for path in paths]
    timer = threading.Timer(0.2, lambda: [late.rename(path) for late, path in zip(hidden, paths, strict=True)])
    timer.start()
    return timer
