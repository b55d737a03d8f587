"""The images that an INT8 model is calibrated on, and those that it is compared on."""

from dataclasses import dataclass, replace
from pathlib import Path

from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.inspection.labelled import NORMAL_FOLDER, read_labelled
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import UserError, shown
from afclip_runtime.images.find import list_folders
from afclip_runtime.views.roi import Roi

FEWEST = 8  # images; fewer are too few to compare scores
MOST = 64  # images that give the ranges; more did not change them
TEST: Split = "test"
TRAIN: Split = "train"


@dataclass(frozen=True)
class GivenImages:
    """The images of a calibration folder.

    Attributes:
        calibrating: Images that give the ranges of activations. In labelled sets not all are normal.
        normal: Images of `calibrating` that are known or assumed to be normal.
        compared: Images on which the two models are compared, with their labels and masks.
        held_out: Whether no compared image is in `calibrating`.
        labelled: Whether the images are labelled as normal or anomalous. If not, all count as normal.
        source: Location of the compared images, in words.
    """

    calibrating: list[Path]
    normal: list[Path]
    compared: list[Sample]
    held_out: bool
    labelled: bool
    source: str


def read_images(folder: Path, roi: Roi | None = None) -> GivenImages:
    """Returns the images of a calibration folder.

    A product's folder in MVTec AD's layout has both parts: `train/good` for calibration, and `test` with its masks for
    the comparison. In any other folder, every second image calibrates, up to `MOST`, and the rest is compared. With
    fewer than 2 × `FEWEST` images, all images do both. Images below a folder `good` are then normal, and others are
    anomalous.

    Args:
        folder: Folder of the images.
        roi: Part of the images that is inspected. `None` for whole images.

    Raises:
        DatasetError: The folder cannot be read.
        UserError: The folder has too few images, or several products.
    """
    given = _read(folder)
    return replace(given, compared=[replace(sample, roi=roi) for sample in given.compared])


def _read(folder: Path) -> GivenImages:
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}, the folder of --calibration_images, does not exist.")
    if (folder / TEST).is_dir():
        return _of_product(folder)
    if several := [inner.name for inner in list_folders(folder) if (inner / TEST).is_dir()]:
        raise UserError(f"{shown(folder)} holds several products: name one of them, {shown(folder / several[0])}.")
    labelled = read_labelled(folder)
    _require(folder, len(labelled))
    is_labelled = any(not anomalous for _, anomalous in labelled)
    samples = [_sample(folder, path, is_labelled and anomalous) for path, anomalous in labelled]
    if len(samples) < 2 * FEWEST:
        return _given(samples, samples, is_labelled, False, f"all images of {shown(folder)}")
    calibrating = _spread(samples[::2], MOST)
    kept = {sample.image_path for sample in calibrating}
    compared = [sample for sample in samples if sample.image_path not in kept]
    return _given(calibrating, compared, is_labelled, True, f"other images of {shown(folder)}")


def _of_product(folder: Path) -> GivenImages:
    layout = MVTecLayout(folder.resolve().parent, categories=[folder.resolve().name])
    (category,) = layout.selected_categories()
    compared = layout.find_samples(category, TEST)
    _require(folder / TEST, len(compared))
    if (folder / TRAIN / NORMAL_FOLDER).is_dir():
        calibrating = layout.find_samples(category, TRAIN)
        _require(folder / TRAIN / NORMAL_FOLDER, len(calibrating))
        return _given(_spread(calibrating, MOST), compared, True, True, f"the images of {shown(folder / TEST)}")
    _require(folder / TEST, len(compared), 2 * FEWEST)
    calibrating = _spread(compared[::2], MOST)
    kept = {sample.image_path for sample in calibrating}
    held_out = [sample for sample in compared if sample.image_path not in kept]
    return _given(calibrating, held_out, True, True, f"other images of {shown(folder / TEST)}")


def _given(
    calibrating: list[Sample], compared: list[Sample], labelled: bool, held_out: bool, source: str
) -> GivenImages:
    normal = [sample.image_path for sample in calibrating if sample.label == 0]
    return GivenImages([s.image_path for s in calibrating], normal, compared, held_out, labelled, source)


def _sample(folder: Path, path: Path, anomalous: bool) -> Sample:
    """Returns an image of a folder without masks."""
    return Sample(folder.name, "object", TEST, path, int(anomalous), mask_known=not anomalous)


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    """Returns at most `most` samples, evenly spread over the list."""
    count = min(len(samples), most)
    return [samples[index * len(samples) // count] for index in range(count)]


def _require(folder: Path, count: int, fewest: int = FEWEST) -> None:
    if count < fewest:
        raise UserError(
            f"{shown(folder)} has {count} images, and INT8 needs at least {fewest} to calibrate and to be compared on. "
            "Give more images of the product (--calibration_images); a hundred are enough."
        )
