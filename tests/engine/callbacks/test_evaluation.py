"""The evaluation of a pass: at the backbone's size and at the images' own size, losses by resizing, errors."""

import csv
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import LightningModule, Trainer
from PIL import Image
from torch import nn

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.components.views import score_views
from afclip_lightning.data.images import read_image, read_mask
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.engine.callbacks.evaluation import Evaluation, Pass
from afclip_lightning.engine.callbacks.predictions import Predictions
from afclip_lightning.engine.factory import load_head
from afclip_lightning.inspection.predictor import load
from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.metrics.image_counts import CategoryCounts
from afclip_lightning.metrics.image_records import read_records
from afclip_lightning.metrics.intervals import Settings, intervals_of
from afclip_lightning.metrics.resampling import metrics_of
from afclip_lightning.types import MAIN_HEAD, AnomalyPrediction, Batch
from afclip_runtime.errors import UserError
from afclip_runtime.types import Tiling
from afclip_runtime.views.resizing import resize_map
from afclip_runtime.views.tiles import Layout
from tests.support.small_models import write_head

SIZE = 16
SHAPES = [(100, 60), (40, 90), (12, 10), (16, 16), (64, 31)]  # of the images; one is smaller than the backbone's square


class Brightness(LightningModule):
    """Scores an image by its red channel; one named image gets a given number instead.

    Args:
        spoil: Part of the image's name, and the number.
        where: `score` or `map`.
    """

    k_shot, shot_seed, memory, store = 0, 0, None, None
    needs_test_set, needs_references = False, False

    def __init__(self, spoil: tuple[str, float] | None = None, where: str = "map") -> None:
        super().__init__()
        self.preprocess = Preprocess(SIZE)
        self.spoil, self.where = spoil, where

    def predict_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> AnomalyPrediction:
        maps = batch.image[:, 0].clone()
        scores = maps.amax((1, 2))
        for row, sample in enumerate(batch.samples):
            if self.spoil and self.spoil[0] in sample.image_path.name:
                (scores if self.where == "score" else maps)[row] = self.spoil[1]
        return AnomalyPrediction(scores, maps)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        return score_views(batch, self.preprocess, self.predict_step)

    validation_step = test_step


