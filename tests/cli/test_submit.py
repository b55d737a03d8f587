"""The command submit: its files, a second run, the findings of its check, rejected input."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from afclip_lightning.cli import submit as command
from afclip_lightning.datasets.mvtec_ad_2 import PRIVATE, MVTecAD2
from afclip_lightning.engine.app import main as lightning
from tests.support.layouts import HEIGHT, WIDTH
from tests.support.layouts.mvtec_ad_2 import write_mvtec_ad_2
from tests.support.small_models import write_head
from tests.support.submissions import submit, write_maps

OUT = Path("submission")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_mvtec_ad_2(tmp_path / "mvtec_ad_2")


@pytest.fixture
def maps(root: Path) -> str:
    return str(write_maps(root, root.parent / "maps"))


def test_submission_of_a_model(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_head(tmp_path, "PatchRarity")
    assert submit(root, "--checkpoint", str(model), "--public") == 0
    printed, said = capsys.readouterr()
    assert "24 maps, 24 masks" in printed
    assert "has 24 private images, and the server expects 4090" in said
    assert "SegF1" in printed
    record = json.loads((OUT / "submission.json").read_text())["categories"]
    assert list(record) == list(MVTecAD2.published)
    assert record["wallplugs"]["facts"]["category"] == "wall plugs"  # what prompts call it
    for category, fixed in record.items():
        names = sorted(p.name for p in (OUT / "anomaly_images" / category / "test_private").iterdir())
        assert names == ["000_regular.tiff", "001_regular.tiff"]
        for path in (OUT / "anomaly_images" / category).rglob("*.tiff"):
            values = tifffile.imread(path)
            assert (values.dtype, values.shape) == (np.float16, (HEIGHT, WIDTH))
            inner = path.relative_to(OUT / "anomaly_images").with_suffix(".png")
            with Image.open(OUT / "anomaly_images_thresholded" / inner) as mask:
                assert (mask.mode, mask.size) == ("L", (WIDTH, HEIGHT))
                assert np.array_equal(np.asarray(mask), np.where(values > 0, 255, 0))
        assert fixed["threshold"] == pytest.approx(fixed["mean"] + 3 * fixed["sd"])
    with tarfile.open(OUT / "submission.tar.gz") as archive:
        names = archive.getnames()
    assert len(names) == 48
    assert {name.split("/")[2] for name in names} == set(PRIVATE)  # the public part is not packed


def test_threshold_is_the_rule_on_the_validation_maps(root: Path, maps: str) -> None:
    assert submit(root, "--maps", maps) == 0
    record = json.loads((OUT / "submission.json").read_text())["categories"]
    values = np.stack([np.load(path) for path in Path(maps, "vial/validation/good").iterdir()]).astype(float)
    assert record["vial"]["threshold"] == pytest.approx(values.mean() + 3 * values.std(), rel=1e-12)
    assert record["vial"]["images"] == 2
    scores = np.load(Path(maps, "vial/test_private/001_regular.npy")).astype(float)
    stored = tifffile.imread(OUT / "anomaly_images/vial/test_private/001_regular.tiff").astype(float)
    decoded = stored / record["vial"]["factor"] + record["vial"]["threshold"]
    assert np.abs(decoded - scores).max() < 2e-6  # where float16 itself has steps of 5e-4
    assert len(np.unique(scores.astype(np.float16))) < 20 < 250 < len(np.unique(stored))


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(root: Path, maps: str) -> None:
    assert submit(root, "--maps", maps) == 0
    packed = (OUT / "submission.tar.gz").read_bytes()
    kept = OUT / "anomaly_images/can/test_private/000_regular.tiff"
    before = kept.stat().st_mtime_ns
    lost = [OUT / "anomaly_images/rice/test_private/001_regular.tiff", OUT / "submission.tar.gz"]
    lost += [OUT / "anomaly_images_thresholded/vial/test_private_mixed/000_mixed.png"]
    for path in lost:
        path.unlink()
    assert submit(root, "--maps", maps) == 0
    assert (OUT / "submission.tar.gz").read_bytes() == packed
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("at", ["map", "mask", "packing"])
def test_after_ctrl_c_nothing_is_half_written_and_the_run_goes_on(
    root: Path, maps: str, at: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(root, "--maps", maps, "--out", "whole") == 0
    writes: dict[str, tuple[Any, str]] = {
        "map": (tifffile, "imwrite"),
        "mask": (Image.Image, "save"),
        "packing": (tarfile.TarFile, "addfile"),
    }
    place, name = writes[at]
    write, calls = getattr(place, name), iter(range(1000))

    def interrupted(*args: Any, **options: Any) -> None:
        write(*args, **options)  # the file is there, beside its place
        if next(calls) == 5:
            raise KeyboardInterrupt

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted)
        assert submit(root, "--maps", maps) == 130
    assert "Stopped. The same command goes on from here." in capsys.readouterr().err
    written = {path.relative_to(OUT) for path in OUT.rglob("*") if path.is_file()}
    assert not [path for path in written if path.name.startswith(".") or path.suffix == ".gz"]
    assert sum(path.suffix == ".tiff" for path in written) == (24 if at == "packing" else 5)
    for path in written - {Path("submission.json")}:
        assert (OUT / path).read_bytes() == ("whole" / path).read_bytes()
    assert submit(root, "--maps", maps) == 0
    for path in Path("whole").rglob("*.*"):
        assert (OUT / path.relative_to("whole")).read_bytes() == path.read_bytes()


def test_maps_that_were_replaced_are_written_again(root: Path, maps: str) -> None:
    assert submit(root, "--maps", maps, "--public") == 0
    kept = OUT / "anomaly_images/vial/test_private/000_regular.tiff"
    before = kept.stat().st_mtime_ns
    for part in ("test_private", "test_public/bad"):
        path = next(Path(maps, "vial", part).glob("001_*.npy" if part == "test_private" else "*.npy"))
        np.save(path, np.load(path)[::-1])
    assert submit(root, "--maps", maps) == 0
    stored = tifffile.imread(OUT / "anomaly_images/vial/test_private/001_regular.tiff")
    assert submit(root, "--maps", maps, "--public", "--out", "anew") == 0
    assert np.array_equal(stored, tifffile.imread("anew/anomaly_images/vial/test_private/001_regular.tiff"))
    assert (OUT / "submission.tar.gz").read_bytes() == Path("anew/submission.tar.gz").read_bytes()
    assert kept.stat().st_mtime_ns == before
    assert submit(root, "--maps", maps, "--public") == 0
    for path in Path("anew").rglob("*.tiff"):
        assert (OUT / path.relative_to("anew")).read_bytes() == path.read_bytes()


def test_a_threshold_is_that_of_the_validation_maps_of_today(
    root: Path, maps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(root, "--maps", maps) == 0
    path = next(Path(maps, "vial/validation/good").iterdir())
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert submit(root, "--maps", maps) == 2
    assert "vial was begun with another validation maps" in capsys.readouterr().err


def test_a_folder_does_not_mix_two_submissions(root: Path, maps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(root, "--maps", maps, "--categories", "can") == 1
    assert "not packed, since the server wants all categories. Missing: fabric, " in capsys.readouterr().out
    assert not (OUT / "submission.tar.gz").exists()
    assert submit(root, "--maps", maps, "--factor", "2") == 2
    assert "was begun by other rules (factor: 3.0; " in capsys.readouterr().err
    others = write_maps(root, root.parent / "others")
    assert submit(root, "--maps", str(others)) == 2
    assert "can was begun with another maps" in capsys.readouterr().err
    assert submit(root, "--maps", maps) == 0  # the other categories are added


def test_maps_of_predict(root: Path, tmp_path: Path) -> None:
    model = write_head(tmp_path, "PatchRarity")
    Path("data.yaml").write_text(f"data: {{class_path: MVTecAD2, init_args: {{root: {root}, num_workers: 0}}}}")
    quiet = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    runs = []
    for part in ("validation", *PRIVATE):
        runs += ["--maps", f"runs/{part}"]
        args = [f"--config={model}", "--config=data.yaml", f"--data.part={part}", f"--out=runs/{part}", *quiet]
        assert lightning(["predict", *args]) == 0
    assert submit(root, *runs) == 0
    stored = tifffile.imread(OUT / "anomaly_images/can/test_private/000_regular.tiff")
    assert stored.shape == (HEIGHT, WIDTH)  # 28 × 28 as predict made it, which is larger than the image


def test_smaller_maps_are_upsampled_for_their_masks(root: Path, tmp_path: Path) -> None:
    maps = write_maps(root, tmp_path / "small", (7, 10), "float16")
    assert submit(root, "--maps", str(maps)) == 0
    assert tifffile.imread(OUT / "anomaly_images/can/test_private/000_regular.tiff").shape == (7, 10)
    with Image.open(OUT / "anomaly_images_thresholded/can/test_private/000_regular.png") as mask:
        assert mask.size == (WIDTH, HEIGHT)


def test_longest_side_of_stored_maps(root: Path, maps: str) -> None:
    assert submit(root, "--maps", maps, "--longest", "10") == 0
    assert tifffile.imread(OUT / "anomaly_images/can/test_private/000_regular.tiff").shape == (7, 10)


def test_public_scores_are_those_of_the_files(root: Path, maps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(root, "--maps", maps, "--public", "--categories", "can") == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("can  ")).split()
    hits = false = missed = 0
    for path in (root / "can/test_public").glob("[bg]*/*.png"):
        if path.parent.name in ("bad", "good"):
            mask = root / f"can/test_public/ground_truth/bad/{path.stem}_mask.png"
            truth = np.asarray(Image.open(mask)) > 0 if mask.exists() else np.zeros((HEIGHT, WIDTH), bool)
            called = OUT / f"anomaly_images_thresholded/can/test_public/{path.parent.name}/{path.name}"
            found = np.asarray(Image.open(called)) > 0
            hits += (found & truth).sum()
            false += (found & ~truth).sum()
            missed += (~found & truth).sum()
    assert line[1] == f"{100 * 2 * hits / (2 * hits + false + missed):.1f}"


def test_few_shot_images_come_from_training(root: Path, tmp_path: Path) -> None:
    model = write_head(tmp_path, "NearestNeighbours")
    args = ("--checkpoint", str(model), "--categories", "can")
    assert submit(root, *args, "--k_shot", "2") == 1
    shots = json.loads((OUT / "submission.json").read_text())["categories"]["can"]["facts"]["shots"]
    assert shots
    assert submit(root, *args, "--k_shot", "1") == 2  # other few-shot images
    assert submit(root, *args, "--model.k_shot", "2", "--out", "as_the_model_says") == 1
    record = json.loads(Path("as_the_model_says/submission.json").read_text())
    assert record["categories"]["can"]["facts"]["shots"] == shots


def test_a_method_that_needs_few_shot_images(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_head(tmp_path, "DualImageCLIP")
    assert "give --k_shot K" in error_of(capsys, submit(root, "--checkpoint", str(model), "--categories", "can"))


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 2
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    return err


def test_no_normal_images_for_the_threshold(root: Path, maps: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path(maps, "can/validation/good").iterdir():
        path.unlink()
    message = error_of(capsys, submit(root, "--maps", maps))
    assert "can: a threshold of mean and standard deviation needs maps of normal images" in message
    assert "--threshold X, or leave masks out (--no_masks)" in message
    assert not list(OUT.rglob("*.tiff"))
    assert submit(root, "--maps", maps, "--no_masks") == 0
    assert not (OUT / "anomaly_images_thresholded").exists()
    assert submit(root, "--maps", maps, "--threshold", "0.5", "--out", "by_hand") == 0
    assert json.loads(Path("by_hand/submission.json").read_text())["categories"]["can"]["threshold"] == 0.5


def test_maps_that_cannot_be_used(root: Path, maps: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(maps, "can/test_private/001_regular.npy")
    good = np.load(path)
    bad = good.copy()
    bad[3, 4] = np.nan
    np.save(path, bad)
    assert "001_regular.npy: the map holds NaN or infinity" in error_of(capsys, submit(root, "--maps", maps))
    np.save(path, np.zeros((HEIGHT, WIDTH + 1), np.float32))
    message = error_of(capsys, submit(root, "--maps", maps))
    assert f"the map is {WIDTH + 1}×{HEIGHT} pixels and its image" in message
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tiff"), good)
    content = path.with_suffix(".tiff").read_bytes()
    path.with_suffix(".tiff").write_bytes(content[:-30])
    assert "001_regular.tiff: cannot be read" in error_of(capsys, submit(root, "--maps", maps))
    path.with_suffix(".tiff").unlink()
    message = error_of(capsys, submit(root, "--maps", maps))
    assert "1 of 24 images have no map" in message
    np.save(path, good)
    assert submit(root, "--maps", maps) == 0


def test_wrong_layout_and_missing_parts(root: Path, maps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in error_of(capsys, submit(root, "--maps", "nowhere"))
    assert "was not found" in error_of(capsys, submit(root.parent / "nowhere", "--maps", maps))
    for path in (root / "can/test_private_mixed").iterdir():
        path.unlink()
    assert "can/test_private_mixed has no image" in error_of(capsys, submit(root, "--maps", maps))
    (root / "can/test_private_mixed").rmdir()
    assert "not there: " in error_of(capsys, submit(root, "--maps", maps))
    assert "has no category 'bottle'" in error_of(capsys, submit(root, "--maps", maps, "--categories", "bottle"))


def test_no_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--maps DIR, maps of another program" in error_of(capsys, submit(root))


@pytest.mark.parametrize("packed", [False, True])
def test_check_of_what_was_written(root: Path, maps: str, packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(root, "--maps", maps) == 0
    place = str(OUT / "submission.tar.gz" if packed else OUT)
    capsys.readouterr()
    assert submit(root, "--check", place) == 0
    assert "24 maps, 24 masks. No problem found." in capsys.readouterr().out
    # without the dataset only the number is not as it must be
    assert command.main(["--check", place]) == 1
    assert "the server expects 4090 maps: there are 24" in capsys.readouterr().out


def test_check_finds_what_the_submission_lost(root: Path, maps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(root, "--maps", maps) == 0
    (OUT / "anomaly_images/can/test_private/001_regular.tiff").unlink()
    capsys.readouterr()
    assert submit(root, "--check", str(OUT)) == 1
    printed = capsys.readouterr().out
    assert "images without a map: can/test_private/001_regular" in printed
    assert "masks without a map: can/test_private/001_regular" in printed
