"""Saved maps against a folder of masks per image: sPRO of any method's maps; errors for wrong masks."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.cli.evaluate import main
from tests.reference import spro_naive
from tests.support.layouts import HEIGHT, WIDTH
from tests.support.layouts.loco import KINDS, write_defect, write_loco


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Maps of two categories in the layout of MVTec's own evaluation, beside the dataset."""
    rng = np.random.default_rng(1)
    data = write_loco(tmp_path / "data", ["box", "bag"])
    for image in sorted(data.glob("*/test/*/*.png")):
        path = tmp_path / "maps" / image.relative_to(data).with_suffix(".tiff")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.random((HEIGHT, WIDTH), np.float32)).save(path)
    return tmp_path


def run(root: Path, *options: str) -> int:
    return main(["--maps", str(root / "maps"), "--masks", str(root / "data"), *options])


def by_loops(root: Path, category: str, kinds: tuple[str, ...], limit: float) -> float:
    config = json.loads((root / f"data/{category}/defects_config.json").read_text())
    kinds_of = {entry["pixel_value"]: entry for entry in config}
    maps, defects = [], []
    for path in sorted((root / "maps" / category / "test").glob("*/*.tiff")):
        if path.parent.name not in ("good", *kinds):
            continue
        maps.append(np.asarray(Image.open(path)))
        of_image = []
        for file in sorted((root / f"data/{category}/ground_truth" / path.parent.name / path.stem).glob("*.png")):
            mask = np.asarray(Image.open(file))
            entry, area = kinds_of[mask.max()], int((mask > 0).sum())
            wanted = entry["saturation_threshold"]
            saturation = int(wanted * area) if entry["relative_saturation"] else min(wanted, area)
            of_image.append((mask > 0, float(saturation)))
        defects.append(of_image)
    return spro_naive.spro(maps, defects, limit)


@pytest.mark.parametrize("exact", [True, False])
def test_saved_maps_have_the_spro_of_the_loops(exact: bool, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / "table.json"
    assert run(root, f"--out={out}", "--defect_types", *(["--exact"] if exact else [])) == 0
    assert "P-sPRO@5%" in capsys.readouterr().out
    kept = json.loads(out.read_text())
    rows = [(row, KINDS) for row in kept["rows"] if row["category"] != "mean"]
    rows += [(row, (row["defect_type"],)) for row in kept["by_type"] if row["category"] != "mean"]
    assert len(rows) == 2 + 4
    for row, kinds in rows:
        for key, limit in (("pixel_spro", 0.3), ("pixel_spro_05", 0.05)):
            bound = row["error_bounds"].get(key, 0.0)
            assert abs(row["metrics"][key] - by_loops(root, row["category"], kinds, limit)) <= bound + 1e-9
    assert [row["defect_type"] for row in kept["by_type"][-3:]] == [*KINDS, "mean"]


def test_intervals_of_saved_maps(root: Path) -> None:
    for category in ("box", "bag"):
        maps, truth = root / f"maps/{category}/test", root / f"data/{category}/ground_truth" / KINDS[0]
        for i in range(1, 6):
            for kind in ("good", KINDS[0]):
                shutil.copy(maps / kind / "000.tiff", maps / kind / f"9{i}.tiff")
            shutil.copytree(truth / "000", truth / f"9{i}")
    assert run(root, "--intervals=100", f"--out={root / 't.csv'}") == 0
    with (root / "t.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert all(float(line["pixel_spro_low"]) <= float(line["pixel_spro_high"]) for line in lines)


def test_faults_of_masks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / f"data/box/ground_truth/{KINDS[0]}"
    write_defect(folder / "000/002.png", 9, (0, 0, 1, 1))
    assert run(root) == 2
    assert f"{folder}/000/002.png: its pixels are 9, a kind of defect that" in capsys.readouterr().err
    Image.fromarray(np.full((3, 3), 255, np.uint8)).save(folder / "000/002.png")
    assert run(root) == 2
    assert f"{folder}/000/002.png: the mask has another size than 000.png beside it" in capsys.readouterr().err
    (folder / "000/002.png").unlink()
    shutil.rmtree(folder / "001")
    assert run(root) == 2
    assert "001.tiff: no mask of this name" in capsys.readouterr().err
    (root / "data/box/defects_config.json").write_text("{}")
    shutil.copytree(folder / "000", folder / "001")
    assert run(root) == 2
    assert "defects_config.json" in capsys.readouterr().err
