"""The float64 runs that limits come from: no float32 is left in them, and roundings follow the computation."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.rounding import UNIT, float64


def scatter(compute: Callable[[Tensor], Tensor], value: Tensor) -> float:
    """Returns the distance of runs with random roundings from the exact run, relative to its largest value."""
    with float64():
        exact = compute(value)
    off = []
    for seed in range(4):
        with float64(seed):
            off.append((compute(value) - exact).abs().max())
    return float(max(off) / exact.abs().max())


def test_casts_to_float32_are_left_out_and_those_to_16_bits_are_not() -> None:
    value = torch.tensor([1.0, 3.0])
    with float64():
        third = (value.float() / 3).to(torch.float32)
        made = torch.zeros(2, dtype=torch.float32)
        half = third.half()
    assert third.dtype == made.dtype == torch.float64
    assert third[0] == 1 / 3
    assert half.dtype == torch.float16


def test_gradients_are_exact_too() -> None:
    weight = torch.nn.Parameter(torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).double())
    with float64():
        (weight.float() @ weight.T).softmax(-1)[:, 0].sum().backward()
    assert torch.autograd.gradcheck(lambda w: (w @ w.T).softmax(-1)[:, 0].sum(), weight)
    expected = torch.autograd.grad((weight @ weight.T).softmax(-1)[:, 0].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-13, atol=1e-15)


def test_what_is_written_to_keeps_its_place() -> None:
    with float64():
        value = torch.zeros(3)
        value.float()[1] = 2.0  # of a float32 tensor, `float` returns the tensor itself
    assert value.tolist() == [0, 2, 0]


def test_a_small_difference_of_large_numbers_is_known_less_well() -> None:
    value = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert scatter(lambda x: x.exp().sum(), value) < 8 * UNIT
    ill = scatter(lambda x: (x.exp() * 1e4 + 1).sum() - x.exp().sum() * 1e4, value)
    assert 1e-4 < ill < 10


def test_values_exact_in_float32_are_not_rounded() -> None:
    mask = torch.tensor([0.0, 1.0, 1.0, 0.0])
    with float64(0):
        assert (mask * 0.5).mean() == 0.25
        assert (mask / 3).mean() != torch.tensor(1 / 6, dtype=torch.float64)


def test_seeds_give_the_same_roundings_again() -> None:
    runs = []
    for seed in (1, 1, 2):
        with float64(seed):
            runs.append(torch.tensor([0.1, 0.2]).exp())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
