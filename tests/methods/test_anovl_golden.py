"""AnoVL against numbers recorded from the official code (see `golden/README.md`)."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import anomaly_probability, pool_and_upsample
from afclip_lightning.components.test_time import BatchAdapters
from afclip_lightning.methods.anovl import AnoVL, augmented_views
from afclip_lightning.types import Batch, Sample
from afclip_runtime.types import Tiling
from afclip_runtime.views.tiles import Layout
from tests.support.recipe import GOLDEN
from tests.support.recipe_baselines import image, make_backbone, value
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

FILE = "anovl.npz"
STORED = np.load(GOLDEN / FILE)
SIZE = int(STORED["image_size"])
WIDE = 92
GRID = 5
CATEGORIES = ("metal_nut", "carpet")


def batch_of(*rows: tuple[int, str]) -> Batch:
    """Returns a batch of numbered inputs, each assigned to a category."""
    samples = [Sample("golden", name, "test", Path(f"{index}.png"), 0, class_name=name) for index, name in rows]
    return Batch(
        image=torch.stack([image(index, SIZE) for index, _ in rows]),
        mask=torch.zeros(len(rows), SIZE, SIZE, dtype=torch.uint8),
        label=torch.zeros(len(rows), dtype=torch.long),
        mask_known=torch.ones(len(rows), dtype=torch.bool),
        samples=samples,
    )


class Recorded(AnoVL):
    """AnoVL with the recipe's initial values and noise, which is the same for every image."""

    def __init__(self, backbone: ClipBackbone, kind: str, steps: int) -> None:
        super().__init__(backbone, adapter="text" if kind == "text" else "linear", steps=steps)
        self.kind = kind
        for name in ("weight", "bias"):
            start = getattr(self.adapter, name)
            start.copy_(value(f"anovl.{kind}.ad.{name}", tuple(start.shape)))

    def noise(self, samples: Sequence[Sample], shape: Sequence[int]) -> Iterator[Tensor]:
        for step in count():
            drawn = _noise(self.kind, step, shape[-1])
            yield drawn.expand(len(samples), *drawn.shape)


@lru_cache
def _noise(kind: str, step: int, channels: int) -> Tensor:
    return value(f"anovl.{kind}.noise.{step}", (1, GRID, GRID, channels), scale=0.055).reshape(-1, channels)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return make_backbone(tmp_path_factory.mktemp("anovl"), "B16")


@pytest.mark.parametrize("category", CATEGORIES)
def test_text(backbone: ClipBackbone, category: str) -> None:
    def text(backbone: ClipBackbone, check: Check) -> None:
        text, sentences = AnoVL(backbone, steps=0).text(batch_of((0, category)).samples)
        check(text[0], f"text_features_{category}")
        normal, abnormal = sentences[0].chunk(2)
        assert tuple(STORED[f"text_list_shape_{category}"]) == (len(normal), normal.shape[1], 2)
        check(torch.stack([normal[::20], abnormal[::20]], dim=1), f"text_list_{category}_sample")

    compare(text, backbone, FILE)


def test_views(backbone: ClipBackbone) -> None:
    compare(compared_views, backbone, FILE)


def compared_views(backbone: ClipBackbone, check: Check) -> None:
    plain = AnoVL(backbone, steps=0)
    views = list(augmented_views(image(0, SIZE)[None]))
    check(torch.cat([view[..., ::9, ::9] for view in views]), "views_sample")
    tokens = torch.cat([backbone.encode_image(view, plain.view_spec).image_embedding for view in views])
    check(F.normalize(tokens, dim=-1), "view_cls_normalised")
    for index, category in enumerate(CATEGORIES):
        text, _ = plain.text(batch_of((index, category)).samples)
        scores = []
        for view in augmented_views(image(index, SIZE)[None]):
            token = backbone.encode_image(view, plain.view_spec).image_embedding
            scores.append(anomaly_probability(plain.logits(token[:, None], text))[0, 0])
        check(torch.stack(scores), f"view_scores_{index}")


