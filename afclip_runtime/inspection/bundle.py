"""A bundle: a folder that judges images without torch. `export --to bundle` writes it; `open_bundle` reads it."""

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

FORMAT = 1  # of bundle.json; another one is refused
CARD, GRAPH, SUMS = "bundle.json", "model.onnx", "SHA256SUMS"
CALIBRATION = f"{Path(GRAPH).stem}{SUFFIX}"  # that of the product without name, if `calibrate` made one here
AGAIN = "Copy the bundle again, or export it again."

Precision = Literal["float32", "int8"]


class Version(msgspec.Struct, frozen=True):
    """What the card of a bundle of any format says first.

    Attributes:
        format: Of the card.
        runtime: Version of afclip_runtime that the bundle was written for.
    """

    format: int
    runtime: str


class BundleCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What bundle.json holds.

    Attributes:
        format: See `Version`.
        runtime: Likewise.
        method: Name of the method.
        backbone: The backbone in words.
        title: What the head calls itself; empty if it does not.
        category: What prompts call the product; it is in the graph.
        precision: What the graph computes in.
        checkpoint: What the checkpoint is known by in a calibration.
        frame: What the backbone takes.
        tiling: How images are seen.
        white: The value that becomes 255 in images of more than 8 bits; `None` for the largest that their bits hold.
        roi: Which part of the images is inspected; `None` for all of it.
        settings: What else scores depend on: few-shot images, features, arguments; as a calibration has them.
        calibration: Thresholds, with their scales and intervals and what is kept of the normal scores; `None` without.
        thresholds: The head's own; `None` without, or where they do not hold.
        is_toy: Whether the backbone is the tiny one of afclip_lightning, which has seen drawn pictures only.
        self_test: What the model says of drawn images.
        versions: Of the packages that wrote the bundle.
        int8: What INT8 changes, measured when the bundle was written; `None` in float32.
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
        """What is known of the graph."""
        return GraphFacts(self.frame, self.method, self.backbone, self.settings)


class BundleInspector(Inspector):
    """A model that a graph of a bundle runs. `open_bundle` makes one.

    Args:
        card: Of the bundle.
        engine: What runs the graph.
        tiling: How images are seen.
        batch_size: Views per batch.
    """

    def __init__(self, card: BundleCard, engine: GraphEngine, tiling: Tiling, batch_size: int) -> None:
        super().__init__(engine, tiling, card.category, batch_size)
        self.checkpoint, self.title, self.head_thresholds = card.checkpoint, card.title, card.thresholds
        self.card = card

    @property
    def is_toy(self) -> bool:  # type: ignore[override]
        """Whether the backbone is the tiny one of afclip_lightning, which has seen drawn pictures only."""
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
    """Returns the model of a bundle, checked: the sums of card and graph, the version, and a drawn image's score.

    Args:
        folder: The bundle.
        engine: `onnx` or `openvino`; by default the first of them whose package is installed.
        threads: Most threads that a batch is scored with; all processor cores by default.
        tiling: How images are seen; as the bundle says by default.
        calibration: A product's name, or a file that `calibrate` wrote; `auto` takes that of the category, or the only
            one that lies in the bundle as a file, else the one that was exported; `None` takes none.
        white: See `load` of afclip_lightning; as the calibration or the bundle says by default.
        roi: Which part of the images is inspected, or a file of it, see `read_roi`; likewise by default.
        batch_size: Views per batch.

    Raises:
        UserError: The bundle is damaged or of another version, the engine is missing or gives other scores than those
            recorded, or the calibration does not fit.
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
    """Returns what the card of a bundle says.

    Raises:
        UserError: There is no bundle, its card is damaged, or it is of a version that this runtime does not read.
    """
    path = folder / CARD
    if not folder.exists():
        raise UserError(
            f"{shown(folder)}: there is no such folder. --bundle names what `afclip export --to bundle` wrote."
        )
    if not is_bundle(folder):
        raise UserError(
            f"{shown(folder)} is no bundle: it has no {CARD}. `afclip export --to bundle --out DIR` writes one."
        )
    version = read_json(path, Version, remedy=AGAIN)
    check_version(folder, version)
    return read_json(path, BundleCard, remedy=AGAIN)


def check_version(folder: Path, version: Version) -> None:
    """Refuses a bundle that another runtime is needed for.

    Raises:
        UserError: Names both versions.
    """
    here = afclip_runtime.__version__
    if version.format != FORMAT or _parts(version.runtime) > _parts(here):
        raise UserError(
            f"{shown(folder)} was written for afclip_runtime {version.runtime} (format {version.format}), and this is "
            f"{here} (format {FORMAT}). The bundle has its own runtime: cd there and type python -m afclip_runtime; or "
            "install the version that it needs."
        )


def _parts(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, to be compared; what follows the first part that is none does not count."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a bundle, by its name in the folder, as `sha256sum -c` reads them.

    Raises:
        UserError: The file cannot be read, or a line is none of a sum.
    """
    path, sums = folder / SUMS, {}
    _require(path)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != 64 or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{shown(path)}, line {number}: is no SHA-256 and a name. {AGAIN}")
        sums[name] = digest
    return sums


def _require(path: Path) -> None:
    """Refuses a bundle that lacks a file."""
    if not os.path.lexists(path):
        raise UserError(f"{shown(path)} does not exist. {AGAIN}")


def check_sum(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    """Refuses a file that is another than the one that was exported.

    Raises:
        UserError: It is, or it is missing.
    """
    if name not in sums:
        raise UserError(f"{shown(folder / SUMS)}: has no sum of {shown(name)}. {AGAIN}")
    _require(folder / name)
    if sha256_of(folder / name) != sums[name]:
        raise UserError(f"{shown(folder / name)}: is not the file that was exported: its SHA-256 is another. {AGAIN}")


def installed_engines() -> list[str]:
    """Returns the names of the engines whose packages are installed, in the order in which they are chosen."""
    return [name for name, engine in GRAPH_ENGINES.items() if find_spec(engine.package)]


def chosen_engine(name: str | None) -> str:
    """Returns the engine that is named, or the first that is installed.

    Raises:
        UserError: None is installed, or the name is `torch`'s or of none.
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
    """Returns the calibration that is meant, and the file that holds it."""
    if wanted is None:
        return None, folder
    mine = card.calibration
    of_product = mine is not None and mine.origin is not None and mine.origin.product == wanted
    is_exported = of_product and not place_of(folder / CALIBRATION, str(wanted)).is_file()
    place = None if is_exported else find(folder / CALIBRATION, str(wanted), card.category)
    return (mine, folder / CARD) if place is None else (Calibration.read(place), place)
