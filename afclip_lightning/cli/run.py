"""What `fit`, `validate`, `test` and `predict` have in common: Lightning's command line."""

import sys
from collections.abc import Sequence

from afclip_runtime.launch import signals


def run(args: Sequence[str]) -> int:
    """Runs Lightning's command line and returns its exit code.

    Args:
        args: The command and its options.
    """
    signals.listen()  # before the slow imports: a signal that nobody listens to ends the process
    from afclip_lightning.engine import app

    sys.argv[1:] = args  # what a run folder records, and what Lightning starts its other processes with
    return app.main()
