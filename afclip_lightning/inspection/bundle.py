"""`export --to bundle`: a folder that judges images without torch. `afclip_runtime` reads it."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

import afclip_lightning
import afclip_runtime
from afclip_lightning.backbones.inventory import own_weights
from afclip_lightning.backbones.packages import SHIPPED
from afclip_lightning.backbones.presets import PRESETS
from afclip_lightning.backbones.sources import EMBEDDED, PIP, RANDOM
from afclip_lightning.inspection.export import TOLERANCE, write_graph
from afclip_lightning.inspection.int8 import Int8, card_of_int8, write_int8_graph
from afclip_lightning.inspection.predictor import Predictor
from afclip_runtime.engines.base import FLOAT32
from afclip_runtime.engines.self_test import drawn, record
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import new_folder, sha256_of, write_json, write_text
from afclip_runtime.inspection.bundle import (
    CARD,
    FORMAT,
    GRAPH,
    SUMS,
    BundleCard,
    installed_engines,
    is_bundle,
    open_bundle,
)
from afclip_runtime.inspection.calibration import SUFFIX
from afclip_runtime.inspection.feedback import AUDIT
from afclip_runtime.thresholds import DefaultThresholds
from afclip_runtime.types import Tiling

LICENCE, REQUIREMENTS = "LICENCE.txt", "requirements.txt"
PACKAGE = Path(afclip_runtime.__file__).parent
APACHE = "Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0"
COMPARED = ((1.5, 2.0), (1.0, 0.6))  # height and width of the compared images, as multiples of the frame

REQUIRED = """\
# What this bundle needs to judge images. python -m pip install -r requirements.txt
numpy>=1.26
pillow>=10.3
msgspec>=0.19
filelock>=4
tqdm>=4.66
onnxruntime>=1.20
# or, in place of onnxruntime, openvino: for --engine openvino
# openvino>=2024.6
# tiff: for TIFF files
# tifffile>=2024.8.24
# imagecodecs>=2024.6.1
# dicom: for DICOM files
# pydicom>=3.0,<4
# python-gdcm>=3.0.10
# pylibjpeg[openjpeg]>=2.0
# serve: for the page
# fastapi>=0.115
# python-multipart>=0.0.18
# uvicorn>=0.31
# scale: for --launcher ray, Parquet files and URLs
# ray[data]>=2.60,<3
# aiohttp>=3.10
# fsspec>=2024.6
# pyarrow>=15
"""


def export_bundle(model: Predictor, folder: Path, overwrite: bool = False, int8: Int8 | None = None) -> float:
    """Writes a model as a bundle, atomically, and returns its largest absolute difference from the model.

    Every installed engine is compared with the model: on synthetic images in batches of several sizes, and on larger
    images with the model's tiling.

    An INT8 bundle is compared with the INT8 graph on ONNX Runtime instead. It has no calibration, because the model's
    calibration holds for float32 scores.

    Args:
        model: Model on the CPU. The bundle includes its memory bank and its calibration, but no thresholds that were
            set by hand.
        folder: Folder of the bundle. It must not exist yet, or be a bundle if `overwrite` is true.
        overwrite: Whether an existing bundle is replaced. Its calibrations and feedback stay.
        int8: How INT8 is made. `None` writes float32.

    Raises:
        UserError: INT8 changes too much, the method cannot be exported as a graph, an engine computes other numbers
            than the model, or the folder exists already or cannot be written. An existing folder stays unchanged.
    """
    check_place(folder, overwrite)
    with new_folder(folder) as temporary:
        card, graph = card_of_bundle(model), temporary / GRAPH
        if int8 is None:
            largest = write_graph(model, graph, "onnx")["largest_difference"]
        else:
            card, largest = card_of_int8(card, model, graph, write_int8_graph(model, graph, int8)["int8"]), 0.0
        write_json(temporary / CARD, msgspec.to_builtins(card))
        write_text(temporary / LICENCE, licence_note(model))
        write_text(temporary / REQUIREMENTS, REQUIRED)
        shutil.copytree(PACKAGE, temporary / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        write_sums(temporary)
        engines = installed_engines()
        found = [compare(model, temporary, e) if int8 is None else tested(temporary, e) for e in engines]
        largest = float(np.max([largest, *found]))
        if int8 is None and not largest <= TOLERANCE:  # NaN too
            raise UserError(
                f"{shown(folder)} was not written: the bundle's scores or maps differ from the model's by up to "
                f"{largest:.1e}, more than {TOLERANCE}. Please report it, with the method's config."
            )
        for made in (*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*{AUDIT}")):
            shutil.copy2(made, temporary)
    return largest


def card_of_bundle(model: Predictor) -> BundleCard:
    """Returns the card of a model's bundle."""
    return BundleCard(
        format=FORMAT,
        runtime=afclip_runtime.__version__,
        method=model.engine.method,
        backbone=model.engine.backbone,
        title=model.title,
        category=model.category,
        precision=FLOAT32,
        checkpoint=model.checkpoint,
        frame=model.engine.frame,
        tiling=model.tiling,
        white=model.white,
        roi=model.roi,
        settings={**model.engine.settings, "arguments": model.arguments},
        calibration=model.calibration,
        thresholds=own_thresholds(model),
        is_toy=model.is_toy,
        self_test=record(model.engine.score, model.engine.frame.shape, TOLERANCE),
        versions={"afclip_lightning": afclip_lightning.__version__, "torch": str(torch.__version__)},
    )