def test_scores_and_maps_without_adaptation(backbone: ClipBackbone) -> None:
    compare(scores_and_maps, backbone, FILE)


def scores_and_maps(backbone: ClipBackbone, check: Check) -> None:
    plain, batch = AnoVL(backbone, steps=0), batch_of((0, "metal_nut"), (1, "carpet"))
    features = plain.extract(batch)
    text, _ = plain.text(batch.samples)
    patches = plain.patches(features)
    probability = anomaly_probability(plain.logits(patches, text)).unflatten(1, features.grid)
    pooled = pool_and_upsample(probability, GRID)  # at the grid's size nothing is upsampled
    for index in range(2):
        check(patches[index], f"vv_tokens_{index}")
        check(probability[index], f"patch_prob_abn_{index}")
        check(pooled[index], f"pooled_map_{index}")
    with torch.inference_mode():
        prediction = plain.score(features, batch)
    check(prediction.pred_score, "image_score_22view")
    check(prediction.anomaly_map[:, ::3, ::3], "anomaly_map")
    check(prediction.anomaly_map.mean(dim=(1, 2)), "anomaly_map_mean")


def test_two_squares_of_a_wide_image(backbone: ClipBackbone) -> None:
    compare(two_squares, backbone, FILE)


def two_squares(backbone: ClipBackbone, check: Check) -> None:
    """A wide image with `configs/anovl_visa.yaml`: two tiles, whose maps are averaged where they overlap."""
    plain, wide = AnoVL(backbone, augment=False, steps=0), value("imagew.0", (3, SIZE, WIDE), scale=1.0)
    layout = Layout(SIZE, WIDE, Tiling("tiles", overlap=0.0), backbone.preprocess)
    boxes = [layout.levels[0].box(view) for view in range(len(layout))]
    assert boxes == [(0, 0, SIZE, SIZE), (WIDE - SIZE, 0, WIDE, SIZE)]
    batch = batch_of((0, "metal_nut"), (0, "metal_nut"))
    batch.image = torch.stack([wide[:, top:bottom, left:right] for left, top, right, bottom in boxes]).to(batch.image)
    with torch.inference_mode():
        prediction = plain.score(plain.extract(batch), batch)
    check(prediction.pred_score.mean(0, keepdim=True), "visa_image_score_2crop")
    merged = np.zeros((SIZE, WIDE), prediction.anomaly_map.numpy().dtype)
    for view, seen in enumerate(prediction.anomaly_map.numpy()):
        layout.add(merged, view, seen.copy())
    check(torch.from_numpy(merged[::3, ::3]), "visa_zs_map")


def trained(model: Recorded, batch: Batch) -> BatchAdapters:
    with torch.inference_mode():
        text, sentences = model.text(batch.samples)
        return model.adapt(batch.samples, model.patches(model.extract(batch)), text, sentences)


def check_adapters(adapters: BatchAdapters, model: Recorded, prefix: str, steps: int, check: Check) -> None:
    weight, bias = adapters.weight[0].detach(), adapters.bias[0].detach()
    rows, columns = (60, 5) if model.kind == "text" else (4, 4)
    check(torch.stack(adapters.losses)[:, 0], f"{prefix}_losses_{steps}")
    check(weight[::rows, ::columns], f"{prefix}_weight_{steps}_sample")
    check((weight - model.adapter.weight).norm(), f"{prefix}_weight_{steps}_delta_norm")
    if model.kind == "text":
        check(bias[::30], f"{prefix}_bias_{steps}_sample")
    else:
        # AdamW steps by the gradient's sign: one within its rounding of 0 says nothing of where the step goes
        gradient = torch.from_numpy(STORED[f"{prefix}_grad_bias_first"]).abs()
        clear = gradient > 1e-2 * gradient.max()
        assert clear.sum() >= len(clear) - 3
        check(bias[clear], f"{prefix}_bias_{steps}", clear)


