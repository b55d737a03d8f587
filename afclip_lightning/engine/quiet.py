"""Silences those messages of libraries that do not help users here. All others come through."""

import logging
import warnings

WARNINGS = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",  # the frozen backbone, on purpose
    ".*LeafSpec.*",  # Lightning uses what torch deprecates
    r".*self\.log\('(test|val)/.*sync_dist=True.*",  # metrics are of the images of all processes already
    ".*`srun` command is available.*",  # work gets to SLURM by --launcher
)
LOG = "lightning.pytorch.utilities.rank_zero"  # of all that Lightning's trainer says
SAID_BEFORE = (LOG, "lightning.fabric.utilities.seed")  # logs of what the launcher's process has said
LINES = ("💡 Tip:", "TPU available: False", "GPU available: False", "Trainer already configured with model summary")


def quiet_libraries() -> None:
    """Silences these messages in this process. Each command and each worker that uses a trainer calls it."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger(LOG).addFilter(is_of_use)  # added once, however often called


def quiet_worker() -> None:
    """Silences also what the launcher's process has said: backbone, devices and seed. Warnings come through."""
    quiet_libraries()
    for name in SAID_BEFORE:
        logging.getLogger(name).setLevel(logging.WARNING)


def is_of_use(record: logging.LogRecord) -> bool:
    """Returns whether a line of the log helps users."""
    text = record.getMessage()
    if text.startswith("GPU available: True"):
        return text.endswith("used: False")
    return not text.startswith(LINES)
