"""Bundles: folders that inspect images without torch. `export --to bundle` writes one, `open_bundle` reads it."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

import afclip_runtime
from afclip_runtime.engines import GRAPH_ENGINES, GraphEngine, GraphFacts, open_graph
from afclip_runtime.engines.self_test import SelfTest
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import read_json, read_text, sha256_of
from afclip_runtime.images.white import White, white_value
from afclip_runtime.inspection.calibration import SUFFIX, Calibration, find, place_of
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.thresholds import DefaultThresholds
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import Frame
from afclip_runtime.views.roi import Roi, read_roi

FORMAT = 1  # of bundle.json; another format is rejected
CARD, GRAPH, SUMS = "bundle.json", "model.onnx", "SHA256SUMS"
CALIBRATION = f"{Path(GRAPH).stem}{SUFFIX}"  # of the product without a name, if `calibrate` made one here
AGAIN = "Copy the bundle again, or export it again."

Precision = Literal["float32", "int8"]


class Version(msgspec.Struct, frozen=True):
    """The fields that the card of a bundle has in every format.

    Attributes:
        format: Format of the card.
        runtime: Version of afclip_runtime for which the bundle was written.
    """

    format: int
    runtime: str


class BundleCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of bundle.json.

    Attributes:
        format: See `Version`.
        runtime: See `Version`.
        method: Name of the method.
        backbone: Description of the backbone.
        title: Title of the head, or empty.
        category: Name of the product in prompts. It is part of the graph.
        precision: Number format of the graph's computation.
        checkpoint: Fingerprint of the checkpoint.
        frame: Input frame of the backbone.
        tiling: Tiling of the images.
        white: Value that becomes 255 in images of more than 8 bits. `None` for the largest value of their bits.
        roi: Region of interest. `None` for the whole image.
        settings: Other settings that scores depend on: few-shot images, features, arguments. As in a calibration.
        calibration: Thresholds with their scales, intervals and kept normal scores, or `None`.
        thresholds: Default thresholds of the head. `None` if it has none, or if they do not apply.
        is_toy: Whether the backbone is the tiny one of afclip_lightning, trained only on drawn images.
        self_test: Recorded results of the model for random images.
        versions: Versions of the packages that wrote the bundle.
        int8: Measured effect of INT8 at the time of export. `None` for float32.
    """

    format: int
    runtime: str
    method: str
    backbone: str
    title: str
    category: str
    precision: Precision
    checkpoint: str
    frame: Frame
    tiling: Tiling
    white: Annotated[int, msgspec.Meta(gt=0)] | None
    roi: Roi | None
    settings: dict[str, Any]
    calibration: Calibration | None
    thresholds: DefaultThresholds | None
    is_toy: bool
    self_test: SelfTest
    versions: dict[str, str]
    int8: dict[str, Any] | None = None

    @property
    def facts(self) -> GraphFacts:
        """Facts of the graph that its file does not contain."""
        return GraphFacts(self.frame, self.method, self.backbone, self.settings)


class BundleInspector(Inspector):
    """The model of a bundle, run by an engine. `open_bundle` creates it.

    Args:
        card: Card of the bundle.
        engine: Engine that runs the graph.
        tiling: Tiling of the images.
        batch_size: Views per batch.
    """

    def __init__(self, card: BundleCard, engine: GraphEngine, tiling: Tiling, batch_size: int) -> None:
        super().__init__(engine, tiling, card.category, batch_size)
        self.checkpoint, self.title, self.head_thresholds = card.checkpoint, card.title, card.thresholds
        self.card = card

    @property
    def is_toy(self) -> bool:  # type: ignore[override]
        """Whether the backbone is the tiny one of afclip_lightning, trained only on drawn images."""
        return self.card.is_toy


def open_bundle(
    folder: Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    tiling: Tiling | None = None,
    calibration: str | Path | None = "auto",
    white: White | None = None,
    roi: Roi | str | Path | None = None,
    batch_size: int = 8,
) -> BundleInspector:
    """Opens a bundle. Checks the checksums of card and graph, the version, and the score of a random image.

    Args:
        folder: The bundle.
        engine: `onnx` or `openvino`. By default the first of them whose package is installed.
        threads: Maximum number of threads per batch. By default all processor cores.
        tiling: Tiling of the images. The default is that of the bundle.
        calibration: Name of a product, or a file that `calibrate` wrote. `auto` uses the calibration of the category,
            or the only calibration file in the bundle, else the exported calibration. `None` uses none.
        white: See `load` of afclip_lightning. The default is that of the calibration or the bundle.
        roi: Region of interest, or its file, see `read_roi`. The default is that of the calibration or the bundle.
        batch_size: Views per batch.

    Raises:
        UserError: The bundle is damaged or of another version, the engine is missing or its scores differ from the
            recorded ones, or the calibration does not fit.
    """
    card = read_card(folder)
    sums = read_sums(folder)
    check_sum(folder, CARD, sums)
    check_sum(folder, GRAPH, sums)
    runs = open_graph(chosen_engine(engine), folder / GRAPH, card.facts, threads)
    card.self_test.check(runs, images=1)
    model = BundleInspector(card, runs, tiling or card.tiling, batch_size)
    found, place = _calibration(folder, card, calibration)
    model.white, model.roi = (found.settings.get("white"), found.roi) if found else (card.white, card.roi)
    if white is not None:
        model.white = white_value(white, ())
    if roi is not None:
        model.roi = roi if isinstance(roi, Roi) else read_roi(Path(roi))
    if found:
        found.check(place, model.checkpoint, model.settings)
        model.use(found, place)
    return model