def write_images(root: Path) -> None:
    """Writes normal images, images with a defect that resizing keeps, and one with a defect that resizing removes."""
    rng = np.random.default_rng(0)
    for kind in ("good", "bad", "masks"):
        (root / kind).mkdir(parents=True)
    for i, (height, width) in enumerate(SHAPES):
        pixels = rng.integers(0, 200, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"good/{i}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 255
        if i == 0:
            mask[:] = 0
            mask[1, 1] = mask[-2, -2] = 255
        pixels[mask > 0] += 50
        Image.fromarray(pixels).save(root / f"bad/{i}.png")
        Image.fromarray(mask).save(root / f"masks/{i}.png")


def folder(root: Path, **arguments: Any) -> Folder:
    arguments = {"batch_size": 3, "num_workers": 0, **arguments}
    data = Folder(root, normal_dir="good", abnormal_dir="bad", mask_dir="masks", **arguments)
    data.connect(Preprocess(SIZE))
    return data


def trainer(out: Path, *callbacks: Any) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", logger=False, default_root_dir=str(out), callbacks=list(callbacks), **quiet)


def evaluated(root: Path, out: Path, model: LightningModule | None = None, **arguments: Any) -> Evaluation:
    evaluation = Evaluation(**arguments)
    evaluation.about = Pass(titles={MAIN_HEAD: "Test"})
    trainer(out, evaluation).test(model or Brightness(), datamodule=folder(root), verbose=False)
    return evaluation


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("set", numbered=False) / "images"
    write_images(root)
    return root


def expected(root: Path, own: bool) -> dict[str, float]:
    """Returns the metrics from the files, one image at a time."""
    preprocess, metrics = Preprocess(SIZE), AnomalyMetrics()
    for kind in ("bad", "good"):
        for path in sorted((root / kind).iterdir()):
            image = read_image(path)
            mask = read_mask(root / "masks" / path.name) if kind == "bad" else np.zeros(image.shape[:2], np.uint8)
            pixels, small = preprocess(image, mask)
            scores = pixels[0].numpy()
            maps = resize_map(scores, *image.shape[:2]) if own else scores
            masks = mask if own else small.numpy()
            label = np.array([kind == "bad"])
            metrics.update(maps[None], masks[None], scores.max()[None], label, allow_empty_mask=True)
    return metrics.result().metrics


@pytest.mark.parametrize("resolution", ["backbone", "image"])
def test_pixels_are_evaluated_at_the_size_that_was_asked_for(root: Path, tmp_path: Path, resolution: str) -> None:
    evaluation = evaluated(root, tmp_path, resolution=resolution)
    row = evaluation.main.rows[0]
    assert row.metrics == expected(root, resolution == "image")
    assert (row.normal, row.anomalous) == (5, 5)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["conditions"]["resolution"] == resolution
    assert kept["conditions"]["image_size"] == SIZE
    assert ("own size" in kept["title"]) == (resolution == "image")


def test_masks_that_resizing_empties_are_counted(root: Path, tmp_path: Path) -> None:
    small, own = evaluated(root, tmp_path / "small"), evaluated(root, tmp_path / "own", resolution="image")
    counts = small.main.rows[0].masks
    assert counts is not None
    assert (counts.masks, counts.empty, counts.regions, counts.mostly) == (5, 1, 6, 0)
    assert counts.regions_evaluated == 4
    assert small.main.rows[1].masks == counts  # the mean's row has the sum
    told = (tmp_path / "small/results.md").read_text()
    assert "- images/images: 1 of 5 masks is empty, 6 regions became 4" in told
    assert "--evaluation.resolution image" in told
    rows = json.loads((tmp_path / "small/results.json").read_text())["rows"]
    assert rows[0]["masks"] == asdict(counts)
    assert own.main.rows[0].masks == replace(counts, empty=0, regions_evaluated=6)
    assert "became" not in (tmp_path / "own/results.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("resolution", ["backbone", "image"])
def test_loader_processes_and_a_cache_change_nothing(root: Path, tmp_path: Path, resolution: Any) -> None:
    rows = evaluated(root, tmp_path / "one", resolution=resolution).main.rows
    for number, arguments in enumerate(({"num_workers": 2}, {"batch_size": 1}, {"batch_size": 10})):
        evaluation = Evaluation(resolution=resolution)
        data = folder(root, **arguments)
        if number:
            data.loading = Loading(cache_mb=1)
        trainer(tmp_path / str(number), evaluation).test(Brightness(), datamodule=data, verbose=False)
        assert evaluation.main.rows == rows
    evaluation, loader = Evaluation(resolution=resolution), data.test_dataloader()
    for _ in range(2):  # the second time from the cache
        batches = list(loader)
        facts = [fact for batch in batches for fact in batch.masks or ()]
        assert [fact.regions for fact in facts] == [2, 1, 1, 1, 1, 0, 0, 0, 0, 0]
        assert [fact.seen for fact in facts] == [0, 1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_masks_that_mark_most_of_their_picture_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "data")
    for name in ("1.png", "2.png"):
        path = tmp_path / "data/masks" / name
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    counts = evaluated(tmp_path / "data", tmp_path / "run").main.rows[0].masks
    assert counts is not None
    assert counts.mostly == 2
    told = capsys.readouterr().out
    assert "note: data/data: 2 masks mark more than half of the picture, the first is" in told
    assert "1.png" in told


@pytest.mark.parametrize("where", ["map", "score"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("resolution", ["backbone", "image"])
def test_what_is_not_finite_is_refused(root: Path, tmp_path: Path, where: str, number: float, resolution: str) -> None:
    message = r"3\.png: Brightness gives a score or a map with NaN or infinity"
    with pytest.raises(UserError, match=message):
        evaluated(root, tmp_path, Brightness(("3.png", number), where), resolution=resolution)
    assert not list(tmp_path.glob("results*"))
    if resolution == "backbone":
        with pytest.raises(UserError, match=message):
            trainer(tmp_path, Predictions()).predict(Brightness(("3.png", number), where), datamodule=folder(root))
        assert not list(tmp_path.glob("predictions*"))


def test_scores_keep_what_float32_needs(root: Path, tmp_path: Path) -> None:
    exact = float(np.float32(0.99999962))
    trainer(tmp_path, Predictions(), Evaluation()).predict(
        Brightness(("3.png", exact), "score"), datamodule=folder(root), return_predictions=False
    )
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert [row["score"] for row in rows if "3.png" in row["image"]] == ["0.999999642"] * 2
    model = Brightness(("3.png", exact), "score")
    found = [float(score) for batch in folder(root).test_dataloader() for score in model.test_step(batch, 0).pred_score]
    assert [float(np.float32(row["score"])) for row in rows] == found
    for row, number in zip(rows, range(1, 11), strict=True):
        assert row["map"] == f"maps/{number:06d}.npy"
        assert (tmp_path / row["map"]).is_file()


def test_a_category_called_mean_is_refused(root: Path, tmp_path: Path) -> None:
    data = folder(root, name="mean")
    with pytest.raises(UserError, match="a category is called 'mean'"):
        trainer(tmp_path, Evaluation()).test(Brightness(), datamodule=data, verbose=False)


class Heads(Brightness):
    """Several heads in one pass."""

    def __init__(self, **heads: Brightness) -> None:
        super().__init__()
        self.heads = heads

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {name: head.test_step(batch, batch_idx) for name, head in self.heads.items()}


def test_several_heads_have_the_tables_that_each_has_alone(root: Path, tmp_path: Path) -> None:
    other = Brightness(("3.png", 0.0), "score")
    alone = evaluated(root, tmp_path / "alone").main, evaluated(root, tmp_path / "other", other).main
    evaluation = Evaluation()
    evaluation.about = Pass("results_x", {"main": "Test", "other": "Beside"}, {"other": "other.ckpt"})
    together = trainer(tmp_path / "both", evaluation)
    together.test(Heads(main=Brightness(), other=other), datamodule=folder(root), verbose=False)
    assert list(evaluation.heads) == ["main", "other"]
    for head, one in zip(evaluation.heads.values(), alone, strict=True):
        assert head.rows == one.rows
        assert head.scores == one.scores
    assert alone[0].rows != alone[1].rows
    for suffix, one in (("_x", "alone"), ("_x_other", "other")):
        for table in ("results", "scores"):
            written, expected = tmp_path / f"both/{table}{suffix}.csv", tmp_path / f"{one}/{table}.csv"
            assert written.read_bytes() == expected.read_bytes()
    assert evaluation.main.title == "Test"
    assert evaluation.heads["other"].title == "Beside · checkpoint other.ckpt (None)"
    metric = f"images/{evaluation.main.rows[0].category}/image_auroc"
    assert {f"test/{metric}", f"test/other/{metric}"} <= together.callback_metrics.keys()


def test_a_method_that_is_made_of_heads_is_one_method(root: Path, tmp_path: Path) -> None:
    model = Brightness()
    model.heads = nn.ModuleList([nn.Identity()])  # as a fusion has them
    assert list(evaluated(root, tmp_path, model).heads) == ["main"]


def test_a_pass_that_fails_leaves_nothing_for_the_next(root: Path, tmp_path: Path) -> None:
    evaluation = Evaluation()
    repeated, whole = trainer(tmp_path / "repeated", evaluation), evaluated(root, tmp_path / "whole")
    before = [*repeated.callbacks]  # type: ignore[attr-defined]
    failing = Heads(main=Brightness(), other=Brightness(("3.png", float("nan")), "score"))
    with pytest.raises(UserError, match=r"3\.png: Brightness gives"):
        repeated.test(failing, datamodule=folder(root), verbose=False)
    assert repeated.callbacks == before  # type: ignore[attr-defined]
    repeated.test(Brightness(), datamodule=folder(root), verbose=False)
    assert list(evaluation.heads) == ["main"]
    assert evaluation.main.rows == whole.main.rows
    assert evaluation.main.scores == whole.main.scores


def test_few_shot_images_and_checkpoint_stand_in_the_tables(root: Path, tmp_path: Path) -> None:
    model = Brightness()
    model.k_shot, model.shot_seed = 4, 7
    evaluation = Evaluation()
    evaluation.about = Pass("results", {MAIN_HEAD: "Test"}, {MAIN_HEAD: str(tmp_path / "head.ckpt")})
    (tmp_path / "head.ckpt").write_bytes(b"weights")
    trainer(tmp_path, evaluation).test(model, datamodule=folder(root), verbose=False)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["title"] == f"Test · 4 few-shot images (seed 7) · checkpoint {tmp_path}/head.ckpt (9a129038d9a00aed)"
    conditions = kept["conditions"]
    assert (conditions["method"], conditions["k_shot"], conditions["shot_seed"]) == ("Brightness", 4, 7)
    assert conditions["checkpoint_fingerprint"] == "9a129038d9a00aed"
    assert (tmp_path / "results.md").read_text().startswith(kept["title"])


TILED: list[dict[str, Any]] = [{"fit": "tiles"}, {"tiles": 2}, {"fit": "pad", "tile_size": 20}]
TILED += [{"fit": "tiles", "overlap": 0.0, "view_score": "mean"}]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", TILED)
def test_images_in_tiles_are_put_together(root: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    preprocess, metrics, tiling = Preprocess(SIZE), AnomalyMetrics(), Tiling(**arguments)
    for kind in ("bad", "good"):
        for path in sorted((root / kind).iterdir()):
            image = read_image(path)
            height, width = image.shape[:2]
            mask = read_mask(root / "masks" / path.name) if kind == "bad" else np.zeros((height, width), np.uint8)
            layout, scores = Layout(height, width, tiling, preprocess.frame), []
            merged = np.zeros((height, width), np.float32)
            for view in range(len(layout)):
                seen = preprocess.to_tensors([layout.cut(image, view)])[0, 0].numpy()
                layout.add(merged, view, seen)
                scores.append(seen.max())
            score = np.mean(scores) if "view_score" in arguments else max(scores)
            metrics.update(merged[None], mask[None], np.array([score]), np.array([kind == "bad"]))
    evaluation = evaluated(root, tmp_path, resolution="image", **arguments)
    assert evaluation.main.rows[0].metrics == metrics.result().metrics
    assert json.loads((tmp_path / "results.json").read_text())["conditions"]["tiling"] == tiling.to_dict()
    assert evaluation.main.title.startswith("Test · evaluated at each image's own size, fit ")


@pytest.mark.slow
def test_a_head_in_tiles_says_what_inspect_says(root: Path, tmp_path: Path) -> None:
    good = tmp_path / "shots"
    good.mkdir()
    for name in ("1.png", "4.png"):
        (good / name).write_bytes((root / "good" / name).read_bytes())
    head, tiling = write_head(tmp_path, "AFCLIP"), Tiling("tiles", 2)
    shots = sorted(good.iterdir())
    inspector = load(head, tiling=tiling, device="cpu", few_shot=shots, category="images")
    method = load_head(head, {"k_shot": 2})
    data = folder(root)
    data.connect(method.preprocess, few_shot_dir=good)
    evaluation = Evaluation(resolution="image", fit="tiles", tiles=2)
    trainer(tmp_path / "run", evaluation).test(method, datamodule=data, verbose=False)
    found = {Path(score.image): score for score in evaluation.main.scores}
    for path in (root / "bad/0.png", root / "good/3.png"):
        expected = inspector.predict(path)
        assert found[path].score == pytest.approx(expected.score, rel=1e-4)
    conditions = evaluation.main.conditions
    assert (conditions["k_shot"], conditions["shot_seed"]) == (2, None)  # no seed chose them
    assert f"2 few-shot images of {good}" in evaluation.main.title


def test_tiles_are_refused_where_whole_images_are_needed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="they need resolution image"):
        Evaluation(tiles=3)
    with pytest.raises(ValueError, match="tiles must be at least 1"):
        Evaluation(resolution="image", tiles=0)
    model = Brightness()
    model.needs_references = True
    with pytest.raises(UserError, match="Brightness compares each image with other test images as a whole"):
        evaluated(root, tmp_path, model, resolution="image", tiles=3)
    model = Brightness()
    model.store = "kept"  # type: ignore[assignment]
    with pytest.raises(UserError, match="Features are kept of whole images"):
        evaluated(root, tmp_path, model, resolution="image", fit="tiles")


def test_an_unknown_resolution_is_refused() -> None:
    with pytest.raises(ValueError, match="resolution must be one of backbone, image"):
        Evaluation(resolution="full")  # type: ignore[arg-type]


@pytest.mark.parametrize("resolution", ["backbone", "image"])
def test_intervals_are_found_from_what_is_kept(root: Path, tmp_path: Path, resolution: str) -> None:
    plain = evaluated(root, tmp_path / "plain", resolution=resolution)
    assert not (tmp_path / "plain/image_counts.npz").exists()
    assert plain.main.records is None
    evaluation = evaluated(root, tmp_path, resolution=resolution, intervals=100)
    rows = evaluation.main.rows
    assert [replace(row, intervals={}) for row in rows] == plain.main.rows
    records = read_records(tmp_path / "image_counts.npz")
    category = rows[0].category
    assert [Path(record.name).parent.name for record in records["images", category]] == ["bad"] * 5 + ["good"] * 5
    found = intervals_of(records, Settings(100))
    assert [row.intervals for row in rows] == [found.by_row["images", row.category] for row in rows]
    for key, (low, high) in rows[0].intervals.items():
        assert 0 <= low <= rows[0].metrics[key] + 0.01
        assert high >= rows[0].metrics[key] - 0.01
    assert rows[0].intervals["pixel_auroc"][0] < rows[0].intervals["pixel_auroc"][1]
    counts = CategoryCounts.of(records["images", category])
    for key, values in metrics_of(counts, np.ones((1, 10))).items():
        assert values[0] == pytest.approx(rows[0].metrics[key], abs=0.02), key
    table = json.loads((tmp_path / "results.json").read_text())
    assert table["conditions"]["intervals"] == {"replicates": 100, "kind": "bca", "seed": 0, "level": 0.95}
    assert table["rows"][0]["intervals"]["pixel_auroc"] == list(rows[0].intervals["pixel_auroc"])
    assert "95 % intervals" in (tmp_path / "results.md").read_text()


def test_means_log_their_intervals(root: Path, tmp_path: Path) -> None:
    seen: dict[str, float] = {}

    class Logged(Brightness):
        def log_dict(self, dictionary: Any, **_: Any) -> None:
            seen.update(dictionary)

    evaluation = evaluated(root, tmp_path, Logged(), intervals=100, interval_kind="percentile")
    low, high = evaluation.main.rows[-1].intervals["image_auroc"]
    assert seen["test/images/mean/image_auroc_low"] == low
    assert seen["test/images/mean/image_auroc_high"] == high


def test_intervals_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or at least 100 samples, got 50"):
        Evaluation(intervals=50)
    with pytest.raises(ValueError, match="bca, percentile"):
        Evaluation(intervals=100, interval_kind="normal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="intervals need the exact PRO"):
        Evaluation(intervals=100, exact=True, pro_definition="mvtec")
