"""MuSc and MuSc-2: their equations against loops, memory, division and pairs, and runs on one and two processes."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.components.mutual_scoring import aggregate, nearest_distances, normalise_planes, similarities
from afclip_lightning.components.scoring import upsample
from afclip_lightning.data.whole_test_set import WholeTestSet
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.engine.app import main
from afclip_lightning.methods.musc import MuSc, Scored, constrain
from afclip_lightning.methods.musc2 import MuSc2
from afclip_lightning.types import UNKNOWN, AnomalyPrediction, Batch, ClipFeatures, Sample
from afclip_runtime.errors import DatasetError, UserError
from tests.reference import musc_naive as naive
from tests.support import REPOSITORY
from tests.support.clips import small_config
from tests.support.layouts import HEIGHT, WIDTH, write_image
from tests.support.layouts.mvtec import write_mvtec
from tests.support.methods import batch_of, take, trainer_of

LAYERS, SCALES = (1, 3), (1, 3)
COUNT = 9


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    """3 blocks of width 64 on 3 x 3 patches."""
    return ClipBackbone(small_config(tmp_path_factory.mktemp("small")), "random", image_size=42)


def musc(backbone: ClipBackbone, **arguments: Any) -> MuSc:
    return MuSc(backbone, **{"layers": LAYERS, "scales": SCALES, **arguments})


def like(count: int = COUNT, size: int = 42, seed: int = 0) -> Tensor:
    """Returns similar images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, size, size, generator=generator) + torch.randn(count, 3, size, size, generator=generator) / 2


def samples(numbers: Sequence[int]) -> list[Sample]:
    return [Sample("d", "c", "test", Path(f"{number}.png"), 0) for number in numbers]


def scored(
    model: MuSc, images: Tensor, folder: Path, parts: Sequence[Sequence[int]] = (range(COUNT),)
) -> dict[int, Scored]:
    """Returns the result of each image by number, for the images divided into these parts."""
    subsets = []
    for part in parts:
        batches = [list(part[start : start + 2]) for start in range(0, len(part), 2)]
        encoded = [(samples(rows), model.backbone.encode_image(images[rows], model.spec)) for rows in batches]
        subsets.append((len(part), encoded))
    found = model.score_category(subsets, "d/c", folder)
    return {int(path.stem): of for (_, _, path), of in found.items()}


def maps_of(found: dict[int, Scored]) -> Tensor:
    return torch.stack([found[number].patch_map for number in sorted(found)])


def scores_of(found: dict[int, Scored]) -> Tensor:
    return torch.tensor([found[number].pred_score for number in sorted(found)])


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (1, 1)])
@pytest.mark.parametrize("scale", [1, 3, 5])
def test_aggregation_against_loops(grid: tuple[int, int], scale: int) -> None:
    tokens = torch.randn(2, 1 + grid[0] * grid[1], 4)
    expected = [naive.aggregate(naive.normalise(image), grid, scale) for image in tokens[:, 1:].double().numpy()]
    actual = aggregate(normalise_planes(tokens), grid, scale)
    torch.testing.assert_close(actual, torch.tensor(np.array(expected)).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [0.3, 1.0, 0.01])
def test_scores_against_loops(backbone: ClipBackbone, tmp_path: Path, interval: float) -> None:
    model, images = musc(backbone, interval=interval), like()
    features = backbone.encode_image(images, model.spec)
    others = [[j for j in range(COUNT) if j != i] for i in range(COUNT)]
    layers = [tokens.numpy() for tokens in features.tokens]
    expected = torch.tensor(naive.mutual_maps(layers, backbone.grid, SCALES, interval, others)).float()
    found = scored(model, images, tmp_path)
    torch.testing.assert_close(maps_of(found).flatten(1), expected, rtol=1e-4, atol=0)
    largest = upsample(maps_of(found), (42, 42), align_corners=True).amax((1, 2)).tolist()
    assert features.image_embedding is not None
    embeddings = F.normalize(features.image_embedding, dim=-1).double().numpy()
    constrained = torch.tensor(naive.constrain(largest, embeddings, (1, 2, 3)))
    torch.testing.assert_close(scores_of(found), constrained.float(), rtol=1e-4, atol=1e-5)
    without = scored(musc(backbone, interval=interval, rscin_windows=()), images, tmp_path)
    torch.testing.assert_close(scores_of(without), torch.tensor(largest))


