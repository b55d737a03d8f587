"""Judging one shard: read its images, judge them, save their pictures, write its part."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.bulk.parts import PER_FOLDER, Facts, facts_of, new_part, numbered, part_path
from afclip_runtime.bulk.plan import FOLDER, Plan, Shard, read_files, shard_of
from afclip_runtime.bulk.reading import open_archive, open_files
from afclip_runtime.bulk.sources import Archive, File
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import refresh
from afclip_runtime.inspection.folder import save_pictures
from afclip_runtime.inspection.table import Record, record_of
from afclip_runtime.launch import signals
from afclip_runtime.launch.locks import Lock, try_lock

if TYPE_CHECKING:
    from afclip_runtime.bulk.reading import Image
    from afclip_runtime.inspection.inspector import Inspector
    from afclip_runtime.inspection.verdict import Inspection
    from afclip_runtime.views.decoding import Fetch, Source

KINDS = ("maps", "npy", "masks", "overlays")  # folders of pictures
LONGEST_STEM = 80  # characters that a picture's name keeps of its image's


@dataclass(frozen=True)
class Job:
    """All that a worker needs, beside what lies in the output folder; it can be pickled.

    Attributes:
        out: Folder of the output, absolute.
        load: Loads the models, by name; a function of a module, or a `functools.partial` of one. It takes `threads`.
        saves: Which pictures to write.
        num_workers: Threads that decode.
        cwd: Folder that relative paths of images start from.
        threads: Threads that a batch is scored with, where the launcher shares them; `None` leaves it to `load`.
        gpu: Whether the models run on a GPU where there is one.
    """

    out: Path
    load: "Callable[..., Mapping[str, Inspector]]"
    saves: tuple[str, ...] = ()
    num_workers: int = 2
    cwd: Path = field(default_factory=Path.cwd)
    threads: int | None = None
    gpu: bool = False

    def load_models(self) -> "Mapping[str, Inspector]":
        """Returns the models, by name."""
        return self.load() if self.threads is None else self.load(threads=self.threads)


class Judge:
    """Judges shard after shard, with models that are loaded once.

    Args:
        job: The job.
        models: Those that are loaded already, if any.
        on_image: Called after each image.

    Raises:
        UserError: A model cannot be loaded, or there is no plan.
    """

    def __init__(
        self,
        job: Job,
        models: "Mapping[str, Inspector] | None" = None,
        on_image: Callable[[], None] = lambda: None,
    ) -> None:
        self.job = job
        self.on_image = on_image
        os.chdir(job.cwd)  # of a worker on another machine
        self.plan = Plan.wait_for(job.out, 0)
        self.models = job.load_models() if models is None else models

    def __call__(self, number: int) -> Facts | None:
        """Judges a shard unless that is done, and returns the facts of its part; `None` if another process has it.

        Raises:
            WriteError: A file cannot be written.
            UserError: A model needs few-shot images first.
            StoppedError: A signal asks this process to stop.
        """
        lock = claim(self.job.out, number)
        if lock is None:
            return None
        with lock:
            return self.judge(number)

    def judge(self, number: int) -> Facts:
        """Judges a shard that this process has claimed, unless another one had done so before; see `claim`.

        Raises:
            WriteError: A file cannot be written.
            UserError: A model needs few-shot images first.
            StoppedError: A signal asks this process to stop.
        """
        if number >= len(self.plan.shards):
            self.plan = Plan.wait_for(self.job.out, number)
        refresh(part_path(self.job.out, number).parent)  # whoever had the lock may have written it a moment ago
        before = facts_of(self.job.out, number)
        if before is not None and self.plan.is_done(number, before):
            return before
        return _judge(self, number)

    def is_done(self, number: int) -> bool:
        """Returns whether a shard needs not be judged in this run."""
        return number < len(self.plan.shards) and self.plan.is_done(number, facts_of(self.job.out, number))


def claim(out: Path, number: int) -> Lock | None:
    """Returns the lock of a shard, which this process has from now on; `None` while another one has it.

    Raises:
        UserError: The output folder cannot be written.
    """
    return try_lock(numbered(out / FOLDER / "locks", number, ".lock"))


def _judge(judge: Judge, number: int) -> Facts:
    job, plan, several = judge.job, judge.plan, len(judge.models) > 1
    shard = plan.shards[number]
    files = read_files(job.out, number) if shard.archive is None else []
    tally = _Tally(plan, number, shard.digest if shard.archive else shard_of(files).digest)
    with new_part(job.out, number) as part:
        for method, model in judge.models.items():
            column, place = (method, job.out / method) if several else (None, job.out)
            _remove_pictures(place, number)
            reader = _Reader(shard, files)
            for row, (file, outcome) in enumerate(_outcomes(model, reader, job)):
                name = _picture_name(number, row, file.path)
                if not isinstance(outcome, UserError):
                    save_pictures(outcome, place, name, job.saves)
                part.add(tally.count(file, record_of(file, column, name, outcome)))
                judge.on_image()
                if signals.requested():
                    raise signals.StoppedError(f"shard {number} is left to be judged")
            if shard.archive is not None and reader.damaged:
                tally.damaged = reader.damaged
                part.add(_line_of(tally, shard.archive, column))
        part.close(tally.facts())
    return tally.facts()


def write_failure(out: Path, number: int, error: str) -> None:
    """Writes the part of a shard whose process died again and again: each image gets the error, and is tried again.

    Args:
        out: Folder of the output.
        number: Number of the shard.
        error: What became of the process.

    Raises:
        UserError: It cannot be written.
    """
    plan = Plan.read(out)
    shard = plan.shards[number]
    tally = _Tally(plan, number, shard.digest)
    problem = f"the shard could not be judged: {error}"
    with new_part(out, number) as part:
        for file in read_files(out, number) if shard.archive is None else []:
            part.add(tally.count(file, record_of(file, None, "", UserError(f"{shown(file.path)}: {problem}"))))
        if shard.archive is not None:
            tally.damaged = f"{shown(shard.archive.path)}: {problem}"
            part.add(_line_of(tally, shard.archive, None))
        part.close(tally.facts())


class _Tally:
    """What is counted of a part that is being written.

    Args:
        plan: The job's.
        number: Number of the shard.
        digest: Of its images as they were read.

    Attributes:
        damaged: See `Facts`.
    """

    def __init__(self, plan: Plan, number: int, digest: str) -> None:
        self.plan, self.number, self.digest = plan, number, digest
        self.begin = time.monotonic()
        self.rows = self.failed = self.left_out = 0
        self.damaged = ""

    def count(self, file: File, row: Record) -> Record:
        """Counts a row, and returns it."""
        self.rows += 1
        self.failed += bool(row.error) and not file.left_out
        self.left_out += file.left_out
        return row

    def facts(self) -> Facts:
        """Returns the facts that are stored with the part."""
        return Facts(
            shard=self.number,
            digest=self.digest,
            settings=self.plan.settings,
            run=self.plan.run,
            rows=self.rows,
            failed=self.failed,
            left_out=self.left_out,
            damaged=self.damaged,
            seconds=round(time.monotonic() - self.begin, 3),
        )


def _line_of(tally: _Tally, archive: Archive, method: str | None) -> Record:
    """Returns the row of a damaged archive itself, counted."""
    file = File(archive.path, archive.size, archive.mtime_ns)
    return tally.count(file, record_of(file, method, "", UserError(tally.damaged)))


class _Reader:
    """The images of a shard; what ends them early is noted, as those that came before are still on their way.

    Args:
        shard: The shard.
        files: Its files, unless it is an archive.

    Attributes:
        waiting: Files whose images are on their way to the model, by position.
        damaged: What is wrong with the archive; empty if nothing is.
    """

    def __init__(self, shard: Shard, files: list[File]) -> None:
        self.shard = shard
        self.files = files
        self.waiting: dict[int, File] = {}
        self.damaged = ""

    def __iter__(self) -> "Iterator[Source | Fetch]":
        images: Iterator[Image] = (
            open_files(self.files) if self.shard.archive is None else open_archive(self.shard.archive)
        )
        try:
            for index, (file, source) in enumerate(images):
                self.waiting[index] = file
                yield source
        except UserError as error:
            self.damaged = str(error)


def _outcomes(model: "Inspector", reader: _Reader, job: Job) -> "Iterator[tuple[File, Inspection | UserError]]":
    for index, outcome in model.stream(reader, job.num_workers, "overlay" in job.saves):
        yield reader.waiting.pop(index), outcome


def _picture_name(number: int, row: int, path: str) -> str:
    """Returns the name of an image's files, which no other image has: by shard and row, with what tells it to a person.

    A folder holds `PER_FOLDER` of them.
    """
    stem = re.sub(r"[^\w.-]+", "_", path.rstrip("/").rpartition("/")[2].rpartition(".")[0] or path)[-LONGEST_STEM:]
    return f"{_folder(number)}/{row // PER_FOLDER:04d}/{row % PER_FOLDER:03d}_{stem}"


def _folder(number: int) -> str:
    return f"{number // PER_FOLDER:04d}/{number:06d}"


def _remove_pictures(place: Path, number: int) -> None:
    """Removes the pictures of a shard that is judged again: it may have fewer images by now."""
    for kind in KINDS:
        shutil.rmtree(place / kind / _folder(number), ignore_errors=True)
