"""Lightning's class of data and its warnings, or stand-ins where a process only looks at files.

`datasets list`, `check` and `show` read folders and pictures and never train, and Lightning would take most of their
time. So a process that will do nothing else says so before a dataset is imported, and gets stand-ins that lack all
that a trainer needs. Everybody else gets Lightning's own: a dataset in Python is a real `LightningDataModule`.
"""

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import LightningDataModule as LightningDataModule
    from lightning.pytorch.utilities import rank_zero_warn as rank_zero_warn

_files_only = False


class FilesOnly:
    """What a dataset needs of a `LightningDataModule` while only its files are looked at."""

    trainer = None

    def prepare_data(self) -> None:
        """Makes nothing on disk."""

    def setup(self, stage: str) -> None:
        """Sets nothing up."""


def look_at_files_only() -> None:
    """Lets this process do without Lightning, unless it has it already; called before a dataset is imported."""
    global _files_only
    _files_only = "lightning" not in sys.modules


def __getattr__(name: str) -> Any:
    """Returns Lightning's class and function of this name, or their stand-ins."""
    if name == "LightningDataModule":
        if _files_only:
            return FilesOnly
        from lightning import LightningDataModule

        return LightningDataModule
    if name == "rank_zero_warn":
        if _files_only:
            return warnings.warn
        from lightning.pytorch.utilities import rank_zero_warn

        return rank_zero_warn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
