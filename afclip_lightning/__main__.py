"""`python -m afclip_lightning`."""

import os
import sys

# Before torch is loaded: threads that wait by spinning starve the loader processes, and themselves, wherever there are
# more of them than cores; sleeping instead made a pass beside one busy process several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Runs a command and returns its exit code. `evaluate` and `datasets` build no model."""
    if sys.argv[1:2] == ["evaluate"]:
        from afclip_lightning import evaluate

        return evaluate.main(sys.argv[2:])
    if sys.argv[1:2] == ["datasets"]:
        from afclip_lightning import datasets

        return datasets.main(sys.argv[2:])
    from afclip_lightning import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
