"""Regions of interest in a test and in `evaluate`: pixels that count, labels of images, and equality with inspect."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from afclip_lightning import load
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store_files import image_digest
from afclip_lightning.cli import evaluate
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.engine.app import main
from afclip_lightning.engine.factory import Backbones
from afclip_lightning.metrics import AnomalyMetrics
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json
from afclip_runtime.inspection.calibration import Calibration, fixed
from afclip_runtime.types import Tiling
from afclip_runtime.views.roi import Roi
from tests.support.small_head import AFCLIP, BACKBONE, picture, write_head

LEFT = ((0.0, 0.0), (40.0, 0.0), (40.0, 60.0), (0.0, 60.0))  # of 80 × 60 pixels
ROI = {"size": [80, 60], "include": [LEFT]}
ANOMALIES = {"left": (10, 20), "right": (50, 70), "both": (30, 50)}  # columns that the mask of each kind marks
LABELS = {"good": 0, "left": 1, "right": 0, "both": 1}


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """A set of one category: normal images, and anomalies inside, outside and across the border of the region."""
    for part, count in (("train", 8), ("test", 3)):
        for i in range(count):
            write(tmp_path / f"set/bolts/{part}/good/{i:03}.png", picture(60, 80, i + 10 * (part == "test")))
    for number, (kind, (start, end)) in enumerate(ANOMALIES.items()):
        mask = np.zeros((60, 80), np.uint8)
        mask[20:40, start:end] = 255
        image = picture(60, 80, 30 + number)
        image[mask > 0] = (255, 0, 0)
        write(tmp_path / f"set/bolts/test/{kind}/000.png", image)
        write(tmp_path / f"set/bolts/ground_truth/{kind}/000_mask.png", mask)
    (tmp_path / "roi").mkdir()
    (tmp_path / "roi/bolts.json").write_text(json.dumps(ROI))
    return tmp_path


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# --- metrics


@pytest.mark.parametrize("exact", [False, True])
def test_only_pixels_inside_count(exact: bool) -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((4, 6, 8)).astype(np.float32)
    masks = np.zeros((4, 6, 8), np.uint8)
    masks[1, 1:4, 1:6] = masks[2, 2:4, 6:] = masks[3, 4:, 2] = 1
    inside = np.zeros((4, 6, 8), bool)
    inside[:, :, :4] = True
    scores = rng.random(4).astype(np.float32)
    labels = np.array([0, 1, 0, 1])  # the third is marked outside only
    whole, part = (AnomalyMetrics(exact=exact) for _ in range(2))
    whole.update(maps, masks, scores, labels, inside=inside)
    part.update(maps[:, :, :4], masks[:, :, :4], scores, labels)
    assert whole.compute() == part.compute()
    with pytest.raises(ValueError, match=r"its label is 1 \(anomalous\), but its mask is empty"):
        AnomalyMetrics().update(maps, masks, scores, np.array([0, 1, 1, 1]), inside=inside)
    with pytest.raises(ValueError, match="of that size"):
        AnomalyMetrics().update(maps, masks, scores, labels, inside=inside[:, :2])


# --- datasets


def samples_of(products: Path, **loading: Any) -> tuple[MVTecLayout, AnomalyDataset]:
    data = MVTecLayout(products / "set", num_workers=0)
    data.connect(Preprocess(32), Loading(roi=str(products / "roi"), **loading))
    return data, AnomalyDataset(data.named(data.samples("test")), Preprocess(32), data.loading, facts="counts")


@pytest.mark.parametrize("loading", [{}, {"cache_mb": 8}, {"draft": True}], ids=str)
def test_images_keep_the_label_of_what_is_inside(products: Path, loading: dict[str, Any]) -> None:
    _, dataset = samples_of(products, **loading)
    for _ in range(2):  # the second time from the cache
        items = {item.sample.image_path.parent.name: item for item in map(dataset.read, range(len(dataset)))}
        assert {kind: item.sample.label for kind, item in items.items()} == {
            "good": 0,
            "left": 1,
            "right": 0,
            "both": 1,
        }
        assert items["right"].mask is None
        both = items["both"].mask
        assert both is not None
        assert not both[:, 16:].any()
        assert both[:, 12:16].any()
        facts = items["both"].facts
        assert facts is not None
        assert facts.marked == 20 * 10  # of 20 × 20 pixels


def test_the_backbone_does_not_see_what_lies_outside(products: Path) -> None:
    _, dataset = samples_of(products)
    before = [dataset.read(index).image for index in range(len(dataset))]
    for path in (products / "set/bolts/test").rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[:, 40:] = 255 - pixels[:, 40:]
        write(path, pixels)
    for index, image in enumerate(before):
        assert_array_equal(dataset.read(index).image, image)


def test_kept_features_are_those_of_one_region(products: Path) -> None:
    path = products / "set/bolts/test/good/000.png"
    one, other = Roi((80, 60), (LEFT,)), Roi((80, 60), ignore=(LEFT,))
    regions = ("", one.fingerprint, other.fingerprint)
    digests = {image_digest(path, white, roi) for white in (None, 4095) for roi in regions}
    assert len(digests) == 6
    assert image_digest(path, None, "") == image_digest(path)
    _, dataset = samples_of(products)
    assert dataset._digest(dataset.samples[0]) == image_digest(dataset.samples[0].image_path, None, one.fingerprint)


def test_regions_are_found_by_category(products: Path) -> None:
    data, _ = samples_of(products)
    assert data.regions()["bolts"] == Roi((80, 60), (LEFT,))
    assert {sample.roi for sample in data.samples("train")} == {Roi((80, 60), (LEFT,))}
    (products / "roi/bolts.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"bolts.json: bolts.png beside it is for the same category"):
        samples_of(products)
    (products / "roi/bolts.png").unlink()
    (products / "roi/bolts.json").rename(products / "roi/nuts.json")
    with pytest.raises(DatasetError, match=r"no region of interest for bolts.*bolts.json or bolts.png"):
        samples_of(products)
    assert Loading(roi={"mine": "a.json"}).roi_of("other") is None
    with pytest.raises(DatasetError, match="no such file or folder"):
        data.connect(Preprocess(32), Loading(roi="nowhere")).samples("test")


def test_an_image_of_another_shape_is_named(products: Path) -> None:
    write(products / "set/bolts/test/good/009.png", picture(60, 60))
    _, dataset = samples_of(products)
    with pytest.raises(DatasetError, match=r"009.png: it has 60×60 pixels and .*bolts.json was drawn on 80×60"):
        [dataset.read(index) for index in range(len(dataset))]


# --- a test, and what inspect says of the same images


AT_OWN_SIZE = "--evaluation.resolution=image"
CONFIG = """
seed_everything: 0
trainer: {{accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}}
model: {{class_path: AFCLIP, init_args: {{backbone: {backbone}, layers: [2, 4, 6, 8], adapter_heads: 2}}}}
data:
  class_path: MVTecLayout
  init_args: {{root: {root}, num_workers: 0}}
