"""CLIP and CLIP-AC: prompts, score and map against open_clip's own passes, arguments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.clip import CLIP
from afclip_lightning.prompts.templates import IMAGENET_TEMPLATES
from tests.support.clips import small_config
from tests.support.methods import TextCalls, batch_of, data_of, score, take, trainer_of

SENTENCES = {
    "clip_bare": (["normal a"], ["anomalous a"]),
    "clip_photo": (["A photo of a normal a"], ["A photo of an anomalous a"]),
    "clip_ac": tuple([t.format(f"{state} a") for t in IMAGENET_TEMPLATES] for state in ("normal", "anomalous")),
}


@pytest.mark.parametrize("prompts", SENTENCES)
def test_scores_and_maps_equal_those_by_hand(tiny: ClipBackbone, prompts: str) -> None:
    model, batch = CLIP(tiny, prompts=prompts), take(batch_of(), [0, 2])  # both of category `a`
    text = torch.stack([F.normalize(tiny.encode_text(s), dim=-1).mean(0) for s in SENTENCES[prompts]])
    text = F.normalize(text, dim=-1)
    x, _ = tiny.vision.embed(batch.image)
    for block in tiny.vision.blocks:
        x = block(x)
    tokens = F.normalize(tiny.vision.visual.ln_post(x) @ tiny.vision.visual.proj, dim=-1)
    difference = (tokens @ text[1] - tokens @ text[0]) / 0.07
    expected = torch.sigmoid(difference)
    patches = F.interpolate(expected[:, 1:].unflatten(1, tiny.grid)[:, None], size=(112, 112), mode="bilinear")
    scores, maps = score(model, batch)
    torch.testing.assert_close(scores, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps, patches[:, 0], rtol=1e-4, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(tiny: ClipBackbone) -> None:
    model, batch = CLIP(tiny), batch_of()
    scores, maps = score(model, batch)
    for rows in ([2, 0, 3, 1], [1], [3, 2]):
        part = score(model, take(batch, rows))
        torch.testing.assert_close(part[0], scores[rows], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(part[1], maps[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scores_are_float32_in_mixed_precision(tiny: ClipBackbone) -> None:
    model, batch = CLIP(tiny), batch_of()
    exact = score(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = score(model, batch)
    for a, b in zip(mixed, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0.03)


def test_the_order_of_scores_does_not_depend_on_the_temperature(tiny: ClipBackbone) -> None:
    batch = batch_of(4)
    batch = replace(batch, samples=[replace(sample, category="a") for sample in batch.samples])
    orders = [score(CLIP(tiny, temperature=t), batch)[0].argsort().tolist() for t in (0.01, 0.07, 1.0)]
    assert orders[0] == orders[1] == orders[2]


def test_names_are_the_categories_or_their_class_names(tiny: ClipBackbone) -> None:
    samples = [replace(sample, class_name="hex nut") for sample in batch_of(2).samples]
    by_category, by_class_name = CLIP(tiny).text(samples), CLIP(tiny, names="class_name").text(samples)
    assert (by_category[0] - by_category[1]).abs().max() > 1e-4
    assert torch.equal(by_class_name[0], by_class_name[1])


def test_a_pass_embeds_each_category_once(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    model = CLIP(backbone)
    assert not model.trainable_names()
    data, trainer = data_of(tmp_path, model), trainer_of(tmp_path, enable_checkpointing=False)
    calls = TextCalls(backbone)
    trainer.test(model, data, verbose=False)
    assert calls.count == 2
    assert not model.text.kept
    calls.handle.remove()


@pytest.mark.parametrize("arguments", [{"prompts": "clip"}, {"names": "folder"}, {"temperature": 0.0}])
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        CLIP(tiny, **arguments)