def own_thresholds(model: Predictor) -> DefaultThresholds | None:
    """Returns the head's own thresholds if they hold for the model. Its tiling and region are not checked here."""
    bare = copy.copy(model)
    bare.use(None)
    bare.tiling, bare.roi = Tiling(), None
    return bare.defaults


def compare(model: Predictor, folder: Path, engine: str) -> float:
    """Returns the largest absolute difference of scores and maps between a bundle and its model.

    They are compared on images larger than a frame.

    Args:
        model: The model.
        folder: Its bundle.
        engine: Engine that runs the bundle.
    """
    height, width = model.engine.frame.shape
    shapes = [(round(height * tall), round(width * wide)) for tall, wide in COMPARED]
    shapes = [model.roi.size[::-1]] if model.roi else shapes  # a region of interest holds for one image size
    images = [drawn(1, shape, seed)[0] for seed, shape in enumerate(shapes)]
    wanted, got = model.predict_many(images), open_bundle(folder, engine=engine, calibration=None).predict_many(images)
    pairs = [
        pair for a, b in zip(wanted, got, strict=True) for pair in ((a.score, b.score), (a.anomaly_map, b.anomaly_map))
    ]
    return float(np.max([np.abs(np.subtract(a, b)).max() for a, b in pairs]))  # NaN propagates


def tested(folder: Path, engine: str) -> float:
    """Returns the largest difference of an engine from the results that a bundle stores for synthetic images.

    Raises:
        UserError: The difference is larger than the bundle allows.
    """
    model = open_bundle(folder, engine=engine, calibration=None)
    return model.card.self_test.check(model.engine)


def write_sums(folder: Path) -> None:
    """Writes the SHA-256 of each file of a folder, in the format of `sha256sum -c`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_text(folder / SUMS, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names if name != SUMS))


def licence_note(model: Predictor) -> str:
    """Returns the known licences of a bundle's contents, and what its user has to check."""
    card, backbone, few = model.card, model.method.backbone, model.few_shot is not None
    licence = card.licence if card else ""
    trained = [
        f"  trained on {on.dataset}: {on.licence or 'licence not stated'}" for on in (card.trained_on if card else ())
    ]
    return "\n".join(
        [
            "Licences of the contents of this folder",
            "",
            f"afclip_runtime/ and the texts: {APACHE}",
            f"Head ({model.title or model.engine.method}): {licence or 'not stated; ask who trained it'}",
            *trained,
            f"Backbone ({backbone.description}): {backbone_licence(backbone.model, backbone.weights.split('+'))}",
            "",
            f"{GRAPH} holds the weights of head and backbone. Whoever shares this folder also shares these weights.",
            "Check before you use it in a product or share it:",
            "  - the licence of the backbone's weights: some exclude commercial use (cc-by-nc, apple-amlr), and others",
            "    have terms of their own (dinov3-license)",
            "  - the licence of the images that the head was trained on",
            f"  - the licences of the packages in {REQUIREMENTS}",
            *(
                ["  - whether you may share features of the few-shot images: the graph holds them in its memory bank"]
                * few
            ),
            "",
        ]
    )


def backbone_licence(model: str, weights: Sequence[str]) -> str:
    """Returns the licence of a backbone's weights as its publisher states it, if it is known here.

    Args:
        model: Architecture.
        weights: Sources of the weights: a tag, `pip:PACKAGE`, a file …
    """
    found = [entry.licence for entry in SHIPPED if PIP + entry.package in weights]
    found += [e.licence for e in PRESETS.values() if e.model == model and own_weights(e) in weights and e.licence]
    found += [APACHE] if EMBEDDED in weights else []
    if set(weights) == {RANDOM}:
        return "none: its weights are random"
    spelled = {name.lower(): name for name in reversed(found)}
    return ", ".join(spelled.values()) or "not known here: see the page where the weights are published"


def check_place(folder: Path, overwrite: bool) -> None:
    """Raises if a bundle cannot be written to this folder.

    Raises:
        UserError: The folder exists and is not a bundle, or is a bundle that is not to be replaced.
    """
    if not folder.exists():
        return
    if not is_bundle(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{shown(folder)} already exists and is not a bundle. Choose another --out.")
    if is_bundle(folder) and not overwrite:
        raise UserError(f"{shown(folder)} already exists. Choose another --out, or --overwrite it.")
