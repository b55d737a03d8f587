"""Every reader of files gets changed, truncated and random content, and gives a result or one error for users.

A reader that is added to the package gets a line in `READERS`.
"""

import ast
import contextlib
import copy
import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from afclip_lightning.annotations.exporting import marked_image
from afclip_lightning.annotations.importing import Settings, interpret
from afclip_lightning.annotations.labels import Labels
from afclip_lightning.annotations.matching import ImageFolder
from afclip_lightning.annotations.shapes import Export
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.backbones.store_files import StoreFacts
from afclip_lightning.backbones.weights import load_weights
from afclip_lightning.benchmark.matrix import load_matrix
from afclip_lightning.benchmark.published import load_published
from afclip_lightning.benchmark.table import read_done, read_results
from afclip_lightning.datasets.kaputt import Kaputt
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.datasets.real_iad import RealIAD
from afclip_lightning.datasets.saturated_layout import SaturatedLayout
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.datasets.table import Table
from afclip_lightning.datasets.visa import VisA
from afclip_lightning.datasets.volumes import Volumes
from afclip_lightning.engine.factory import load_head, read_model
from afclip_lightning.heads.foreign import read_released
from afclip_lightning.importers import coco, cvat, datumaro, labelme, labelstudio, supervisely
from afclip_lightning.inspection.labelled import read_labelled
from afclip_lightning.inspection.preannotations import read_marked
from afclip_lightning.knowledge.base import load_image_sentences, load_knowledge, load_provenance
from afclip_lightning.knowledge.builder import AnswerCache
from afclip_lightning.metrics.image_records import RECORDS_FILE, read_records, write_records
from afclip_lightning.report import inspections
from afclip_lightning.report import run as run_report
from afclip_lightning.report.run_files import read_run
from afclip_lightning.sweep.space import read_sweep
from afclip_lightning.volumes.cutting import Cutting
from afclip_lightning.volumes.find import find_volumes
from afclip_lightning.volumes.importing import check_same, read_volumes, settings_of
from afclip_runtime.engines.self_test import POINTS, SelfTest
from afclip_runtime.errors import UserError
from afclip_runtime.images.maps import read_map
from afclip_runtime.inspection.bundle import CARD, FORMAT, SUMS, BundleCard, read_card, read_sums
from afclip_runtime.inspection.calibration import Calibration, fixed
from afclip_runtime.inspection.folder import check_settings
from afclip_runtime.inspection.table import Table as Inspections
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import Frame
from tests.support import REPOSITORY, imports
from tests.support import volume_readers as volumes
from tests.support.clips import small_clip, small_config
from tests.support.image_records import categories, records_of
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.kaputt import write_kaputt
from tests.support.layouts.listing import write_json_lines, write_meta
from tests.support.layouts.loco import write_loco
from tests.support.layouts.real_iad import write_real_iad
from tests.support.layouts.visa import write_visa
from tests.support.layouts.volumes import write_volumes
from tests.support.released import changed as write_released
from tests.support.released import write_afclip
from tests.support.run_folders import write_run
from tests.support.small_head import write_head

PACKAGES = (REPOSITORY / "afclip_lightning", REPOSITORY / "afclip_runtime")
CLIP = small_clip()  # to load weights into
BACKBONES: dict[str, Any] = {}  # built once for all checkpoints


