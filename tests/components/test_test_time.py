"""A batch of adapters trains like each adapter alone, in any gradient and precision mode."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.components.test_time import BatchAdapters, TestTimeAdapter

B, N, D, K = 5, 6, 8, 12


def loss(adapters: BatchAdapters, tokens: Tensor, wanted: Tensor) -> Tensor:
    return (F.normalize(adapters(tokens), dim=-1) - wanted).square().mean(dim=(1, 2))


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens, wanted = torch.randn(2, B, N, D, generator=generator).unbind(0)
    return 3 * tokens, F.normalize(wanted, dim=-1)


@pytest.fixture(params=[False, True], ids=["linear", "prompts"])
def prompts(request: pytest.FixtureRequest) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    return F.normalize(torch.randn(B, K, D, generator=generator), dim=-1) if request.param else None


def adapter_of(prompts: Tensor | None, **arguments: Any) -> TestTimeAdapter:
    return TestTimeAdapter(D, D if prompts is None else K, **{"steps": 5, "learning_rate": 1e-2, **arguments})


def test_a_batch_equals_one_by_one(tensors: tuple[Tensor, Tensor], prompts: Tensor | None) -> None:
    adapter = adapter_of(prompts)
    together = adapter.train_each(loss, tensors, prompts)
    for i in range(B):
        own = None if prompts is None else prompts[i : i + 1]
        alone = adapter.train_each(loss, [tensor[i : i + 1] for tensor in tensors], own)
        for ours, theirs in ((together.weight, alone.weight), (together.bias, alone.bias)):
            torch.testing.assert_close(ours[i], theirs[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.stack(together.losses)[:, i], torch.stack(alone.losses)[:, 0])
    assert (together.weight[0] - together.weight[1]).abs().max() > 1e-3  # each went its own way


def test_it_equals_torch_layers_with_an_optimiser_each(tensors: tuple[Tensor, Tensor], prompts: Tensor | None) -> None:
    adapter = adapter_of(prompts, residual=0.3, weight_decay=0.1)
    trained = adapter.train_each(loss, tensors, prompts)
    for i, (tokens, wanted) in enumerate(zip(*tensors, strict=True)):
        layer = nn.Linear(D, len(adapter.bias))
        with torch.no_grad():
            layer.weight.copy_(adapter.weight)
            layer.bias.copy_(adapter.bias)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
        for step in range(5):
            change = layer(F.normalize(tokens, dim=-1))
            if prompts is not None:
                change = change.tanh() @ prompts[i]
            error = (F.normalize(0.3 * tokens + 0.7 * change, dim=-1) - wanted).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            torch.testing.assert_close(trained.losses[step][i], error.detach())
        torch.testing.assert_close(trained.weight[i], layer.weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(trained.bias[i], layer.bias, rtol=1e-4, atol=1e-6)


def test_order_and_company_change_nothing(tensors: tuple[Tensor, Tensor], prompts: Tensor | None) -> None:
    adapter, order = adapter_of(prompts), [3, 0, 4, 2, 1]
    first = adapter.train_each(loss, tensors, prompts)
    permuted = [tensor[order] for tensor in tensors]
    second = adapter.train_each(loss, permuted, None if prompts is None else prompts[order])
    torch.testing.assert_close(second.weight, first.weight[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter.train_each(loss, tensors, prompts).weight, first.weight, rtol=0, atol=0)


@pytest.mark.parametrize("around", [
    torch.inference_mode, torch.no_grad, nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16),
], ids=["inference_mode", "no_grad", "nothing", "autocast"])  # fmt: skip
def test_whatever_is_on_around_it(
    around: Callable[[], Any], tensors: tuple[Tensor, Tensor], prompts: Tensor | None
) -> None:
    adapter = adapter_of(prompts)
    expected = adapter.train_each(loss, tensors, prompts)
    tokens, wanted = (tensor.clone() for tensor in tensors)
    with around():
        trained = adapter.train_each(loss, (tokens * 1, wanted * 1), prompts)  # made in here, as features are
        adapted = trained(tokens)
    torch.testing.assert_close(trained.weight, expected.weight, rtol=0, atol=0)
    torch.testing.assert_close(adapted.detach(), expected(tokens).detach(), rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_adapters_alone(tensors: tuple[Tensor, Tensor], prompts: Tensor | None) -> None:
    adapter = adapter_of(prompts)
    tokens, wanted = (tensor.clone().requires_grad_() for tensor in tensors)
    before = [tensor.clone() for tensor in (tokens, wanted, adapter.weight, adapter.bias)]
    adapters = adapter.train_each(loss, (tokens, wanted), prompts)
    assert tokens.grad is wanted.grad is None
    for tensor, old in zip((tokens, wanted, adapter.weight, adapter.bias), before, strict=True):
        assert torch.equal(tensor, old)
    assert adapters.weight.grad is not None
    assert adapters.bias.grad is not None
    assert not list(adapter.parameters())
    assert not adapter.state_dict()


def test_no_step_leaves_the_start(tensors: tuple[Tensor, Tensor], prompts: Tensor | None) -> None:
    for change in ({"steps": 0}, {"learning_rate": 0.0}):
        adapter = adapter_of(prompts, **change)
        trained = adapter.train_each(loss, tensors, prompts)
        assert torch.equal(trained.weight, adapter.weight.expand_as(trained.weight))
        assert len(trained.losses) == adapter.steps


def test_zero_keeps_the_directions(tensors: tuple[Tensor, Tensor]) -> None:
    trained = TestTimeAdapter(D, D, "zero", steps=0).train_each(loss, tensors)
    torch.testing.assert_close(F.normalize(trained(tensors[0]), dim=-1), F.normalize(tensors[0], dim=-1))


def test_the_start_is_that_of_a_linear_layer_and_seeded() -> None:
    adapter = TestTimeAdapter(400, 300, seed=1)
    assert torch.equal(adapter.weight, TestTimeAdapter(400, 300, seed=1).weight)
    assert not torch.equal(adapter.weight, TestTimeAdapter(400, 300, seed=2).weight)
    layer = nn.Linear(400, 300)
    for ours, theirs in ((adapter.weight, layer.weight), (adapter.bias, layer.bias)):
        assert ours.shape == theirs.shape
        assert 0.045 < ours.abs().max() <= 0.05
        torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.1, atol=0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"start": "ones"}, "start must be one of linear, zero, got 'ones'"),
    ({"residual": 1.0}, r"residual must be at least 0 and below 1, got 1.0"),
    ({"steps": -1}, "must not be negative, got -1"),
    ({"learning_rate": -0.1}, "must not be negative"),
    ({"weight_decay": -0.1}, "must not be negative"),
])  # fmt: skip
def test_arguments_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TestTimeAdapter(D, D, **changes)
