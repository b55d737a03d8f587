"""Sentences to embeddings: the two rules of averaging against loops."""

from pathlib import Path

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.prompts.ensemble import CategoryText, Rule, average_states, embed_states
from afclip_lightning.types import Sample

NORMAL = ["a photo of a nut", "a photo of a flawless nut", "a nut"]
ABNORMAL = ["a photo of a nut with damage", "a broken nut"]


def average_with_loops(rows: np.ndarray, rule: str) -> np.ndarray:
    total = np.zeros(rows.shape[1])
    for row in rows:
        total += row / np.sqrt((row**2).sum()) if rule == "norm_mean_norm" else row
    mean = total / len(rows)
    return mean / np.sqrt((mean**2).sum())


@pytest.mark.parametrize("rule", ["mean_then_norm", "norm_mean_norm"])
def test_states_equal_the_loop_over_single_sentences(tiny: ClipBackbone, rule: Rule) -> None:
    rows = [
        average_with_loops(torch.cat([tiny.encode_text([prompt]) for prompt in prompts]).double().numpy(), rule)
        for prompts in (NORMAL, ABNORMAL)
    ]
    embedded = embed_states(tiny, NORMAL, ABNORMAL, rule)
    torch.testing.assert_close(embedded, torch.from_numpy(np.stack(rows)).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))


def test_the_rules_differ_where_lengths_do() -> None:
    normal, abnormal = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    by_length = average_states(normal, abnormal, "mean_then_norm")
    torch.testing.assert_close(by_length, torch.tensor([[3 / 10**0.5, 1 / 10**0.5], [0.0, 1.0]]))
    torch.testing.assert_close(average_states(normal, abnormal, "norm_mean_norm")[0], torch.full((2,), 0.5**0.5))


def test_text_of_an_inference_pass_can_be_adapted_to(tiny: ClipBackbone) -> None:
    with torch.inference_mode():
        embedded = embed_states(tiny, NORMAL, ABNORMAL, "mean_then_norm")
    assert not embedded.requires_grad
    weight = torch.ones(embedded.shape[1], requires_grad=True)
    (embedded @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, embedded.sum(dim=0))


def test_bad_arguments_are_named(tiny: ClipBackbone) -> None:
    with pytest.raises(ValueError, match="each state needs a sentence, got 3 normal and 0 abnormal"):
        embed_states(tiny, NORMAL, [], "mean_then_norm")
    with pytest.raises(ValueError, match="rule must be one of mean_then_norm, norm_mean_norm, got 'mean'"):
        embed_states(tiny, NORMAL, ABNORMAL, "mean")  # type: ignore[arg-type]


def test_each_category_is_embedded_once_until_the_reset() -> None:
    asked: list[str] = []

    def embed(sample: Sample) -> torch.Tensor:
        asked.append(sample.class_name)
        return torch.full((2, 3), float(len(sample.class_name)))

    text = CategoryText(embed)
    nut, bolt, other = (
        Sample(dataset, category, "test", Path("x.png"), 0, class_name=class_name)
        for dataset, category, class_name in (("a", "nut", "hex nut"), ("a", "bolt", "bolt"), ("b", "nut", "walnut"))
    )
    assert text([nut, bolt, nut, other])[:, 0, 0].tolist() == [7, 4, 7, 6]
    assert text([other, nut]).shape == (2, 2, 3)
    assert asked == ["hex nut", "bolt", "walnut"]
    text.reset()
    text([bolt])
    assert asked == ["hex nut", "bolt", "walnut", "bolt"]