@dataclass(frozen=True)
class Reader:
    """How a valid file is written, and how it is read.

    Attributes:
        name: Kind of the file.
        write: Writes it, with all that belongs to it, into a folder, and returns the file.
        read: Reads the file.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]


def text_file(name: str, content: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder / name

    return write


def in_run(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_run(folder / "run", {"a": 1.0}, images=6)
        record = {"command": ["afclip"], "versions": {"torch": "2", "x": None}, "method": "AFCLIP", "started": "now"}
        (folder / "run/run.json").write_text(json.dumps({**record, "trainable_parameters": 3}))
        return folder / "run" / name

    return write


def report_of(parents: int) -> Callable[[Path], object]:
    return lambda path: run_report.sections(read_run(path.parents[parents]))


def write_calibration(folder: Path) -> Path:
    path = folder / "head.calibration.json"
    Calibration(fixed(0.5, np.arange(20) / 20), None, "abc", {"fit": "tiles", "size": 112}).save(path)
    return path


def write_bundle_card(folder: Path) -> Path:
    row = (0.0,) * POINTS**2
    made = BundleCard(
        format=FORMAT,
        runtime="0.1.0",
        method="AFCLIP",
        backbone="two blocks",
        title="",
        category="nut",
        precision="float32",
        checkpoint="abc",
        frame=Frame((28, 35)),
        tiling=Tiling(tiles=2),
        white=None,
        roi=None,
        settings={"shots": None},
        calibration=Calibration(fixed(0.5, np.arange(20) / 20), None, "abc", {"fit": "tiles"}),
        thresholds=None,
        is_toy=False,
        self_test=SelfTest((0.5,), (row,), 1e-4),
        versions={"torch": "2"},
    )
    return text_file(CARD, msgspec.to_builtins(made))(folder)


SPEC = {"model": "m", "weights_hash": "0", "activation": "gelu", "image_size": 28, "pos_embed": "bilinear"}
SPEC |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "compute": "float32", "dtype": "float32"}


def a_store(root: Path) -> FeatureStore:
    if "store" not in BACKBONES:
        from afclip_lightning.backbones.clip import ClipBackbone

        BACKBONES["store"] = ClipBackbone("tiny-8-112", "random", image_size=56)
    backbone = BACKBONES["store"]
    return FeatureStore(root, backbone.spec((2,)), backbone.grid, dtype="float32")


def write_features(folder: Path) -> Path:
    store = a_store(folder)
    store.save(["a1"], BACKBONES["store"].encode_image(torch.zeros(1, 3, 56, 56), store.spec))
    return store.path("a1", "layer-02")


def write_weights(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        small_config(folder)
        state = {key: value.contiguous() for key, value in small_clip().state_dict().items()}
        save = save_file if name.endswith(".safetensors") else torch.save
        save(state, folder / name)
        return folder / name

    return write


def write_table(name: str) -> Callable[[Path], Path]:
    rows = [
        {"image": "a.png", "label": "anomalous", "mask": "a_mask.png", "category": "nut", "split": "test"},
        {"image": "b.png", "label": "normal", "mask": "", "category": "nut", "split": "test"},
    ]

    def write(folder: Path) -> Path:
        write_image(folder / "a.png")
        write_image(folder / "b.png")
        write_mask(folder / "a_mask.png")
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (folder / name).write_text("\n".join(lines if name.endswith(".csv") else map(json.dumps, rows)) + "\n")
        return folder / name

    return write


def write_map_file(folder: Path) -> Path:
    np.save(folder / "map.npy", np.zeros((8, 8), np.float32))
    return folder / "map.npy"


def write_counts(folder: Path) -> Path:
    write_records(folder / RECORDS_FILE, {("set", "bolt"): records_of(*categories(images=3))})
    return folder / RECORDS_FILE


def write_drawn(folder: Path) -> Path:
    data = Synthetic(str(folder), categories=["cloth"], image_size=64)
    data.category_folder("cloth").mkdir(parents=True)
    return text_file(str(data.category_folder("cloth") / "synthetic.json"), data.settings)(folder)


DRAWN = {"class_path": "Synthetic", "init_args": {"root": "data/drawn", "categories": ["cloth"]}}
MATRIX = {
    "methods": {"A": {"configs": ["configs/afclip_demo.yaml"], "shots": [0, 2]}},
    "datasets": {"one": DRAWN, "two": "configs/data/mvtec.yaml"},
    "transfers": [{"train": "one", "test": ["two"]}],
    "seeds": [3, 4],
}
SWEEP = {
    "program": "afclip_lightning",
    "method": "random",
    "metric": {"name": "val/synthetic/mean/pixel_pro", "goal": "maximize"},
    "command": ["${env}", "${interpreter}", "-m", "${program}", "fit", "${args}"],
    "parameters": {"lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}, "n": {"values": [4, 8]}},
}
KNOWLEDGE = {
    "provenance": {"generator": "hand"},
    "sentences": {"nut": ["A chip.", "A scratch."], "bolt": ["A bent bolt."]},
    "images": {"nut/test/000.png": "The nut has a chip."},
}
CONFIG = {"model": {"class_path": "AFCLIP", "init_args": {"layers": [2, 4]}}, "seed_everything": 0}
INSPECTIONS = [
    {"path": "a.png", "score": 0.5, "probability": 0.4, "threshold": 0.6, "verdict": "normal", "area": 0.0}
    | {"regions": [], "error": "", "name": "a"},
    {"path": "b.png", "score": None, "error": "b.png is no image", "name": "b"},
]
PUBLISHED = REPOSITORY / "experiments/published"
DONE = {"method": "A", "train": "one", "seed": 0, "dataset": "two", "shots": 0, "seconds": 1.5, "digest": "ab"}


def read_knowledge(path: Path) -> object:
    return load_knowledge(path), load_image_sentences(path), load_provenance(path)


def write_labels(folder: Path) -> Path:
    write_image(folder / "a.png")
    write_image(folder / "b.png")
    return text_file("labels.csv", "path,label\na.png,0\nb.png,1\n")(folder)


def write_published(folder: Path) -> Path:
    for path in PUBLISHED.glob("*.csv"):
        (folder / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    return folder / "afclip.csv"


def write_marked(folder: Path) -> Path:
    marks = np.eye(9, dtype=bool)
    image = marked_image("a.png", 0.5, marks, marks.astype(np.float32))
    return imports.write_json_file(folder / "a.json", msgspec.to_builtins(image))


LATEST = labelstudio.Choice(predictions=True)


def write_export(tool: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        imports.write_images(folder, "a.png")
        return imports.write_export(tool, folder)

    return write


def drawn(path: Path, export: Export) -> object:
    """Returns the conversion of an export: its shapes become pixels."""
    folder = path.parents[1] if path.parent.name == "ann" else path.parent
    return interpret(export, ImageFolder(folder), Settings(Labels(), "nut", empty="normal"))


def inspections_of(folder: Path) -> None:
    (folder / "inspections.jsonl").write_text("")


def write_patients(folder: Path) -> Path:
    volumes.write_nii(folder / "a.nii")
    return text_file("patients.csv", "volume,patient\na.nii,x\n")(folder)


def in_folder(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "in").mkdir()
        return volumes.write_itk(folder / "in" / name)

    return write


READERS = [
    Reader("results.json", in_run("results.json"), report_of(0)),
    Reader("scores.csv", in_run("scores.csv"), report_of(0)),
    Reader("curves.json", in_run("curves.json"), report_of(0)),
    Reader("run.json", in_run("run.json"), report_of(0)),
    Reader("cases.json", in_run("pictures/cases/cases.json"), report_of(2)),
    Reader(
        "inspections.jsonl",
        text_file("inspections.jsonl", "".join(json.dumps(line) + "\n" for line in INSPECTIONS)),
        lambda path: inspections.render(path.parent),
    ),
    Reader("calibration", write_calibration, Calibration.read),
    Reader("threshold of a report", write_calibration, run_report.calibrated),
    Reader(
        "table of inspect",
        text_file("inspections.jsonl", "".join(json.dumps(line) + "\n" for line in INSPECTIONS)),
        lambda path: Inspections(path.parent, several=False),
    ),
    Reader(
        "settings of inspect",
        text_file("inspect.json", {"fit": "tiles", "size": [1, 2.5], "white": None}),
        lambda path: check_settings(path.parent, {"fit": "tiles", "size": [1, 2.5], "white": None}),
    ),
    Reader("card of a bundle", write_bundle_card, lambda path: read_card(path.parent)),
    Reader("sums of a bundle", text_file(SUMS, f"{'0' * 64}  model.onnx\n"), lambda path: read_sums(path.parent)),
    Reader("labels", write_labels, read_labelled),
    Reader("end of a cell", text_file("done.json", DONE), lambda path: read_done(path.parent)),
    Reader("spec.json", text_file("spec.json", SPEC), lambda path: StoreFacts.read(path.parent)),
    Reader("features", write_features, lambda path: a_store(path.parents[3]).load("a1")),
    Reader(
        "checkpoint",
        lambda folder: write_head(folder / "head.ckpt", BACKBONES),
        lambda path: load_head(path, backbones=BACKBONES),
    ),
    Reader(
        "another project's head", lambda folder: write_released("anomalyclip.pth", folder / "a.pt", {}), read_released
    ),
    Reader("pickled module", lambda folder: write_afclip(folder)[1], read_released),
    Reader("weights.pt", write_weights("w.pt"), lambda path: load_weights(CLIP, path)),
    Reader("weights.safetensors", write_weights("w.safetensors"), lambda path: load_weights(CLIP, path)),
    Reader("knowledge base", text_file("base.yaml", yaml.safe_dump(KNOWLEDGE)), read_knowledge),
    Reader("answers", text_file("answers.jsonl", '{"prompt": "a", "answer": "b"}\n'), AnswerCache),
    Reader("config", text_file("config.yaml", yaml.safe_dump(CONFIG)), read_model),
    Reader("matrix", text_file("matrix.yaml", yaml.safe_dump(MATRIX)), lambda path: load_matrix([path])),
    Reader("sweep", text_file("sweep.yaml", yaml.safe_dump(SWEEP)), read_sweep),
    Reader("published numbers", write_published, lambda path: load_published(path.parent)),
    Reader("results of a cell", in_run("results.json"), lambda path: read_results(path.parent)),
    Reader("table.csv", write_table("images.csv"), lambda path: Table(path.parent).samples("test")),
    Reader("table.jsonl", write_table("t.jsonl"), lambda path: Table(path.parent, "t.jsonl").samples("test")),
    Reader(
        "meta.json",
        lambda folder: write_meta(folder / "set") / "meta.json",
        lambda path: Listing(path.parent).samples("test"),
    ),
    Reader(
        "listing.jsonl",
        lambda folder: write_json_lines(folder / "set") / "full-shot.jsonl",
        lambda path: Listing(path.parent, "full-shot.jsonl").samples("test"),
    ),
    Reader(
        "VisA's table",
        lambda folder: write_visa(folder / "visa", ["candle"]) / "split_csv/1cls.csv",
        lambda path: VisA(path.parents[1], categories=["candle"]).samples("test"),
    ),
    Reader(
        "Real-IAD's lists",
        lambda folder: write_real_iad(folder / "real_iad", ["toy"]) / "realiad_jsons/toy.json",
        lambda path: RealIAD(path.parents[1], categories=["toy"]).samples("test"),
    ),
    Reader(
        "Kaputt's tables",
        lambda folder: write_kaputt(folder / "kaputt") / "datasets/query-test.parquet",
        lambda path: Kaputt(path.parents[1]).samples("test"),
    ),
    Reader(
        "saturations",
        lambda folder: write_loco(folder / "loco", ["box"]) / "box/defects_config.json",
        lambda path: SaturatedLayout(path.parents[1]).samples("test"),
    ),
    Reader("map", write_map_file, read_map),
    Reader("counts of images", write_counts, read_records),
    Reader("slices.jsonl", lambda f: write_volumes(f) / "slices.jsonl", lambda p: Volumes(p.parent).samples("test")),
    Reader("volumes.jsonl", volumes.write_manifest, read_volumes),
    Reader(
        "import.json", text_file("import.json", settings_of(Cutting())), lambda p: check_same(p.parent, {"axis": 1})
    ),
    Reader(
        "verdicts on volumes",
        text_file("volumes.jsonl", json.dumps(msgspec.to_builtins(volumes.VERDICT)) + "\n"),
        lambda path: (inspections_of(path.parent), inspections.render(path.parent)),
    ),
    Reader("patients", write_patients, lambda p: find_volumes(p.parent, patients=p)),
    Reader("NIfTI", lambda folder: volumes.write_nii(folder / "in/a.nii"), volumes.cut),
    Reader("NIfTI by gzip", lambda folder: volumes.write_nii(folder / "in/a.nii.gz"), volumes.cut),
    Reader("NRRD", in_folder("a.nrrd"), volumes.cut),
    Reader("MetaImage", in_folder("a.mha"), volumes.cut),
    Reader("slice of a DICOM series", volumes.write_slice, volumes.cut),
    Reader("DICOM segmentation", volumes.write_seg, volumes.cut),
    Reader("marked image", write_marked, read_marked),
    Reader("coco", write_export("coco"), lambda path: drawn(path, coco.read(path))),
    Reader("cvat", write_export("cvat"), lambda path: drawn(path, cvat.read(path))),
    Reader("datumaro", write_export("datumaro"), lambda path: drawn(path, datumaro.read(path))),
    Reader("labelme", write_export("labelme"), lambda path: drawn(path, labelme.read(path, path.parent))),
    Reader("supervisely", write_export("supervisely"), lambda path: drawn(path, supervisely.read(path.parent))),
    Reader("labelstudio", write_export("labelstudio"), lambda path: drawn(path, labelstudio.read(path, LATEST))),
]
BY_NAME = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
SETTINGS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

# values in place of the expected ones
STRANGE = (
    None,
    True,
    -1,
    0,
    2,
    10**30,
    1e308,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\udcff",
    "=1",
    "../..",
    "\0",
)
STRANGE += ([], {}, [[]], {"": {}}, [None], {"x": "y"}, "${x}", "9" * 400)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reader], Path]:
    """Returns the file of a reader, written once."""
    written: dict[str, Path] = {}

    def place(reader: Reader) -> Path:
        if reader.name not in written:
            folder = tmp_path_factory.mktemp("reader")
            written[reader.name] = reader.write(folder)
        return written[reader.name]

    return place


def check(reader: Reader, path: Path, content: bytes) -> None:
    """Reads the content, and accepts only a result or one error."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        reader.read(path)
    except UserError as error:
        message = str(error)
        assert message
        assert len(message) < 4000
        assert "weights_only" not in message
        assert all(line.isprintable() for line in message.split("\n"))
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(before)