@pytest.mark.parametrize("offset", [1.0, 1e-2, 1e-4, 1e-6, 0.0])
def test_small_distances_keep_their_digits(offset: float) -> None:
    a = F.normalize(torch.randn(2, 5, 32, dtype=torch.float64), dim=-1)
    b = F.normalize(a.flip(0) + offset * torch.randn(2, 5, 32, dtype=torch.float64) / 6, dim=-1).float()
    a = a.float()
    exact = (a.double()[:, None, :, None] - b.double()[None, :, None]).norm(dim=-1).amin(3)  # [P, Q, N]
    cosines = similarities(a, b)
    torch.testing.assert_close(nearest_distances(cosines, a, b).double(), exact, rtol=1e-4, atol=0)
    back = nearest_distances(cosines.permute(1, 0, 3, 2), b, a).double()
    exact = (b.double()[:, None, :, None] - a.double()[None, :, None]).norm(dim=-1).amin(3)
    torch.testing.assert_close(back, exact, rtol=1e-4, atol=0)


def test_results_do_not_depend_on_the_block(backbone: ClipBackbone, tmp_path: Path) -> None:
    model, images, results = musc(backbone), like(), []
    for block in (1, 2, 4, COUNT, 100):
        model.block = block
        results.append(scored(model, images, tmp_path))
    for result in results[1:]:
        torch.testing.assert_close(maps_of(result), maps_of(results[0]), rtol=1e-5, atol=0)
        torch.testing.assert_close(scores_of(result), scores_of(results[0]), rtol=1e-4, atol=1e-5)


def test_permuting_the_test_set_permutes_the_results(backbone: ClipBackbone, tmp_path: Path) -> None:
    model, images = musc(backbone), like()
    found = scored(model, images, tmp_path)
    again = scored(model, images, tmp_path, parts=[[4, 0, 8, 2, 1, 7, 3, 6, 5]])
    torch.testing.assert_close(maps_of(again), maps_of(found), rtol=1e-5, atol=0)
    torch.testing.assert_close(scores_of(again), scores_of(found), rtol=1e-4, atol=1e-5)


def test_subsets_are_scored_apart_and_constrained_together(backbone: ClipBackbone, tmp_path: Path) -> None:
    model, images, parts = musc(backbone), like(), [[0, 3, 4, 7], [1, 2, 5, 6, 8]]
    found = scored(model, images, tmp_path, parts)
    for part in parts:
        alone = scored(musc(backbone, rscin_windows=()), images, tmp_path, [part])
        assert torch.equal(maps_of(alone), maps_of(found)[part])
    largest = upsample(maps_of(found), (42, 42), align_corners=True).amax((1, 2))
    embeddings = backbone.encode_image(images, model.spec).image_embedding
    assert embeddings is not None
    expected = constrain(largest, F.normalize(embeddings, dim=-1), (1, 2, 3))
    torch.testing.assert_close(scores_of(found), expected, rtol=1e-4, atol=1e-5)


def test_an_image_beside_its_copy_is_normal(backbone: ClipBackbone, tmp_path: Path) -> None:
    images = like(4)
    images[3] = images[1]
    found = scored(musc(backbone, rscin_windows=()), images, tmp_path, [range(4)])
    assert maps_of(found)[[1, 3]].abs().max() < 1e-6
    assert maps_of(found)[[0, 2]].min() > 1e-2
    all_equal = scored(musc(backbone), images[1].expand(3, -1, -1, -1), tmp_path, [range(3)])
    assert scores_of(all_equal).isfinite().all()


