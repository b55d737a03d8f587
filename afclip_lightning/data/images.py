"""Images and masks on disk: finding them, pairing them, decoding them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from afclip_lightning.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def list_images(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder` but hidden ones, sorted by name; an absent folder has none."""
    return [p for p in _entries(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def list_folders(folder: Path) -> list[Path]:
    """Returns the folders directly in `folder` but hidden ones, sorted by name; an absent folder has none."""
    return [p for p in _entries(folder) if p.is_dir()]


def _entries(folder: Path) -> list[Path]:
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return [folder / name for name in names if not name.startswith(".")]


def pair_masks(
    images: Sequence[Path],
    masks: Sequence[Path],
    suffixes: Sequence[str] = ("", "_mask"),
    roots: tuple[Path, Path] | None = None,
) -> dict[Path, Path]:
    """Returns the mask of every image, paired by file stem and never by position.

    Args:
        images: Anomalous images.
        masks: Mask files. The stem of a mask is the stem of its image followed by one of `suffixes`.
        suffixes: What may follow the image's stem.
        roots: Folder of the images and folder of the masks, where files in subfolders are paired within equal
            subfolders; by default every file is taken to lie in one folder.

    Raises:
        DatasetError: An image has no mask or two, a mask has no image, or two images share a stem; the message names
            the file.
    """
    image_root, mask_root = roots or (None, None)
    by_stem: dict[tuple[Path | None, str], Path] = {}
    for image in images:
        twin = by_stem.setdefault(_place(image, image_root, image.stem), image)
        if twin is not image:
            raise DatasetError(f"{image}: {twin.name} beside it has the same name, so a mask fits both. Rename one.")
    paired: dict[Path, Path] = {}
    for mask in masks:
        stems = [mask.stem.removesuffix(s) for s in suffixes if mask.stem.endswith(s)]
        places = [_place(mask, mask_root, stem) for stem in stems]
        owner = next((by_stem[place] for place in places if place in by_stem), None)
        if owner is None:
            raise DatasetError(f"{mask}: no image has the name of this mask. Restore the image or remove the mask.")
        if owner in paired:
            raise DatasetError(f"{owner}: has two masks, {paired[owner].name} and {mask.name}. Keep one.")
        paired[owner] = mask
    for image in images:
        if image not in paired:
            raise DatasetError(f"{image}: this anomalous image has no mask of the same name. Restore the mask.")
    return paired


def _place(path: Path, root: Path | None, stem: str) -> tuple[Path | None, str]:
    return (path.parent.relative_to(root) if root else None), stem


def read_image(path: Path) -> np.ndarray:
    """Returns the image as `[H, W, 3]`, uint8, RGB, turned upright as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits a pixel are scaled to 8, a palette gives its colours and an alpha channel
    is dropped.

    Raises:
        DatasetError: The file cannot be read or decoded to its end, or has more than 16 bits a channel.
    """
    image = decode_image(path, upright=True)
    if image.mode.startswith(("I", "F")):  # Pillow would cut these at 255 instead of scaling them
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DatasetError(f"{path}: has more than 16 bits a pixel. Save it with 8 or 16 bits.")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path, threshold: int = 0) -> np.ndarray:
    """Returns the mask as `[H, W]`, uint8 in {0, 1}: any value above `threshold` in any colour channel is anomalous.

    A palette counts by its colours, so black is normal whatever its index; an alpha channel says nothing of the region.

    Args:
        path: The mask.
        threshold: Highest value of the file that is still normal.

    Raises:
        DatasetError: The file cannot be read or decoded to its end.
    """
    image = decode_image(path)
    plain = {"P": "RGB", "PA": "RGB", "1": "L"}.get(image.mode, image.mode)
    values = np.asarray(image.convert(plain))
    if values.ndim == 3:
        values = values[..., :3].max(axis=-1) if values.shape[-1] >= 3 else values[..., 0]
    return (values > threshold).astype(np.uint8)


def decode_image(path: Path, upright: bool = False) -> Image.Image:
    """Returns the image decoded to its end, in its own mode; turned as its EXIF orientation says if `upright`.

    Raises:
        DatasetError: The file cannot be read or decoded.
    """
    try:
        image = Image.open(path)
        with image:
            image.load()
        return ImageOps.exif_transpose(image) if upright else image
    except Exception as error:  # whatever a damaged file makes a decoder run into: OSError, SyntaxError, struct.error …
        raise DatasetError(f"{path}: cannot be read as an image ({error}). Replace the file or remove it.") from error
