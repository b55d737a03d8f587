"""Thresholds that a test fixes without labels: the source of their normal images, and their results."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import LightningModule, Trainer
from PIL import Image

from afclip_lightning import results
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.components.views import score_views
from afclip_lightning.data.images import read_image, read_mask
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.engine.callbacks.evaluation import Evaluation, Pass
from afclip_lightning.metrics.image_records import read_records
from afclip_lightning.metrics.intervals import Settings, intervals_of
from afclip_lightning.report.run_files import read_run
from afclip_lightning.results import FIXED
from afclip_lightning.results.operating import points_as_metrics, thresholds_of
from afclip_lightning.types import MAIN_HEAD, AnomalyPrediction, Batch
from afclip_runtime.errors import CheckpointError, DatasetError, UserError
from afclip_runtime.views.resizing import resize_map

SIZE = 16


class Brightness(LightningModule):
    """Scores an image by its red channel."""

    k_shot, shot_seed, memory, store = 0, 0, None, None
    needs_test_set, needs_references = False, False

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(SIZE)

    def predict_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> AnomalyPrediction:
        return AnomalyPrediction(batch.image[:, 0].amax((1, 2)), batch.image[:, 0].clone())

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        return score_views(batch, self.preprocess, self.predict_step)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of normal training and test images, and of anomalous images with masks."""
    root: Path = tmp_path_factory.mktemp("normals") / "parts"
    rng = np.random.default_rng(0)
    for kind, count in (("train", 6), ("good", 4), ("bad", 5), ("masks", 5)):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120 + 10 * i, (24, 20, 3)).astype(np.uint8)
            if kind == "bad":
                pixels[8:16, 5:12] += np.uint8(20 * i)
            if kind == "masks":
                pixels = np.zeros((24, 20), np.uint8)
                pixels[8:16, 5:12] = 255
            Image.fromarray(pixels).save(root / kind / f"{i}.png")
    return root


def evaluated(
    root: Path, out: Path, threshold: str, model: LightningModule | None = None, **arguments: Any
) -> Evaluation:
    folders = {"train_dir": "train", **arguments.pop("folders", {})}
    data = Folder(root, normal_dir="good", abnormal_dir="bad", mask_dir="masks", batch_size=4, num_workers=0, **folders)
    data.connect(Preprocess(SIZE))
    evaluation = Evaluation(threshold=threshold, **arguments)
    evaluation.about = Pass(titles={MAIN_HEAD: "Test"})
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    runner = Trainer(accelerator="cpu", logger=False, default_root_dir=str(out), callbacks=[evaluation], **quiet)
    runner.test(model or Brightness(), datamodule=data, verbose=False)
    return evaluation


