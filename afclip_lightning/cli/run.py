"""The common part of `fit`, `validate`, `test` and `predict`: Lightning's command line."""

import sys
from collections.abc import Sequence

from afclip_runtime.launch import signals


def run(args: Sequence[str]) -> int:
    """Runs Lightning's command line and returns its exit code.

    Args:
        args: The command and its options.
    """
    signals.listen()  # before the slow imports: an unhandled signal would end the process
    from afclip_lightning.engine import app

    sys.argv[1:] = args  # recorded in the run folder, and used by Lightning to start its other processes
    return app.main()
