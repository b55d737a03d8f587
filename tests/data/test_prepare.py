"""`datasets prepare`: unpacking what a user downloaded."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from afclip_lightning.cli.datasets import main
from afclip_lightning.data import archive
from afclip_lightning.datasets.btad import BTAD
from afclip_lightning.datasets.kolektor import KolektorSDDThirds
from afclip_lightning.datasets.medical import Medical
from afclip_runtime.errors import DatasetError
from tests.support.layouts.btad import write_btad
from tests.support.layouts.kolektor import write_kolektor
from tests.support.layouts.medical import write_medical


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
    together = Medical("isic", tmp_path / "together")
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
    with pytest.raises(DatasetError, match=r"0001\.bmp already exists and differs.*Nothing was moved"):
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


def pack(kind: str, target: Path, members: dict[str, bytes]) -> Path:
    """Writes an archive with these members in order."""
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(target, "w") as file:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return target


def refused(root: Path, packed: Path, message: str) -> None:
    """Checks that an archive is refused and that nothing of it is left."""
    with pytest.raises(DatasetError, match=message):
        archive.prepare(BTAD(root), [packed])
    assert not root.exists() or not list(root.iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_second_of_two_archives_is_installed(kind: str, tmp_path: Path) -> None:
    made = files(write_btad(tmp_path / "made"))
    first = {name: bytes(len(content)) for name, content in made.items()} | {"extra.bin": b"x"}
    first = {f"no_btad/{name.replace('t', 'z')}": content for name, content in first.items()}
    root, path = tmp_path / "btad", tmp_path / f"btad.{kind}"
    refused(root, pack(kind, path, first), "does not hold btad")
    second = {f"no_btad/{name}": content for name, content in made.items()}
    assert archive.prepare(BTAD(root), [pack(kind, path, second)]) == len(made)
    assert files(root) == made


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_after_a_conflict_the_second_archive_is_installed(kind: str, tmp_path: Path) -> None:
    made = files(write_btad(tmp_path / "made"))
    root, mine = tmp_path / "btad", "01/test/ok/0001.bmp"
    (root / mine).parent.mkdir(parents=True)
    (root / mine).write_bytes(made[mine])
    other = {name: content[::-1] for name, content in made.items()}  # of equal names and sizes
    with pytest.raises(DatasetError, match="already exists and differs"):
        archive.prepare(BTAD(root), [pack(kind, tmp_path / "first", other)])
    assert archive.prepare(BTAD(root), [pack(kind, tmp_path / "second", made)]) == len(made) - 1
    assert files(root) == made
    assert not (root / archive.STAGE).exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["{}.png", "{}/a.png", "a/{}/b/c.png", "ü{}.png"])
def test_names_that_are_too_long(kind: str, name: str, tmp_path: Path) -> None:
    packed = pack(kind, tmp_path / "long", {"01/test/ok/1.bmp": b"", name.format(300 * "x"): b""})
    refused(tmp_path / "btad", packed, r"its member '.*x.*'… has a name of 30\d bytes; at most 255 are unpacked")


def test_a_name_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    made = files(write_btad(tmp_path / "made")) | {f"01/test/ok/{251 * 'x'}.bmp": b"x"}
    assert archive.prepare(BTAD(tmp_path / "btad"), [pack("tar", tmp_path / "a.tar", made)]) == len(made)


def test_a_stage_that_is_a_link(tmp_path: Path) -> None:
    packed = pack_zip(write_btad(tmp_path / "made"), tmp_path / "btad.zip")
    root, elsewhere = tmp_path / "btad", tmp_path / "elsewhere"
    for folder in (root, elsewhere):
        folder.mkdir()
    stage = root / archive.STAGE
    stage.symlink_to(elsewhere)
    with pytest.raises(DatasetError, match=r"unpacked is not a folder, or is a link"):
        archive.prepare(BTAD(root), [packed])
    stage.unlink()
    stage.mkdir()
    (stage / archive._key([packed])).symlink_to(elsewhere)
    with pytest.raises(DatasetError, match=r"is a link\. Remove it"):
        archive.prepare(BTAD(root), [packed])
    (stage / archive._key([packed])).unlink()
    (stage / archive._key([packed])).mkdir()
    (stage / archive._key([packed]) / "01").symlink_to(elsewhere)
    with pytest.raises(DatasetError, match="a link leads out of"):
        archive.prepare(BTAD(root), [packed])
    assert not list(elsewhere.iterdir())
    (root / "01").symlink_to(elsewhere)
    with pytest.raises(DatasetError, match=r"a link leads out of .*Nothing was moved"):
        archive.prepare(BTAD(root), [packed])
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_pipes_devices_and_links_in_a_tar(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        entry = tarfile.TarInfo("01/test/ok/1.bmp")
        entry.type, entry.linkname = kind, "elsewhere"
        file.addfile(entry)
    refused(tmp_path / "btad", tmp_path / "x.tar", "is a link or a device; refused")


@pytest.mark.parametrize("mode", [0o010644, 0o020644, 0o060644, 0o120777, 0o140644])
def test_pipes_devices_and_links_in_a_zip(mode: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        info = zipfile.ZipInfo("01/test/ok/1.bmp")
        info.external_attr = mode << 16
        file.writestr(info, "")
    refused(tmp_path / "btad", tmp_path / "x.zip", "is a link or a device; refused")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_archives_that_are_cut_off(kind: str, part: float, tmp_path: Path) -> None:
    made, packed = write_btad(tmp_path / "made"), tmp_path / f"x.{kind}"
    if kind == "zip":
        pack_zip(made, packed)
    else:
        with tarfile.open(packed, f"w:{kind[4:]}", format=tarfile.PAX_FORMAT) as file:  # type: ignore[call-overload]
            file.add(made, ".")
    content = packed.read_bytes()
    packed.write_bytes(content[: int(part * len(content.rstrip(b"\0")))])
    refused(tmp_path / "btad", packed, "is cut off")


def test_a_tar_that_ends_between_two_members(tmp_path: Path) -> None:
    whole = pack("tar", tmp_path / "x.tar", {f"01/test/ok/{i}.bmp": bytes(512) for i in range(8)})
    whole.write_bytes(whole.read_bytes()[: 4 * 1024])
    refused(tmp_path / "btad", whole, "is cut off .*without the mark that ends an archive")


def test_a_tar_that_is_damaged_between_two_members(tmp_path: Path) -> None:
    whole = pack("tar", tmp_path / "x.tar", {f"01/test/ok/{i}.bmp": bytes(512) for i in range(8)})
    content = bytearray(whole.read_bytes())
    content[4 * 1024 : 4 * 1024 + 20] = b"damaged".ljust(20)
    whole.write_bytes(content)
    refused(tmp_path / "btad", whole, "cannot be unpacked .*damaged in the middle.*Download it again")


def test_a_checksum_of_what_is_compressed(tmp_path: Path) -> None:
    packed = pack_tar(write_btad(tmp_path / "made"), tmp_path / "x.tar.gz")
    content = bytearray(packed.read_bytes())
    content[-6] ^= 1  # of the checksum at the end
    packed.write_bytes(content)
    refused(tmp_path / "btad", packed, "CRC check failed")


def test_one_name_with_two_contents(tmp_path: Path) -> None:
    one = pack("zip", tmp_path / "one.zip", {"01/test/ok/1.bmp": b"a"})
    two = pack("tar", tmp_path / "two.tar", {"01/test/ok/1.bmp": b"b"})
    with pytest.raises(DatasetError, match=r"two\.tar: '01/test/ok/1\.bmp' occurs twice, with different contents"):
        archive.prepare(BTAD(tmp_path / "btad"), [one, two])


def test_an_empty_file_and_an_encrypted_zip(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"")
    refused(tmp_path / "btad", tmp_path / "x.zip", r"x\.zip: is empty\. Download it again")
    packed = pack("zip", tmp_path / "x.zip", {"01/test/ok/1.bmp": b"a"})
    content = bytearray(packed.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag that a password is needed
        content[content.index(mark) + at] |= 1
    packed.write_bytes(content)
    refused(tmp_path / "btad", packed, r"cannot be unpacked here .*password.*Unpack it yourself")


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    packed = pack_zip(write_btad(tmp_path / "made"), tmp_path / "btad.zip")
    with pytest.raises(DatasetError, match=r"btad\.zip is not a folder"):
        archive.prepare(BTAD(packed), [packed])
