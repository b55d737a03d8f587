"""Several datasets trained on together: how often each is seen, also with several processes and stops."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.dataloader import AnomalyLoader
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.data.sampling import SharedShuffle
from afclip_lightning.data.training import training_loader
from afclip_lightning.datasets.btad import BTAD
from afclip_lightning.datasets.medical import Medical
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.types import UNKNOWN
from afclip_runtime.errors import DatasetError
from tests.support.layouts.btad import write_btad
from tests.support.layouts.medical import write_medical
from tests.support.layouts.mvtec import write_mvtec

SIZES = [7, 2, 3]


def processes(monkeypatch: pytest.MonkeyPatch, count: int, rank: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: count > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: count)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda values: None)


def order(epoch: int, even: Sequence[int] = SIZES, fillers: int = 0, seed: int = 5) -> list[int]:
    """Returns the share of one process in an epoch."""
    torch.manual_seed(seed)
    shuffle = SharedShuffle(range(sum(SIZES) + fillers), fillers, even)  # type: ignore[arg-type]
    shuffle.set_epoch(epoch)
    return list(shuffle)


def test_by_size_an_epoch_is_every_image_once_in_the_order_of_one_dataset() -> None:
    for epoch in (0, 3):
        assert order(epoch, even=()) == np.random.default_rng([5, epoch]).permutation(12).tolist()


def test_evenly_each_set_comes_equally_often_and_no_image_again_before_all_of_its_set() -> None:
    sets = np.repeat(np.arange(3), SIZES)
    epochs = [order(epoch) for epoch in range(7)]
    for images in epochs:
        assert len(images) == 12
        assert Counter(sets[images]) == {0: 4, 1: 4, 2: 4}
    drawn = Counter(image for images in epochs for image in images)  # 28 of each set
    assert [drawn[image] for image in range(9)] == [4] * 7 + [14] * 2
    assert sorted(drawn[image] for image in range(9, 12)) == [9, 9, 10]
    assert {image for image in epochs[0] + epochs[1] if image < 7} == set(range(7))  # what one leaves, the next has
    assert epochs[0] == order(0) != order(0, seed=6)
    assert epochs[0] != epochs[1]
    assert sorted(sets[epochs[0]]) != list(sets[epochs[0]])  # the sets are mixed


def test_what_cannot_be_shared_evenly_goes_round() -> None:
    sets = np.repeat(np.arange(2), [4, 1])
    counts = []
    for epoch in range(2):
        shuffle = SharedShuffle(range(5), 0, [4, 1])  # type: ignore[arg-type]
        shuffle.set_epoch(epoch)
        counts.append(Counter(sets[list(shuffle)]))
    assert counts == [{0: 3, 1: 2}, {0: 2, 1: 3}]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("even", [(), SIZES])
def test_several_processes_share_the_order_of_one(
    count: int, even: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, fillers = order(1, even), -12 % count
    shares = []
    for rank in range(count):
        processes(monkeypatch, count, rank)
        shares.append(order(1, even, fillers))
    assert len({len(share) for share in shares}) == 1
    together = [image for step in zip(*shares, strict=True) for image in step]
    assert together == [*alone, *range(12, 12 + fillers)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mvtec(tmp_path / "parts", ["nut", "pin"])
    write_btad(tmp_path / "btad")
    write_medical(tmp_path / "colondb", "colondb")
    return tmp_path


def sets_of(root: Path, **arguments: Any) -> list[Any]:
    arguments = {"num_workers": 0, "batch_size": 5, **arguments}
    sets = [
        MVTecLayout(root / "parts", name="parts", class_names={"nut": "steel nut"}, **arguments),
        BTAD(root / "btad", **arguments),
        Medical("colondb", root / "colondb", **arguments),
    ]
    for part in sets:
        part.connect(Preprocess(14), Loading(white={"parts": 1000}))
    return sets


def images(loader: AnomalyLoader) -> list[str]:
    return [str(sample.image_path) for batch in loader for sample in batch.samples]


def test_each_set_keeps_its_words_masks_and_white(root: Path) -> None:
    sets = sets_of(root)
    own = {str(s.image_path): s for part in sets for s in part.named(part.samples("test"))}
    seen = [s for batch in training_loader(sets) for s in batch.samples]
    assert sorted(str(s.image_path) for s in seen) == sorted(own)
    assert all(sample == own[str(sample.image_path)] for sample in seen)
    facts = {s.dataset: {(one.mask_threshold, one.white) for one in seen if one.dataset == s.dataset} for s in seen}
    assert len(set(map(str, facts.values()))) == 3  # no two sets have the same rules
    assert {s.class_name for s in seen if s.category == "nut"} == {"steel nut"}


def test_a_set_without_masks_among_sets_with_them(root: Path) -> None:
    bare = MVTecLayout(write_mvtec(root / "bare", ["disc"]), num_workers=0, batch_size=5)
    shutil.rmtree(root / "bare/disc/ground_truth")
    bare.connect(Preprocess(14))
    batches = list(training_loader([*sets_of(root), bare]))
    rows = [(s, known) for batch in batches for s, known in zip(batch.samples, batch.mask_known.tolist(), strict=True)]
    assert {known for s, known in rows if s.dataset == "bare" and s.label == 1} == {False}
    assert {known for s, known in rows if s.dataset != "bare"} == {True}
    assert any(len({s.dataset for s in batch.samples}) > 1 for batch in batches)


@pytest.mark.parametrize("sampling", ["by_size", "evenly"])
def test_a_stopped_epoch_goes_on_in_its_order(root: Path, sampling: Any) -> None:
    def loader(epoch: int) -> AnomalyLoader:
        torch.manual_seed(3)
        made = training_loader(sets_of(root), sampling)
        made.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return made

    whole, stopped = images(loader(2)), loader(2)
    batches = iter(stopped)
    had = [str(s.image_path) for s in (next(batches).samples + next(batches).samples)]
    again = loader(2)
    again.load_state_dict(stopped.state_dict())
    assert had + images(again) == whole


def test_fillers_take_part_in_no_loss(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = sets_of(root)
    count = sum(len(part.samples("test")) for part in sets)
    processes(monkeypatch, count - 1, 0)
    dataset = training_loader(sets, "evenly").dataset
    assert len(dataset) == 2 * (count - 1)
    assert {(s.label, s.mask_path, s.mask_known) for s in dataset.samples[count:]} == {(UNKNOWN, None, False)}
    processes(monkeypatch, count + 1, 0)
    with pytest.raises(DatasetError, match=rf"parts \+ btad \+ colondb: {count} images are fewer than processes"):
        training_loader(sets)


def test_the_most_loader_processes_of_any_set_read(root: Path) -> None:
    sets = sets_of(root)
    sets[1].num_workers = 2
    assert training_loader(sets).num_workers == 2