def is_bundle(folder: Path) -> bool:
    """Returns whether a folder is a bundle, damaged or not."""
    return (folder / CARD).is_file()


def read_card(folder: Path) -> BundleCard:
    """Reads the card of a bundle.

    Raises:
        UserError: The folder is not a bundle, its card is damaged, or this runtime does not read its version.
    """
    path = folder / CARD
    if not folder.exists():
        raise UserError(
            f"{shown(folder)}: there is no such folder. --bundle takes a folder that `afclip export --to bundle` wrote."
        )
    if not is_bundle(folder):
        raise UserError(
            f"{shown(folder)} is not a bundle: it has no {CARD}. `afclip export --to bundle --out DIR` writes one."
        )
    version = read_json(path, Version, remedy=AGAIN)
    check_version(folder, version)
    return read_json(path, BundleCard, remedy=AGAIN)


def check_version(folder: Path, version: Version) -> None:
    """Checks that this runtime can read a bundle.

    Raises:
        UserError: It cannot. The message names both versions.
    """
    here = afclip_runtime.__version__
    if version.format != FORMAT or _parts(version.runtime) > _parts(here):
        raise UserError(
            f"{shown(folder)} was written for afclip_runtime {version.runtime} (format {version.format}), and this is "
            f"{here} (format {FORMAT}). The bundle has its own runtime: cd there and type python -m afclip_runtime; or "
            "install the version that it needs."
        )


def _parts(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version for comparison, up to the first part that is not a number."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a bundle, by its name in the folder, in the format of `sha256sum -c`.

    Raises:
        UserError: The file cannot be read, or a line has another format.
    """
    path, sums = folder / SUMS, {}
    _require(path)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != 64 or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{shown(path)}, line {number}: is not a SHA-256 and a name. {AGAIN}")
        sums[name] = digest
    return sums


def _require(path: Path) -> None:
    """Raises if a file of a bundle is missing."""
    if not os.path.lexists(path):
        raise UserError(f"{shown(path)} does not exist. {AGAIN}")


def check_sum(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    """Checks that a file is the exported one.

    Raises:
        UserError: The file differs or is missing.
    """
    if name not in sums:
        raise UserError(f"{shown(folder / SUMS)}: has no checksum of {shown(name)}. {AGAIN}")
    _require(folder / name)
    if sha256_of(folder / name) != sums[name]:
        raise UserError(f"{shown(folder / name)}: is not the file that was exported: its SHA-256 differs. {AGAIN}")


def installed_engines() -> list[str]:
    """Returns the names of the engines whose packages are installed, in order of preference."""
    return [name for name, engine in GRAPH_ENGINES.items() if find_spec(engine.package)]


def chosen_engine(name: str | None) -> str:
    """Returns the named engine, or by default the first installed one.

    Raises:
        UserError: No engine is installed, or the name is `torch` or unknown.
    """
    if name == "torch":
        raise UserError(
            "--engine torch runs the head itself: name it in place of the bundle (afclip inspect --checkpoint FILE). "
            f"A bundle runs on {' or '.join(GRAPH_ENGINES)}."
        )
    if name is not None and name not in GRAPH_ENGINES:
        raise UserError(f"there is no engine {shown(name)}: a bundle runs on {' or '.join(GRAPH_ENGINES)}.")
    there = installed_engines()
    if name is None and not there:
        packages = " or ".join(engine.package for engine in GRAPH_ENGINES.values())
        raise UserError(f"no engine is installed: pip install {packages}.")
    return name or there[0]


def _calibration(folder: Path, card: BundleCard, wanted: str | Path | None) -> tuple[Calibration | None, Path]:
    """Returns the selected calibration, and its file."""
    if wanted is None:
        return None, folder
    mine = card.calibration
    of_product = mine is not None and mine.origin is not None and mine.origin.product == wanted
    is_exported = of_product and not place_of(folder / CALIBRATION, str(wanted)).is_file()
    place = None if is_exported else find(folder / CALIBRATION, str(wanted), card.category)
    return (mine, folder / CARD) if place is None else (Calibration.read(place), place)
