"""A function over many items in threads, with few of them under way at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 256
"""Items that are under way, or wait to be taken; `ThreadPoolExecutor.map` would have all of them."""


def mapped(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields what a function makes of each item, in their order; a slow taker slows the threads."""
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) >= AHEAD:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
