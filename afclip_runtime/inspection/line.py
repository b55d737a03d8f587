"""The loop of `inspect --watch DIR`: files are judged as they come, messages are queued, and files are moved."""

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

CHUNK = 64  # images after which all that is written is brought to the disk itself, and files are moved
STEP = 0.2  # seconds after which a pause notices that it is to end


@dataclass
class Line:
    """Watches a folder, and judges what comes.

    Each image goes this way: its pictures are saved, its message is queued, its row is written, the observers are told,
    and its file is moved. A process that is killed anywhere goes on from there: an image without a row is judged again,
    its message has the same id, and the row says where the file goes.

    What cannot be written, because the disk is full or a folder is away, is tried again until it can be.

    Attributes:
        models: By name.
        watched: The folder.
        table: Of the output, open.
        out: Folder of the output.
        saves: Which pictures to write.
        num_workers: Threads that decode.
        poll: Seconds between looks.
        idle: Seconds without a new file after which the watch ends; `None` for never.
        say: Is told of what keeps the watch from going on, and when it goes on.
        stopped: Whether the watch is to end.
        ignore: Patterns of file names that are left out in silence.
        keeps: See `folder.inspect`.
        observers: See `folder.inspect`.
        mover: Moves judged files; `None` leaves them.
        webhook: Gets a message per row; `None` for none.
        scope: See `image_message`.
        alive: Is called again and again.
        clock: Seconds, monotonic.
        sleep: Waits for so many seconds.
        new: Inspections so far.
        failed: How many of them gave an error, without what was left out.
        left_out: How many were of files that are of no kind that is read.
        drifts: By model, how the stream compares with the normal images of its calibration.
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
        """Compares the stream with normal images as the table has it."""
        several = len(self.models) > 1
        for name, model in self.models.items():
            self.drifts[name] = drift_of(model, name if several else None, self.table)

    def run(self) -> None:
        """Watches until it is told to end, or nothing new has come for so long as `idle` says.

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
                self._settle()  # before the look: what an earlier run judged and did not move yet is not new
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
                self._compare()  # an image whose row could not be written is judged again, and counts once
                if failures == 1:
                    self.say(f"{error} What is left is done once it can be; nothing is lost.")
                self._pause(pause_after(failures))
                continue
            if failures:
                failures = 0
                self.say("All can be written again.")
            if had_work:
                worked = self.clock()
                self._pause(self.watched.pause(0))
                continue
            waited = asked - max(self.watched.changed, worked)
            if self.idle is not None and waited >= max(self.idle, self.watched.quiet):
                break
            self._pause(self.watched.pause(self.poll))

    def _judge(self, todo: dict[str, Input]) -> None:
        """Judges files, and takes them out of `todo` as their rows are written.

        Raises:
            WriteError: Something cannot be written; what is left in `todo` was not judged by all models.
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
            )  # before the row: an image that has one is not judged again
        self.table.add(row)
        if self.mover:
            self.mover.add(row)
        self.new += 1
        self.left_out += left_out
        self.failed += isinstance(outcome, UserError) and not left_out
        for observe in self.observers:
            observe(row, outcome)

    def _tell(self, name: str) -> None:
        """Says once that a calibration no longer holds, and once that it holds again."""
        alarm = self.drifts[name].alarm
        if (alarm is None) == (name in self._drifted):
            self._drifted ^= {name}
            self.say(f"{name}: the scores are those of normal images again." if alarm is None else f"{name}: {alarm}")

    def _settle(self) -> None:
        """Brings messages and rows to the disk itself, and moves files."""
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
    """Yields whether Ctrl-C or SIGTERM has come while the body runs; the second one interrupts as Ctrl-C does."""
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
