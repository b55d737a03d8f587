"""Exports the regions that a model marks to annotation tools, for correction and import as a set.

Everything is exact to the pixel: Label Studio gets brushes, COCO's format gets run lengths. Polygons would be rounded,
and have no holes in these formats.
"""

from collections.abc import Iterator, Sequence
from urllib.parse import quote

import cv2
import msgspec
import numpy as np

from afclip_lightning.annotations.rle import Place, coco_to_mask, mask_to_brush, mask_to_coco

LABEL = "anomaly"
CONTROL, OBJECT = "defect", "image"  # names in the interface that `CONFIG` makes
CONFIG = f"""\
<View>
  <Image name="{OBJECT}" value="$image" zoom="true"/>
  <BrushLabels name="{CONTROL}" toName="{OBJECT}">
    <Label value="{LABEL}" background="#d22"/>
  </BrushLabels>
  <Choices name="verdict" toName="{OBJECT}" choice="single">
    <Choice value="good"/>
  </Choices>
</View>
"""
"""Label Studio's labelling interface for these files. The choice marks an image as normal."""


class MarkedRegion(msgspec.Struct):
    """A connected region of pixels.

    Attributes:
        left: First column.
        top: First row.
        size: Height and width of the bounding box.
        counts: Mask within the box, as COCO's compressed run lengths.
        area: Area in pixels.
        score: Highest value of the map in the region.
    """

    left: int
    top: int
    size: list[int]
    counts: str
    area: int
    score: float

    def mask(self) -> np.ndarray:
        """Returns the mask of the region within its box, `[h, w]`, bool."""
        return coco_to_mask({"size": self.size, "counts": self.counts}, (self.size[0], self.size[1]))


class MarkedImage(msgspec.Struct):
    """An image with its marked regions.

    Attributes:
        file: Path relative to the folder of all images, with `/`.
        size: Height and width in pixels, upright.
        score: Score of the image.
        regions: Regions, the highest score first.
    """

    file: str
    size: list[int]
    score: float
    regions: list[MarkedRegion]

    def check(self) -> None:
        """Raises if a region does not lie in the image.

        Raises:
            ValueError: A region lies outside, or its run lengths are invalid.
        """
        for region in self.regions:
            if len(self.size) != 2 or len(region.size) != 2 or min(region.left, region.top, *region.size) < 0:
                raise ValueError("a region has no place")
            if region.top + region.size[0] > self.size[0] or region.left + region.size[1] > self.size[1]:
                raise ValueError("a region lies outside of its image")
            region.mask()


def marked_image(file: str, score: float, mask: np.ndarray, anomaly_map: np.ndarray) -> MarkedImage:
    """Returns an image with its regions, 8-connected.

    Args:
        file: Path relative to the folder of all images.
        score: Score of the image.
        mask: Marked pixels, `[H, W]`, bool.
        anomaly_map: `[H, W]`.
    """
    count, numbers, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    regions = []
    for number in range(1, count):
        left, top, width, height, area = facts[number].tolist()
        box = (slice(top, top + height), slice(left, left + width))
        own = numbers[box] == number
        runs = mask_to_coco(own)
        score_of = float(anomaly_map[box][own].max())
        regions.append(MarkedRegion(left, top, runs["size"], runs["counts"], area, score_of))
    regions.sort(key=lambda region: -region.score)
    return MarkedImage(file, [int(side) for side in mask.shape], score, regions)


def labelstudio_task(image: MarkedImage, address: str, version: str) -> dict[str, object]:
    """Returns a task of Label Studio with a prediction: one brush per region, with its score.

    Args:
        image: The image.
        address: Prefix of the path of the image in the tool.
        version: Name of the model in the tool.
    """
    height, width = image.size
    results = [
        {
            "id": f"region{number}",
            "from_name": CONTROL,
            "to_name": OBJECT,
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": region.score,
            "value": {
                "format": "rle",
                "rle": mask_to_brush(region.mask(), Place(region.left, region.top, (height, width))),
                "brushlabels": [LABEL],
            },
        }
        for number, region in enumerate(image.regions, 1)
    ]
    prediction = {"model_version": version, "score": image.score, "result": results}
    name = quote(image.file.encode("utf-8", "surrogateescape"))
    return {"data": {OBJECT: address + name}, "predictions": [prediction]}


def coco_instances(images: Sequence[MarkedImage]) -> dict[str, object]:
    """Returns COCO's instances: one annotation per region, with its mask as run lengths and its score."""
    pictures = [
        {"id": number, "file_name": image.file, "width": image.size[1], "height": image.size[0], "score": image.score}
        for number, image in enumerate(images, 1)
    ]
    annotations = [{"id": number, **annotation} for number, annotation in enumerate(_coco_annotations(images), 1)]
    return {"images": pictures, "annotations": annotations, "categories": [{"id": 1, "name": LABEL}]}


def _coco_annotations(images: Sequence[MarkedImage]) -> Iterator[dict[str, object]]:
    for number, image in enumerate(images, 1):
        height, width = image.size
        for region in image.regions:
            yield {
                "image_id": number,
                "category_id": 1,
                "segmentation": mask_to_coco(region.mask(), Place(region.left, region.top, (height, width))),
                "bbox": [region.left, region.top, region.size[1], region.size[0]],
                "area": region.area,
                "iscrowd": 0,
                "score": region.score,
            }
