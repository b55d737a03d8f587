"""The memory bank: left-out images, typical distances, tensors for a head file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from afclip_lightning.components.memory import KEPT, MemoryBank
from afclip_runtime.errors import CheckpointError
from tests.reference.neighbours_naive import half_cosine_distance

KEY = ("d", "a")


def tokens(images: int = 3, patches: int = 4, width: int = 5) -> Tensor:
    return torch.randn(images, 1 + patches, width)


def fitted(sets: list[Tensor], most: int | None = None, values: tuple[Tensor, ...] = ()) -> MemoryBank:
    memory = MemoryBank(most)
    memory.fit(KEY, sets, values)
    return memory


def test_rows_are_compared_with_those_of_other_images() -> None:
    given = tokens()
    found = fitted([given]).left_out(KEY, 0)
    rows = [(image, patch.double().numpy()) for image, one in enumerate(given) for patch in one[1:]]
    expected = [min(half_cosine_distance(a, b) for j, b in rows if j != i) for i, a in rows]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_single_image_is_compared_with_itself_and_no_patch_with_itself() -> None:
    found = fitted([tokens(images=1)]).left_out(KEY, 0)
    assert (found > 1e-4).all()


def test_typical_values_are_mean_and_deviation_per_set() -> None:
    value = torch.rand(3, 4)
    memory = fitted([tokens(), tokens()], values=(value,))
    expected = [(d.mean(), d.std()) for d in (memory.left_out(KEY, 0), memory.left_out(KEY, 1), value)]
    torch.testing.assert_close(memory.spread(KEY), torch.tensor(expected))


def test_the_mean_distance_is_over_the_sets_in_order() -> None:
    memory, query = fitted([tokens(), tokens(patches=6)]), [tokens(2), tokens(2)]
    expected = (memory.distance([KEY] * 2, 0, query[0]) + memory.distance([KEY] * 2, 1, query[1])) / 2
    torch.testing.assert_close(memory.mean_distance([KEY] * 2, iter(query)), expected)


def test_a_memory_without_images_is_that_of_the_others() -> None:
    given, value = tokens(), torch.rand(3, 4)
    rest = fitted([given], values=(value,)).without(KEY, [1])
    others = fitted([given[[0, 2]]])
    query = tokens(1)
    torch.testing.assert_close(rest.distance([KEPT], 0, query), others.distance([KEY], 0, query))
    torch.testing.assert_close(rest.spread(KEPT)[:1], others.spread(KEY))
    torch.testing.assert_close(rest.spread(KEPT)[1], torch.stack([value.mean(), value.std()]))
    with pytest.raises(ValueError, match="no few-shot image is left"):
        fitted([given]).without(KEY, [0, 1, 2])


def test_images_in_parts_are_one_owner_each() -> None:
    given = tokens(images=4)
    memory = MemoryBank()
    memory.fit_parts(KEY, [[given[:2]], [given[2:3], given[3:]]], lambda key, part: memory.fit(key, [part]))
    torch.testing.assert_close(memory.banks[KEY][0], fitted([given]).banks[KEY][0])
    assert memory.owners[KEY][0].tolist() == [0] * 8 + [1] * 8


def test_a_bank_has_no_more_rows_than_it_may() -> None:
    given = tokens(images=10)
    memory, again = fitted([given, given], most=12), fitted([given, given], most=12)
    assert len(memory.banks[KEY][0]) == 12
    assert torch.equal(memory.banks[KEY][0], memory.banks[KEY][1])
    assert torch.equal(memory.banks[KEY][0], again.banks[KEY][0])
    assert memory.owners[KEY][0].unique().numel() > 3


def test_a_kept_bank_serves_every_category() -> None:
    memory = fitted([tokens(), tokens()], values=(torch.rand(3, 4),))
    kept = MemoryBank()
    kept.keep(memory.to_tensors(KEY))
    query = tokens(1)
    for index in (0, 1):
        wanted = memory.distance([KEY], index, query)
        torch.testing.assert_close(kept.distance([("x", "y")], index, query), wanted, rtol=0, atol=1e-3)
    torch.testing.assert_close(kept.spread(("x", "y")), memory.spread(KEY))
    kept.fit_missing([("x", "y")], None, lambda key, image: pytest.fail("it has a bank"))  # type: ignore[arg-type]
    kept.reset()
    assert kept.is_kept
    kept.clear()
    assert not kept.is_kept


@pytest.mark.parametrize("wrong", ["owner.0", "bank.0", "spread", "more", "few owners", "flat"])
def test_a_damaged_bank_is_refused(wrong: str, tmp_path: Path) -> None:
    tensors = fitted([tokens()]).to_tensors(KEY)
    if wrong == "more":
        tensors["scores"] = torch.zeros(2)
    elif wrong == "few owners":
        tensors["owner.0"] = tensors["owner.0"][:-1]
    elif wrong == "flat":
        tensors["bank.0"] = tensors["bank.0"].flatten()
    else:
        del tensors[wrong]
    with pytest.raises(CheckpointError, match="memory bank of the head is damaged"):
        MemoryBank().keep(tensors)
