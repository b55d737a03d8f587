"""`datasets prepare`: unpacking what a user downloaded."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from afclip_lightning.data import archive
from afclip_lightning.data.btad import BTAD
from afclip_lightning.data.kolektor import KolektorSDDThirds
from afclip_lightning.data.medical import Medical
from afclip_lightning.datasets import main
from afclip_lightning.errors import DatasetError
from tests.layouts.btad import write_btad
from tests.layouts.kolektor import write_kolektor
from tests.layouts.medical import write_medical


def pack_zip(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return target


def pack_tar(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz") as file:
        file.add(folder, ".")
    return target


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("pack", "name"), [(pack_zip, "btad.zip"), (pack_tar, "btad.tar.gz")])
@pytest.mark.parametrize("inner", ["", "BTech_Dataset_transformed", "a/b"])
def test_the_wrapping_folders_are_taken_off(
    pack: Callable[[Path, Path], Path],
    name: str,
    inner: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = files(write_btad(tmp_path / "made" / inner))
    (tmp_path / "made/__MACOSX").mkdir()
    (tmp_path / "made/__MACOSX/._x").write_text("left behind")
    root = tmp_path / "data/btad"
    command = ["prepare", "btad", "--from", str(pack(tmp_path / "made", tmp_path / name)), "--root", str(root)]
    assert main(command) == 0
    assert files(root) == expected
    assert f"{len(expected)} files are new" in (output := capsys.readouterr().out)
    assert "Licence: CC BY-NC-SA 4.0" in output
    BTAD(root).check()
    assert main(command) == 0  # again: nothing new, nothing changed
    assert "0 files are new" in capsys.readouterr().out
    assert files(root) == expected


def test_a_set_in_two_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_medical(tmp_path / "made", "isic")
    images, masks = (tmp_path / part for part in ("images.zip", "masks.zip"))
    for target, kept in ((images, "_Data"), (masks, "_GroundTruth")):
        with zipfile.ZipFile(target, "w") as file:
            for path in whole.rglob(f"*{kept}/*"):
                file.write(path, path.relative_to(whole))
    root = tmp_path / "isic"
    assert main(["prepare", "isic", "--from", str(images), "--root", str(root)]) == 2
    assert "GroundTruth" in capsys.readouterr().err  # what is still missing
    assert main(["prepare", "isic", "--from", str(masks), "--root", str(root)]) == 0
    assert files(root) == files(whole)
    together = Medical(tmp_path / "together", "isic")
    assert archive.prepare(together, [images, masks]) == 6


def test_a_set_of_tiles_is_unpacked_beside_them_and_cut(tmp_path: Path) -> None:
    packed = pack_zip(write_kolektor(tmp_path / "made/KolektorSDD").parent, tmp_path / "kolektor.zip")
    root = tmp_path / "data/sdd"
    command = ["prepare", "sdd_thirds", "--from", str(packed), "--root", str(root)]
    for _ in range(2):
        assert main(command) == 0
        assert files(tmp_path / "data/KolektorSDD") == files(tmp_path / "made/KolektorSDD")
        assert {s.label for s in KolektorSDDThirds(root).samples("test")} == {0, 1}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    packed = pack_zip(write_btad(tmp_path / "made"), tmp_path / "btad.zip")
    root = tmp_path / "btad"
    mine = root / "01/test/ok/0001.bmp"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(DatasetError, match=r"0001\.bmp: is there already and differs.*Nothing was moved"):
        archive.prepare(BTAD(root), [packed])
    assert mine.read_text() == "mine"
    assert [name for name in files(root) if not name.startswith(archive.STAGE)] == ["01/test/ok/0001.bmp"]
    mine.unlink()
    assert archive.prepare(BTAD(root), [packed]) == len(files(tmp_path / "made"))


def test_an_interrupted_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_btad(tmp_path / "made")
    packed, root = pack_zip(made, tmp_path / "btad.zip"), tmp_path / "btad"
    write, written = archive.shutil.copyfileobj, []

    def stop_at_the_fifth(source: io.BufferedIOBase, target: io.BufferedIOBase) -> None:
        if len(written) == 4:
            target.write(b"half")
            raise KeyboardInterrupt
        written.append(target)
        write(source, target)

    monkeypatch.setattr(archive.shutil, "copyfileobj", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        archive.prepare(BTAD(root), [packed])
    assert len(files(root)) == 4  # no half of a file
    written.clear()
    monkeypatch.setattr(archive.shutil, "copyfileobj", lambda *both: (written.append(both), write(*both)))
    assert archive.prepare(BTAD(root), [packed]) == len(files(made))
    assert len(written) == len(files(made)) - 4
    assert files(root) == files(made)


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt", "C:/out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_climbs_out_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    packed, root = tmp_path / f"x.{kind}", tmp_path / "deep/btad"
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as file:
            file.writestr(name, "x")
    else:
        with tarfile.open(packed, "w") as file:
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DatasetError, match=r"leads out .*refused"):
        archive.prepare(BTAD(root), [packed])
    assert not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_are_refused(kind: str, tmp_path: Path) -> None:
    packed = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as file:
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            file.writestr(link, "/etc")
    else:
        with tarfile.open(packed, "w") as file:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
            file.addfile(entry)
    with pytest.raises(DatasetError, match=r"'link' is a link or a device; refused"):
        archive.prepare(BTAD(tmp_path / "btad"), [packed])


def test_other_archives(tmp_path: Path) -> None:
    dataset = BTAD(tmp_path / "btad")
    with pytest.raises(DatasetError, match=r"none\.zip: there is no such file"):
        archive.prepare(dataset, [tmp_path / "none.zip"])
    text = tmp_path / "x.rar"
    text.write_text("Rar!")
    with pytest.raises(DatasetError, match=r"x\.rar: is neither a zip nor a tar"):
        archive.prepare(dataset, [text])
    whole = pack_zip(write_btad(tmp_path / "made"), tmp_path / "cut.zip")
    data = bytearray(whole.read_bytes())
    data[200:400] = bytes(200)
    whole.write_bytes(data)
    with pytest.raises(DatasetError, match=r"cut\.zip: cannot be unpacked .*Download it again"):
        archive.prepare(dataset, [whole])
    other = pack_zip(write_medical(tmp_path / "other", "kvasir"), tmp_path / "other.zip")
    with pytest.raises(DatasetError, match=r"other\.zip: does not hold btad\. It holds: images, masks"):
        archive.prepare(BTAD(tmp_path / "elsewhere"), [other])
