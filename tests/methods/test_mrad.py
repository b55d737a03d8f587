"""MRAD: retrieval equal to loops, memory from a training set, files of a fit, errors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components import retrieval
from afclip_lightning.components.retrieval import most_alike, nearest, region_means, retrieve, sampled
from afclip_lightning.components.schedule import cosine
from afclip_lightning.engine.factory import load_head
from afclip_lightning.methods.head_with_memory import HeadWithMemory
from afclip_lightning.methods.mrad import MEMORY, MRAD
from afclip_runtime.errors import CheckpointError, DatasetError, UserError
from tests.reference import mrad_naive as naive
from tests.support.clips import small_config
from tests.support.methods import batch_of, data_of, saved, score, trainer_of
from tests.support.small_run import run, write_small_run

LABELS = [0] * 7 + [1] * 4


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor]:
    """Queries `[6, 5]` and keys `[11, 5]`; the last four keys are anomalous."""
    return torch.randn(6, 5), F.normalize(torch.randn(11, 5), dim=-1)


@pytest.fixture(params=[4096, 3, 2])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(retrieval, "KEYS_AT_ONCE", request.param)
    monkeypatch.setattr(retrieval, "SIMILARITIES_AT_ONCE", 11 * request.param)
    return int(request.param)


@pytest.mark.parametrize("count", [None, 3])
def test_retrieval_equals_loops_whatever_the_block(
    vectors: tuple[Tensor, Tensor], blocks: int, count: int | None
) -> None:
    queries, keys = vectors
    hidden = most_alike(queries, keys, 0.2)
    for mask in (None, hidden):
        found = retrieve(queries, keys[:7], keys[7:], mask, count)
        for row, query in enumerate(queries.double().numpy()):
            away = naive.hidden_keys(query, keys.double().numpy(), 0.2) if mask is not None else []
            expected = naive.retrieve(query, keys.double().numpy(), LABELS, away, count)
            assert found[row].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.9])
def test_hidden_keys_are_those_above_the_interpolated_quantile(
    vectors: tuple[Tensor, Tensor], blocks: int, share: float
) -> None:
    queries, keys = vectors
    similarity = queries @ keys.T
    expected = similarity > similarity.quantile(1 - share, dim=1, keepdim=True)
    assert torch.equal(most_alike(queries, keys, share), expected)


def test_gradients_are_those_of_one_block(vectors: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = vectors
    gradients = []
    for block in (4096, 2):
        monkeypatch.setattr(retrieval, "KEYS_AT_ONCE", block)
        leaves = [tensor.clone().requires_grad_() for tensor in (queries, keys[:7], keys[7:])]
        (retrieve(*leaves, most_alike(queries, keys, 0.2)) ** 2).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_nearest_keys_are_those_of_all(vectors: tuple[Tensor, Tensor], blocks: int) -> None:
    queries, keys = vectors
    values, index = nearest(queries, keys, 4)
    expected = (queries @ keys.T).topk(4)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(values, expected.values)


def test_a_label_without_keys_has_no_part(vectors: tuple[Tensor, Tensor]) -> None:
    queries, keys = vectors
    assert torch.equal(retrieve(queries, keys, keys[:0]), torch.zeros(6))
    assert torch.equal(retrieve(queries, keys[:0], keys), torch.ones(6))
    assert torch.equal(retrieve(queries, keys[:0], keys[:0]), torch.zeros(6))


def test_a_sample_has_each_label_by_its_share() -> None:
    normal, anomalous = torch.arange(80.0)[:, None], torch.arange(20.0)[:, None]
    some = sampled(normal, anomalous, 10)
    assert list(map(len, some)) == [8, 2]
    assert all(torch.equal(one, two) for one, two in zip(some, sampled(normal, anomalous, 10), strict=True))
    assert list(map(len, sampled(normal, anomalous[:1], 10))) == [9, 1]
    assert list(map(len, sampled(normal[:1], anomalous, 2))) == [1, 1]
    assert list(map(len, sampled(normal, anomalous[:0], 10))) == [10, 0]
    assert list(map(len, sampled(normal[:0], anomalous, 10))) == [0, 10]
    assert list(map(len, sampled(normal, anomalous, None))) == [80, 20]


def test_regions_are_means_of_cells_that_are_wholly_one_kind() -> None:
    patches, mask = torch.randn(2, 12, 5), torch.zeros(2, 21, 28, dtype=torch.uint8)
    mask[0, 3:14, 10:21] = 1  # an edge runs through the centre of a row of cells
    means, there = region_means(patches, mask, (3, 4))
    assert there.tolist() == [[True, True], [True, False]]
    cells = np.array([[_centre(mask[0, 7 * i : 7 * i + 7, 7 * j : 7 * j + 7]) for j in range(4)] for i in range(3)])
    assert 0 < (cells == 1).sum() < 12
    for kind in (0, 1):
        expected = naive.region_mean(patches[0].double().numpy(), cells, kind)
        np.testing.assert_allclose(F.normalize(means[0, kind], dim=0).double().numpy(), expected, atol=1e-6)


def _centre(cell: Tensor) -> float:
    """Returns the value at the centre of a cell of 7 x 7 pixels."""
    return float(cell[3, 3])


def small(folder: Path, **arguments: object) -> Callable[[], MRAD]:
    backbone = ClipBackbone(small_config(folder), "random", image_size=None)

    def make() -> MRAD:
        torch.manual_seed(0)
        return MRAD(backbone, layer=3, **arguments)  # type: ignore[arg-type]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["TF", "FT"])
def test_fit_builds_the_memory_of_the_training_set(tmp_path: Path, variant: str) -> None:
    model = small(tmp_path, variant=variant)()
    data = data_of(tmp_path, model)
    samples = data.samples("test")
    trainer_of(tmp_path, enable_checkpointing=False).fit(model, data)
    normal, anomalous = sum(s.label == 0 for s in samples), sum(s.label == 1 for s in samples)
    assert [len(getattr(model, name)) for name in MEMORY[:2]] == [normal, anomalous]
    assert len(model.normal_patches) + len(model.anomalous_patches) > normal
    for name in MEMORY:
        keys = getattr(model, name)
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(len(keys)))
    assert bool(model.trainable_names()) == (variant == "FT")


@pytest.mark.slow
def test_the_learning_rate_ends_where_the_cosine_does(tmp_path: Path) -> None:
    model = small(tmp_path)()
    trainer = trainer_of(tmp_path, enable_checkpointing=False)
    trainer.fit(model, data_of(tmp_path, model))
    steps = trainer.global_step
    assert steps > 1
    group = trainer.optimizers[0].param_groups[0]
    assert group["lr"] == pytest.approx(cosine(4e-4, 1e-6, (steps - 1) / steps))
    assert cosine(4e-4, 1e-6, 0) == 4e-4
    assert cosine(4e-4, 1e-6, 1) == pytest.approx(1e-6)


@pytest.mark.slow
def test_a_checkpoint_brings_its_memory_into_a_head_of_any_size(tmp_path: Path) -> None:
    make = small(tmp_path)
    model, again = make(), make()
    checkpoint = saved(model, tmp_path)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=False)
    batch = batch_of(size=28)
    assert all(torch.equal(a, b) for a, b in zip(score(model, batch), score(again, batch), strict=True))
    checkpoint["state_dict"]["normal_images"] = checkpoint["state_dict"]["normal_images"][:, :3]
    with pytest.raises(CheckpointError, match="normal_images"):
        make().on_load_checkpoint(checkpoint)


def test_a_head_beside_a_memory_brings_its_own(tiny: ClipBackbone) -> None:
    both = [HeadWithMemory(tiny, layers=[4], head="MRAD", head_arguments={"layer": 8}) for _ in range(2)]
    batch, head = batch_of(6), both[0].head
    assert isinstance(head, MRAD)
    head.keep_keys(head.keys_of(head.extract(batch), batch))
    checkpoint = {"state_dict": both[0].state_dict(), both[0].CHECKPOINT_HYPER_PARAMS_KEY: both[0].hparams}
    both[0].on_save_checkpoint(checkpoint)
    assert len(checkpoint["state_dict"]["head.normal_images"]) == 3
    both[1].on_load_checkpoint(checkpoint)
    both[1].load_state_dict(checkpoint["state_dict"], strict=False)
    for name, tensor in both[1].state_dict().items():
        assert torch.equal(tensor, checkpoint["state_dict"][name])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["TF", "FT"])
def test_fit_writes_a_head_that_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_run(tmp_path)
    config = Path("base.yaml").read_text()
    begin, end = config.index("model:"), config.index("data:")
    model = "model: {class_path: MRAD, init_args: {layer: 3, variant: %s, backbone: {model: small.json, weights: random"
    Path("base.yaml").write_text(config[:begin] + model % variant + ", image_size: 28}}}\n" + config[end:])
    assert run("test", "--out=before") == 0
    assert "UNTRAINED head (no --checkpoint)" in capsys.readouterr().out
    assert run("fit", "--out=run") == 0
    assert "Trained head" in capsys.readouterr().out
    assert run("test", "--out=after", "--checkpoint=run/head.ckpt") == 0
    assert "UNTRAINED" not in capsys.readouterr().out
    assert Path("after/results.csv").read_bytes() == Path("run/results.csv").read_bytes()
    head = load_head(Path("run/head.ckpt"))
    assert isinstance(head, MRAD)
    assert head.variant == variant
    with pytest.raises(UserError, match="has to be trained"):
        load_head(Path("base.yaml"))
    if variant == "FT":
        assert run("fit", "--out=run", "--checkpoint=run", "--trainer.max_epochs=2") == 0  # from its last checkpoint
        assert torch.equal(load_head(Path("run/head.ckpt")).normal_images, head.normal_images)
    else:
        assert run("fit", "--out=other", "--checkpoint=run/head.ckpt") == 2


def test_a_training_set_of_one_kind_is_refused(tmp_path: Path) -> None:
    model = small(tmp_path)()
    batch = batch_of(size=28)
    images = model.keys_of(model.extract(batch), batch)
    with pytest.raises(DatasetError, match="the training set has no anomalous one"):
        model.keep_keys(images[::2])
    with pytest.raises(DatasetError, match="the training set has no normal one"):
        model.keep_keys(images[1::2])


def test_without_anomalous_patches_the_maps_are_empty_and_it_is_said(tmp_path: Path) -> None:
    model = small(tmp_path)()
    batch = batch_of(size=28)
    with pytest.warns(UserWarning, match="all maps will be 0"):
        model.keep_keys(model.keys_of(model.extract(batch), replace(batch, mask=torch.zeros_like(batch.mask))))
    assert score(model, batch)[1].abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "CLIP"}, "variant must be one of TF, FT"),
        ({"memory_size": 1}, "memory_size must be at least 2"),
        ({"neighbours": 0}, "neighbours at least 1"),
        ({"hidden_patches": 1.0}, "hidden_patches must be from 0"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"image_weight": 1.5}, "image_weight must be in"),
        ({"top_pixels": 0}, "top_pixels in"),
    ],
)
def test_arguments_out_of_range_are_refused(tiny: ClipBackbone, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MRAD(tiny, layer=8, **arguments)  # type: ignore[arg-type]
