"""`datasets import --from volumes`: from NIfTI files to a readable set."""

import json
import shlex
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from afclip_lightning.cli.datasets import main
from afclip_lightning.data.doctor import examine
from afclip_lightning.datasets.catalogue import check
from afclip_lightning.datasets.volumes import Volumes
from afclip_lightning.volumes.importing import splits
from afclip_runtime.errors import DatasetError
from tests.support.volumes import SHAPE, affine, all_codes, lesion, phantom, seen, write_nifti


def run(folder: Path, out: Path, *options: str) -> int:
    return main(["import", str(folder), "--from", "volumes", "--out", str(out), *options])


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "slices.jsonl").read_text().splitlines()]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def write_pair(folder: Path, name: str, codes: str = "RAS", mask_codes: str | None = None, **options: Any) -> None:
    write_nifti(folder / f"{name}.nii.gz", phantom(), codes, **options)
    write_nifti(folder / f"{name}_seg.nii.gz", lesion(), mask_codes or codes, **options)


FULL = ("--window", f"{np.prod(SHAPE) / 2 - 0.5},{np.prod(SHAPE) - 1}", "--bits", "16")  # from 0 to the last voxel


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_and_masks_are_those_of_the_voxels(axis: str, tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "scan", "PIR", "LAS")  # the mask is stored otherwise, in the same place
    assert run(tmp_path / "in", tmp_path / "set", "--axis", axis, *FULL) == 0
    lines = rows(tmp_path / "set")
    assert len(lines) == {"axial": 13, "coronal": 11, "sagittal": 9}[axis]
    scale = 65535 / (np.prod(SHAPE) - 1)
    for line, values, mask in zip(lines, seen(phantom(), axis), seen(lesion(), axis), strict=True):
        found = pixels(tmp_path / "set" / line["image"])
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, np.rint(values * scale))
        assert (line["label"] == "anomalous") == bool(mask.any()) == ("mask" in line)
        if mask.any():
            np.testing.assert_array_equal(pixels(tmp_path / "set" / line["mask"]) > 0, mask > 0)


@pytest.mark.slow
@pytest.mark.parametrize("codes", all_codes())
def test_the_set_is_the_same_whatever_the_order_of_the_axes(codes: str, tmp_path: Path) -> None:
    for name, stored in (("a", "RAS"), ("b", codes)):
        write_pair(tmp_path / name, "scan", stored, own=affine((1, 1, 2)))
        run(tmp_path / name, tmp_path / f"set_{name}", "--axis", "coronal")
    files = [sorted(p for p in (tmp_path / f"set_{n}").rglob("*.png")) for n in "ab"]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


def test_the_set_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("abc"):
        mixed = np.random.default_rng(seed).permuted(phantom())  # no two have a picture in common
        write_nifti(tmp_path / f"in/{name}.nii.gz", mixed)
        write_nifti(tmp_path / f"in/{name}_seg.nii.gz", lesion())
    assert run(tmp_path / "in", tmp_path / "set", "--train_share", "0.4", "--category", "head") == 0
    said = capsys.readouterr().out
    assert "3 volumes of 3 patients" in said
    assert "2 test, 1 train" in said
    data = Volumes(tmp_path / "set", num_workers=0)
    check(data, "fit")
    assert data.find_categories() == ["head"]
    train, test = data.samples("train"), data.samples("test")
    assert (len(train), len(test)) == (13, 26)
    assert not {s.group for s in train} & {s.group for s in test}
    assert {s.group for s in test} <= {"volume-0001", "volume-0002", "volume-0003"}
    assert len(data.few_shot(2, 0)["set", "head"]) == 2
    assert examine(data, 1, False, check).problems == []


def test_pixels_are_made_square(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "scan", "SRP", own=affine((0.5, 0.5, 2.0)))
    run(tmp_path / "in", tmp_path / "set", "--axis", "sagittal")
    run(tmp_path / "in", tmp_path / "stored", "--axis", "sagittal", "--pixels", "stored")
    square, stored = rows(tmp_path / "set"), rows(tmp_path / "stored")
    assert pixels(tmp_path / "set" / square[0]["image"]).shape == (52, 11)
    assert square[0]["pixel_spacing"] == [0.5, 0.5]
    assert pixels(tmp_path / "stored" / stored[0]["image"]).shape == (13, 11)
    assert stored[0]["pixel_spacing"] == [2.0, 0.5]
    assert [line["label"] for line in square] == [line["label"] for line in stored]