def maps_of(root: Path, kind: str, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of a folder's images, and the values of their maps, `[n, H, W]`."""
    preprocess, maps = Preprocess(SIZE), []
    for path in sorted((root / kind).iterdir()):
        pixels, _ = preprocess(read_image(path), None)
        maps.append(pixels[0].numpy())
    scores = np.array([one.max() for one in maps])
    return scores, np.stack([resize_map(one, 24, 20) if own else one for one in maps])


def f1_of(normal: np.ndarray, anomalous: np.ndarray, threshold: float) -> float:
    tp, fp = (anomalous > threshold).sum(), (normal > threshold).sum()
    return float(2 * tp / (tp + fp + anomalous.size))


@pytest.mark.parametrize("resolution", ["backbone", "image"])
@pytest.mark.parametrize("rule", ["mean+1sd", "q0.8"])
def test_a_rule_takes_training_images_alone(root: Path, tmp_path: Path, rule: str, resolution: str) -> None:
    evaluation = evaluated(root, tmp_path, rule, resolution=resolution)
    points = evaluation.main.rows[0].operating_points
    scores, maps = maps_of(root, "train", resolution == "image")
    for level, values in (("image", scores), ("pixel", maps)):
        if rule == "q0.8":
            expected = np.sort(values.ravel())[-1 - int(values.size * 0.2 + 1e-9)]
            assert ((values > points[level].threshold) == (values > expected)).all()
        else:
            expected = values.astype(float).mean() + values.astype(float).std()
            assert points[level].threshold == pytest.approx(expected, rel=1e-6)
    normal, anomalous = (maps_of(root, kind, False)[0] for kind in ("good", "bad"))
    threshold = points["image"].threshold
    assert threshold is not None
    assert points["image"].fpr == (normal > threshold).mean()
    assert points["image"].tpr == (anomalous > threshold).mean()
    assert points["image"].f1 == pytest.approx(f1_of(normal, anomalous, threshold))
    best = evaluation.main.rows[0].metrics["image_f1_max"]
    assert points["image"].f1_gap == pytest.approx(best - f1_of(normal, anomalous, threshold))


def test_pixels_are_those_of_the_test_set(root: Path, tmp_path: Path) -> None:
    point = evaluated(root, tmp_path, "mean+1sd", resolution="image").main.rows[0].operating_points["pixel"]
    assert point.threshold is not None
    assert point.f1 is not None
    masks = np.stack([read_mask(path) for path in sorted((root / "masks").iterdir())]).astype(bool)
    good, bad = (maps_of(root, kind, True)[1] for kind in ("good", "bad"))
    expected = f1_of(np.concatenate([good.ravel(), bad[~masks]]), bad[masks], point.threshold)
    assert abs(point.f1 - expected) <= point.f1_error + 1e-9
    assert 0.1 < expected < 1


def test_it_stands_in_all_files(root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(root, tmp_path, "mean+3sd")
    row, mean = evaluation.main.rows
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["conditions"]["threshold"] == "mean+3sd"
    assert kept["rows"][0]["operating_points"]["image"]["f1"] == row.operating_points["image"].f1
    assert "threshold" not in kept["rows"][1]["operating_points"]["image"]
    assert mean.operating_points["pixel"].f1 == row.operating_points["pixel"].f1
    assert read_run(tmp_path).rows == evaluation.main.rows
    with (tmp_path / "results.csv").open() as file:
        line = next(csv.DictReader(file))
    assert float(line["pixel_fixed_f1"]) == row.operating_points["pixel"].f1
    assert float(line["image_fixed_threshold"]) == row.operating_points["image"].threshold
    text = results.render(evaluation.main.rows)
    assert "At thresholds fixed without labels (mean+3sd), and how far F1 is below the best:" in text
    assert text.partition("At thresholds")[2] in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("resolution", ["backbone", "image"])
def test_it_has_intervals_in_all_files(root: Path, tmp_path: Path, resolution: str) -> None:
    seen: dict[str, float] = {}

    class Logged(Brightness):
        def log_dict(self, dictionary: Any, **_: Any) -> None:
            seen.update(dictionary)

    (tmp_path / "set").mkdir()
    for kind in ("train", "bad", "masks"):
        (tmp_path / "set" / kind).symlink_to(root / kind)
    (tmp_path / "set/good").mkdir()
    for i, path in enumerate([*(root / "good").iterdir(), *(root / "train").iterdir()]):  # 4 are too few
        (tmp_path / f"set/good/{i}.png").symlink_to(path)
    evaluation = evaluated(tmp_path / "set", tmp_path, "mean+1sd", Logged(), resolution=resolution, intervals=100)
    row, mean = evaluation.main.rows
    thresholds = {(row.dataset, row.category): thresholds_of(row.operating_points)}
    assert thresholds[row.dataset, row.category].keys() == {"image", "pixel"}
    records = read_records(tmp_path / "image_counts.npz")
    found = intervals_of(records, Settings(100), thresholds=thresholds).by_row
    assert row.intervals == found[row.dataset, row.category]
    assert mean.intervals == found[row.dataset, "mean"]
    kept = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    values, ends = points_as_metrics(row.operating_points), row.intervals
    assert values.keys() == FIXED.keys() == ends.keys() - row.metrics.keys()
    for name, value in values.items():
        low, high = ends[name]
        assert low - 0.01 <= value <= high + 0.01
        assert kept["intervals"][name] == [low, high]
        assert seen[f"test/{row.dataset}/{row.category}/{name}"] == value
        assert seen[f"test/{row.dataset}/mean/{name}_low"] == mean.intervals[name][0]
    assert ends["pixel_fixed_f1"][0] < ends["pixel_fixed_f1"][1]
    assert read_run(tmp_path).rows == evaluation.main.rows
    with (tmp_path / "results.csv").open() as file:
        line = next(csv.DictReader(file))
    assert float(line["pixel_fixed_f1_low"]) == ends["pixel_fixed_f1"][0]
    text = (tmp_path / "results.md").read_text()
    assert "95 % intervals at these thresholds, as if they had been given, by resampling the images:" in text
    assert results.interval_text(ends["image_fixed_fpr"]) in text.partition("at these thresholds, as if")[2]


def test_without_normal_images_there_is_one_clear_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/0.png").write_bytes((root / "train/0.png").read_bytes())
    with pytest.raises(UserError, match=r"parts/parts has 1 normal training images, and the rule needs 2"):
        evaluated(root, tmp_path, "mean+3sd", folders={"train_dir": str(tmp_path / "one")})
    with pytest.raises((UserError, DatasetError)):
        evaluated(root, tmp_path, "mean+3sd", folders={"train_dir": None})
    with pytest.raises(UserError, match=r"has 6 normal training images, and the rule needs 100"):
        evaluated(root, tmp_path, "q0.99")


def test_few_shot_images_do_not_count(root: Path, tmp_path: Path) -> None:
    model = Brightness()
    model.k_shot = 5
    with pytest.raises(UserError, match=r"has 1 normal training images beside 5 few-shot images"):
        evaluated(root, tmp_path, "mean+3sd", model)


def test_a_method_that_compares_test_images_is_refused(root: Path, tmp_path: Path) -> None:
    model = Brightness()
    model.needs_test_set = True
    with pytest.raises(UserError, match="Brightness compares test images with each other"):
        evaluated(root, tmp_path, "mean+3sd", model)


def test_a_calibration(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "head.calibration.json"
    file.write_text(json.dumps({"image": {"value": 0.5}, "pixel": {"value": 0.25}, "checkpoint": "0" * 16}))
    points = evaluated(root, tmp_path, str(file)).main.rows[0].operating_points
    assert {level: point.threshold for level, point in points.items()} == {"image": 0.5, "pixel": 0.25}
    assert points["image"].rule == str(file)
    file.write_text(json.dumps({"image": {"value": 0.5}, "pixel": None, "checkpoint": "0" * 16}))
    assert list(evaluated(root, tmp_path, str(file)).main.rows[0].operating_points) == ["image"]


def test_a_calibration_of_another_head(tmp_path: Path) -> None:
    from afclip_lightning.engine.callbacks.fixed_thresholds import CalibrationFile

    head, file = tmp_path / "head.ckpt", tmp_path / "head.calibration.json"
    head.write_bytes(b"head")
    file.write_text(json.dumps({"image": {"value": 0.5}, "pixel": None, "checkpoint": "0" * 16}))
    with pytest.raises(CheckpointError, match="is a calibration of another checkpoint than"):
        CalibrationFile.read(file, str(head))
    with pytest.raises(DatasetError, match=r"gone\.json"):
        CalibrationFile.read(tmp_path / "gone.json", None)


def test_a_rule_that_there_is_none_of() -> None:
    with pytest.raises(ValueError, match=r"a rule is mean\+3sd or q0\.99"):
        Evaluation(threshold="median")
    with pytest.raises(ValueError, match=r"--evaluation\.threshold: .* got '0\.6'\. .*calibrate --threshold X"):
        Evaluation(threshold="0.6")
