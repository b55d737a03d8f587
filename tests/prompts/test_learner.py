"""Learnable prompts against whole sequences built token by token."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.prompts.learner import DeepTokens, NearestWord, ObjectPrompts, nearest_words
from tests.support.clips import SMALL, small_config


def embed_one(backbone: ClipBackbone, slots: list[Tensor], words: str, deep: Tensor) -> Tensor:
    """One prompt, filled to the context length, its deep tokens written in one by one; returns `[D]`."""
    text = backbone.text
    ids = backbone.tokenize([words])[0]
    embedded = list(text.token_embedding(ids))
    sequence = [embedded[0], *slots, *embedded[1:]][: text.context_length]
    end = len(slots) + int(ids.argmax())
    hidden = (torch.stack(sequence) + text.positional_embedding)[None]
    for index, block in enumerate(text.transformer.resblocks):
        if 1 <= index <= len(deep):
            hidden = hidden.clone()
            for position, token in enumerate(deep[index - 1]):
                hidden[0, 1 + position] = token
        hidden = block(hidden, attn_mask=text.attn_mask)
    return text.ln_final(hidden[0, end]) @ text.text_projection


@pytest.fixture
def backbone(tmp_path: Path) -> ClipBackbone:
    text = {**SMALL["text_cfg"], "layers": 4}
    return ClipBackbone(small_config(tmp_path, text_cfg=text), "random", image_size=None)


@pytest.mark.parametrize("compound", [True, False])
@pytest.mark.parametrize(("normal", "abnormal"), [("object.", "damaged object."), ("a plain object.", "object.")])
def test_prompts_equal_sequences_built_by_hand(
    backbone: ClipBackbone, compound: bool, normal: str, abnormal: str
) -> None:
    torch.manual_seed(0)
    deep = DeepTokens(backbone, depth=3, n_tokens=2, init_std=1.0)
    prompts = ObjectPrompts(backbone, normal, abnormal, 3, 2, 4, compound, deep, init_std=1.0)
    shared = list(prompts.normal_tokens[0]) if compound else []
    expected = [embed_one(backbone, list(prompts.normal_tokens[0]), normal, deep(1))]
    expected += [embed_one(backbone, shared + list(own), abnormal, deep(1)) for own in prompts.abnormal_tokens]
    torch.testing.assert_close(prompts(backbone), torch.stack(expected), rtol=1e-4, atol=1e-5)
    prior = torch.randn(2, backbone.text.width)
    adapted = prompts.adapted(backbone, prior)
    assert adapted.shape == (2, 4, 16)
    for row, bias in zip(adapted, prior, strict=True):
        for one, own in zip(row, prompts.abnormal_tokens, strict=True):
            alone = embed_one(backbone, shared + [token + bias for token in own], abnormal, deep(1))
            torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prompts.adapted(backbone, torch.zeros(1, 16))[0], prompts(backbone)[1:])


def test_deep_tokens_are_rounded_only_if_asked(backbone: ClipBackbone) -> None:
    torch.manual_seed(0)
    plain, rounded = DeepTokens(backbone, 3), DeepTokens(backbone, 3, half=True)
    assert torch.equal(torch.stack(plain(2)), plain.tokens)
    with torch.no_grad():
        given = torch.stack(rounded(2))
    assert torch.equal(given, rounded.tokens.half().float())
    assert not torch.equal(given, rounded.tokens)


def test_each_prompt_s_part_of_the_gradient_is_rounded(backbone: ClipBackbone) -> None:
    """As in the official codes: the sum of rounded parts, not the rounded sum."""
    deep = DeepTokens(backbone, 3, half=True)
    parts = torch.randn(2, 5, 4, 16, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(deep(5), list(parts))
    expected = parts.half().float().sum(1)
    torch.testing.assert_close(deep.tokens.grad, expected, rtol=0, atol=1e-6)
    assert (deep.tokens.grad - parts.sum(1).half().float()).abs().max() > 1e-4


def test_a_text_tower_that_is_not_causal_gets_whole_sequences(tmp_path: Path) -> None:
    vision = {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
    }
    text = {**SMALL["text_cfg"], "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    config = small_config(tmp_path, "last-pooled", vision_cfg=vision, text_cfg=text, custom_text=True)
    backbone = ClipBackbone(config, "random", image_size=32)
    prompts = ObjectPrompts(backbone, "object.", "damaged object.", 3, 2, 2)
    assert prompts(backbone).shape == (3, 16)
    lengths = {prompts.normal_words.shape[0] + 3, prompts.abnormal_words.shape[0] + 5}
    assert lengths == {backbone.text.context_length}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0, 2, 1), "at least 1, got 0"), ((3, 2, 0), "0 abnormal prompts"), ((80, 2, 1), "77, got")],
)
def test_bad_numbers_are_refused(backbone: ClipBackbone, numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectPrompts(backbone, "object.", "object.", *numbers)
    for depth in (1, 9):
        with pytest.raises(ValueError, match=f"within 2 to 4, or 1 for none of them, got {depth}"):
            DeepTokens(backbone, depth)


@torch.no_grad()
def test_nearest_words_of_tokens_made_of_words(backbone: ClipBackbone) -> None:
    prompts = ObjectPrompts(backbone, "object.", "damaged object.", 3, 2, 2)
    words = backbone.text.token_embedding(backbone.tokenize(["a metal scratch"])[0, 1:4])
    prompts.normal_tokens.copy_(0.01 * words)  # the length does not count
    prompts.abnormal_tokens[1, 0] = words[1] + 0.1 * words[2]
    found = nearest_words(backbone, torch.nn.ModuleDict({"prompts": prompts}))
    assert len(found) == (3 + 2 * 2) * 3
    best = {word[:3]: word for word in found if word.rank == 1}
    assert best["prompts.normal_tokens", 0, 0] == NearestWord("prompts.normal_tokens", 0, 0, 1, "a", 1.0)
    assert [best["prompts.normal_tokens", 0, token].word for token in range(3)] == ["a", "metal", "scratch"]
    assert best["prompts.abnormal_tokens", 1, 0].word == "metal"
    for first, second, third in zip(*[iter(found)] * 3, strict=True):
        assert first.cosine >= second.cosine >= third.cosine


@pytest.mark.slow
def test_words_without_an_embedding_of_their_own_are_no_nearest_words() -> None:
    embedded = ClipBackbone("tiny-8-112", "embedded", image_size=None)  # a small vocabulary, one row for all others
    prompts = ObjectPrompts(embedded, "object.", "damaged object.", 1, 1)
    table = embedded.text.token_embedding.weight
    rows, counts = table.unique(dim=0, return_counts=True)
    prompts.normal_tokens.data.copy_(rows[counts.argmax()])
    prompts.abnormal_tokens.data.copy_(table[embedded.tokenize(["damaged"])[0, 1]])
    found = nearest_words(embedded, prompts)
    assert counts.max() > 1000
    assert all(word.cosine < 1 for word in found if word.parameter == "normal_tokens")
    assert next(word for word in found if word.parameter == "abnormal_tokens").word == "damaged"
