"""AITEX: woven fabrics, cut into squares."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from afclip_lightning.data.images import image_size
from afclip_lightning.data.names import normal_form
from afclip_lightning.datasets.tiled_layout import Tile, TiledLayout, union_of_masks
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_folders, list_images


class AITEX(TiledLayout):
    """AITEX as DRA and InCTRL prepare it: squares of 256 pixels, about 564 normal and 183 anomalous, with masks.

    The 245 photographed strips of 4096×256 pixels are cut into squares. Squares of defect-free strips are normal, and a
    quarter of them is held out for testing. Squares of defective strips are anomalous if their mask marks something,
    otherwise they are left out. The published numbers are approximate, so there are no counts to compare with.

    If a strip has several masks, their union is used. A defective strip without a mask is left out with a warning.

    Reference: Silvestre-Blanes et al., A Public Fabric Database for Defect Detection Methods and Results, 2019.
    """

    title = "AITEX"
    paper = "silvestre2019aitex"
    url = "https://www.aitex.es"
    name = "aitex"
    published = ("fabric",)
    class_names: Mapping[str, str] = {"fabric": "woven fabric"}
    raw_folder = "AITEX_raw"
    raw_layout = """
NODefect_images/<fabric>/*.png      defect-free strips
Defect_images/0001_002_00.png       defective strips; the second number is the kind of defect
Mask_images/0001_002_00_mask.png    their masks, …_mask1.png and …_mask2.png where there are several
(or Defect_images/Defect_images/*, Mask_images/Mask_images/*)
"""
    source = "AITEX from aitex.es or Kaggle, unpacked into the folder `raw`; the tiles are cut from it."
    licence = "research, as far as known; see its source"

    def find_tiles(self, raw: Path) -> list[Tile]:
        """Returns the squares of all strips, sorted by path, from left to right.

        Raises:
            DatasetError: A folder is missing, or a mask has no image or another size.
        """
        parts = {name: raw / name for name in ("NODefect_images", "Defect_images", "Mask_images")}
        if absent := [str(folder) for folder in parts.values() if not folder.is_dir()]:
            raise DatasetError(f"{raw}: not there: {', '.join(absent)}. It must contain:\n{self.raw_layout}")
        tiles = []
        for folder in list_folders(parts["NODefect_images"]):
            tiles += [Tile(image, box) for image in list_images(folder) for box in _squares(*image_size(image))]
        strips = list_images(_unnested(parts["Defect_images"]))
        masks = _masks(strips, list_images(_unnested(parts["Mask_images"])))
        for image in strips:
            width, height = image_size(image)
            union = union_of_masks(image, (height, width), masks[image])
            kind = f"defect_{image.stem.split('_')[1]}" if "_" in image.stem else "defect"
            boxes = [box for box in _squares(width, height) if union[:, box[0] : box[2]].any()]
            tiles += [Tile(image, box, kind, masks[image]) for box in boxes]
        if unmasked := [image.name for image in strips if not masks[image]]:
            warnings.warn(f"AITEX: left out, since they have no mask: {', '.join(unmasked)}.", stacklevel=2)
        return tiles


def _squares(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Returns boxes as wide as the strip is high, from left to right. The last box may be narrower."""
    return [(left, 0, min(left + height, width), height) for left in range(0, width, height)]


def _unnested(folder: Path) -> Path:
    """Returns the subfolder of the same name, which some copies have, or else the folder itself."""
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def _masks(images: list[Path], masks: list[Path]) -> dict[Path, tuple[Path, ...]]:
    """Returns the masks of every image: none, one or several."""
    by_stem = {normal_form(image.stem): image for image in images}
    found: dict[Path, tuple[Path, ...]] = dict.fromkeys(images, ())
    for mask in masks:
        image = by_stem.get(normal_form(mask.stem).rpartition("_mask")[0])
        if image is None:
            raise DatasetError(f"{mask}: no image has the name of this mask. Restore the image or remove the mask.")
        found[image] += (mask,)
    return found
