"""Maps a function over many items in threads, with a limited number of items in progress."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 256
"""Largest number of items that are in progress or finished but not yet taken. `ThreadPoolExecutor.map` has no limit."""


def mapped(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields the results of a function for each item, in order. The threads wait for a slow consumer."""
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) >= AHEAD:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
