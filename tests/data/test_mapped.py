"""A function over many items in threads: in order, and few at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from afclip_lightning.data import mapped


def test_results_come_in_order_and_few_items_are_taken_ahead(monkeypatch):
    monkeypatch.setattr(mapped, "AHEAD", 4)
    taken = []

    def items():
        for i in range(40):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(2) as pool:
        for number, square in enumerate(mapped.mapped(pool, lambda i: i * i, items())):
            assert square == number**2
            assert len(taken) <= number + 4
        assert number == 39
        assert list(mapped.mapped(pool, str, [])) == []
        with pytest.raises(ZeroDivisionError):
            list(mapped.mapped(pool, lambda i: 1 / i, [1, 0]))
