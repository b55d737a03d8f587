"""The regions that a model marks return from annotation tools as a set with the same pixels."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.annotations.exporting import CONFIG, coco_instances, labelstudio_task, marked_image
from afclip_lightning.annotations.rle import brush_to_mask, coco_to_mask
from afclip_lightning.cli import inspect
from afclip_lightning.cli.datasets import main as datasets
from afclip_lightning.engine.factory import Backbones
from tests.support.imports import samples_of
from tests.support.small_head import write_head, write_pictures

MASK = np.zeros((20, 30), bool)
MASK[2:9, 3:12] = True
MASK[4:6, 5:8] = False  # a hole
MASK[9, 12] = True  # touches by a corner
MASK[15, 20:29] = True  # a crack
MASK[0, 29] = True
MAP = np.linspace(0, 1, MASK.size, dtype=np.float32).reshape(MASK.shape)


def test_regions_of_a_mask() -> None:
    image = marked_image("a b.png", 0.5, MASK, MAP)
    assert [region.area for region in image.regions] == [9, 7 * 9 - 6 + 1, 1]
    assert [region.score for region in image.regions] == [float(MAP[15, 28]), float(MAP[9, 12]), float(MAP[0, 29])]
    whole = np.zeros_like(MASK)
    for region in image.regions:
        height, width = region.size
        whole[region.top : region.top + height, region.left : region.left + width] |= region.mask()
    assert np.array_equal(whole, MASK)


def test_label_studio_gets_a_brush_per_region() -> None:
    task = labelstudio_task(marked_image("a b/ü.png", 0.5, MASK, MAP), "/files/", "v")
    assert task["data"] == {"image": "/files/a%20b/%C3%BC.png"}
    [prediction] = task["predictions"]  # type: ignore[misc]
    assert (prediction["model_version"], prediction["score"]) == ("v", 0.5)
    masks = [brush_to_mask(result["value"]["rle"], 20, 30) for result in prediction["result"]]
    assert np.array_equal(np.any(masks, axis=0), MASK)
    assert len({result["id"] for result in prediction["result"]}) == len(masks) == 3
    config = ElementTree.fromstring(CONFIG)
    controls = {element.get("name"): element.get("toName") for element in config if element.get("toName")}
    for result in prediction["result"]:
        assert controls[result["from_name"]] == result["to_name"] == config.find("Image").get("name")  # type: ignore[union-attr]
        assert result["type"] == "brushlabels"
        assert result["value"]["brushlabels"] == [config.find("BrushLabels/Label").get("value")]  # type: ignore[union-attr]


def test_coco_is_as_pycocotools_reads_it() -> None:
    images = [marked_image("a.png", 0.5, MASK, MAP), marked_image("b.png", 0.1, np.zeros_like(MASK), MAP)]
    content = coco_instances(images)
    annotations: list[dict[str, object]] = content["annotations"]  # type: ignore[assignment]
    assert [annotation["image_id"] for annotation in annotations] == [1, 1, 1]
    masks = [coco_to_mask(annotation["segmentation"], MASK.shape) for annotation in annotations]
    assert np.array_equal(np.any(masks, axis=0), MASK)
    coder = pytest.importorskip("pycocotools.mask")
    for annotation, mask in zip(annotations, masks, strict=True):
        assert np.array_equal(coder.decode(annotation["segmentation"]), mask)
        assert coder.area(annotation["segmentation"]) == annotation["area"] == mask.sum()
        assert coder.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    backbones: Backbones = {}
    write_head(folder / "head.ckpt", backbones)
    write_pictures(folder / "in/one", 2)
    write_pictures(folder / "in/two", 2)
    return folder


def run(folder: Path, *args: str) -> int:
    given = ["--checkpoint", f"{folder}/head.ckpt", "--num_workers", "0", "--out", f"{folder}/out", f"{folder}/in"]
    return inspect.main([*given, "--pixel_threshold", "0.45", "--save", "mask,coco,labelstudio", *args])


@pytest.mark.parametrize("tool", ["coco", "labelstudio"])
def test_marked_regions_come_back(output: Path, tmp_path: Path, tool: str) -> None:
    assert run(output) == 0
    options = ["--predictions"] if tool == "labelstudio" else []
    export = [str(output / "out" / f"{tool}.json"), "--from", tool, "--images", str(output / "in")]
    assert datasets(["import", *export, "--out", str(tmp_path / "set"), "--empty", "normal", *options]) == 0
    found = samples_of(tmp_path / "set")
    assert sorted(found) == sorted(p.relative_to(output / "in").as_posix() for p in (output / "in").rglob("*.png"))
    marked = 0
    for name, sample in found.items():
        wanted = np.asarray(Image.open((output / "out/masks/in" / name).with_suffix(".png"))) > 0
        assert sample.label == int(wanted.any())
        if sample.mask_path is not None:
            assert np.array_equal(np.asarray(Image.open(sample.mask_path)) > 0, wanted)
            marked += int(wanted.sum())
    assert marked


def test_a_second_run_adds_what_is_new(output: Path) -> None:
    assert run(output) == 0
    before = (output / "out/labelstudio.json").read_bytes()
    assert run(output) == 0
    assert (output / "out/labelstudio.json").read_bytes() == before
    (output / "out/labelstudio.json").unlink()
    assert run(output, "--image_url", "https://images.example/") == 0
    tasks = json.loads((output / "out/labelstudio.json").read_text())
    assert {re.sub(r"\d+", "0", task["data"]["image"]) for task in tasks} == {
        "https://images.example/in/one/0.png",
        "https://images.example/in/two/0.png",
    }


def test_without_a_threshold_there_is_nothing_to_mark(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", f"{output}/head.ckpt", "--out", f"{output}/other", f"{output}/in", "--save", "coco"]
    assert inspect.main(given) == 2
    assert "--save coco needs a pixel threshold" in capsys.readouterr().err
    assert inspect.main([*given, "--axis", "axial"]) == 2
    assert "are for images, not for the slices of volumes (--axis)" in capsys.readouterr().err
