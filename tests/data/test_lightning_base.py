"""Datasets are Lightning modules, except in a process that declares first that it only checks files."""

import subprocess
import sys

from lightning import LightningDataModule

from afclip_lightning.data import lightning_base
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.datasets.catalogue import dataset_classes
from afclip_lightning.datasets.cross_dataset import CrossDataset

LOOK = """
import sys
from afclip_lightning.data import lightning_base
lightning_base.look_at_files_only()
from afclip_lightning.datasets.catalogue import dataset_classes
names = {cls.__name__ for cls in dataset_classes()}
assert "MVTecAD" in names and "Synthetic" in names, names
print(*sorted({"torch", "lightning", "open_clip"} & sys.modules.keys()))
"""


def test_every_dataset_is_a_module_of_lightnings() -> None:
    assert all(issubclass(cls, LightningDataModule) for cls in (AnomalyData, CrossDataset, *dataset_classes()))


def test_files_only_changes_nothing_where_lightning_is_loaded() -> None:
    lightning_base.look_at_files_only()
    assert lightning_base.LightningDataModule is LightningDataModule


def test_a_look_at_files_loads_neither_torch_nor_lightning() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
