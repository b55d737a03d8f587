"""Work on a set grows with the number of images, not with its square: measured in calls, not in time."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.copies import near_copies, same_files
from afclip_lightning.data.doctor import examine
from afclip_lightning.datasets.kaputt import Kaputt
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.real_iad import RealIAD
from afclip_lightning.types import Sample
from experiments.scale.trees import write_kaputt, write_mvtec, write_one_category, write_real_iad

FEW, MANY = 300, 1200


def calls_of(work: Callable[[], Any]) -> int:
    """Returns the number of function calls, including C functions, so that file accesses count."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def write_listing(root: Path, images: int) -> None:
    """Writes a set of one category, with AnomalyCLIP's file; masks lie beside the images of their folder."""
    write_one_category(root, images)
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for path in sorted(root.glob("category_00/t*/*/*.png")):
        mask = root / "category_00/ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        item = {"img_path": str(path.relative_to(root)), "anomaly": int(mask.is_file())}
        item["mask_path"] = str(mask.relative_to(root)) if mask.is_file() else ""
        entries[path.parent.parent.name].append(item)
    (root / "meta.json").write_text(json.dumps({split: {"nut": items} for split, items in entries.items()}))


SETS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], AnomalyDataModule]]] = {
    "mvtec": (write_mvtec, MVTecLayout),
    "one category": (write_one_category, MVTecLayout),
    "real_iad": (write_real_iad, RealIAD),
    "kaputt": (write_kaputt, Kaputt),
    "listing": (write_listing, Listing),
}


@pytest.fixture(scope="module", params=list(SETS))
def sets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Callable[[], Any]]:
    if request.param == "kaputt":
        pytest.importorskip("pyarrow")
    write, kind = SETS[request.param]
    made = []
    for images in (FEW, MANY):
        root = tmp_path_factory.mktemp(f"{request.param}_{images}")
        write(root, images)
        made.append(lambda root=root: kind(root))
    return made


@pytest.mark.parametrize(
    "work",
    [
        lambda data: [data.samples("train"), data.samples("test")],
        lambda data: data.few_shot(2, 0),
        lambda data: data.setup("fit"),
        lambda data: examine(data),
        lambda data: same_files(data.samples("train"), data.samples("test")),
    ],
    ids=["list", "few_shot", "setup", "check", "same_files"],
)
def test_four_times_the_images_take_four_times_the_work(sets, work):
    work(sets[0]())  # what is imported on first use
    few, many = (calls_of(partial(work, make())) for make in sets)
    assert few < many < 1.2 * MANY / FEW * few  # more files are of one size, of which the beginnings are read


def test_files_of_one_size_are_not_compared_each_with_each(tmp_path):
    def shared(images):
        sets = []
        for name in ("one", "two"):
            folder = tmp_path / f"{name}_{images}"
            folder.mkdir()
            for i in range(images):
                (folder / f"{i:04}.bmp").write_bytes(b"%08d" % (i if name == "one" else 2 * i))
            sets.append([Sample(name, "c", "test", path, 0) for path in sorted(folder.iterdir())])
        found = []
        calls = calls_of(lambda: found.extend(same_files(*sets)))
        names = [(int(copy.first.image_path.stem), int(copy.second.image_path.stem)) for copy in found]
        assert names == [(i, i // 2) for i in range(0, images, 2)]
        return calls

    shared(4)
    assert shared(400) < 4.4 * shared(100)


def test_pictures_that_were_compared_are_not_kept_for_ever(tmp_path, monkeypatch):
    from afclip_lightning.data import copies

    monkeypatch.setenv("AFCLIP_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        write_one_category(tmp_path / name, 60)  # the same pictures
    first, second = (MVTecLayout(tmp_path / name, name=name).samples("train") for name in ("one", "two"))
    whole = near_copies(first, second, threads=1)
    assert [(c.first.image_path.name, c.second.image_path.name) for c in whole] == [
        (s.image_path.name, s.image_path.name) for s in second
    ]
    monkeypatch.setattr(copies, "LOOKS", 4)
    monkeypatch.setattr(copies, "PAIRS", 3)
    kept = []
    correlation = copies._Looks.correlation

    def watched(self, *arguments):
        found = correlation(self, *arguments)
        kept.append(len(self.small))
        return found

    monkeypatch.setattr(copies._Looks, "correlation", watched)
    assert near_copies(first, second, threads=1) == whole
    assert max(kept) <= 4 + 2 * 3
