import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from afclip_lightning.backbones.weights import expand_vocabulary
from afclip_lightning.datasets.procedural import CATEGORIES
from afclip_lightning.datasets.synthetic import SYNTHETIC_TEST, SYNTHETIC_TRAIN
from experiments.tiny_clip import generator
from experiments.tiny_clip.generator import FAMILIES, HELD_OUT, KIND_NAMES, TRAINED, draw_caption, draw_pair
from experiments.tiny_clip.train import (
    AFCLIP_STATES,
    VOCABULARY_SIZE,
    Pretraining,
    Settings,
    StateProbe,
    TinyClip,
    auroc,
    caption_loss,
    caption_token_ids,
    draw_pairs,
    export,
    load_exported,
    make_batch,
    patch_state,
    true_of,
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(
        cache=str(tmp_path_factory.mktemp("pairs")), steps=20, batch_pairs=3, crop_pairs=4, crop_size=40, warmup=1
    )


@pytest.fixture(scope="module")
def pairs(settings, tmp_path_factory):
    return draw_pairs(tmp_path_factory.mktemp("drawn"), 3, TRAINED, 8, 112, workers=0)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return TinyClip(caption_token_ids()).eval()


@pytest.mark.parametrize("index", range(0, len(FAMILIES), 4))
def test_a_pair_depends_on_seed_and_index_alone(index):
    first, second = draw_pair(1, index, FAMILIES), draw_pair(1, index, FAMILIES)
    np.testing.assert_array_equal(first.defective, second.defective)
    np.testing.assert_array_equal(first.normal, second.normal)
    assert not np.array_equal(first.normal, draw_pair(2, index, FAMILIES).normal)


@pytest.mark.slow
def test_twins_are_identical_outside_the_mask_and_differ_inside():
    for index in range(len(FAMILIES)):
        pair = draw_pair(0, index, FAMILIES)
        np.testing.assert_array_equal(pair.normal[~pair.mask], pair.defective[~pair.mask])
        assert generator.AREA[0] <= pair.mask.mean() <= generator.AREA[1]
        difference = np.abs(pair.normal.astype(int) - pair.defective)[pair.mask].max(1)
        assert difference.mean() > generator.VISIBLE


@pytest.mark.slow
def test_every_kind_of_defect_is_drawn():
    seen = {draw_pair(0, index, ("box",), 64).kind for index in range(150)}
    assert seen == set(range(len(KIND_NAMES)))


def test_nothing_is_shared_with_the_synthetic_categories():
    assert not set(FAMILIES) & set(CATEGORIES)
    assert set(CATEGORIES) == set(SYNTHETIC_TRAIN) | set(SYNTHETIC_TEST)
    rng = np.random.default_rng(0)
    texts = [draw_caption(i % len(FAMILIES), 0, i % 16 - 1, rng).text for i in range(3000)]
    words = set(re.findall(r"[a-z]+", " ".join(texts + generator.vocabulary())))
    assert not words & {word for category in CATEGORIES for word in category.split("_")}
    assert "afclip_lightning" not in Path(generator.__file__).read_text(encoding="utf-8")


def test_held_out_families_never_train():
    assert not set(HELD_OUT) & set(TRAINED)
    assert set(HELD_OUT) | set(TRAINED) == set(FAMILIES)


def test_captions_hold_no_token_outside_the_vocabulary_but_the_stand_ins():
    known, tokenizer, rng = set(caption_token_ids()), open_clip.get_tokenizer("ViT-B-32"), np.random.default_rng(0)
    assert len(known) <= 1500
    for i in range(400):
        text = draw_caption(i % len(FAMILIES), i % 14, i % 16 - 1, rng).text
        assert "zebra" in text or set(tokenizer([text])[0].tolist()) <= known, text
    assert set(tokenizer(list(AFCLIP_STATES)).unique().tolist()) <= known


def test_a_caption_is_true_of_its_own_picture(pairs, settings):
    batch = make_batch(pairs, 0, settings)
    truth = true_of(batch.captions, batch.facts)
    assert truth.diagonal().all()
    said = torch.tensor([c.state for c in batch.captions])
    assert not truth[:4][:, said == 1].any()  # no caption of a defect is true of a flawless picture
    assert not truth[4:][:, said == 0].any()


def test_a_batch_depends_on_the_step_alone_and_its_crops_hold_the_defects(pairs, settings):
    first, second = make_batch(pairs, 5, settings), make_batch(pairs, 5, settings)
    torch.testing.assert_close(first.image, second.image, rtol=0, atol=0)
    assert [c.text for c in first.captions] == [c.text for c in second.captions]
    assert first.image.shape[-1] == 40
    assert make_batch(pairs, 15, settings).image.shape[-1] == 112
    assert first.mask[:4].sum() == 0
    assert (first.mask[4:].sum((1, 2)) > 0).all()
    outside = (first.mask[4:] == 0)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(first.image[:4][outside], first.image[4:][outside], rtol=0, atol=0)


def test_patch_state_keeps_the_smallest_defect():
    mask = torch.zeros(2, 16, 16)
    mask[0, 1, 1] = 1  # a single pixel
    target, weight = patch_state(mask, 8)
    torch.testing.assert_close(target, torch.tensor([[[1.0, 0], [0, 0]], [[0, 0], [0, 0]]]))
    torch.testing.assert_close(weight, torch.ones(2, 2, 2))
    mask[0, :8, 8:] = 1
    target, weight = patch_state(mask, 8)
    torch.testing.assert_close(target[0], torch.tensor([[0.0, 1], [0, 0]]))
    assert weight[0, 0, 0] == 0  # touched, but too little to count


def test_caption_loss_is_clip_s_where_each_caption_is_true_of_one_picture():
    torch.manual_seed(0)
    image, text = torch.randn(2, 5, 8).unbind()
    logits, index = 3 * image @ text.T, torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, index) + cross_entropy(logits.T, index)) / 2
    torch.testing.assert_close(caption_loss(image, text, torch.eye(5) > 0, torch.tensor(3.0)), expected)


