"""Models for your own images: the numbers of the test loop, at the size of the image, with any batch size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from afclip_lightning import load
from afclip_lightning.data.collate import Collate
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.engine.factory import Backbones, load_head
from afclip_lightning.inspection.predictor import Predictor, calibration_path
from afclip_lightning.types import UNKNOWN, Batch, Sample
from afclip_runtime.errors import CheckpointError, DatasetError, UserError
from afclip_runtime.images.picture import NEARLY_BLACK
from afclip_runtime.inspection.calibration import Calibration, Threshold
from afclip_runtime.inspection.folder import save_pictures
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.types import Tiling
from afclip_runtime.views import decoding
from afclip_runtime.views.resizing import resize_map
from tests.support.small_head import ARGUMENTS, picture, write_head, write_pictures

BACKBONES: Backbones = {}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("run") / "head.ckpt", BACKBONES)


def model_of(path: Path | str, **options: object) -> Predictor:
    arguments = {} if isinstance(path, Path) else ARGUMENTS
    return load(path, backbones=BACKBONES, arguments=arguments, **options)  # type: ignore[arg-type]


def test_the_numbers_of_the_test_loop(head: Path, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 3)
    found = model_of(head).predict_many(paths)
    method = load_head(head, backbones=BACKBONES)
    samples = [Sample("d", "c", "test", path, UNKNOWN, mask_known=False, class_name="c") for path in paths]
    dataset = AnomalyDataset(samples, method.preprocess)
    batch, _ = Collate(method.preprocess)(dataset.__getitems__([0, 1, 2]))
    assert isinstance(batch, Batch)
    with torch.no_grad():
        expected = method.score(method.extract(batch), batch)
    assert_close(np.array([one.score for one in found]), expected.pred_score.double().numpy(), rtol=1e-6, atol=1e-6)
    for one, anomaly_map in zip(found, expected.anomaly_map.numpy(), strict=True):
        assert one.anomaly_map.shape == (60, 80)
        assert_close(one.anomaly_map, resize_map(anomaly_map, 60, 80), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tiling", "num_workers"), [(Tiling(), 2), (Tiling("pad", tiles=2), 0), (Tiling("tiles", tile_size=40), 2)], ids=str
)
def test_neither_batch_nor_process_matters(head: Path, tiling: Tiling, num_workers: int) -> None:
    images = [picture(40 + 11 * i, 90 - 7 * i, i) for i in range(5)]
    model = model_of(head, tiling=tiling, batch_size=2)
    found = dict(model.stream(images, num_workers))
    for index, image in enumerate(images):
        one, other = found[index], model.predict(image)
        assert isinstance(one, Inspection)
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.anomaly_map.shape == image.shape[:2]
        assert_close(one.anomaly_map, other.anomaly_map, rtol=1e-4, atol=1e-5)
        assert one.image is not None
        assert np.array_equal(one.image, image)


def test_the_score_is_that_of_the_worst_view(head: Path) -> None:
    image = picture(100, 100)
    tiled = model_of(head, tiling=Tiling(tiles=2, overlap=0.0)).predict(image)
    tiles = [image[y : y + 50, x : x + 50] for y in (0, 50) for x in (0, 50)]
    alone = [one.score for one in model_of(head).predict_many([image, *tiles])]
    assert tiled.score == pytest.approx(max(alone), abs=1e-5)


def test_paths_pillow_and_arrays_are_one(head: Path, tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path, 1)
    model = model_of(head)
    results = [model.predict(image) for image in (path, str(path), Image.open(path), np.array(Image.open(path)))]
    assert len({one.score for one in results}) == 1
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"must be \[H, W, 3\], uint8"):
            model.predict(wrong)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"000\.png: cannot be read"):
        model.predict(path)
    with pytest.raises(DatasetError, match=r"000\.png: cannot be read as an image"):
        model.predict(Image.open(path))


def test_lists_and_other_inputs_are_refused(head: Path) -> None:
    model, image = model_of(head), picture(30, 40)
    for several in ([image, image], (image,), np.stack([image, image])):
        with pytest.raises(TypeError, match="predict_many"):
            model.predict(several)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="image 1 is a NoneType: an image is a path"):
        model.predict_many([image, None])  # type: ignore[list-item]
    for one in ("a.png", Path("a.png"), image, Image.fromarray(image)):
        with pytest.raises(TypeError, match="predict takes one image"):
            model.predict_many(one)  # type: ignore[arg-type]
    assert len(model.predict_many(np.stack([image, image]))) == 2  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pixel_threshold must be finite, got nan"):
        model_of(head, pixel_threshold=float("nan"))
    with pytest.raises(UserError, match="device 'meta' is not available"):
        model_of(head, device="meta")


def test_overlays_without_calibration_say_so(tmp_path: Path) -> None:
    image, anomaly_map = picture(300, 400), np.linspace(0, 1, 120000, dtype=np.float32).reshape(300, 400)
    own, shared = Inspection(1.0, anomaly_map, image=image), Inspection(1.0, anomaly_map, 0.5, 0.5, 0.2, 0.2, image)
    assert (own.shares_scale, shared.shares_scale) == (False, True)
    band = own.overlay()[-30:]
    assert (band == 255).all(axis=2).sum() > 100  # letters
    assert np.median(band) < 100
    assert np.median(shared.overlay()[-30:]) > np.median(band)
    assert own.overlay().shape == image.shape
    tiny = Inspection(1.0, anomaly_map[:8, :8], image=image[:8, :8])
    assert tiny.overlay().shape == (8, 8, 3)  # no letter is readable there
    save_pictures(tiny, tmp_path, "tiny", ["overlay"])  # and the file says it
    assert Image.open(tmp_path / "overlays/tiny.jpg").info["comment"] == own.captions[0].encode()
    save_pictures(shared, tmp_path, "shared", ["overlay"])
    assert "comment" not in Image.open(tmp_path / "overlays/shared.jpg").info


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_a_decoder_runs_into_comes_through(head: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "pixels_and_remarks", full)
    with pytest.raises(MemoryError):
        list(model_of(head).stream([picture(8, 8)] * 9, num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_of_too_many_pixels_is_not_decoded(
    head: Path, num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("small", (20, 30)), ("large", (20, 31))):
        Image.fromarray(picture(*size)).save(tmp_path / f"{name}.png")
    decoded, read = [], decoding.read
    monkeypatch.setattr(decoding, "read", lambda source: decoded.append(source) or read(source))
    model = model_of(head)
    model.most_pixels = 600
    large, small = (
        outcome for _, outcome in model.stream([tmp_path / "large.png", tmp_path / "small.png"], num_workers)
    )
    assert str(large) == (
        f"{tmp_path / 'large.png'}: has 31 × 20 pixels, and the limit is 0.0006 million (--max_megapixels). Make it "
        "smaller, or raise the limit."
    )
    assert isinstance(small, Inspection)
    assert decoded == [tmp_path / "small.png"]


@pytest.mark.parametrize("size", [(1, 1), (3, 20000)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_any_size(head: Path, size: tuple[int, int], fit: str) -> None:
    found = model_of(head, tiling=Tiling(fit), threshold=0.0, pixel_threshold=0.0).predict(picture(*size))  # type: ignore[arg-type]
    assert found.anomaly_map.shape == size
    assert np.isfinite(found.anomaly_map).all()
    assert found.anomalous
    assert found.area == 1
    assert found.overlay().shape == (*size, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AFCLIP", "WinCLIP"])
def test_few_shot_images_are_normal(name: str, head: Path) -> None:
    path, tiling = (head, Tiling(tiles=2)) if name == "AFCLIP" else (name, Tiling())
    model = model_of(path, tiling=tiling, batch_size=2)
    before = model.predict(picture(60, 80, 5))
    model.fit_few_shot([picture(60, 80, 0), picture(60, 80, 1)])
    assert model.method.k_shot == 2
    known, other = model.predict_many([picture(60, 80, 1), picture(60, 80, 5)])
    assert known.anomaly_map.max() < other.anomaly_map.max()
    assert other.score != before.score
    model.fit_few_shot([picture(60, 80, 7)])  # in place of the others
    assert model.predict(picture(60, 80, 1)).anomaly_map.max() > known.anomaly_map.max()


def test_references_take_the_place_of_pairs() -> None:
    model = load("MuSc2", arguments={**ARGUMENTS, "layers": [2, 4, 6, 8]}, backbones=BACKBONES)
    with pytest.raises(UserError, match="MuSc2 compares an image with few-shot images, and has none"):
        model.predict(picture(60, 80))
    model.fit_few_shot([picture(60, 80, 0)])
    known, other = model.predict_many([picture(60, 80, 0), picture(60, 80, 1)])
    assert known.score == pytest.approx(0, abs=1e-3)
    assert other.score > 0.1


def test_methods_without_memory_refuse_few_shot_images(head: Path) -> None:
    with pytest.raises(UserError, match="CLIP takes no few-shot images"):
        model_of("CLIP").fit_few_shot([picture(60, 80)])
    with pytest.raises(UserError, match="MuSc scores an image in relation to all test images"):
        load("MuSc", arguments={**ARGUMENTS, "layers": [2, 4, 6, 8]}, backbones=BACKBONES)
    with pytest.raises(UserError, match="AFCLIP has to be trained: run fit"):
        load("AFCLIP", arguments={**ARGUMENTS, "layers": [2, 4, 6, 8]}, backbones=BACKBONES)
    with pytest.raises(UserError, match="there is no file, ready model or method called Foo"):
        load("Foo")
    with pytest.raises(UserError, match="device 'cuda:77' is not available"):
        model_of(head, device="cuda:77")
    with pytest.raises(CheckpointError, match="does not exist"):
        load("none.ckpt")
    few = load(head, arguments={"k_shot": 2}, backbones=BACKBONES)
    with pytest.raises(UserError, match="AFCLIP compares an image with few-shot images, and has none"):
        few.predict(picture(60, 80))


def test_prompts_name_the_category() -> None:
    image = picture(60, 80)
    scores = {name: model_of("CLIP", category=name).predict(image).score for name in ("object", "metal nut")}
    assert scores["object"] != scores["metal nut"]


@pytest.mark.slow
def test_a_calibration_is_used_and_refused(head: Path, tmp_path: Path) -> None:
    copy = tmp_path / "head.ckpt"
    copy.write_bytes(head.read_bytes())
    plain = model_of(copy)
    image = picture(60, 80)
    assert plain.predict(image).anomalous is None
    assert plain.predict(image).probability is None
    assert plain.predict(image).regions is None
    score = plain.predict(image).score
    thresholds = [Threshold(value, 0.1, "fixed", 0, None, None) for value in (score - 0.1, 0.5)]
    place = calibration_path(copy)
    assert place == tmp_path / "head.calibration.json"
    assert place == calibration_path(tmp_path)  # the run folder
    Calibration(*thresholds, plain.checkpoint, plain.settings).save(place)
    found = model_of(copy).predict(image)
    assert found.anomalous
    assert f"thresholds: of {place} (" in repr(model_of(copy))
    assert "thresholds: none)" in repr(model_of(copy, calibration=None))
    by_image = f"image threshold: set by hand, pixel threshold: of {place} ("
    assert by_image in repr(model_of(copy, threshold=score))
    assert model_of(copy).calibrated_by == place
    assert found.probability == pytest.approx(1 / (1 + np.exp(-1)))
    by_hand = model_of(copy, threshold=score).predict(image)
    assert not by_hand.anomalous
    assert by_hand.probability == pytest.approx(0.5)
    assert model_of(copy, calibration=None).thresholds == (None, None)
    with pytest.raises(CheckpointError, match="tiling: "):
        model_of(copy, tiling=Tiling(tiles=2))
    with pytest.raises(CheckpointError, match="shots: None when calibrated, "):
        model_of(copy, few_shot=[image])
    model = model_of(copy)
    model.fit_few_shot([image])
    assert model.thresholds == (None, None)  # they were of other scores
    checkpoint = torch.load(copy, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(1)
    torch.save(checkpoint, copy)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        model_of(copy)


def test_regions_and_mask() -> None:
    anomaly_map = np.zeros((20, 30), np.float32)
    anomaly_map[2:5, 3:9] = 0.6
    anomaly_map[10:12, 20:22] = 0.9
    anomaly_map[12, 22] = 0.8  # touches it at a corner
    found = Inspection(0.9, anomaly_map, 0.5, 0.5)
    assert found.regions is not None
    assert [(region.box, region.area) for region in found.regions] == [((20, 10, 23, 13), 5), ((3, 2, 9, 5), 18)]
    assert [region.score for region in found.regions] == pytest.approx([0.9, 0.6])
    assert found.area == pytest.approx(23 / 600)
    assert found.mask is not None
    assert found.mask.sum() == 23
    higher = found.at(0.95, 0.7)
    assert not higher.anomalous
    assert higher.regions is not None
    assert len(higher.regions) == 1
    assert found.at(None, 2.0).regions == ()


def test_a_result_is_one_line_without_its_arrays() -> None:
    anomaly_map = np.zeros((20, 30), np.float32)
    anomaly_map[2:5, 3:9] = 0.6
    found = Inspection(0.91234, anomaly_map, 0.5, 0.5, threshold_from="calibration")
    said = "Inspection(score=0.9123, anomalous=True, threshold=0.5 (calibration), regions=1, size=30x20)"
    assert repr(found) == str(found) == said
    bare = "Inspection(score=0.9, anomalous=None, threshold=None, regions=None, size=30x20)"
    assert repr(Inspection(0.9, anomaly_map, image=np.zeros((20, 30, 3), np.uint8))) == bare


def test_overlays_leave_cold_parts_unchanged() -> None:
    image = picture(40, 50)
    anomaly_map = np.zeros((40, 50), np.float32)
    anomaly_map[10:20, 10:20] = 1
    found = Inspection(1.0, anomaly_map, 0.5, 0.5, 0.2, 0.2, image)
    drawn = found.overlay()
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn[25:], image[25:])
    assert (drawn[10, 10:20] == 255).all()  # contour
    assert not np.array_equal(drawn[14, 14], image[14, 14])
    with pytest.raises(ValueError, match="was not kept"):
        Inspection(1.0, anomaly_map).overlay()


@pytest.mark.slow
def test_the_package_is_light_until_load_is_asked_for() -> None:
    code = "import sys, afclip_lightning; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_white_level_is_one_of_the_settings(head: Path, tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 60 * 80).astype(np.uint16).reshape(60, 80)
    path = tmp_path / "camera.png"
    Image.fromarray(values).save(path)
    seen = np.stack([np.rint(values / (4095 / 255)).astype(np.uint8)] * 3, -1)
    model, plain = model_of(head, white=12), model_of(head)
    assert model.settings["white"] == 4095
    assert "white" not in plain.settings
    expected = model.predict(seen).score
    for source in (path, path.read_bytes(), Image.open(path)):
        assert model.predict(source).score == expected
    assert not model.remarks
    assert plain.predict(path).score != expected
    assert plain.remarks == {NEARLY_BLACK: 1}
    with pytest.raises(ValueError, match="auto"):
        model_of(head, white="auto")
