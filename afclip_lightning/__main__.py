"""`python -m afclip_lightning`."""

import importlib
import os
import sys

from afclip_lightning import preemption

# Before torch is loaded: threads that wait by spinning starve the loader processes, and themselves, wherever there are
# more of them than cores; sleeping instead made a pass beside one busy process several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_LIGHT = {
    "benchmark": "afclip_lightning.benchmark.command",
    "calibrate": "afclip_lightning.inspection.calibrate",
    "datasets": "afclip_lightning.datasets",
    "evaluate": "afclip_lightning.evaluate",
    "export": "afclip_lightning.inspection.export",
    "features": "afclip_lightning.features",
    "inspect": "afclip_lightning.inspection.command",
    "knowledge": "afclip_lightning.knowledge.command",
    "report": "afclip_lightning.report.command",
    "serve": "afclip_lightning.inspection.serve",
    "sweep": "afclip_lightning.sweep.command",
}


def main() -> int:
    """Runs a command and returns its exit code. Those of `_LIGHT` do without Lightning's command line."""
    if sys.argv[1:] and sys.argv[1] in _LIGHT:
        light: int = importlib.import_module(_LIGHT[sys.argv[1]]).main(sys.argv[2:])
        return light
    preemption.listen()  # before the slow imports: a signal that nobody listens to ends the process
    from afclip_lightning import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