class Held(TorchDispatchMode):
    """Counts the bytes of tensors in memory that operations made and that are still held; `most` is the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: WeakSet[torch.UntypedStorage] = WeakSet()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        of_a_file = func.is_view or func._schema.is_mutable or "from_file" in str(func)
        if isinstance(made, Tensor) and not of_a_file:
            self.storages.add(made.untyped_storage())
        self.most = max(self.most, sum(storage.nbytes() for storage in self.storages))
        return made


@pytest.mark.slow
@pytest.mark.parametrize(("block_mb", "block", "count", "copies"), [(3, 1, 28, False), (8, 4, 8, True)])
def test_memory_stays_within_the_argument(
    tiny: ClipBackbone, tmp_path: Path, block_mb: int, block: int, count: int, copies: bool
) -> None:
    model = musc(tiny, layers=(2,), scales=(1, 3, 5), block_mb=block_mb)
    assert model.block == block
    tokens = torch.randn(count, 1, 197, 192)
    tokens = tokens[:1].expand_as(tokens) if copies else tokens  # of copies, each distance is computed twice
    assert copies or tokens.nbytes > block_mb * 2**20
    embedding = torch.ones(1, 8)
    encoded = [(samples([i]), ClipFeatures((tokens[i],), tiny.grid, image_embedding=embedding)) for i in range(count)]
    with Held() as held:
        model.score_category([(count, encoded)], "d/c", tmp_path)
    assert 0.35 * block_mb * 2**20 < held.most < block_mb * 2**20


def write_set(root: Path, categories: Sequence[str] = ("bolt", "nut")) -> Path:
    """Writes categories of 4 different test images, and `nut` of 5."""
    write_mvtec(root, categories)
    if "nut" in categories:
        write_image(root / "nut/test/good/001.png")
    for number, path in enumerate(sorted(root.glob("*/test/*/*.png"))):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def data_of(root: Path, model: MuSc | MuSc2, **arguments: Any) -> MVTecLayout:
    data = MVTecLayout(root, name="parts", **{"batch_size": 2, "num_workers": 0, **arguments})
    data.connect(model.preprocess)
    return data


class Predicted(NamedTuple):
    pred_score: Tensor
    anomaly_map: Tensor


def predicted(model: MuSc | MuSc2, data: MVTecLayout, folder: Path, **arguments: Any) -> dict[Path, Predicted]:
    """Returns the result of `Trainer.predict` for each image."""
    outputs = trainer_of(folder, **arguments).predict(model, data)
    found: dict[Path, Predicted] = {}
    for batch, output in zip(data.predict_dataloader(), outputs or [], strict=True):
        assert isinstance(output, AnomalyPrediction)
        assert output.pred_score.dtype == output.anomaly_map.dtype == torch.float32
        found |= dict(zip((s.image_path for s in batch.samples), map(Predicted, *_fields(output)), strict=True))
    return found


def _fields(output: AnomalyPrediction) -> tuple[Tensor, Tensor]:
    return output.pred_score, output.anomaly_map


@pytest.mark.parametrize("subsets", [1, 2])
def test_a_run_is_that_of_its_categories(backbone: ClipBackbone, tmp_path: Path, subsets: int) -> None:
    model = musc(backbone, subsets=subsets, feature_dir=tmp_path / "features")
    data = data_of(write_set(tmp_path / "set"), model)
    found = predicted(model, data, tmp_path)
    assert not model.known
    assert not list((tmp_path / "features").iterdir())
    assert set(found) == {sample.image_path for sample in data.samples("test")}
    for category, count in (("bolt", 4), ("nut", 5)):
        chosen = data.find_samples(category, "test")
        assert len(chosen) == count
        batches = list(data.test_dataloader())
        images = {s.image_path: image for batch in batches for s, image in zip(batch.samples, batch.image, strict=True)}
        of_category = torch.stack([images[sample.image_path] for sample in chosen])
        order = np.random.default_rng([0, *category.encode()]).permutation(count)
        parts = [sorted(order[first::subsets].tolist()) for first in range(subsets)]
        expected = scored(musc(backbone), of_category, tmp_path, parts)
        for number, sample in enumerate(chosen):
            anomaly_map = upsample(expected[number].patch_map[None], (42, 42), align_corners=True)[0]
            torch.testing.assert_close(found[sample.image_path].anomaly_map, anomaly_map, rtol=1e-4, atol=1e-6)
            score = torch.tensor(expected[number].pred_score)
            torch.testing.assert_close(found[sample.image_path].pred_score, score, rtol=1e-3, atol=1e-4)


def test_test_and_predict_agree_whatever_the_batch(backbone: ClipBackbone, tmp_path: Path) -> None:
    model, root = musc(backbone), write_set(tmp_path / "set")
    found = predicted(model, data_of(root, model), tmp_path)
    again = predicted(model, data_of(root, model, batch_size=5), tmp_path, precision="bf16-mixed")
    tested: list[AnomalyPrediction] = []
    step = model.test_step
    model.test_step = lambda *args: tested.append(step(*args)) or tested[-1]  # type: ignore[method-assign, assignment, func-returns-value]
    trainer_of(tmp_path).test(model, data_of(root, model), verbose=False)
    torch.testing.assert_close(
        torch.cat([of.pred_score for of in tested]), torch.stack([f.pred_score for f in found.values()])
    )
    for path, of in found.items():
        assert not torch.equal(again[path].anomaly_map, of.anomaly_map)  # the backbone ran in another precision
        torch.testing.assert_close(again[path].anomaly_map, of.anomaly_map, rtol=0.05, atol=0.05)


def test_labels_and_masks_are_not_looked_at(backbone: ClipBackbone, tmp_path: Path) -> None:
    model = musc(backbone)
    data = data_of(write_set(tmp_path / "set"), model)
    for mask in data.root.rglob("*_mask.png"):
        mask.write_bytes(b"")
    model.trainer = trainer_of(tmp_path)
    images = WholeTestSet(data, model.preprocess, None).categories()["parts", "nut"]
    for size, batches in model._subsets(images):
        read = [sample for samples_read, _ in batches for sample in samples_read]
        assert len(read) == size == 5
        assert {(sample.label, sample.mask_path) for sample in read} == {(UNKNOWN, None)}


def test_a_left_out_image_is_not_a_reference(backbone: ClipBackbone, tmp_path: Path) -> None:
    model, root = musc(backbone), write_set(tmp_path / "set")
    broken = data_of(root, model)
    broken.loading = type(broken.loading)(on_error="skip")
    (root / "nut/test/good/001.png").write_bytes(b"no image")
    found = predicted(model, broken, tmp_path)
    (root / "nut/test/good/001.png").unlink()
    expected = predicted(model, data_of(root, model), tmp_path)
    assert found.keys() == expected.keys()
    for path, of in found.items():
        torch.testing.assert_close(of.anomaly_map, expected[path].anomaly_map, rtol=1e-5, atol=1e-6)


def test_a_category_with_too_few_images(backbone: ClipBackbone, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", ["bolt"])
    for image in sorted(root.glob("bolt/test/*/*.png"))[1:]:
        image.unlink()
    shutil.rmtree(root / "bolt/ground_truth")
    for arguments, count, message in (
        ({}, 1, "parts/bolt has 1 test image, and MuSc needs at least 2: images are scored by each other"),
        ({"subsets": 2}, 3, "parts/bolt has 3 test images, and MuSc needs at least 4: .* subsets is 2"),
        ({"rscin_windows": (1, 8, 9)}, 3, "needs at least 9: rscin_windows"),
    ):
        for number in range(1, count):
            write_image(root / f"bolt/test/good/00{number}.png")
        model = musc(backbone, **arguments)  # type: ignore[arg-type]
        with pytest.raises(DatasetError, match=message):
            trainer_of(tmp_path).test(model, data_of(root, model), verbose=False)
    two = musc2(backbone, n_references=3)
    with pytest.raises(DatasetError, match="n_references is 3, but parts/bolt has 3 test images"):
        trainer_of(tmp_path).test(two, data_of(root, two), verbose=False)


def test_an_image_that_was_not_there(backbone: ClipBackbone, tmp_path: Path) -> None:
    model, batch = musc(backbone), batch_of(2, 42)
    with pytest.raises(DatasetError, match=r"image_0\.png: MuSc has no results for this image"):
        model.score(model.extract(batch), batch)
    data = data_of(write_set(tmp_path / "set"), model)
    with pytest.raises(TypeError, match="give the trainer a datamodule"):
        trainer_of(tmp_path).test(model, data.test_dataloader(), verbose=False)


def test_a_disk_that_is_too_small(backbone: ClipBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = musc(backbone)
    data = data_of(write_set(tmp_path / "set"), model)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"GB are needed for features, and 1e-06 GB are free\. Set feature_dir"):
        trainer_of(tmp_path).test(model, data, verbose=False)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"scales": (1, 2)}, "scales must be odd"),
    ({"scales": ()}, "scales must be odd"),
    ({"interval": 0.0}, "interval must be in"),
    ({"subsets": 0}, "subsets must be at least 1"),
    ({"rscin_windows": (0,)}, "rscin_windows must be at least 1"),
    ({"layers": (1, 9)}, "layers must rise"),
    ({"block_mb": 0}, "block_mb must be at least 1 for 9 patches of 64"),
])  # fmt: skip
def test_arguments_are_checked(backbone: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        musc(backbone, **arguments)


def musc2(backbone: ClipBackbone, **arguments: Any) -> MuSc2:
    return MuSc2(backbone, **{"layers": LAYERS, "scales": SCALES, **arguments})


def beside(images: Tensor, references: Sequence[Sequence[int]]) -> Batch:
    """Returns a batch whose images are references of each other."""
    batch = batch_of(len(images), images.shape[-1])
    batch.image, batch.reference, batch.reference_rows = images, images[:0], torch.tensor(references)
    return batch


def score2(model: MuSc2, batch: Batch) -> Predicted:
    with torch.inference_mode():
        return Predicted(*_fields(model.score(model.extract(batch), batch)))


@pytest.mark.parametrize("references", [
    [[1], [0], [3], [2]],
    [[1, 2], [2, 0], [0, 1], [0, 2]],
])  # fmt: skip
@pytest.mark.parametrize("interval", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
def test_pairs_against_loops(backbone: ClipBackbone, references: list[list[int]], interval: float, mixed: bool) -> None:
    model, images = musc2(backbone, interval=interval), like(4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        layers = [tokens.float().numpy() for tokens in backbone.encode_image(images, model.spec).tokens]
        found = score2(model, beside(images, references))
    expected = torch.tensor(naive.mutual_maps(layers, backbone.grid, SCALES, interval, references)).float()
    maps = upsample(expected.unflatten(1, backbone.grid), (42, 42), align_corners=True)
    torch.testing.assert_close(found.anomaly_map, maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.pred_score, maps.amax((1, 2)), rtol=1e-4, atol=1e-6)


def test_pairs_do_not_depend_on_the_batch_or_on_who_comes_first(backbone: ClipBackbone) -> None:
    model, images = musc2(backbone), like(4)
    found = score2(model, beside(images, [[1], [0], [3], [2]]))
    turned = score2(model, beside(images[[1, 0]], [[1], [0]]))
    torch.testing.assert_close(turned.anomaly_map, found.anomaly_map[[1, 0]], rtol=1e-5, atol=1e-6)
    whole = beside(images, [[1], [0], [3], [2]])
    single = take(whole, [2])
    single.reference, single.reference_rows = images[[3]], torch.tensor([[1]])
    torch.testing.assert_close(score2(model, single).pred_score[0], found.pred_score[2], rtol=1e-5, atol=1e-6)


def test_a_store_rounds_references_alike_in_and_beside_the_batch(
    backbone: ClipBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = musc2(backbone), like(2)
    model.store = FeatureStore(tmp_path, model.spec, backbone.grid, dtype="float16")
    model.store.dtype = torch.bfloat16  # coarse enough that a place that does not round is seen
    monkeypatch.setattr(model.store, "save", lambda *_: None)  # no file has that type
    both, single = beside(images, [[1], [0]]), take(beside(images, [[1], [0]]), [0])
    both.digests, single.digests = ["a", "b"], ["a"]
    single.reference, single.reference_rows = images[[1]], torch.tensor([[1]])
    found = score2(model, both).anomaly_map[:1]
    torch.testing.assert_close(score2(model, single).anomaly_map, found, rtol=1e-5, atol=1e-6)
    model.store = None
    assert (score2(model, single).anomaly_map - found).abs().max() > 1e-4


def test_all_the_others_as_references_are_musc(backbone: ClipBackbone, tmp_path: Path) -> None:
    root, both = write_set(tmp_path / "set", ["bolt"]), []
    for model in (musc(backbone, rscin_windows=()), musc2(backbone, n_references=3)):
        both.append(predicted(model, data_of(root, model), tmp_path))
    for path, of in both[0].items():
        torch.testing.assert_close(of, both[1][path], rtol=1e-5, atol=1e-6)


def test_pairs_are_seeded(backbone: ClipBackbone, tmp_path: Path) -> None:
    root, seeds = write_set(tmp_path / "set"), (0, 0, 1, 2, 3)
    models = [musc2(backbone, seed=seed) for seed in seeds]
    runs = [predicted(model, data_of(root, model), tmp_path) for model in models]
    scores = [torch.stack([of.pred_score for of in run.values()]) for run in runs]
    assert torch.equal(scores[0], scores[1])
    assert any(not torch.equal(scores[0], other) for other in scores[2:])


def test_pairs_need_references(backbone: ClipBackbone) -> None:
    with pytest.raises(ValueError, match="n_references must be at least 1"):
        musc2(backbone, n_references=0)
    with pytest.raises(RuntimeError, match="needs references"):
        score2(musc2(backbone), batch_of(2, 42))


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    small_config(tmp_path)
    command = [
        "test",
        f"--config={REPOSITORY / 'configs/musc_mvtec.yaml'}",
        "--data=MVTecLayout",
        *("--data.root=set", "--data.num_workers=0", "--data.batch_size=2"),
        *("--model.backbone.model=small.json", "--model.backbone.weights=random", "--model.backbone.image_size=28"),
        *("--model.layers=[1,3]", "--trainer.accelerator=cpu", "--pictures.count=0"),
    ]
    assert main([*command, "--out=one"]) == 0
    two = ["--out=two", "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "afclip_lightning", *command, *two], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tables = []
    for run in ("one", "two"):
        assert not list((tmp_path / run).glob("musc-*"))
        with (tmp_path / run / "results.csv").open() as file:
            tables.append({row.pop("category"): row for row in csv.DictReader(file)})
    assert tables[0].keys() == tables[1].keys() == {"bolt", "nut", "mean"}
    for category, row in tables[0].items():
        for column, value in row.items():
            if value and column.startswith(("image_", "pixel_")):
                assert float(tables[1][category][column]) == pytest.approx(float(value), abs=1e-5), (category, column)
            else:
                assert tables[1][category][column] == value