def check_map(model: Recorded, batch: Batch, key: str, check: Check) -> Tensor:
    with torch.inference_mode():
        anomaly_map = model.score(model.extract(batch), batch).anomaly_map[0]
    check(anomaly_map[::3, ::3], key)
    return anomaly_map


@pytest.mark.parametrize("kind", ["text", "lin"])
def test_first_step(backbone: ClipBackbone, kind: str) -> None:
    compare(lambda backbone, check: first_step(backbone, check, kind), backbone, FILE)


def first_step(backbone: ClipBackbone, check: Check, kind: str) -> None:
    model, prefix = Recorded(backbone, kind, 1), f"tta_{kind}_img0"
    batch = batch_of((0, "metal_nut"))
    text, sentences = model.text(batch.samples)
    patches = model.patches(model.extract(batch))
    prompts = sentences if kind == "text" else None
    start = BatchAdapters(model.adapter.weight[None], model.adapter.bias[None], 0.5, prompts)
    noisy = patches + next(model.noise(batch.samples, patches.shape[1:]))
    tokens = torch.cat([start(patches), start(noisy)])
    probability = anomaly_probability(model.logits(tokens, text.expand(2, -1, -1)))
    check(probability.unflatten(1, (GRID, GRID)), f"{prefix}_prob_first_step")
    adapters = trained(model, batch)
    assert adapters.weight.grad is not None
    assert adapters.bias.grad is not None
    rows, columns = (60, 5) if kind == "text" else (4, 4)
    check(adapters.weight.grad.norm(), f"{prefix}_grad_weight_first_norm")
    check(adapters.weight.grad[0, ::rows, ::columns], f"{prefix}_grad_weight_first_sample")
    if kind == "text":
        check(adapters.bias.grad.norm(), f"{prefix}_grad_bias_first_norm")
    else:
        check(adapters.bias.grad[0], f"{prefix}_grad_bias_first")


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", ["text", "lin"])
def test_adaptation(backbone: ClipBackbone, kind: str, steps: int) -> None:
    def adaptation(backbone: ClipBackbone, check: Check) -> None:
        model, prefix = Recorded(backbone, kind, steps), f"tta_{kind}_img0"
        batch = batch_of((0, "metal_nut"))
        check_adapters(trained(model, batch), model, prefix, steps, check)
        anomaly_map = check_map(model, batch, f"{prefix}_map_{steps}", check)
        check(anomaly_map.mean(), f"{prefix}_map_{steps}_mean")

    compare(adaptation, backbone, FILE)


def test_adaptation_of_a_texture(backbone: ClipBackbone) -> None:
    def adaptation(backbone: ClipBackbone, check: Check) -> None:
        model, batch = Recorded(backbone, "text", 5), batch_of((1, "carpet"))
        check_adapters(trained(model, batch), model, "tta_text_img1", 5, check)
        anomaly_map = check_map(model, batch, "tta_text_img1_map_5", check)
        check(anomaly_map.mean(), "tta_text_img1_map_5_mean")

    compare(adaptation, backbone, FILE)


def test_an_image_is_adapted_as_if_it_came_first(backbone: ClipBackbone) -> None:
    """The code's optimiser keeps its moments. Here, results equal those of a new optimiser, after any image."""

    def adaptation(backbone: ClipBackbone, check: Check) -> None:
        model = Recorded(backbone, "text", 5)
        both = batch_of((0, "metal_nut"), (1, "metal_nut"))
        losses = torch.stack(trained(model, both).losses)
        check(losses[:, 1], "tta_text_fresh_losses_img1")
        check(losses[:, 0], "tta_text_img0_losses_5")
        check_map(model, batch_of((1, "metal_nut")), "tta_text_fresh_map_img1", check)
        check(losses[:, 0], "tta_text_sequence_losses", slice(5))
        carried = torch.from_numpy(STORED["tta_text_sequence_losses"])
        assert (losses[:, 1] - carried[5:]).abs().max() > 1e-5  # what the code's moments do to the second image

    compare(adaptation, backbone, FILE)