@pytest.mark.parametrize(
    ("options", "anomalous"),
    [((), 3), (("--anomalous", "2"), 1), (("--anomalous", "1,2"), 3), (("--anomalous", "7"), 0)],
)
def test_values_of_masks(options: tuple[str, ...], anomalous: int, tmp_path: Path, capsys: Any) -> None:
    write_pair(tmp_path / "in", "scan")
    assert run(tmp_path / "in", tmp_path / "set", "--axis", "sagittal", *options) == 0
    assert sum(line["label"] == "anomalous" for line in rows(tmp_path / "set")) == anomalous
    said = capsys.readouterr()
    assert "values of masks: 0, 1, 2; anomalous are" in said.out
    assert ("marks nothing" in said.err) == (not anomalous)


def test_trees_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("001", "002"):
        folder = tmp_path / f"brats/BraTS20_Training_{number}"
        for kind in ("flair", "t1", "t1ce", "t2"):
            write_nifti(folder / f"{folder.name}_{kind}.nii.gz", phantom())
        write_nifti(folder / f"{folder.name}_seg.nii.gz", lesion())
    assert run(tmp_path / "brats", tmp_path / "b") == 0
    assert "The folder has the layout of BraTS." in capsys.readouterr().out
    facts = [json.loads(line) for line in (tmp_path / "b/volumes.jsonl").read_text().splitlines()]
    assert [(f["volume"], f["patient"], f["modality"], f["mask_values"]) for f in facts] == [
        ("volume-0001", "patient-0001", "MR", [0, 1, 2]),
        ("volume-0002", "patient-0002", "MR", [0, 1, 2]),
    ]
    write_nifti(tmp_path / "lits/batch 1/volume-0.nii", phantom() - 200)
    write_nifti(tmp_path / "lits/labels/segmentation-0.nii", lesion())
    assert run(tmp_path / "lits", tmp_path / "l", "--axis", "sagittal") == 0
    said = capsys.readouterr().out
    assert "liver window: centre 30, width 150" in said
    assert "anomalous are 2" in said
    assert sum(line["label"] == "anomalous" for line in rows(tmp_path / "l")) == 1


def test_visits_of_a_patient_stay_together(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000"):
        write_nifti(tmp_path / f"in/{name}/{name}-t2f.nii.gz", phantom())
        write_nifti(tmp_path / f"in/{name}/{name}-seg.nii.gz", lesion())
    run(tmp_path / "in", tmp_path / "set", "--train_share", "0.5")
    assert {line["group"]: line["patient"] for line in rows(tmp_path / "set")} == {
        "volume-0001": "patient-0001",
        "volume-0002": "patient-0001",
        "volume-0003": "patient-0002",
    }


def test_a_table_says_whose_volumes_are(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path / "in", name)
    table = tmp_path / "patients.csv"
    table.write_text("volume,patient\na.nii.gz,x\nb.nii.gz,y\nc.nii.gz,x\n")
    run(tmp_path / "in", tmp_path / "set", "--patients", str(table), "--train_share", "0.5")
    owners = {line["group"]: (line["patient"], line["split"]) for line in rows(tmp_path / "set")}
    assert owners["volume-0001"] == owners["volume-0003"] != owners["volume-0002"]
    table.write_text("volume,patient\na.nii.gz,x\n")
    assert run(tmp_path / "in", tmp_path / "other", "--patients", str(table)) == 2


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_splits_are_the_same_each_time_and_never_empty(share: float) -> None:
    patients = [f"patient-{number:04d}" for number in range(10)]
    found = splits(patients, share, 3)
    assert found == splits(reversed(patients), share, 3)
    assert set(found.values()) == {"train", "test"}
    assert sum(split == "train" for split in found.values()) == min(max(round(10 * share), 1), 9)
    assert found != splits(patients, share, 4) or share in (0.01, 0.99)


def test_a_patient_in_both_splits_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "scan")
    run(tmp_path / "in", tmp_path / "set")
    lines = rows(tmp_path / "set")
    lines[3]["split"] = "train"
    (tmp_path / "set/slices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DatasetError, match="patient-0001 is in training and in test"):
        Volumes(tmp_path / "set").samples("test")


def test_an_import_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path / "in", name)
    import afclip_lightning.volumes.importing as importing

    whole, cut = importing.cut_volume, []

    def stopped(*arguments: Any) -> Any:
        cut.append(arguments[1][0])
        if len(cut) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(importing, "cut_volume", stopped)
    assert run(tmp_path / "in", tmp_path / "set") == 130
    assert not (tmp_path / "set/slices.jsonl").exists()
    stray = tmp_path / "set/images/volume-0002/axial-0099.png"
    stray.parent.mkdir(parents=True)
    stray.touch()  # of the volume that the run was at
    assert run(tmp_path / "in", tmp_path / "set") == 0
    assert not stray.exists()
    assert cut == ["volume-0001", "volume-0002", "volume-0002", "volume-0003"]
    assert "3 volumes of 3 patients" in capsys.readouterr().out
    assert not list((tmp_path / "set").glob(".*"))
    assert run(tmp_path / "in", tmp_path / "set", "--axis", "coronal") == 2
    assert "another axis" in capsys.readouterr().err
    write_nifti(tmp_path / "in/a.nii.gz", phantom() + 1)
    assert run(tmp_path / "in", tmp_path / "set") == 2
    assert "volume-0001 was cut from another file" in capsys.readouterr().err


