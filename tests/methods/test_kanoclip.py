"""KAnoCLIP: equations against loops, initial values, knowledge, learning rates, parts."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.adapters import ConvAdapter
from afclip_lightning.components.cross_attention import BiCrossAttention, DeformableAttention
from afclip_lightning.components.losses import knowledge_loss
from afclip_lightning.components.scoring import upsample_and_smooth
from afclip_lightning.data.dataloader import AnomalyLoader
from afclip_lightning.datasets.cross_dataset import CrossDataset
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.knowledge.base import knowledge_digest, load_knowledge
from afclip_lightning.knowledge.describe import describe_anomaly
from afclip_lightning.methods.kanoclip import KAnoCLIP
from afclip_lightning.types import Batch
from afclip_runtime.errors import CheckpointError, UserError
from tests.reference import kanoclip_naive as naive
from tests.support.cases import KNOWLEDGE
from tests.support.clips import small_config
from tests.support.layouts.mvtec import write_mvtec
from tests.support.methods import TextCalls, batch_of, data_of, saved, score, take, train_step, trainer_of

TINY: dict[str, Any] = {"layers": (3, 5, 6, 8), "vv_from": 3, "knowledge": KNOWLEDGE}
SMALL: dict[str, Any] = {"layers": (2, 3), "vv_from": 2, "knowledge": KNOWLEDGE, "interaction_width": 16}


def kanoclip(backbone: ClipBackbone, **arguments: Any) -> KAnoCLIP:
    torch.manual_seed(0)
    return KAnoCLIP(backbone, **{**TINY, **arguments})


def stirred(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Returns the module with every trainable tensor changed from its initial value, including zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn(parameter.shape, generator=generator)
    return module


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path), "random", image_size=None)


def worded(batch: Batch) -> Batch:
    """Returns the batch with class names for its categories, as from loaders."""
    return replace(batch, samples=[replace(s, class_name=f"item {s.category}") for s in batch.samples])


# --- equations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_knowledge_loss_equals_the_loops(margin: float) -> None:
    knowledge, normal, abnormal = drawn(3, 6, 5)
    expected = [
        naive.knowledge_loss(*(x.double().numpy() for x in row), margin)
        for row in zip(knowledge, normal, abnormal, strict=True)
    ]
    assert min(expected) == 0 or margin  # one is cut
    assert knowledge_loss(knowledge, normal, abnormal, margin).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_knowledge_of_an_image_is_the_mean_of_all_its_sentences(tiny: ClipBackbone) -> None:
    """Eq. (3): only the category's sentences for normal images and images without a mask."""
    model, batch = kanoclip(tiny), worded(batch_of())
    batch = replace(batch, samples=[*batch.samples[:3], replace(batch.samples[3], mask_known=False)])
    batch.mask[3] = 0
    assert model.knowledge is not None
    means = model.knowledge.means(tiny, batch)
    for row in range(4):
        llm = tiny.encode_text(load_knowledge(KNOWLEDGE)[batch.samples[row].category]).double().numpy()
        vqa = np.empty((0, llm.shape[1]))
        if row == 1:
            pixels = tiny.preprocess.to_pixels(batch.image[1])
            sentence = describe_anomaly(pixels, batch.mask[1].numpy(), "item b", None)
            assert sentence is not None
            vqa = tiny.encode_text([sentence]).double().numpy()
        np.testing.assert_allclose(means[row].numpy(), naive.knowledge_mean(llm, vqa), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 7), (2, 2), (4, 1)])
