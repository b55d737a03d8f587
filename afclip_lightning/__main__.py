"""`python -m afclip_lightning`."""

import importlib
import io
import os
import sys
from contextlib import suppress

from afclip_lightning import __version__
from afclip_lightning.engine import signals

# Before torch is loaded: threads that wait by spinning starve the loader processes, and themselves, wherever there are
# more of them than cores; sleeping instead made a pass beside one busy process several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERNAL_ERROR = 70  # as sysexits.h has it
INTERRUPTED = 130  # as shells have it: 128 and the number of the signal, here SIGINT
READER_GONE = 141  # SIGPIPE
_LIGHT = {
    "benchmark": "afclip_lightning.cli.benchmark",
    "calibrate": "afclip_lightning.cli.calibrate",
    "datasets": "afclip_lightning.cli.datasets",
    "evaluate": "afclip_lightning.cli.evaluate",
    "export": "afclip_lightning.cli.export",
    "features": "afclip_lightning.cli.features",
    "inspect": "afclip_lightning.cli.inspect",
    "knowledge": "afclip_lightning.cli.knowledge",
    "report": "afclip_lightning.cli.report",
    "serve": "afclip_lightning.cli.serve",
    "sweep": "afclip_lightning.cli.sweep",
}


def main() -> int:
    """Runs a command and returns its exit code.

    What every command has in common: 130 after Ctrl-C, 141 and no word where its reader has gone (`| head`), 70 where
    it ends in an error that nobody caught.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that its encoding does not have must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return READER_GONE
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        import traceback

        traceback.print_exc()
        print(
            f"\nThis is a fault of afclip_lightning {__version__}, not of yours: please report it with the lines above "
            "and the command.",
            file=sys.stderr,
        )
        return INTERNAL_ERROR
    return code


def _run(args: list[str]) -> int:
    """Runs a command. Those of `_LIGHT` do without Lightning's command line."""
    if args == ["--version"]:
        print(f"afclip_lightning {__version__}")
        return 0
    if args and args[0] in _LIGHT:
        light: int = importlib.import_module(_LIGHT[args[0]]).main(args[1:])
        return light
    signals.listen()  # before the slow imports: a signal that nobody listens to ends the process
    from afclip_lightning.engine import app

    return app.main()


if __name__ == "__main__":
    sys.exit(main())
