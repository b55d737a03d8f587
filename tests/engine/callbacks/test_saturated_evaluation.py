"""sPRO from a test to its files: at the backbone's size and at each image's own, by type, over kept features."""

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

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.saturated_layout import SaturatedLayout
from afclip_lightning.engine.callbacks.evaluation import Evaluation, Pass
from afclip_lightning.report.run import render as render_page
from afclip_lightning.report.run_files import read_run
from afclip_lightning.results import render, shown_columns
from afclip_lightning.types import MAIN_HEAD, AnomalyPrediction, Batch
from afclip_runtime.views.resizing import resize_map
from tests.reference import spro_naive
from tests.support.layouts.loco import KINDS, write_loco
from tests.support.layouts.mvtec import write_mvtec

SIDE = 28


class Red(LightningModule):
    """Scores pixels by their red channel."""

    k_shot, shot_seed, memory, store = 0, 0, None, None
    needs_test_set, needs_references = False, False

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(SIDE)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        return AnomalyPrediction(batch.image[:, 0].amax((1, 2)), batch.image[:, 0].clone())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_loco(tmp_path_factory.mktemp("loco") / "scenes", ["box", "bag"])
    for category in ("box", "bag"):
        shutil.rmtree(root / category / "validation")
    return root


def evaluated(data: Any, out: Path, loading: Loading | None = None, **arguments: Any) -> Evaluation:
    data.connect(Preprocess(SIDE), loading)
    evaluation = Evaluation(**arguments)
    evaluation.about = Pass(titles={MAIN_HEAD: "Test"})
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=str(out), callbacks=[evaluation], **quiet)
    trainer.test(Red(), datamodule=data, verbose=False)
    return evaluation


def expected(root: Path, kinds: tuple[str, ...], limit: float) -> float:
    """Returns sPRO of some kinds of defects at the images' own size, by loops over files and pixels."""
    config = {entry["pixel_value"]: entry for entry in json.loads((root / "box/defects_config.json").read_text())}
    preprocess, maps, defects = Preprocess(SIDE), [], []
    for image in sorted((root / "box/test").glob("*/*.png")):
        if image.parent.name not in ("good", *kinds):
            continue
        pixels = np.asarray(Image.open(image))
        seen = preprocess(pixels, np.zeros(pixels.shape[:2], np.uint8))[0][0].numpy()
        maps.append(resize_map(seen, *pixels.shape[:2]))
        of_image = []
        for file in sorted((root / "box/ground_truth" / image.parent.name / image.stem).glob("*.png")):
            mask = np.asarray(Image.open(file))
            entry, area = config[mask.max()], int((mask > 0).sum())
            wanted = entry["saturation_threshold"]
            of_image.append(
                (mask > 0, float(int(wanted * area) if entry["relative_saturation"] else min(wanted, area)))
            )
        defects.append(of_image)
    return spro_naive.spro(maps, defects, limit)


@pytest.mark.parametrize("exact", [True, False])
def test_at_the_images_own_size_it_is_that_of_the_loops(exact: bool, root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(SaturatedLayout(root, num_workers=0), tmp_path, resolution="image", exact=exact)
    row = next(row for row in evaluation.main.rows if row.category == "box")
    for key, limit in (("pixel_spro", 0.3), ("pixel_spro_05", 0.05)):
        bound = row.error_bounds.get(key, 0.0)
        assert abs(row.metrics[key] - expected(root, KINDS, limit)) <= bound + 1e-9
    mean = evaluation.main.rows[-1]
    assert mean.metrics["pixel_spro"] == pytest.approx(
        np.mean([r.metrics["pixel_spro"] for r in evaluation.main.rows[:2]])
    )


def test_rows_by_type_are_logical_and_structural_anomalies(root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(
        SaturatedLayout(root, categories=["box"], num_workers=0), tmp_path, resolution="image", defect_types=True
    )
    assert [row.defect_type for row in evaluation.main.type_rows] == list(KINDS)
    for row in evaluation.main.type_rows:
        for key, limit in (("pixel_spro", 0.3), ("pixel_spro_05", 0.05)):
            value = expected(root, (row.defect_type,), limit)
            assert abs(row.metrics[key] - value) <= row.error_bounds[key] + 1e-9
    with (tmp_path / "results_by_type.csv").open() as file:
        assert {"pixel_pro", "pixel_spro", "pixel_spro_05"} <= set(next(csv.reader(file)))


def test_it_stands_beside_pro(root: Path, tmp_path: Path) -> None:
    evaluation = evaluated(SaturatedLayout(root, batch_size=3, num_workers=0), tmp_path)
    rows = evaluation.main.rows
    header = render(rows, columns=shown_columns(rows)).splitlines()[0]
    assert [cell.strip() for cell in header.split("|")][-4:-1] == ["P-F1", "P-PRO", "P-sPRO@5%"]
    kept = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    assert 0 < kept["metrics"]["pixel_spro"] < 1
    assert {"pixel_spro", "pixel_spro_05"} <= kept["error_bounds"].keys()
    assert "P-sPRO@5%" in (tmp_path / "results.md").read_text()


def test_the_same_from_a_loaders_processes_and_a_cache(root: Path, tmp_path: Path) -> None:
    values = []
    for workers, cache in ((0, 0), (1, 0), (0, 10)):
        data = SaturatedLayout(root, categories=["box"], batch_size=2, num_workers=workers)
        evaluation = evaluated(data, tmp_path / f"{workers}-{cache}", Loading(cache_mb=cache), resolution="image")
        values.append(evaluation.main.rows[0].metrics)
    assert values[0] == values[1] == values[2]
    assert "pixel_spro" in values[0]


def test_other_sets_have_none(tmp_path: Path) -> None:
    data = MVTecLayout(write_mvtec(tmp_path / "set", ["nut"]), num_workers=0)
    evaluation = evaluated(data, tmp_path / "out")
    assert "pixel_spro" not in evaluation.main.rows[0].metrics
    assert "pixel_spro" not in (tmp_path / "out/results.csv").read_text()


def test_what_is_printed_of_the_set_is_the_mean_of_the_types(root: Path, tmp_path: Path) -> None:
    rows = evaluated(SaturatedLayout(root, num_workers=0), tmp_path, defect_types=True).main.type_rows
    assert [(row.category, row.defect_type) for row in rows[-3:]] == [("mean", kind) for kind in (*KINDS, "mean")]
    of_type = [[row.metrics for row in rows[:-3] if row.defect_type == kind] for kind in KINDS]
    for key in ("image_auroc", "pixel_spro_05"):
        expected = np.mean([np.mean([metrics[key] for metrics in part]) for part in of_type])
        assert rows[-1].metrics[key] == pytest.approx(expected)
    assert [(row.normal, row.anomalous) for row in rows[-3:]] == [(2, 4), (2, 2), (2, 6)]
    assert "| scenes/mean " in (tmp_path / "results.md").read_text()
    assert read_run(tmp_path).by_type == rows
    assert '<th scope="row">mean</th>' in render_page(read_run(tmp_path))


def test_sets_whose_categories_have_other_types_have_no_such_mean(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "set", ["nut"])
    write_mvtec(tmp_path / "set", ["bolt"], defects=("dent", "stain"))
    rows = evaluated(MVTecLayout(tmp_path / "set", num_workers=0), tmp_path / "out", defect_types=True).main.type_rows
    assert {row.category for row in rows} == {"nut", "bolt"}
