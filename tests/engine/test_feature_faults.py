"""What may befall `features build --launcher`: each fault has one clear outcome, and the same command goes on."""

import re
import tarfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.cli import features
from afclip_lightning.engine import feature_chunks
from afclip_lightning.engine.feature_chunks import BUILDS, FeatureChunks, build_chunks
from afclip_lightning.engine.feature_sources import SourceOptions, images_of_sources
from afclip_runtime.bulk.plan import FOLDER, PLAN, files_path
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import shared, take_lock
from afclip_runtime.launch import Where
from afclip_runtime.launch.signals import STOPPED
from tests.support.clips import small_config
from tests.support.commands import link_all
from tests.support.deadly import deadly_images
from tests.support.disks import half_written, small_disk
from tests.support.late_files import come_late
from tests.support.processes import contents
from tests.support.table_runs import options, write_set

PARTS = ("one", "two", "three")  # a part is a chunk
IMAGES, TAPS = 20, 2
LAUNCHERS = [["local"], ["local", "2"], ["ray", "2"]]


def launched(launcher: str, jobs: str = "1") -> list[str]:
    if launcher == "ray":
        pytest.importorskip("ray")
    return [f"--launcher={launcher}", f"--jobs={jobs}"]


def build(store: str | Path, *extra: str) -> int:
    command = ["build", *options("AFCLIP", tests=PARTS), f"--features.cache={store}", "--features.dtype=float32"]
    return features.main([*command, *extra])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the features of an undisturbed build in `whole`."""
    folder = tmp_path_factory.mktemp("faults")
    small_config(folder)
    for seed, part in enumerate(("train", *PARTS)):
        write_set(folder / part, seed, {("a", 0): IMAGES - 1, ("a", 1): 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert build("whole") == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    link_all(made, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("launcher", LAUNCHERS, ids="-".join)
def test_a_full_disk_is_one_error_and_the_same_command_goes_on(
    launcher: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = [path.stat().st_size for path in feature_files(tmp_path / "whole")]
    pages = [-(-size // 4096) * 4096 for size in sizes]  # which is more than the command expects
    with small_disk(tmp_path / "full", (sum(sizes) + sum(pages)) // 2 // 1024) as give_space:
        assert build("full/store", *launched(*launcher)) == 2
        said = capfd.readouterr().err
        assert said.count("error: ") == 1
        assert re.search(
            r"error: chunk \d: \S*full/store/\S+: cannot be written \(No space left on device\)\. .*"
            r" The same command goes on from here\.",
            said,
        )
        assert "Traceback" not in said
        assert launcher[0] == "ray" or half_written(tmp_path / "full") == []  # Ray ends the other actors at once
        kept = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in feature_files(tmp_path / "full/store")}
        assert kept
        give_space()
        assert build("full/store", *launched(*launcher)) == 0
        assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept} == kept
        assert contents("full/store") == contents("whole")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS[1:], ids="-".join)
def test_a_corrupt_image_is_named_and_the_other_chunks_are_computed(
    launcher: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "two").unlink()
    write_set(folder / "two", 2, {("a", 0): IMAGES - 1, ("a", 1): 1})
    image = folder / "two/a07.png"
    content = image.read_bytes()
    image.write_bytes(content[:100])
    assert build("store", *launched(*launcher)) == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert "two/a07.png" in said
    assert "The other images are done. The same command tries these again." in said
    assert TAPS * 3 * IMAGES <= len(contents("store")) < TAPS * 4 * IMAGES
    image.write_bytes(content)
    assert build("store", *launched(*launcher)) == 0
    assert contents("store") == contents("whole")


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("launcher", "more"), [("local", ", the last time it was killed by SIGKILL"), ("ray", "")])
def test_a_chunk_that_kills_its_workers_is_named_and_the_others_are_computed(launcher: str, more: str) -> None:
    launched(launcher)
    args = ["fit", *options("AFCLIP", tests=PARTS), "--features.cache=store", "--features.dtype=float32"]
    with pytest.raises(DatasetError) as error:
        build_chunks(partial(deadly_images, args, "two/"), Where(launcher, 2), False)  # type: ignore[arg-type]
    first, last = str(error.value).split("\n")
    assert first.startswith(f"two/a00.png to two/a10.png ({IMAGES} images): its process died 3 times{more}")
    assert last == "The other images are done. The same command tries these again."
    assert len(contents("store")) == TAPS * 3 * IMAGES
    assert build("store") == 0
    assert contents("store") == contents("whole")


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_chunk_that_another_build_has_is_left_to_it(jobs: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert build("store", "--launcher=local") == 0
    for path in list(feature_files(Path("store"))):
        path.unlink()
    [folder] = Path("store").glob(f"{BUILDS}/*")
    lock = take_lock(folder / "locks/0000/000001.lock")
    assert lock is not None
    with lock:
        capfd.readouterr()
        (folder / "complete").unlink()
        assert build("store", "--launcher=local", f"--jobs={jobs}") == STOPPED
        said = capfd.readouterr().err
    assert "1 of 4 chunks are not computed yet: another build has them, or their processes have ended." in said
    assert len(contents("store")) == TAPS * 3 * IMAGES
    assert build("store", "--launcher=local", f"--jobs={jobs}") == 0
    assert contents("store") == contents("whole")


class LateImages:
    """Two chunks of images whose features are noted in a list."""

    def __init__(self, folder: Path) -> None:
        self.store: Any = type("Store", (), {"folder": folder / "store/key"})
        self.digest, self.sizes, self.gpu = "abcd", [500, 500], False
        self.files = "chunk {}".format
        self.computed: list[int] = []

    def compute(self, number: int) -> None:
        self.computed.append(number)


@pytest.fixture
def late_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FeatureChunks, LateImages]:
    """A job whose first chunk another machine has finished. The note of it is seen after the folder was refreshed."""
    images = LateImages(tmp_path)
    job = FeatureChunks(lambda begun: images, images)
    note = job.folder / "done/0000/000000.json"
    hidden = note.with_name("hidden")
    hidden.parent.mkdir(parents=True)
    hidden.write_text("{}")

    def refresh(folder: Path) -> float:
        if folder == note.parent and hidden.exists():
            hidden.rename(note)
        return 0.0

    monkeypatch.setattr(feature_chunks, "refresh", refresh)
    return job, images


def test_a_chunk_whose_note_appears_late_is_not_computed_again(late_note: tuple[FeatureChunks, LateImages]) -> None:
    job, images = late_note
    unit = job.claim(())
    assert unit is not None
    assert unit.name == "0"
    with unit.lock:
        job.run(unit)
    assert images.computed == []
    assert job.left() == 1


def test_notes_of_other_machines_are_looked_for_at_the_end(late_note: tuple[FeatureChunks, LateImages]) -> None:
    job, _ = late_note
    assert job.left() == 2
    job.look_again()
    assert job.left() == 1


def pack(name: str, part: str) -> None:
    with tarfile.open(name, "w") as archive:
        for path in sorted(Path(part).glob("a*.png")):
            archive.add(path, path.name)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_worker_waits_for_the_list_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LOOK", 0.02)
    monkeypatch.setattr(shared, "LONGEST_LAG", 5.0)
    config = Path(options("AFCLIP", tests=PARTS)[0].partition("=")[2])
    load = partial(images_of_sources, SourceOptions(["shard-*.tar"], config, Path("store"), accelerator="cpu"), {})
    pack("shard-0.tar", "one")
    plan = load(False).folder / FOLDER / PLAN
    timer = come_late(plan)
    worker = load(True)
    timer.join()
    old = plan.read_bytes()
    pack("shard-1.tar", "two")
    assert len(load(False).sizes) == 2
    new = plan.rename(plan.with_name("new"))
    plan.write_bytes(old)
    timer = threading.Timer(0.2, new.rename, [plan])
    timer.start()
    worker.compute(1)
    timer.join()
    assert len(contents("store")) == TAPS * IMAGES
    assert worker.files(1).endswith("shard-1.tar")


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_list_that_never_comes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LONGEST_LAG", 0.1)
    config = Path(options("AFCLIP", tests=PARTS)[0].partition("=")[2])
    of = SourceOptions(["one/a*.png"], config, Path("store"), accelerator="cpu")
    files_path(images_of_sources(of, {}, False).folder, 0).unlink()
    with pytest.raises(UserError, match=r"000000\.jsonl has not appeared within 0\.1 s"):
        images_of_sources(of, {}, True).compute(0)