pictures: {{count: 1}}
"""


@pytest.fixture
def tested(products: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    backbones: Backbones = {}
    write_head(products / "head.ckpt", backbones, arguments=AFCLIP)
    config = CONFIG.format(backbone=json.dumps(BACKBONE), root=products / "set")
    (products / "config.yaml").write_text(config)
    monkeypatch.chdir(products)

    def run(*options: str) -> dict[str, Any]:
        command = ["test", "--config=config.yaml", "--checkpoint", "head.ckpt", "--run_dir", "run", *options]
        assert main(command) == 0
        return read_json(Path("run/results.json"), dict[str, Any])

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["--evaluation.resolution=image"], ["--evaluation.resolution=image", "--evaluation.tiles=2"]],
    ids=str,
)
def test_a_test_says_what_inspect_says(
    tested: Callable[..., dict[str, Any]], products: Path, options: list[str]
) -> None:
    found = tested("--loading.roi=roi", *options)
    model = load(
        "head.ckpt",
        device="cpu",
        roi="roi/bolts.json",
        category="bolts",
        tiling=Tiling(tiles=2 if "tiles" in str(options) else 1),
    )
    lines = (products / "run/scores.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    assert {Path(row["image"]).parent.name: int(row["label"]) for row in rows} == LABELS
    own = AnomalyMetrics(exact=True)
    for row in rows:
        said = model.predict(row["image"])
        assert_allclose(float(row["score"]), said.score, atol=1e-5)
        assert said.inside is not None
        mask = np.zeros((60, 80), np.uint8)
        if row["label"] == "1":
            start, end = ANOMALIES[Path(row["image"]).parent.name]
            mask[20:40, start:end] = 1
        given = said.anomaly_map[None], mask[None], np.array([said.score]), np.array([int(row["label"])])
        own.update(*given, inside=said.inside[None])
    (category,) = (row["metrics"] for row in found["rows"] if row["category"] == "bolts")
    wanted = own.compute()
    assert_allclose(category["image_auroc"], wanted["image_auroc"], atol=1e-9)
    if options:  # pixels of each image's own size
        for metric in ("pixel_auroc", "pixel_ap", "pixel_pro"):
            assert_allclose(category[metric], wanted[metric], atol=1e-3)
    assert found["conditions"]["roi"]["set/bolts"]["fingerprint"] == Roi((80, 60), (LEFT,)).fingerprint
    assert "inside the regions of interest of 1 category" in found["title"]


@pytest.mark.slow
def test_a_calibration_of_another_region_is_refused(
    tested: Callable[..., dict[str, Any]], products: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load("head.ckpt", device="cpu", roi="roi/bolts.json", calibration=None)
    at = fixed(0.5, np.array([0.1]))
    Calibration(at, at, model.checkpoint, model.settings, roi=model.roi).save(products / "a.json")
    with pytest.raises(AssertionError):
        tested("--evaluation.threshold=a.json")
    assert "a.json was calibrated with another region of interest than set/bolts" in capsys.readouterr().err
    tested("--evaluation.threshold=a.json", "--loading.roi=roi/bolts.json")


# --- maps on disk


def test_evaluate_counts_what_is_inside(products: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    own = AnomalyMetrics(exact=True)
    for path in sorted((products / "set/bolts/test").rglob("*.png")):
        values = rng.random((60, 80)).astype(np.float32)
        place = products / "maps/bolts/test" / path.parent.name / f"{path.stem}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, values)
        mask = np.zeros((60, 80), np.uint8)
        if path.parent.name != "good":
            start, end = ANOMALIES[path.parent.name]
            mask[20:40, start:end] = 1
        left = mask[None, :, :40]
        own.update(values[None, :, :40], left, values[None, :, :40].max((1, 2)), left.any((1, 2)).astype(int))
    command = ["--maps", str(products / "maps"), "--masks", str(products / "set"), "--exact"]
    command += ["--out", str(products / "t.json")]
    for roi in ("roi", "roi/bolts.json"):
        assert evaluate.main([*command, "--roi", str(products / roi)]) == 0
        row = read_json(products / "t.json", dict[str, Any])["rows"][0]
        assert (row["normal"], row["anomalous"]) == (4, 2)
        assert row["metrics"] == pytest.approx(own.compute(), abs=1e-9)
    capsys.readouterr()
    assert evaluate.main([*command, "--roi", str(products / "set")]) == 2
    assert "no region of interest for bolts" in capsys.readouterr().err
    (products / "wide.json").write_text(json.dumps({**ROI, "size": [160, 60]}))
    assert evaluate.main([*command, "--roi", str(products / "wide.json")]) == 2
    assert "it has 80×60 pixels" in capsys.readouterr().err
