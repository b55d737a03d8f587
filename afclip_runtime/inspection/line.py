"""The loop of `inspect --watch DIR`: new files are inspected, messages are queued, and files are moved."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.errors import UserError, WriteError
from afclip_runtime.inspection.folder import drift_of, judge
from afclip_runtime.inspection.inputs import Input, input_below
from afclip_runtime.inspection.moving import Mover
from afclip_runtime.inspection.retry import pause_after
from afclip_runtime.inspection.table import Record, Table
from afclip_runtime.inspection.watching import WatchedFolder
from afclip_runtime.inspection.webhook import Webhook, image_message

if TYPE_CHECKING:
    from afclip_runtime.inspection.drift import Drift
    from afclip_runtime.inspection.folder import Keep, Observer
    from afclip_runtime.inspection.inspector import Inspector
    from afclip_runtime.inspection.verdict import Inspection

CHUNK = 64  # number of images after which written data is flushed to disk, and files are moved
STEP = 0.2  # seconds between two checks in a pause whether to stop


@dataclass
class Line:
    """Watches a folder, and inspects new files.

    The steps per image are: save its pictures, queue its message, write its row, call the observers, move its file. A
    killed process can continue after any step. An image without a row is inspected again, its message gets the same id,
    and the row tells the destination of the file.

    If something cannot be written, because the disk is full or a folder is not mounted, it is tried again until it can.

    Attributes:
        models: Models by name.
        watched: The folder.
        table: Table of the output, open.
        out: Output folder.
        saves: Kinds of pictures to write.
        num_workers: Number of decoding threads.
        poll: Seconds between two scans of the folder.
        idle: Seconds without a new file after which the watch ends; `None` for never.
        say: Function that receives a message when a fault stops the watch, and when it continues.
        stopped: Function that returns whether the watch shall end.
        ignore: Patterns of names of files that are silently left out.
        keeps: See `folder.inspect`.
        observers: See `folder.inspect`.
        mover: Moves inspected files; `None` for no moves.
        webhook: Sends one message per row; `None` for no messages.
        scope: See `image_message`.
        alive: Function that is called regularly, as a sign of life.
        clock: Monotonic clock, in seconds.
        sleep: Function that waits for a number of seconds.
        new: Number of inspections so far.
        failed: Number of them with an error, without files that were left out.
        left_out: Number of files of a kind that is not read.
        drifts: Per model, the drift of the stream from the normal images of its calibration.
    """

    models: "Mapping[str, Inspector]"
    watched: WatchedFolder
    table: Table
    out: Path
    saves: Sequence[str]
    num_workers: int
    poll: float
    idle: float | None
    say: Callable[[str], None]
    stopped: Callable[[], bool]
    ignore: Sequence[str] = ()
    keeps: "Sequence[Keep]" = ()
    observers: "Sequence[Observer]" = ()
    mover: Mover | None = None
    webhook: Webhook | None = None
    scope: str = ""
    alive: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    new: int = 0
    failed: int = 0
    left_out: int = 0
    drifts: "dict[str, Drift]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._compare()
        self._drifted: set[str] = set()

    def _compare(self) -> None:
        """Computes the drifts from the rows of the table."""
        several = len(self.models) > 1
        for name, model in self.models.items():
            self.drifts[name] = drift_of(model, name if several else None, self.table)

    def run(self) -> None:
        """Watches until `stopped` returns true, or until no new file has appeared for `idle` seconds.

        Raises:
            WriteError: The folder of the output cannot be written to for longer than `idle`.
            UserError: A model needs few-shot images first, or the queue of messages is damaged.
        """
        todo: dict[str, Input] = {}
        worked, failures, since = self.clock(), 0, 0.0
        while not self.stopped():
            self.alive()
            had_work = False
            try:
                self._settle()  # before the scan: files that an earlier run inspected but did not move are not new
                asked = self.clock()
                found = (input_below(self.watched.folder, path, self.ignore) for path in self.watched.look())
                todo |= {item.key: item for item in found if item is not None}
                had_work = bool(todo)
                self._judge(todo)
            except WriteError as error:
                since = since if failures else self.clock()
                if self.idle is not None and self.clock() - since >= self.idle:
                    raise
                failures += 1
                self._compare()  # an image whose row could not be written is inspected again, and counts once
                if failures == 1:
                    self.say(f"{error} The rest is done when writing is possible again; nothing is lost.")
                self._pause(pause_after(failures))
                continue
            if failures:
                failures = 0
                self.say("Writing is possible again.")
            if had_work:
                worked = self.clock()
                self._pause(self.watched.pause(0))
                continue
            waited = asked - max(self.watched.changed, worked)
            if self.idle is not None and waited >= max(self.idle, self.watched.quiet):
                break
            self._pause(self.watched.pause(self.poll))

    def _judge(self, todo: dict[str, Input]) -> None:
        """Inspects files, and removes them from `todo` when their rows are written.

        Raises:
            WriteError: Something cannot be written. The files left in `todo` were not inspected by all models.
        """
        several = len(self.models) > 1
        for number, (name, model) in enumerate(self.models.items(), 1):
            method = name if several else None
            place = self.out / name if several else self.out
            drift = self.drifts[name]
            due = self.table.todo(todo.values(), method)
            for start in range(0, len(due), CHUNK):
                chunk = due[start : start + CHUNK]
                threads = min(self.num_workers, len(chunk) - 1)
                judged = judge(model, method, chunk, self.table, place, self.saves, threads, drift, self.keeps)
                for item, row, outcome in judged:
                    self._write(row, outcome, item.left_out)
                    self._tell(name)
                    self.alive()
                    if number == len(self.models):
                        del todo[item.key]
                    if self.stopped():
                        break
                self._settle()
                if self.stopped():
                    return
        todo.clear()

    def _write(self, row: Record, outcome: "Inspection | UserError", left_out: bool) -> None:
        if self.mover:
            row = self.mover.plan(row)
        if self.webhook:
            self.webhook.put(
                *image_message(row, self.scope)
            )  # before the row: an image with a row is not inspected again
        self.table.add(row)
        if self.mover:
            self.mover.add(row)
        self.new += 1
        self.left_out += left_out
        self.failed += isinstance(outcome, UserError) and not left_out
        for observe in self.observers:
            observe(row, outcome)

    def _tell(self, name: str) -> None:
        """Reports once that a calibration no longer holds, and once that it holds again."""
        alarm = self.drifts[name].alarm
        if (alarm is None) == (name in self._drifted):
            self._drifted ^= {name}
            self.say(f"{name}: the scores are those of normal images again." if alarm is None else f"{name}: {alarm}")

    def _settle(self) -> None:
        """Flushes messages and rows to disk, and moves files."""
        if self.webhook:
            self.webhook.outbox.sync()
        if self.mover:
            self.mover.settle()

    def _pause(self, seconds: float) -> None:
        end = self.clock() + seconds
        while not self.stopped() and (rest := end - self.clock()) > 0:
            self.alive()
            self.sleep(min(rest, STEP))


@contextmanager
def until_signalled() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C or SIGTERM was received.

    A second signal raises KeyboardInterrupt.
    """
    import signal
    from types import FrameType

    heard: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
