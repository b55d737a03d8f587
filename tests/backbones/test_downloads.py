"""Downloads: complete or absent, resumed after an interruption, checked by their hash."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from afclip_lightning.backbones import downloads
from afclip_lightning.backbones.downloads import download, remote_of
from afclip_lightning.backbones.sources import Repository
from afclip_runtime.errors import UserError, WeightsError
from afclip_runtime.files import only_writer_of
from tests.support.hub import Hub, serving

CONTENT = bytes(range(256)) * 400
PLACE = Repository("us/small", ("absent.safetensors", "model.safetensors"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(downloads, "WAIT", 0.0)
    monkeypatch.setattr(downloads, "PART", 1000)
    with serving(monkeypatch) as server:
        server.files["us/small/model.safetensors"] = CONTENT
        yield server


def ranges(hub: Hub) -> list[str | None]:
    return [asked for method, _, asked in hub.asked if method == "GET"]


def test_the_hub_says_where_how_large_and_which(hub: Hub) -> None:
    remote = remote_of(PLACE)
    assert (remote.name, remote.size) == ("model.safetensors", len(CONTENT))
    assert remote.sha256 == hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(WeightsError, match=r"us/small: the repository has no file named a or b\. On a machine without"):
        remote_of(Repository("us/small", ("a", "b")))


@pytest.mark.parametrize("cuts", [[], [0], [10_000], [10_000, 0, 0, 30_000], [1] * 20])
def test_a_cut_connection_is_taken_up_where_it_ended(hub: Hub, tmp_path: Path, cuts: list[int]) -> None:
    hub.cuts = list(cuts)
    download(remote_of(PLACE), tmp_path / "new" / "w.safetensors", progress=False)
    assert (tmp_path / "new" / "w.safetensors").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]
    starts = [sum(cuts[:number]) for number in range(len(cuts) + 1)]
    assert ranges(hub) == [f"bytes={start}-" if start else None for start in starts]


def test_one_process_downloads_a_file(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with only_writer_of(path), pytest.raises(UserError, match=r"w\.safetensors: another process is writing there"):
        download(remote_of(PLACE), path, progress=False)


def test_the_part_of_an_earlier_call_is_used(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [5000] + [0] * 5
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match=r"model\.safetensors: could not be downloaded .*5,000 bytes are kept in"):
        download(remote_of(PLACE), path, progress=False)
    assert (tmp_path / "w.safetensors.part").read_bytes() == CONTENT[:5000]
    assert not path.exists()
    hub.asked.clear()
    download(remote_of(PLACE), path, progress=False)
    assert path.read_bytes() == CONTENT
    assert ranges(hub) == ["bytes=5000-"]


def test_a_server_that_does_not_resume_sends_all_of_it(hub: Hub, tmp_path: Path) -> None:
    hub.resumes, hub.cuts = False, [5000]
    download(remote_of(PLACE), tmp_path / "w", progress=False)
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_a_whole_part_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(CONTENT)
    download(remote_of(PLACE), tmp_path / "w", progress=False)
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert ranges(hub) == []


def test_another_content_is_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    hub.hashes["us/small/model.safetensors"] = "0" * 64
    with pytest.raises(WeightsError, match=r"has the SHA-256 .* in place of 0{16}…, and was removed\. Run .* again"):
        download(remote_of(PLACE), tmp_path / "w", progress=False)
    (tmp_path / "w.part").write_bytes(b"x" * (len(CONTENT) + 1))
    with pytest.raises(WeightsError, match=r"has 102,401 bytes in place of 102,400, and was removed"):
        download(remote_of(PLACE), tmp_path / "w", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_not_tried_again(hub: Hub, tmp_path: Path) -> None:
    remote = remote_of(PLACE)
    hub.files.clear()
    with pytest.raises(WeightsError, match=r"could not be downloaded \(HTTP 404\)"):
        download(remote, tmp_path / "w", progress=False)
    assert len(ranges(hub)) == 1
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        download(remote, tmp_path / "file" / "w", progress=False)
