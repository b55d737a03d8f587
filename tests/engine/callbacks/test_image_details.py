"""AUPIMO of images and rows by defect type, from a test to its files and its page."""

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import LightningModule, Trainer
from PIL import Image

from afclip_lightning import results
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.datasets.table import Table
from afclip_lightning.engine.callbacks.evaluation import Evaluation, Pass
from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.report.run import render
from afclip_lightning.report.run_files import read_run
from afclip_lightning.types import MAIN_HEAD, AnomalyPrediction, Batch

SIZE = 224  # two normal images have the 100,000 pixels that AUPIMO takes
TYPES = ["", "", "scratch", "scratch", "hole", "hole", "hole"]


class Brightness(LightningModule):
    """Scores an image by its red channel."""

    k_shot, shot_seed, memory, store = 0, 0, None, None
    needs_test_set, needs_references = False, False

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(SIZE)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        return AnomalyPrediction(batch.image[:, 0].amax((1, 2)), batch.image[:, 0].clone())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("typed") / "parts"
    root.mkdir()
    rng, lines = np.random.default_rng(0), ["image,label,mask,defect_type"]
    for i, name in enumerate(TYPES):
        pixels = rng.integers(0, 150, (SIZE, SIZE, 3)).astype(np.uint8)
        if name:
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[20 : 40 + 10 * i, 30:60] = 255
            pixels[mask > 0] += np.uint8(14 * i)
            Image.fromarray(mask).save(root / f"{i}_mask.png")
        Image.fromarray(pixels).save(root / f"{i}.png")
        lines.append(f"{i}.png,{'anomalous' if name else 'normal'},{f'{i}_mask.png' if name else ''},{name}")
    (root / "images.csv").write_text("\n".join([*lines, ""]))
    return root


def evaluated(root: Path, out: Path, **arguments: Any) -> Evaluation:
    data = Table(root, batch_size=4, num_workers=0)
    data.connect(Preprocess(SIZE))
    evaluation = Evaluation(**arguments)
    evaluation.about = Pass(titles={MAIN_HEAD: "Test"})
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=str(out), callbacks=[evaluation], **quiet)
    trainer.test(Brightness(), datamodule=data, verbose=False)
    return evaluation


