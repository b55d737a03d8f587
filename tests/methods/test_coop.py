"""CoOp and CoCoOp: their prompts against sentences composed by hand, the schedule, the inputs of their losses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.schedule import warmed_cosine
from afclip_lightning.methods.cocoop import CoCoOp
from afclip_lightning.methods.coop import CoOp
from afclip_lightning.types import Batch
from tests.support.methods import batch_of, data_of, score, take, trainer_of, with_masks

NAMES = ["cap", "metal nut"]
WORDS = ("normal", "anomalous")


def named(batch: Batch) -> Batch:
    """Returns the batch with class names."""
    samples = [replace(sample, class_name=NAMES[i % 2]) for i, sample in enumerate(batch.samples)]
    return replace(batch, samples=samples)


def by_hand(backbone: ClipBackbone, tokens: Tensor, sentence: str) -> Tensor:
    """Returns the embedding `[D]` of learnable tokens `[n, width]` between the start token and a sentence."""
    ids = backbone.tokenize([sentence])
    end = int(backbone.ends(ids)) + len(tokens)
    words = backbone.text.token_embedding(ids[0])
    prompt = torch.cat([words[:1], tokens, words[1:]])[: backbone.text.context_length]
    return F.normalize(backbone.text(prompt[None], torch.tensor([end]))[0], dim=-1)


@torch.no_grad()
def test_coop_says_learnt_tokens_a_state_and_the_category(tiny: ClipBackbone) -> None:
    model, batch = CoOp(tiny), named(batch_of())
    assert model.prompts.tokens.shape == (1, 16, tiny.text.width)
    text = model.embed_text(batch.samples)
    for row, sample in enumerate(batch.samples):
        for state, word in enumerate(WORDS):
            expected = by_hand(tiny, model.prompts.tokens[0], f"{word} {sample.class_name}.")
            torch.testing.assert_close(text[row, state], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_cocoop_shifts_the_tokens_of_each_image(tiny: ClipBackbone) -> None:
    torch.manual_seed(0)
    model, batch = CoCoOp(tiny), named(batch_of())
    start = tiny.text.token_embedding(tiny.tokenize(["a photo of a"]))[0, 1:5]
    assert torch.equal(model.prompts.tokens[0], start)
    features = model.extract(batch)
    assert features.image_embedding is not None
    text = model.embed_text(features, batch.samples)
    first, _, second = model.shift_network
    for row, sample in enumerate(batch.samples):
        image = features.image_embedding[row] / features.image_embedding[row].norm()
        hidden = (first.weight @ image + first.bias).clamp(min=0)
        tokens = start + (second.weight @ hidden + second.bias)
        for state, word in enumerate(WORDS):
            expected = by_hand(tiny, tokens, f"{word} {sample.class_name}.")
            torch.testing.assert_close(text[row, state], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_scores_and_maps_are_probabilities_of_the_two_texts(tiny: ClipBackbone) -> None:
    model, batch = CoOp(tiny).eval(), named(batch_of(2))
    scores, maps = score(model, batch)
    text, features = model.embed_text(batch.samples), model.extract(batch)
    assert features.image_embedding is not None
    image = F.normalize(features.image_embedding, dim=-1)
    for row in range(2):
        expected = torch.softmax(100 * text[row] @ image[row], dim=0)[1]
        torch.testing.assert_close(scores[row], expected, rtol=0, atol=1e-4)
    patches = tiny.embed_tokens(features.tokens[0][:, 1:])
    corner = torch.softmax(100 * text[0] @ patches[0, 0], dim=0)[1]
    torch.testing.assert_close(maps[0, 0, 0], corner, rtol=0, atol=1e-4)  # a pixel beyond the first patch's centre


@pytest.mark.parametrize("method", [CoOp, CoCoOp])
def test_the_loss_is_of_image_labels_alone(tiny: ClipBackbone, method: type[CoOp] | type[CoCoOp]) -> None:
    torch.manual_seed(0)
    model, batch = method(tiny), named(batch_of())
    features = model.extract(batch)
    every = model.loss(features, batch)["total"]
    assert torch.equal(every, model.loss(features, with_masks(batch, [False] * 4))["total"])
    logits = model.logits(features, batch)[:, 0]
    by_image = [-logits[i].log_softmax(0)[label] for i, label in enumerate(batch.label.tolist())]
    torch.testing.assert_close(every, torch.stack(by_image).mean())
    half = take(batch, [0, 1])
    assert not torch.equal(model.loss(model.extract(half), half)["total"], every)


def test_the_first_epoch_is_slow_and_the_others_are_on_a_half_cosine() -> None:
    rates = [warmed_cosine(2e-3, 1e-5, epoch, 4) for epoch in range(4)]
    assert rates == pytest.approx([1e-5, 2e-3, 2e-3 * (1 + 0.5**0.5) / 2, 1e-3])
    assert warmed_cosine(2e-3, 1e-5, 0, 1) == 2e-3
    assert warmed_cosine(2e-3, 1e-5, 3, -1) == 2e-3


@pytest.mark.slow
def test_a_fit_follows_the_schedule(tmp_path: Path, tiny: ClipBackbone) -> None:
    model = CoOp(tiny, prompt_tokens=2)
    data, trainer = data_of(tmp_path, model), trainer_of(tmp_path, enable_checkpointing=False)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, data.train_dataloader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(warmed_cosine(2e-3, 1e-5, 2, 3))


def test_words_to_start_from_must_be_as_many_as_the_tokens(tiny: ClipBackbone) -> None:
    with pytest.raises(ValueError, match="'a photo of a', are 4 tokens of this text tower, and there are 3"):
        CoCoOp(tiny, prompt_tokens=3)


@pytest.mark.parametrize("method", [CoOp, CoCoOp])
def test_bad_arguments_are_refused(tiny: ClipBackbone, method: type[CoOp] | type[CoCoOp]) -> None:
    with pytest.raises(ValueError, match="temperature and prompt_tokens must be positive"):
        method(tiny, temperature=0.0)
    with pytest.raises(ValueError, match="warmup_lr must not be negative"):
        method(tiny, warmup_lr=-1.0)
