"""Adapters and memory against implementations with loops."""

from functools import partial

import numpy as np
import pytest
import torch

from afclip_lightning.components.adapters import AttentionAdapter, aggregate_neighbours, aggregate_patches, attend
from afclip_lightning.components.cross_attention import Attention, normed_linear
from afclip_lightning.components.memory import MemoryBank
from tests.reference import afclip_naive as naive


@pytest.mark.parametrize("window", [1, 3, 5, 7])
def test_aggregation_equals_the_loop_and_keeps_the_class_token(window: int) -> None:
    tokens = torch.randn(2, 1 + 4 * 6, 3)
    out = aggregate_neighbours(tokens, (4, 6), window, 4.0)
    torch.testing.assert_close(out[:, 0], tokens[:, 0])
    expected = [naive.aggregate(t.double().numpy()[1:], (4, 6), window, 4.0) for t in tokens]
    torch.testing.assert_close(out[:, 1:], torch.from_numpy(np.stack(expected)).float(), rtol=1e-5, atol=1e-6)


def test_adapter_equals_the_loop() -> None:
    torch.manual_seed(0)
    adapter = AttentionAdapter(width=6, heads=2, head_width=3).double()
    torch.nn.init.normal_(adapter.norm.weight)
    tokens = torch.randn(1, 5, 6, dtype=torch.float64)
    x = tokens[0].numpy()
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    normed = normed * adapter.norm.weight.detach().numpy() + adapter.norm.bias.detach().numpy()
    q, k, v = (layer.weight.detach().numpy() for layer in (adapter.to_q, adapter.to_k, adapter.to_v))
    mixed = naive.attention(normed, q, k, v, heads=2)
    expected = mixed @ adapter.to_out.weight.detach().numpy().T + adapter.to_out.bias.detach().numpy()
    torch.testing.assert_close(adapter(tokens, [lambda tokens: tokens])[0][0], torch.from_numpy(expected))


def test_projecting_before_mixing_changes_nothing() -> None:
    torch.manual_seed(0)
    adapter = AttentionAdapter(width=6, heads=2, head_width=3).double()
    for parameter in adapter.norm.parameters():
        torch.nn.init.normal_(parameter)
    tokens = 100 + 9 * torch.randn(2, 1 + 4 * 4, 6, dtype=torch.float64)
    mixtures = [partial(aggregate_patches, grid=(4, 4), window=window, sigma=1.0) for window in (1, 3, 5)]
    for mix, adapted in zip(mixtures, adapter(tokens, mixtures), strict=True):
        normed = adapter.norm(torch.cat([tokens[:, :1], mix(tokens[:, 1:])], dim=1))
        mixed = attend(adapter.to_q(normed), adapter.to_k(normed), adapter.to_v(normed), adapter.heads)
        torch.testing.assert_close(adapted, adapter.to_out(mixed))


def test_memory_distance_equals_the_loop_and_is_zero_for_what_it_holds() -> None:
    memory = MemoryBank()
    sets = [torch.randn(2, 1 + 4, 3), torch.randn(2, 1 + 4, 5)]
    memory.fit(("d", "a"), sets)
    memory.fit(("d", "b"), [tokens.flip(0) + 1 for tokens in sets])
    queries = torch.randn(2, 1 + 4, 5)
    bank_a, bank_b = sets[1][:, 1:].flatten(0, 1), (sets[1].flip(0) + 1)[:, 1:].flatten(0, 1)
    expected = [
        naive.nearest_distance(queries[0, 1:].double().numpy(), bank_b.double().numpy()),
        naive.nearest_distance(queries[1, 1:].double().numpy(), bank_a.double().numpy()),
    ]
    actual = memory.distance([("d", "b"), ("d", "a")], 1, queries)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(memory.distance([("d", "a")] * 2, 0, sets[0]), torch.zeros(2, 4), rtol=0, atol=1e-6)
    memory.reset([("d", "a")])
    assert list(memory.banks) == [("d", "b")]


def test_shorter_ways_through_an_attention_have_its_results_and_gradients() -> None:
    torch.manual_seed(0)
    attention = Attention(6, heads=2).double()
    few, many = (torch.randn(2, n, 6, dtype=torch.float64, requires_grad=True) for n in (2, 9))
    layers = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 4)).double()
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter)
    for short, whole, module in (
        (attention.of_few(many, few), attention(many, few), attention),
        (attention.of_many(few, many), attention(few, many), attention),
        (normed_linear(layers, many), layers(many), layers),
    ):
        leaves = [*module.parameters(), many]
        found, expected = ((out, *torch.autograd.grad(out.square().sum(), leaves)) for out in (short, whole))
        torch.testing.assert_close(found, expected)