def places_of(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path to every part of a value."""
    yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in parts:
        yield from places_of(part, (*place, key))


def put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """Returns the value with a part replaced, or without the part if `new` is `...`."""
    if not place:
        return None if new is ... else new
    value = copy.copy(list(value) if isinstance(value, tuple) else value)
    key, *rest = place
    if new is ... and not rest:
        del value[key]
    else:
        value[key] = put(value[key], tuple(rest), new)
    return value


def load(path: Path, content: bytes) -> Any:
    if path.suffix == ".csv":
        return list(csv.reader(io.StringIO(content.decode())))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in content.decode().split("\n") if line]
    if path.suffix in (".ckpt", ".pt"):
        return torch.load(io.BytesIO(content), weights_only=True)
    return yaml.safe_load(content) if path.suffix == ".yaml" else json.loads(content)


def dump(path: Path, value: Any) -> bytes:
    if path.suffix == ".csv":
        rows = value if isinstance(value, list) else [[value]]
        return "\n".join(
            ",".join(
                json.dumps(cell) if "," in str(cell) else str(cell)
                for cell in (row if isinstance(row, list) else [row])
            )
            for row in rows
        ).encode(errors="surrogateescape")
    if path.suffix == ".jsonl":
        return "".join(json.dumps(line) + "\n" for line in (value if isinstance(value, list) else [value])).encode()
    if path.suffix in (".ckpt", ".pt"):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
    return json.dumps(value).encode()  # which is YAML too


# tested by themselves; CVAT's is XML
BINARY = ("features", "weights.safetensors", "map", "pickled module", "counts of images", "cvat", "Kaputt's tables")
BINARY += (
    "NIfTI",
    "NIfTI by gzip",
    "NRRD",
    "MetaImage",
    "slice of a DICOM series",
    "DICOM segmentation",
    "sums of a bundle",
)
STRUCTURED = [reader for reader in READERS if reader.name not in BINARY]


@BY_NAME
def test_what_was_written_is_read(reader: Reader, tmp_path: Path) -> None:
    reader.read(reader.write(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("reader", STRUCTURED, ids=lambda reader: reader.name)
def test_values_of_another_type(reader: Reader, places: Callable[[Reader], Path]) -> None:
    path = places(reader)
    value = load(path, path.read_bytes())
    ways = list(places_of(value))
    strange = (*STRANGE, ..., *((torch.zeros(2), torch.tensor(1)) if path.suffix in (".ckpt", ".pt") else ()))

    @settings(SETTINGS, max_examples=25)
    @given(st.sampled_from(ways), st.sampled_from(strange))
    def changed(way: tuple[Any, ...], new: Any) -> None:
        check(reader, path, dump(path, put(value, way, new)))

    changed()


@pytest.mark.slow
@BY_NAME
def test_content_that_is_cut_or_altered(reader: Reader, places: Callable[[Reader], Path]) -> None:
    path = places(reader)
    content = path.read_bytes()

    @settings(SETTINGS, max_examples=8)
    @given(st.integers(0, len(content) - 1), st.integers(1, 255))
    def damaged(at: int, flip: int) -> None:
        check(reader, path, content[:at])
        check(reader, path, content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        check(reader, path, content[:at] + b'"' + content[at:])

    damaged()


@pytest.mark.slow
@BY_NAME
def test_content_of_any_kind(reader: Reader, places: Callable[[Reader], Path]) -> None:
    path = places(reader)
    for content in (
        b"",
        b"\0" * 100,
        b"{" * 5000,
        b"[" * 5000,
        b"- " * 5000,
        b"\xff\xfe{\0}\0",
        b"PK\x05\x06" + bytes(18),
    ):
        check(reader, path, content)

    @settings(SETTINGS, max_examples=10)
    @given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="ignore")))
    def random(content: bytes) -> None:
        check(reader, path, content)

    random()


@BY_NAME
def test_what_is_no_file(reader: Reader, tmp_path: Path) -> None:
    path = reader.write(tmp_path)
    for make in (os.mkfifo, os.mkdir, lambda place: os.symlink(place, place)):
        path.unlink()
        make(path)
        with contextlib.suppress(UserError):
            reader.read(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not os.path.lexists(path):  # a damaged file of features is removed
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            path.unlink()
        path.touch()


PARSERS = {
    *("json.load", "json.loads", "yaml.load", "yaml.safe_load", "csv.reader", "csv.DictReader", "pickle.load"),
    *(
        "pickle.loads",
        "torch.load",
        "torch.jit.load",
        "np.load",
        "load_file",
        "safe_open",
        "OmegaConf.load",
        "Image.open",
    ),
    *("read_text", "read_bytes"),  # methods of a path
}
ALLOWED = {
    "afclip_lightning/backbones/archives.py": {"torch.load"},
    "afclip_lightning/backbones/recognise.py": {"safe_open"},
    "afclip_lightning/backbones/weights.py": {"load_file", "safe_open"},
    "afclip_lightning/backbones/store_files.py": {"safe_open"},
    "afclip_runtime/images/reader.py": {"Image.open"},  # the reader of images
    "afclip_runtime/images/tiff.py": {"Image.open"},
    # what this process has written itself before, and files of the package
    "afclip_lightning/engine/app.py": {"yaml.safe_load"},
    "afclip_lightning/engine/factory.py": {"json.loads"},
    "afclip_lightning/engine/parser.py": {"yaml.safe_load"},
    "afclip_lightning/engine/run_folder.py": {"read_text"},
    "afclip_runtime/inspection/calibration.py": {"json.loads"},
    "afclip_runtime/inspection/folder.py": {"json.loads"},
    "afclip_runtime/serving/server.py": {"read_bytes"},
    "afclip_lightning/report/page.py": {"read_text"},
    "afclip_lightning/sweep/journal.py": {"json.loads"},  # of bytes that Optuna reads again
}


def parsers_in(source: str) -> set[str]:
    """Returns the parsers that a module calls. Methods of a path are found by their names alone."""
    called, imported = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "afclip_runtime.files":
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = ast.unparse(node.func)
            method = name.rsplit(".")[-1]
            called.add(method if method in ("read_text", "read_bytes") else name)
    return (called & PARSERS) - imported


def test_files_are_read_in_one_place() -> None:
    found = {}
    for path in sorted(path for package in PACKAGES for path in package.rglob("*.py")):
        place = path.relative_to(REPOSITORY).as_posix()
        if not place.startswith("afclip_runtime/files/"):
            used = parsers_in(path.read_text()) - ALLOWED.get(place, set())
            found |= {place: used} if used else {}
    assert found == {}, "use afclip_runtime.files"
