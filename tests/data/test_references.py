"""References among test images: the pairs, which do not depend on the run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.data.references import Pairing, draw_references
from afclip_lightning.data.sampling import GroupedSampler
from afclip_lightning.datasets.cross_dataset import CrossDataset
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.engine.callbacks.data_record import DataRecord
from afclip_lightning.types import Batch, Sample
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image
from tests.support.layouts.mvtec import write_mvtec


def samples(**counts: int) -> list[Sample]:
    """Returns a given number of samples of each category."""
    return [Sample("d", name, "test", Path(f"{name}/{i}.png"), i % 2) for name, n in counts.items() for i in range(n)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_mvtec(tmp_path_factory.mktemp("sets") / "parts", ["bolt", "nut"])
    write_image(root / "nut/test/good/001.png")  # 4 and 5 test images
    return root


def data(root: Path, pairing: Pairing | None = None, **arguments: int) -> MVTecLayout:
    dataset = MVTecLayout(root, name="parts", **{"batch_size": 2, "num_workers": 0, **arguments})
    dataset.connect(Preprocess(28))
    if pairing:
        dataset.pair(pairing)
    return dataset


def names(dataset: MVTecLayout) -> dict[str, list[str]]:
    return {
        image: others for record in dataset.reference_record.values() for image, others in record["references"].items()
    }


@given(n=st.integers(1, 4), a=st.integers(5, 12), b=st.integers(5, 12), seed=st.integers(0, 99))
def test_references_are_others_of_the_category(n: int, a: int, b: int, seed: int) -> None:
    found = samples(a=a, b=b)
    references = draw_references(found, Pairing(n, seed))
    for position, others in enumerate(references):
        assert len(set(others)) == len(others) == n
        assert position not in others
        assert {found[other].category for other in others} == {found[position].category}
    group = n + 1
    for count, members in ((a, range(a)), (b, range(a, a + b))):
        mutual = [i for i in members if all(i in references[other] for other in references[i])]
        assert len(mutual) >= count - count % group  # all but the last group that is filled up
        if n == 1:
            assert len(mutual) == count - count % 2


def test_one_reference_makes_pairs() -> None:
    references = draw_references(samples(a=6), Pairing(1, 0))
    assert all(references[references[i][0]] == [i] for i in range(6))


def test_a_group_holds_each_others_references() -> None:
    references = draw_references(samples(a=7), Pairing(2, 0))
    groups = [frozenset([i, *others]) for i, others in enumerate(references)]
    assert sorted(groups.count(group) for group in set(groups)) == [1, 3, 3]


def test_the_draw_is_the_recorded_one() -> None:
    assert draw_references(samples(bolt=5), Pairing(1, 0)) == [[1], [0], [3], [2], [1]]
    assert draw_references(samples(bolt=5), Pairing(2, 0)) == [[1, 2], [0, 2], [1, 0], [4, 1], [3, 1]]


def test_the_draw_is_seeded_and_each_category_has_its_own() -> None:
    found = samples(a=12, b=12)
    drawn = [draw_references(found, Pairing(1, seed)) for seed in range(4)]
    assert len({str(one) for one in drawn}) == 4
    assert draw_references(found, Pairing(1, 0)) == drawn[0]
    assert drawn[0][:12] == draw_references(samples(a=12), Pairing(1, 0))
    assert drawn[0][:12] != [[other - 12 for other in others] for others in drawn[0][12:]]


def test_labels_are_not_looked_at() -> None:
    flipped = [Sample(s.dataset, s.category, s.split, s.image_path, 1 - s.label) for s in samples(a=9)]
    assert draw_references(flipped, Pairing(2, 3)) == draw_references(samples(a=9), Pairing(2, 3))


@pytest.mark.parametrize(("count", "n", "message"), [
    (1, 1, r"n_references is 1, but d/a has 1 test image: each needs 1 others. Add images or leave it out."),
    (3, 3, r"n_references is 3, but d/a has 3 test images: .* Lower n_references or add images."),
])  # fmt: skip
def test_too_few_images_are_an_error(count: int, n: int, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        draw_references(samples(b=9, a=count), Pairing(n, 0))
    with pytest.raises(ValueError, match="n_references must be at least 1, got 0"):
        draw_references(samples(a=9), Pairing(0, 0))


def test_batches_without_pairing_have_no_reference(root: Path) -> None:
    assert all(batch.reference is None for batch in data(root).test_dataloader())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (4, 0), (9, 1)])
def test_batches_hold_the_noted_references(root: Path, n: int, batch_size: int, num_workers: int) -> None:
    dataset = data(root, Pairing(n, 5), batch_size=batch_size, num_workers=num_workers)
    alone = AnomalyDataset(dataset.samples("test"), Preprocess(28))
    pixels = {s.image_path.relative_to(root).as_posix(): image for image, _, s in map(alone.__getitem__, range(9))}
    seen = 0
    for batch in dataset.test_dataloader():
        for (sample, reference), image in zip(_references(batch), batch.image, strict=True):
            assert reference.shape == (n, 3, 28, 28)
            path = sample.image_path.relative_to(root).as_posix()
            assert torch.equal(image, pixels[path])
            assert torch.equal(reference, torch.stack([pixels[other] for other in names(dataset)[path]]))
            seen += 1
    assert seen == 9


@pytest.mark.parametrize("replicas", [2, 3])
def test_processes_do_not_change_the_references(root: Path, replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = data(root, Pairing(1, 0))
    expected = {s.image_path: image for batch in dataset.test_dataloader() for s, image in _references(batch)}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: replicas)
    seen = []
    for rank in range(replicas):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        for batch in data(root, Pairing(1, 0)).test_dataloader():
            for sample, image in _references(batch):
                assert torch.equal(image, expected[sample.image_path])
                seen.append(sample.image_path)
    assert sorted(seen) == sorted(expected)


def _references(batch: Batch) -> list[tuple[Sample, torch.Tensor]]:
    assert batch.reference is not None
    assert batch.reference_rows is not None
    return list(zip(batch.samples, torch.cat([batch.image, batch.reference])[batch.reference_rows], strict=True))


def test_a_batch_keeps_its_references_on_another_device(root: Path) -> None:
    batch = next(iter(data(root, Pairing(1, 0)).test_dataloader()))
    assert batch.reference is not None
    assert batch.reference_rows is not None
    moved = batch.to(torch.device("meta"))
    assert moved.reference.is_meta
    assert moved.reference.shape == batch.reference.shape
    assert moved.reference_rows.shape == batch.reference_rows.shape == (2, 1)


def test_cached_images_serve_as_references(root: Path) -> None:
    dataset = data(root, Pairing(2, 1))
    first = [image for batch in dataset.test_dataloader() for _, image in _references(batch)]
    dataset.loading = Loading(cache_mb=1)
    loader = dataset.test_dataloader()
    for _ in range(2):
        again = [image for batch in loader for _, image in _references(batch)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_partners_share_a_batch(root: Path) -> None:
    dataset = data(root, Pairing(1, 5), batch_size=4)
    batches = list(dataset.test_dataloader())
    # 4 and 5 images: four pairs, and last the one that is left over, whose partner is read again
    assert [len(batch.samples) for batch in batches] == [4, 4, 1]
    assert [len(batch.reference) for batch in batches] == [0, 0, 1]
    assert {sample.category for sample in batches[2].samples} == {"nut"}


def test_a_reference_of_two_rows_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = data(root, Pairing(3, 0), batch_size=2)
    read = []
    decode = AnomalyDataset._decode
    monkeypatch.setattr(AnomalyDataset, "_decode", lambda self, sample: read.append(sample) or decode(self, sample))
    batch = next(iter(dataset.test_dataloader()))
    assert len(read) == len(set(read)) == 4
    assert len(batch.reference) == 2
    assert batch.reference_rows.sort(1).values.tolist() == [[1, 2, 3], [0, 2, 3]]


@given(a=st.integers(3, 12), b=st.integers(3, 12), n=st.integers(1, 2), processes=st.integers(1, 3))
def test_the_order_holds_every_image_once(a: int, b: int, n: int, processes: int) -> None:
    references = draw_references(samples(a=a, b=b), Pairing(n, 0))
    stretches = [GroupedSampler(references, rank, processes) for rank in range(processes)]
    order = [position for stretch in stretches for position in stretch]
    assert sorted(order) == list(range(a + b))
    assert max(map(len, stretches)) - min(map(len, stretches)) <= 1
    assert sum(map(len, stretches)) == a + b
    together = (a // (n + 1) + b // (n + 1)) * (n + 1)
    for start in range(0, together, n + 1):
        group = order[start : start + n + 1]
        assert all(set(references[position]) == set(group) - {position} for position in group)


def test_a_left_out_image_still_serves_as_a_reference(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path / "parts", ["bolt"])
    dataset = data(root, Pairing(2, 0), batch_size=4, num_workers=0)
    whole = {sample.image_path: images for sample, images in _references(next(iter(dataset.test_dataloader())))}
    references = draw_references(dataset.samples("test"), Pairing(2, 0))
    left_over = next(i for i, others in enumerate(references) if all(i not in references[other] for other in others))
    damaged = next(i for i in range(4) if i != left_over and i not in references[left_over])
    paths = [sample.image_path for sample in dataset.samples("test")]
    paths[damaged].write_text("damaged")
    dataset.loading = Loading(on_error="skip")
    (batch,) = dataset.test_dataloader()
    assert [sample.image_path for sample in batch.samples] == [paths[left_over]]
    ((_, images),) = _references(batch)
    assert torch.equal(images, whole[paths[left_over]])
    assert set(dataset.skipped) == {path for path in paths if path != paths[left_over]}


def test_an_image_whose_reference_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path / "parts", ["bolt"])
    dataset = data(root, Pairing(1, 0))
    partner = names(dataset)["bolt/test/good/000.png"][0]
    (root / partner).write_text("damaged")
    with pytest.raises(DatasetError, match=f"{partner}: cannot be read"):
        list(dataset.test_dataloader())
    dataset.loading = Loading(on_error="skip")
    read = [sample.image_path for batch in dataset.test_dataloader() for sample in batch.samples]
    assert len(read) == 2
    assert set(dataset.skipped) == {root / partner, root / "bolt/test/good/000.png"}
    assert all(partner in reason for reason in dataset.skipped.values())


def test_training_has_no_references(root: Path) -> None:
    assert all(batch.reference is None for batch in data(root, Pairing(1, 0)).train_dataloader())


def test_each_tested_set_is_paired(root: Path, tmp_path: Path) -> None:
    other = MVTecLayout(write_mvtec(tmp_path / "more", ["pin"]), name="more", num_workers=0)
    both = CrossDataset(train=other, test=[data(root)])
    both.connect(Preprocess(28))
    both.pair(Pairing(1, 2))
    (loader,) = both.test_dataloader()
    assert all(batch.reference is not None for batch in loader)
    assert len(names(both.test_sets[0])) == 9
    assert names(both.test_sets[0]) == names(data(root, Pairing(1, 2)))


def test_the_training_set_is_paired_where_it_alone_is_tested(root: Path, tmp_path: Path) -> None:
    absent = MVTecLayout(tmp_path / "absent", name="absent")
    alone = CrossDataset(data(root), [absent], skip_missing=True, seen_if_alone=True)
    alone.pair(Pairing(1, 0))
    (loader,) = alone.test_dataloader()
    assert all(batch.reference is not None for batch in loader)
    assert len(names(alone.parts[0])) == 9


def test_pairs_are_written_to_the_run_folder(root: Path, tmp_path: Path) -> None:
    dataset = data(root, Pairing(1, 7))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.datamodule = dataset
    DataRecord().on_test_start(trainer, None)
    written = json.loads((tmp_path / "pairs.json").read_text())
    assert [(one["dataset"], one["category"], one["seed"]) for one in written] == [
        ("parts", "bolt", 7),
        ("parts", "nut", 7),
    ]
    assert written[0]["root"] == str(root)
    for record in written:
        pairs = record["references"]
        mutual = [image for image, (partner,) in pairs.items() if pairs[partner] == [image]]
        assert len(mutual) == 4
    assert not (tmp_path / "few_shot.json").exists()


def test_images_of_any_shape_become_squares(root: Path) -> None:
    batch = next(iter(data(root, Pairing(1, 0)).test_dataloader()))  # the files are 20×14
    assert batch.reference is not None
    assert batch.reference.shape[-2:] == batch.image.shape[-2:] == (28, 28)
    assert np.isfinite(batch.reference.numpy()).all()