def test_black_slices_are_left_out_unless_they_are_anomalous(tmp_path: Path, capsys: Any) -> None:
    values, mask = phantom() + 1, np.zeros(SHAPE, np.uint8)
    values[:, :, :3] = 0
    values[:2, :2, 2] = 7  # 4 of 99 pixels
    mask[4, 4, 0] = 1
    write_nifti(tmp_path / "in/a.nii.gz", values)
    write_nifti(tmp_path / "in/a_seg.nii.gz", mask)
    for name, options, left_out in (("set", (), [1]), ("more", ("--min_content", "0.05"), [1, 2])):
        assert run(tmp_path / "in", tmp_path / name, "--window", "643,1286", *options) == 0
        assert f"{len(left_out)} normal slice" in capsys.readouterr().out
        assert [line["index"] for line in rows(tmp_path / name)] == [i for i in range(13) if i not in left_out]


def test_names_are_kept_only_if_asked(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "Erika_Musterfrau")
    run(tmp_path / "in", tmp_path / "set")
    everything = b"".join(p.name.encode() + p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file())
    assert b"Muster" not in everything
    run(tmp_path / "in", tmp_path / "kept", "--keep_names")
    assert "volume-0001,patient-0001," in (tmp_path / "kept/names.csv").read_text()
    assert "Erika_Musterfrau" in (tmp_path / "kept/names.csv").read_text()
    assert "Muster" not in (tmp_path / "kept/slices.jsonl").read_text()


def test_volumes_without_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nifti(tmp_path / "in/a.nii.gz", phantom())
    assert run(tmp_path / "in", tmp_path / "set") == 2
    assert "--unmasked_are_normal" in capsys.readouterr().err
    assert run(tmp_path / "in", tmp_path / "set", "--unmasked_are_normal") == 0
    assert {line["label"] for line in rows(tmp_path / "set")} == {"normal"}


def test_values_that_no_mask_holds_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(tmp_path / "in", "a")
    out = tmp_path / "my set"
    assert run(tmp_path / "in", out, "--anomalous", "9") == 0
    said = capsys.readouterr()
    assert "note: no mask holds a value of --anomalous 9" in said.err
    next_line = next(line for line in said.out.splitlines() if line.startswith("Next: "))
    assert main(shlex.split(next_line)[5:]) == 0


def test_masks_in_a_folder_of_their_own(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_nifti(tmp_path / f"in/imagesTr/{name}_0000.nii.gz", phantom())
        write_nifti(tmp_path / f"in/labelsTr/{name}.nii.gz", lesion() if name == "x" else 0 * lesion())
    write_nifti(tmp_path / "in/imagesTs/z_0000.nii.gz", phantom())
    assert run(tmp_path / "in", tmp_path / "set") == 0
    (tmp_path / "in/labelsTr").rename(tmp_path / "labels")
    assert run(tmp_path / "in/imagesTr", tmp_path / "other", "--masks", str(tmp_path / "labels")) == 0
    for name in ("set", "other"):
        assert {line["group"] for line in rows(tmp_path / name)} == {"volume-0001", "volume-0002"}
        assert {line["group"] for line in rows(tmp_path / name) if line["label"] == "anomalous"} == {"volume-0001"}


def test_a_channel_of_four_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = np.stack([phantom(), phantom()[::-1]], axis=-1)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(both, affine()), tmp_path / "in/a.nii.gz")
    options = ("--unmasked_are_normal", *FULL)
    assert run(tmp_path / "in", tmp_path / "set", *options) == 2
    assert "holds 2 volumes along its fourth axis" in capsys.readouterr().err
    assert run(tmp_path / "in", tmp_path / "set", *options, "--channel", "1") == 0
    wanted = next(seen(phantom()[::-1], "axial"))
    found = pixels(tmp_path / "set" / rows(tmp_path / "set")[0]["image"])
    np.testing.assert_array_equal(found, np.rint(wanted * (65535 / (np.prod(SHAPE) - 1))))