def test_aupimo_of_images_stands_beside_their_scores(root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(root, tmp_path, aupimo=True)
    with (tmp_path / "scores.csv").open() as file:
        lines = {Path(line["image"]).stem: line for line in csv.DictReader(file)}
    values = [float(lines[str(i)]["aupimo"]) for i in range(2, 7)]
    assert values == sorted(values)  # each is brighter than the one before
    assert values[0] < 0.2
    assert values[-1] > 0.5
    assert (lines["0"]["aupimo"], lines["0"]["defect_type"], lines["5"]["defect_type"]) == ("", "", "hole")
    assert lines["3"]["mask_known"] == "1"
    row, mean = evaluation.main.rows
    assert row.metrics["pixel_aupimo"] == pytest.approx(np.mean(values))
    assert mean.metrics["pixel_aupimo"] == row.metrics["pixel_aupimo"]
    assert 0 < row.error_bounds["pixel_aupimo"] < 0.05
    assert "P-AUPIMO" in (tmp_path / "results.md").read_text()
    assert not evaluation.main.type_rows
    assert not (tmp_path / "results_by_type.csv").exists()


def test_rows_by_defect_type(root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(root, tmp_path, defect_types=True)
    hole, scratch = evaluation.main.type_rows
    assert [(r.defect_type, r.normal, r.anomalous) for r in (hole, scratch)] == [("hole", 2, 3), ("scratch", 2, 2)]
    assert [row.category for row in evaluation.main.rows] == ["parts", results.MEAN]
    whole = evaluation.main.rows[0].metrics
    assert hole.metrics["pixel_ap"] > whole["pixel_ap"] > 0
    preprocess, metrics = Preprocess(SIZE), AnomalyMetrics()
    for i, name in enumerate(TYPES):
        if name != "hole":
            pixels = np.array(Image.open(root / f"{i}.png"))
            mask = np.array(Image.open(root / f"{i}_mask.png")) if name else np.zeros((SIZE, SIZE), np.uint8)
            image, small = preprocess(pixels, mask)
            metrics.update(image[:1].numpy(), small[None].numpy(), image[0].numpy().max()[None])
    for key, value in metrics.compute().items():
        assert abs(scratch.metrics[key] - value) <= scratch.error_bounds.get(key, 0) + 1e-4

    kept = json.loads((tmp_path / "results.json").read_text())
    assert [row["defect_type"] for row in kept["by_type"]] == ["hole", "scratch"]
    assert len(kept["rows"]) == 2
    with (tmp_path / "results_by_type.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["defect_type"] for line in lines] == ["hole", "scratch"]
    assert float(lines[1]["image_auroc"]) == scratch.metrics["image_auroc"]
    assert "By defect type, all normal images against those of one type:" in (tmp_path / "results.md").read_text()
    run = read_run(tmp_path)
    assert run.by_type == evaluation.main.type_rows
    assert '<th scope="row">scratch</th>' in render(run)


def test_a_set_without_types_says_so(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root, tmp_path / "parts")
    lines = (root / "images.csv").read_text().splitlines()
    (tmp_path / "parts/images.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    evaluation = evaluated(tmp_path / "parts", tmp_path / "out", defect_types=True)
    assert not evaluation.main.type_rows
    assert "note: No rows by defect type: the set names none, or one only." in capsys.readouterr().out
    evaluated(root, tmp_path / "typed", defect_types=True)
    assert "No rows" not in capsys.readouterr().out


def test_nothing_is_kept_unless_it_is_asked_for(root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(root, tmp_path)
    assert "pixel_aupimo" not in evaluation.main.rows[0].metrics
    assert evaluation.main.records is None
    assert "By defect type" not in render(read_run(tmp_path))


GROUPS = ["a", "b", "a", "c", "c", "", "d"]  # of which b has one view, and one image is alone


@pytest.mark.parametrize(("rule", "auroc"), [("highest", 1.0), ("mean", 1.0)])
def test_views_of_one_object_are_judged_together(root: Path, tmp_path: Path, rule: str, auroc: float) -> None:
    views = tmp_path / "parts"
    shutil.copytree(root, views)
    lines = (views / "images.csv").read_text().splitlines()
    (views / "images.csv").write_text(
        "\n".join(f"{line},{cell}" for line, cell in zip(lines, ["group", *GROUPS], strict=True))
    )
    evaluation = evaluated(views, tmp_path / "out", group_score=rule)
    row, mean = evaluation.main.rows
    judged = {group.name: group for group in evaluation.main.groups["parts", "parts"]}
    assert {name: group.label for name, group in judged.items()} == {"a": 1, "b": 0, "c": 1, "d": 1} | {
        str(views / "5.png"): 1
    }
    scores = {Path(score.image).stem: score.score for score in evaluation.main.scores}
    assert judged["c"].score == (scores["4"] if rule == "highest" else (scores["3"] + scores["4"]) / 2)
    assert row.metrics["group_auroc"] == mean.metrics["group_auroc"] == auroc
    kept = json.loads((tmp_path / "out/results.json").read_text())
    assert kept["conditions"]["group_score"] == rule
    assert kept["rows"][0]["metrics"]["group_f1_max"] == row.metrics["group_f1_max"] == 1.0
    assert "G-AUROC" in (tmp_path / "out/results.md").read_text()
    with (tmp_path / "out/scores.csv").open() as file:
        assert [line["group"] for line in csv.DictReader(file)] == GROUPS
    with (tmp_path / "out/groups.csv").open() as file:
        lines = {line["group"]: line for line in csv.DictReader(file)}
    assert lines.keys() == judged.keys()
    assert (float(lines["a"]["score"]), lines["a"]["label"], lines["a"]["images"]) == (judged["a"].score, "1", "2")
    with (tmp_path / "out/results.csv").open() as file:
        assert [float(line["group_auroc"]) for line in csv.DictReader(file)] == [auroc, auroc]
    assert "G-AUROC" in render(read_run(tmp_path / "out"))


def test_without_groups_there_is_no_metric_of_them(root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(root, tmp_path)
    assert "group_auroc" not in evaluation.main.rows[0].metrics
    assert "group_auroc" not in (tmp_path / "results.csv").read_text()
    assert not (tmp_path / "groups.csv").exists()
    assert "group_score" not in evaluation.main.conditions
    with pytest.raises(ValueError, match="group_score must be one of highest, mean, got 'median'"):
        Evaluation(group_score="median")  # type: ignore[arg-type]
