"""A bundle of a small head, as `export --to bundle` writes it."""

from pathlib import Path

from afclip_lightning import load
from afclip_lightning.inspection.bundle import export_bundle
from tests.support.small_models import write_head


def write_bundle(folder: Path) -> Path:
    """Writes the bundle of a small AF-CLIP without a calibration; the head lies beside its folder."""
    export_bundle(load(write_head(folder.parent, "AFCLIP"), device="cpu", calibration=None), folder)
    return folder
