"""Lightning's data module and warnings, or stand-ins for a process that only checks files.

`datasets list`, `check` and `show` read folders and pictures and never train. Importing Lightning would take most of
their time. Such a process calls `look_at_files_only` before a dataset is imported, and gets stand-ins without the parts
that a trainer needs. In all other cases a dataset is a real `LightningDataModule`.
"""

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import LightningDataModule as LightningDataModule
    from lightning.pytorch.utilities import rank_zero_warn as rank_zero_warn

_files_only = False


class FilesOnly:
    """The part of a `LightningDataModule` that a dataset needs while only its files are checked."""

    trainer = None

    def prepare_data(self) -> None:
        """Does nothing."""

    def setup(self, stage: str) -> None:
        """Does nothing."""


def look_at_files_only() -> None:
    """Makes this process work without Lightning, unless it is already imported. Call it before importing a dataset."""
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