def test_interaction_equals_the_loops(grid: tuple[int, int]) -> None:
    block = stirred(BiCrossAttention(6, width=8, heads=2, groups=2, stride=2))
    patches, text = drawn(2, grid[0] * grid[1], 6), drawn(2, 2, 6)
    with torch.no_grad():
        fused, fused_text = block(patches, text, grid)
    assert (fused - patches).abs().max() > 0.1
    for i in range(2):
        expected = naive.bi_cross_attention(
            patches[i].double().numpy(), text[i].double().numpy(), grid, arrays(block), heads=2, groups=2, stride=2
        )
        np.testing.assert_allclose(fused[i].numpy(), expected[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(fused_text[i].numpy(), expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_conv_adapter_equals_the_loops(spatial: bool, residual: bool) -> None:
    adapter = stirred(ConvAdapter(6, bottleneck=5, spatial=spatial, residual=residual))
    image, patches = drawn(2, 6), drawn(2, 12, 6)
    with torch.no_grad():
        adapted = adapter(image, patches, (3, 4))
    for i in range(2):
        parts = (image[i].double().numpy(), patches[i].double().numpy())
        expected = naive.conv_adapter(*parts, (3, 4), arrays(adapter), residual)
        np.testing.assert_allclose(adapted[i].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_maps_scores_and_losses_equal_the_loops(small: ClipBackbone) -> None:
    """Eq. (9), (10), (12) to (15), from the outputs of Bi-CMCI and Conv-Adapter."""
    torch.manual_seed(0)
    model, batch = stirred(KAnoCLIP(small, **SMALL, map_sigma=2.0)), worded(batch_of(2, size=28))
    batch.mask[1, 5:20, 8:15] = 1
    features = model.extract(batch)
    with torch.no_grad():
        text = model.embed_text(batch.samples)
        losses = model.loss(features, batch)
        prediction = model.score(features, batch)
        stages = []
        for block, tokens in zip(model.interactions, features.vv_tokens, strict=True):
            patches = small.embed_tokens(tokens[:, 1:])
            stages.append(block(patches, text, features.grid))
        image = model.conv_adapter(F.normalize(features.image_embedding, dim=-1), patches, features.grid)
        knowledge = model.knowledge.means(small, batch).double().numpy()
    normals, abnormals, scores, distances = [], [], [], []
    for i in range(2):
        pairs = [(p[i].double().numpy(), t[i].double().numpy()) for p, t in stages]
        words = text[i].double().numpy()
        normal, abnormal = naive.two_maps(pairs, features.grid, 28, 0.07)
        final = naive.final_map(normal, abnormal, 2.0)
        np.testing.assert_allclose(prediction.anomaly_map[i].numpy(), final, rtol=1e-4, atol=1e-5)
        expected = naive.global_score(image[i].double().numpy(), words, final, 0.07)
        assert prediction.pred_score[i].item() == pytest.approx(expected, rel=1e-4)
        scores.append(naive.global_score(image[i].double().numpy(), words, abnormal, 0.07))  # not smoothed
        distances.append(naive.knowledge_loss(knowledge[i], words[0], words[1], 0))
        normals.append(normal)
        abnormals.append(abnormal)
    local = naive.local_loss(np.stack(normals), np.stack(abnormals), batch.mask.numpy())
    assert losses["image_bce"].item() == pytest.approx(naive.global_loss(scores, batch.label.tolist()), rel=1e-4)
    assert losses["knowledge"].item() == pytest.approx(np.mean(distances), rel=1e-3, abs=1e-6)
    assert sum(losses[k].item() for k in ("focal", "dice_abnormal", "dice_normal")) == pytest.approx(local, rel=1e-4)
    weighted = KAnoCLIP(small, **SMALL, knowledge_weight=2.0, global_weight=3.0, local_weight=0.5)
    weighted.load_state_dict(model.state_dict(), strict=False)
    total = weighted.loss(features, batch)["total"].item()
    expected = 2 * losses["knowledge"].item() + 3 * losses["image_bce"].item() + 0.5 * local
    assert total == pytest.approx(expected, rel=1e-4)


def test_prompts_are_means_over_adjectives_of_prompts_alone(tiny: ClipBackbone) -> None:
    model = kanoclip(tiny, prompt_init_std=0.5)
    assert model.prompts is not None
    both = model.prompts(tiny, ["nut", "a very long name of a part"])
    assert not torch.allclose(both[0], both[1])
    for column, (adjectives, tokens) in enumerate(
        zip((("normal", "perfect"), ("abnormal", "defective")), model.prompts.tokens, strict=True)
    ):
        total = torch.zeros(tiny.embed_dim)
        for adjective in adjectives:
            ids = tiny.tokenize([f"{adjective} nut."])
            embedded = tiny.text.token_embedding(ids)[0]
            sequence = torch.cat([embedded[:1], tokens, embedded[1 : 77 - len(tokens)]])
            total = total + tiny.text(sequence[None], ids.argmax(1) + len(tokens))[0] / 2
        torch.testing.assert_close(both[0, column], total, rtol=1e-4, atol=1e-5)


def test_a_name_that_does_not_fit_is_refused(tiny: ClipBackbone) -> None:
    with pytest.raises(ValueError, match=r"context length 77, got \d+ positions for 'defective nut nut"):
        kanoclip(tiny).prompts(tiny, ["nut", " ".join(["nut"] * 64)])


# --- deformable attention -------------------------------------------------------------------------------------------


def test_points_are_sampled_where_a_hand_made_offset_says() -> None:
    """On a plane with the column in one channel and the row in the other, a sample equals its position."""
    grid = (9, 9)
    attention = DeformableAttention(4, heads=2, groups=2, stride=4)
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    tokens = torch.stack([x, y, x, y], dim=-1).reshape(1, 81, 4)
    shift = torch.tensor([1.5, -0.25])
    with torch.no_grad():  # after a norm without weights only its bias is left, the same everywhere
        attention.norm.weight.zero_()
        attention.norm.bias.copy_(torch.tensor([1.0, 0.0]))
        attention.to_offset.weight.zero_()
        attention.to_offset.weight[:, 0] = torch.atanh(shift / 4) / F.gelu(torch.tensor(1.0))
        points = attention.points(attention.attention.to_q(tokens), grid)
        sampled = attention.sample(tokens, points, grid)
    places = torch.tensor([[c, r] for r in (0, 4, 8) for c in (0, 4, 8)]) + shift
    for group in (0, 1):
        torch.testing.assert_close(points[0, group], places)
        torch.testing.assert_close(sampled[0, :, 2 * group : 2 * group + 2], places.clamp(0, 8), rtol=0, atol=1e-5)


def test_groups_have_points_of_their_own_within_a_stride() -> None:
    attention = stirred(DeformableAttention(8, heads=2, groups=2, stride=4), std=3.0)
    points = attention.points(drawn(2, 37 * 37, 8), (37, 37))
    assert points.shape == (2, 2, 100, 2)
    home = torch.tensor([[c, r] for r in range(0, 37, 4) for c in range(0, 37, 4)])
    assert (points - home).abs().max() <= 4
    assert (points[0] - points[1]).abs().max() > 0.1  # they follow the image
    assert (points[:, 0] - points[:, 1]).abs().max() > 0.1


# --- start and training ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("vv_from", [3, None])
def test_at_the_start_the_map_is_that_of_the_frozen_features(tiny: ClipBackbone, vv_from: int | None) -> None:
    model, batch = kanoclip(tiny, vv_from=vv_from), worded(batch_of(2))
    features = model.extract(batch)
    with torch.no_grad():
        text = model.embed_text(batch.samples)
        expected = torch.zeros(2, 112, 112)
        for tokens in features.tokens if vv_from is None else features.vv_tokens:
            patches = F.normalize(tiny.project(tokens[:, 1:]), dim=-1)
            logits = (patches @ text.mT / 0.07).transpose(1, 2).unflatten(2, (14, 14))
            expected += F.interpolate(logits, size=(112, 112), mode="bilinear").softmax(1)[:, 1] / 4
        image = (F.normalize(features.image_embedding, dim=-1)[:, None] @ text.mT / 0.07).softmax(-1)[:, 0, 1]
    scores, maps = score(model, batch)
    torch.testing.assert_close(maps, upsample_and_smooth(expected, 112, 4.0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, (image + maps.amax((1, 2))) / 2, rtol=1e-4, atol=1e-5)
    for removed in ({"interaction": False}, {"conv_adapter": None}):
        for a, b in zip(score(kanoclip(tiny, vv_from=vv_from, **removed), batch), (scores, maps), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_lies_behind_zeros_moves_a_step_later(tiny: ClipBackbone) -> None:
    """In step 1, prompts and output projections have gradients; in step 2, when these are not 0, all parts do."""
    model, batch = kanoclip(tiny), worded(batch_of())
    optimizer = model.configure_optimizers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = []
    for _ in range(2):
        train_step(model, optimizer, batch)
        moved.append({name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])})
    first = {"prompts.tokens", "conv_adapter.up.weight"}
    first |= {f"interactions.{i}.{side}_out.weight" for i in range(4) for side in ("patches", "text")}
    assert moved == [first, set(before)]


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "steps"), [(0.0, 2), (0.5, 3)])
def test_the_knowledge_loss_falls(tiny: ClipBackbone, margin: float, steps: int) -> None:
    model, batch = kanoclip(tiny, knowledge_margin=margin), worded(batch_of())
    optimizer = model.configure_optimizers()
    values = []
    for _ in range(steps):
        loss = model.loss(model.extract(batch), batch)["knowledge"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert all(later < earlier for earlier, later in pairwise(values))
    assert values[-1] < 0.9 * values[0]


def test_two_learning_rates(tiny: ClipBackbone) -> None:
    model = kanoclip(tiny)
    optimizer = model.configure_optimizers()
    prompts, rest = optimizer.param_groups
    assert [id(p) for p in prompts["params"]] == [id(model.prompts.tokens)]
    assert (prompts["lr"], rest["lr"]) == (1e-3, 1e-4)
    assert len(rest["params"]) == len(model.trainable_names()) - 1
    assert kanoclip(tiny, learnable_prompts=False).configure_optimizers().param_groups[1]["lr"] == 1e-4
    assert kanoclip(tiny, learnable_prompts=False, interaction=False, conv_adapter=None).configure_optimizers() is None


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "parts", "terms"),
    [
        ({}, {"prompts", "interactions", "conv_adapter"}, {"knowledge"}),
        ({"learnable_prompts": False}, {"interactions", "conv_adapter"}, set()),
        ({"knowledge_weight": 0.0}, {"prompts", "interactions", "conv_adapter"}, set()),
        ({"vv_from": None}, {"prompts", "interactions", "conv_adapter"}, {"knowledge"}),
        ({"interaction": False}, {"prompts", "conv_adapter"}, {"knowledge"}),
        ({"conv_adapter": None}, {"prompts", "interactions"}, {"knowledge"}),
    ],
)
def test_parts_can_be_left_out(tiny: ClipBackbone, arguments: dict[str, Any], parts: set[str], terms: set[str]) -> None:
    model, batch = kanoclip(tiny, **arguments), worded(batch_of(2))
    assert {name.split(".")[0] for name in model.trainable_names()} == parts
    losses = model.loss(model.extract(batch), batch)
    assert set(losses) == {"total", "image_bce", "focal", "dice_abnormal", "dice_normal"} | terms
    assert bool(model.spec.vv_layers) == (arguments.get("vv_from", 3) is not None)


@pytest.mark.slow
def test_trainable_parameters_at_vit_l_14(tmp_path: Path) -> None:
    """With the widths of ViT-L/14: prompts 18,432, Bi-CMCI 1.84 million per stage, adapter 298,176."""
    vision = {"image_size": 336, "layers": 4, "width": 64, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 1}
    config = small_config(tmp_path, "widths-of-l14", embed_dim=768, vision_cfg=vision, text_cfg=text)
    model = KAnoCLIP(ClipBackbone(config, "random", image_size=None), layers=(1, 2, 3, 4), vv_from=1)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts["prompts"] == 2 * 12 * 768
    assert counts["conv_adapter"] == 2 * 768 + 2 * 768 * 192 + 9 * 192
    assert counts["interactions"] == 4 * BICA_AT_768


BICA_AT_768 = (
    2 * (2 * 768 + 768 * 256 + 256)  # down
    + 4 * (4 * 256 * 256 + 256)  # attentions
    + (25 * 64 + 64 + 2 * 64 + 2 * 64)  # offsets
    + 6 * 2 * 256  # normalisations
    + 2 * 256 * 768  # up
)


def test_categories_with_one_class_name_have_one_text_and_others_another(tiny: ClipBackbone) -> None:
    model, samples = kanoclip(tiny), worded(batch_of()).samples
    text = model.embed_text(samples)
    assert torch.equal(text[0], text[2])
    assert not torch.allclose(text[0], text[1])


# --- knowledge ------------------------------------------------------------------------------------------------------


def cross(folder: Path, model: KAnoCLIP) -> CrossDataset:
    """Returns data that trains on categories of the base and tests on others."""
    sets = [
        MVTecLayout(write_mvtec(folder / name, categories), name=name, batch_size=3, num_workers=0)
        for name, categories in (("seen", ["cap", "nut"]), ("unseen", ["screw"]))
    ]
    data = CrossDataset(sets[0], sets[1])
    data.connect(model.preprocess)
    return data


@pytest.mark.slow
def test_knowledge_is_read_for_what_is_trained_on_only(
    tmp_path: Path, small: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []

    def note(load: Callable[..., Any]) -> Callable[..., Any]:
        return lambda source, categories: read.append(list(categories)) or load(source, categories)

    monkeypatch.setattr("afclip_lightning.knowledge.targets.load_knowledge", note(load_knowledge))
    model = KAnoCLIP(small, **SMALL)
    data = cross(tmp_path, model)
    trainer_of(tmp_path, enable_checkpointing=False).test(model, data, verbose=False)
    assert read == []
    trainer = trainer_of(tmp_path / "fit")
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert read == [["cap", "nut"]]
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    digest = torch.load(tmp_path / "model.ckpt", weights_only=True)["knowledge_digest"]
    assert digest == knowledge_digest(load_knowledge(KNOWLEDGE, ["cap", "nut"]))


@pytest.mark.slow
def test_a_category_without_knowledge_stops_before_training(tmp_path: Path, small: ClipBackbone) -> None:
    base = tmp_path / "own.yaml"
    base.write_text("sentences: {cap: [The cap is cracked.]}")
    model = KAnoCLIP(small, **{**SMALL, "knowledge": str(base)})
    with pytest.raises(UserError, match=re.escape(str(base)) + ".*'nut'"):
        trainer_of(tmp_path, enable_checkpointing=False).fit(model, cross(tmp_path, model))


def test_an_image_with_a_sentence_in_the_base_has_that_one(tmp_path: Path, tiny: ClipBackbone) -> None:
    base = tmp_path / "own.yaml"
    base.write_text("sentences: {a: [x], b: [y]}\nimages: {image_1.png: A hole gapes in the middle.}")
    model, batch = kanoclip(tiny, knowledge=str(base)), worded(batch_of())
    assert model.knowledge is not None
    model.knowledge.read(["a", "b"])
    assert model.knowledge.describe(batch, 1, tiny.preprocess) == "A hole gapes in the middle."
    assert "anomaly" in str(model.knowledge.describe(batch, 3, tiny.preprocess))
    assert model.knowledge.describe(batch, 0, tiny.preprocess) is None


@pytest.mark.slow
def test_text_is_encoded_once_a_category_in_a_pass(tmp_path: Path, small: ClipBackbone) -> None:
    model = KAnoCLIP(small, **SMALL)
    data, calls = data_of(tmp_path, model), TextCalls(small)
    trainer_of(tmp_path, enable_checkpointing=False).test(model, data, verbose=False)
    assert calls.count == 2
    calls.count = 0
    loader = AnomalyLoader(  # ordered, so that each batch has an anomalous image with a sentence
        data.train_dataloader().dataset, batch_size=4, collate_fn=data.train_dataloader().collate_fn
    )
    trainer = trainer_of(tmp_path / "fit", enable_checkpointing=False)
    trainer.fit(model, loader)
    assert trainer.global_step == 2
    assert calls.count == 2 * trainer.global_step + 2  # prompts and images' sentences each step, each category's once
    calls.handle.remove()


# --- arguments and checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": (2, 8)},
        {"layers": (9,)},
        {"conv_adapter": "depthwise"},
        {"temperature": 0.0},
        {"prompt_tokens": 0},
        {"knowledge_margin": -0.1},
        {"local_weight": -1.0},
        {"normal_words": ()},
        {"abnormal_words": "abnormal"},
        {"interaction_heads": 7},
        {"offset_groups": 3},
        {"offset_stride": 0},
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        kanoclip(tiny, **arguments)


@pytest.mark.slow
def test_an_unknown_base_is_reported_when_training_begins(tmp_path: Path, small: ClipBackbone) -> None:
    model = KAnoCLIP(small, **{**SMALL, "knowledge": "nowhere"})
    data = cross(tmp_path, model)
    trainer_of(tmp_path, enable_checkpointing=False).test(model, data, verbose=False)  # which needs none
    with pytest.raises(UserError, match="no knowledge base 'nowhere'"):
        trainer_of(tmp_path, enable_checkpointing=False).fit(model, data)


def test_checkpoint_refuses_other_parts_and_takes_another_base(tmp_path: Path, small: ClipBackbone) -> None:
    checkpoint = saved(KAnoCLIP(small, **SMALL), tmp_path)
    with pytest.raises(CheckpointError, match="conv_adapter: 'spatial' in the checkpoint, 'global' here"):
        KAnoCLIP(small, **SMALL, conv_adapter="global").on_load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="vv_from: 2 in the checkpoint, 1 here"):
        KAnoCLIP(small, **{**SMALL, "vv_from": 1}).on_load_checkpoint(checkpoint)
    KAnoCLIP(small, **{**SMALL, "knowledge": "visa"}, map_sigma=1.0).on_load_checkpoint(checkpoint)


def test_an_image_alone_gives_its_loss(tiny: ClipBackbone) -> None:
    model, batch = stirred(kanoclip(tiny), 0.05), worded(batch_of())
    together = model.loss(model.extract(batch), batch)
    alone = [model.loss(model.extract(one), one) for one in (take(batch, [i]) for i in range(4))]
    for name in ("image_bce", "knowledge"):
        torch.testing.assert_close(together[name], torch.stack([terms[name] for terms in alone]).mean())
