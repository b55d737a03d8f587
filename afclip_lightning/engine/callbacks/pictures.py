"""Pictures of the best and the worst cases of each category: image, mask, map over the image, score."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw

from afclip_lightning.data.dataset import pixels_of
from afclip_lightning.data.regions import inspected_maps
from afclip_lightning.distributed import gathered
from afclip_lightning.types import MAIN_HEAD, Batch, Outputs, Sample, prediction_of
from afclip_runtime.errors import shown
from afclip_runtime.files import atomic_path, write_json

Key = tuple[str, str]  # dataset, category

LONGEST_STEM = 120  # bytes of a sheet's name, made of dataset and category


@dataclass(frozen=True)
class Case:
    """One test image with its prediction, ready to be drawn.

    Attributes:
        sample: The sample.
        score: Image score.
        image: `[S, S, 3]`, uint8.
        mask: `[S, S]`, uint8 in {0, 1}.
        anomaly_map: `[S, S]`, float32.
    """

    sample: Sample
    score: float
    image: np.ndarray
    mask: np.ndarray
    anomaly_map: np.ndarray

    @property
    def quality(self) -> float:
        """Returns how good the score is: higher is better for an anomalous image, lower for a normal one."""
        return self.score if self.sample.label else -self.score

    def colours(self, low: float, high: float) -> np.ndarray:
        """Returns the map in colours, `[S, S, 3]`, uint8: blue at `low` and below, red at `high` and above."""
        heat = np.clip((self.anomaly_map - low) / max(high - low, 1e-12), 0, 1)
        return cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]

    def outline(self) -> str:
        """Returns the outlines of the mask's regions and holes as an SVG path. The picture is the unit square."""
        found, _ = cv2.findContours(self.mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        corners = [(cv2.approxPolyDP(line, 0.5, closed=True)[:, 0] + 0.5) / len(self.mask) for line in found]
        return "".join("M" + "L".join(f"{x:.4f} {y:.4f}" for x, y in line) + "Z" for line in corners)


Cases = dict[Key, list[Case]]
Ranges = dict[Key, tuple[float, float]]


class Pictures(Callback):
    """Draws one sheet per category: the anomalous and the normal images with the best and the worst scores.

    The same cases are saved one by one for the report, in `pictures/cases/`: each image, its map in colours, and
    `cases.json` with their facts, including the outline of the mask. The report needs nothing else, so the dataset may
    be moved.

    Colours range from the lowest to the highest value of all maps of the category in the pass. A scale per image would
    make normal images look anomalous.

    Args:
        count: Number of images of each kind (best and worst, anomalous and normal); 0 for no pictures.
        size: Side of a picture, in pixels.

    Attributes:
        wanted: Whether the next pass is drawn. It is set before a pass begins.
    """

    def __init__(self, count: int = 2, size: int = 224) -> None:
        if count < 0 or size < 32:
            raise ValueError(f"count must not be negative and size at least 32, got {count} and {size}")
        self.count = count
        self.size = size
        self.wanted = True
        self.cases: Cases = {}
        self.ranges: Ranges = {}
        self.paths: list[Path] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Deletes the cases of the last pass."""
        self.cases, self.ranges, self.paths = {}, {}, []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Outputs,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps images that may be drawn."""
        if not (self.count and self.wanted):
            return
        outputs = prediction_of(outputs, MAIN_HEAD)
        scores = outputs.pred_score.tolist()
        maps = inspected_maps(outputs.anomaly_map, batch.samples, pl_module.preprocess)
        lows, highs = (x.tolist() for x in maps.flatten(1).aminmax(dim=1))
        for i, sample in enumerate(batch.samples):
            key = (sample.dataset, sample.category)
            low, high = self.ranges.get(key, (lows[i], highs[i]))
            self.ranges[key] = (min(low, lows[i]), max(high, highs[i]))
            rivals = sorted(c.quality for c in self.cases.get(key, []) if c.sample.label == sample.label)
            quality = scores[i] if sample.label else -scores[i]
            if len(rivals) == 2 * self.count and rivals[self.count - 1] <= quality <= rivals[self.count]:
                continue  # neither among the best nor among the worst
            case = Case(
                sample,
                scores[i],
                self._resize(pixels_of(batch, i, pl_module.preprocess), cv2.INTER_AREA),
                self._resize(batch.mask[i].cpu().numpy(), cv2.INTER_NEAREST),
                self._resize(maps[i].cpu().numpy(), cv2.INTER_LINEAR),
            )
            self.cases[key] = self._extremes([*self.cases.get(key, []), case])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the sheets, from the cases of all processes."""
        parts = gathered((self.cases, self.ranges))
        self.cases, self.ranges = {}, {}
        for cases, ranges in parts:
            for key in cases:
                self.cases[key] = self._extremes([*self.cases.get(key, []), *cases[key]])
                values = [*ranges[key], *self.ranges.get(key, ())]
                self.ranges[key] = (min(values), max(values))
        if not trainer.is_global_zero or not self.cases:
            return
        folder = Path(trainer.default_root_dir) / "pictures"
        names: set[str] = set()
        for (dataset, category), found in sorted(self.cases.items()):
            path = folder / f"{_file_name(f'{dataset}_{category}', names)}.png"
            _save(self.sheet(found, *self.ranges[dataset, category]), path, "PNG")
            self.paths.append(path)
        self._keep(folder / "cases")

    def _keep(self, folder: Path) -> None:
        """Writes the cases one by one, and `cases.json` last."""
        entries: list[dict[str, Any]] = []
        for key, cases in sorted(self.cases.items()):
            low, high = self.ranges[key]
            for case in cases:
                rivals = [c.quality for c in cases if c.sample.label == case.sample.label]
                image, anomaly_map = (f"{len(entries):04d}{suffix}.jpg" for suffix in ("", "_map"))
                _save(Image.fromarray(case.image), folder / image, "JPEG")
                _save(Image.fromarray(case.colours(low, high)), folder / anomaly_map, "JPEG")
                entries.append(
                    {
                        "dataset": case.sample.dataset,
                        "category": case.sample.category,
                        "image": str(case.sample.image_path),
                        "label": case.sample.label,
                        "score": case.score,
                        "kind": "best" if 2 * sorted(rivals).index(case.quality) >= len(rivals) else "worst",
                        "mask_known": case.sample.mask_known,
                        "outline": case.outline(),
                        "picture": image,
                        "map": anomaly_map,
                    }
                )
        write_json(folder / "cases.json", entries)

    def sheet(self, cases: list[Case], low: float, high: float) -> Image.Image:
        """Returns the cases as rows of image, mask and map over the image.

        Args:
            cases: Cases to draw, the worst first within normal and anomalous.
            low: Map value at the cold end of the colours.
            high: Map value at the hot end.
        """
        margin, line = 4, 16
        height = self.size + line + margin
        sheet = Image.new("RGB", (3 * (self.size + margin) + margin, margin + height * len(cases)), "white")
        draw = ImageDraw.Draw(sheet)
        for row, case in enumerate(cases):
            top = margin + row * height
            what = "anomalous" if case.sample.label else "normal"
            name = shown("/".join(case.sample.image_path.parts[-2:]))
            unknown = "" if case.sample.mask_known else "  (mask not known)"
            draw.text((margin, top), f"{what}  score {case.score:.4f}  {name}{unknown}", fill="black")
            overlay = (0.5 * case.image + 0.5 * case.colours(low, high)).astype(np.uint8)
            contours, _ = cv2.findContours(case.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(overlay, contours, -1, (255, 255, 255), 1)
            mask = case.mask * 255 if case.sample.mask_known else np.full_like(case.mask, 128)
            for column, picture in enumerate((case.image, mask, overlay)):
                sheet.paste(Image.fromarray(picture), (margin + column * (self.size + margin), top + line))
        return sheet

    def _extremes(self, cases: list[Case]) -> list[Case]:
        """Returns the worst and best anomalous cases, then the worst and best normal cases, each from worst to best."""
        kept: list[Case] = []
        for label in (1, 0):
            ranked = sorted((c for c in cases if c.sample.label == label), key=lambda c: c.quality)
            kept += ranked if len(ranked) <= 2 * self.count else ranked[: self.count] + ranked[-self.count :]
        return kept

    def _resize(self, array: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(array, (self.size, self.size), interpolation=interpolation)


def _file_name(text: str, taken: set[str]) -> str:
    """Returns a short file name and adds it to `taken`. It is unique, also on file systems that ignore case."""
    stem = re.sub(r"[/\\:\x00-\x1f\x7f]", "_", text).encode(errors="replace")[:LONGEST_STEM].decode(errors="ignore")
    for name in (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))):
        alike = unicodedata.normalize("NFC", name).casefold()
        if alike not in taken:
            break
    taken.add(alike)
    return name


def _save(picture: Image.Image, path: Path, kind: str) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format=kind, quality=85)  # PNG ignores the quality