def test_auroc_counts_ties_half():
    score, label = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1])
    assert auroc(score, label) == pytest.approx(0.875)


@pytest.mark.slow
def test_export_and_expand_give_back_the_model(net, tmp_path):
    path = tmp_path / "tiny_clip.safetensors"
    ids = caption_token_ids()
    export(net.clip.state_dict(), ids, path, {"seed": "0"})
    assert path.stat().st_size <= 10_000_000
    tensors = load_file(path)
    assert tensors["token_ids"].dtype == torch.int32
    table = expand_vocabulary(tensors, VOCABULARY_SIZE)["token_embedding.weight"]
    assert table.shape == (49408, 128)
    torch.testing.assert_close(table[ids[5]], tensors["token_embedding.weight"][5].float())
    unlisted = next(i for i in range(49408) if i not in set(ids))
    torch.testing.assert_close(table[unlisted], tensors["token_embedding.unknown"].float())

    clip = load_exported(path)
    texts = ["without defect.", "a photo of a zebra with damage.", "a red box"]
    image = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        text = clip.encode_text(open_clip.get_tokenizer("tiny-8-112")(texts), normalize=True)
        torch.testing.assert_close(text, net.encode_text(texts), rtol=0, atol=0.01)
        seen = clip.encode_image((image - net.mean) / net.std, normalize=True)
        torch.testing.assert_close(seen, net.encode_image(image, (8,))[0], rtol=0, atol=0.01)


def test_export_refuses_a_table_that_does_not_fit(net, tmp_path):
    with pytest.raises(ValueError, match="rows"):
        export(net.clip.state_dict(), [1, 2], tmp_path / "x.safetensors", {})


def test_the_vision_tower_starts_near_comparing_and_subtracting_what_looks_alike(net):
    visual = net.clip.visual
    width = visual.conv1.out_channels
    torch.testing.assert_close(
        visual.conv1.weight.flatten(1) @ visual.conv1.weight.flatten(1).T, torch.eye(width), rtol=0, atol=1e-4
    )
    for block in visual.transformer.resblocks:
        query, key, value = (part.detach() for part in block.attn.in_proj_weight.chunk(3))
        moved = block.attn.out_proj.weight.detach() @ value
        head = width // block.attn.num_heads
        alike = query[:head].T @ key[:head]
        assert 0 < alike.trace() < width
        assert -0.5 * width < moved.trace() < -0.3 * width  # 0.4 of the identity, as in the reference


def test_the_probe_answers_by_direction_alone():
    probe = StateProbe(16, temperature=0.5)
    tokens = torch.randn(2, 3, 16)
    torch.testing.assert_close(probe(5 * tokens + 1), probe(tokens))
    assert probe(tokens).detach().abs().max() <= 2  # 1 / temperature


@pytest.mark.slow
def test_every_weight_is_trained_by_one_rule(pairs, settings):
    module = Pretraining(settings, pairs, pairs)
    matrices, rest = module.configure_optimizers()["optimizer"].param_groups
    names = {id(p): name for name, p in [*module.net.named_parameters(), *module.probe.named_parameters()]}
    assert sorted(names) == sorted(id(p) for group in (matrices, rest) for p in group["params"])
    assert all("resblocks" in names[id(p)] and p.ndim == 2 for p in matrices["params"])
    assert rest["use_fallback"]


@pytest.mark.slow
def test_a_few_steps_reduce_the_loss(pairs, settings):
    torch.manual_seed(0)
    module = Pretraining(settings, pairs, pairs)
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 5e-4
    batch, losses = make_batch(pairs, 0, settings), []
    for _ in range(8):
        terms = module.losses(batch, 0)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        losses.append(float(terms["total"].detach()))
    assert losses[-1] < 0.85 * losses[0]
