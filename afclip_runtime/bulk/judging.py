"""Inspection of one shard: read its images, inspect them, save their pictures, write its part."""

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
from afclip_runtime.bulk.urls import suffix_source
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import Lock, refresh, take_lock
from afclip_runtime.inspection.folder import save_pictures
from afclip_runtime.inspection.table import Record, record_of
from afclip_runtime.launch import signals

if TYPE_CHECKING:
    from afclip_runtime.bulk.reading import Image
    from afclip_runtime.inspection.inspector import Inspector
    from afclip_runtime.inspection.verdict import Inspection
    from afclip_runtime.views.decoding import Fetch, Source

KINDS = ("maps", "npy", "masks", "overlays")  # folders of pictures
LONGEST_STEM = 80  # maximum number of characters of an image's name in the names of its pictures


@dataclass(frozen=True)
class Job:
    """Picklable settings of a worker. All other data is in the output folder.

    Attributes:
        out: Output folder, absolute.
        load: Function that loads the models by name, with an argument `threads`. It must be picklable: a function of a
            module, or a `functools.partial` of one.
        saves: Kinds of pictures to write.
        num_workers: Number of decoding threads.
        cwd: Folder of relative paths of images.
        threads: Number of threads per batch if the launcher divides the cores; `None` leaves it to `load`.
        gpu: Whether the models use a GPU if there is one.
    """

    out: Path
    load: "Callable[..., Mapping[str, Inspector]]"
    saves: tuple[str, ...] = ()
    num_workers: int = 2
    cwd: Path = field(default_factory=Path.cwd)
    threads: int | None = None
    gpu: bool = False

    def load_models(self) -> "Mapping[str, Inspector]":
        """Loads the models. Returns them by name."""
        return self.load() if self.threads is None else self.load(threads=self.threads)


class Judge:
    """Inspects shards with models that are loaded once.

    Args:
        job: The job.
        models: Models that are already loaded, if any.
        on_image: Function that is called after each image.

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
        os.chdir(job.cwd)  # for a worker on another machine
        self.plan = Plan.wait_for(job.out, 0)
        self.models = job.load_models() if models is None else models

    def __call__(self, number: int) -> Facts:
        """Inspects a claimed shard, unless another process has done so before. Returns the facts of its part.

        Raises:
            WriteError: A file cannot be written.
            UserError: A model needs few-shot images first.
            StoppedError: A signal asks this process to stop.
        """
        if number >= len(self.plan.shards):
            self.plan = Plan.wait_for(self.job.out, number)
        refresh(part_path(self.job.out, number).parent)  # the last holder of the lock may just have written it
        before = facts_of(self.job.out, number)
        if before is not None and self.plan.is_done(number, before):
            return before
        return _judge(self, number)

    def is_done(self, number: int) -> bool:
        """Returns whether a shard is done in this run."""
        return number < len(self.plan.shards) and self.plan.is_done(number, facts_of(self.job.out, number))


def claim(out: Path, number: int) -> Lock | None:
    """Takes the lock of a shard. Returns `None` while another process has it.

    Raises:
        UserError: The output folder cannot be written.
    """
    return take_lock(lock_path(out, number))


def lock_path(out: Path, number: int) -> Path:
    """Returns the lock file of a shard."""
    return numbered(out / FOLDER / "locks", number, ".lock")


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
    """Writes the part of a shard whose processes died. Each image gets the error, and the next run tries it again.

    Args:
        out: Output folder.
        number: Number of the shard.
        error: How the process ended.

    Raises:
        UserError: The part cannot be written.
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
    """Counts of a part while it is written.

    Args:
        plan: Plan of the job.
        number: Number of the shard.
        digest: Digest of its images as they were read.

    Attributes:
        damaged: See `Facts`.
    """

    def __init__(self, plan: Plan, number: int, digest: str) -> None:
        self.plan, self.number, self.digest = plan, number, digest
        self.begin = time.monotonic()
        self.rows = self.failed = self.left_out = self.anomalous = self.normal = 0
        self.damaged = ""

    def count(self, file: File, row: Record) -> Record:
        """Counts a row, and returns it."""
        self.rows += 1
        self.failed += bool(row.error) and not file.left_out
        self.left_out += file.left_out
        self.anomalous += row.verdict == "anomalous"
        self.normal += row.verdict == "normal"
        return row

    def facts(self) -> Facts:
        """Returns the facts to store in the part."""
        return Facts(
            shard=self.number,
            digest=self.digest,
            settings=self.plan.settings,
            run=self.plan.run,
            rows=self.rows,
            failed=self.failed,
            left_out=self.left_out,
            anomalous=self.anomalous,
            normal=self.normal,
            damaged=self.damaged,
            seconds=round(time.monotonic() - self.begin, 3),
        )


def _line_of(tally: _Tally, archive: Archive, method: str | None) -> Record:
    """Returns the row of a damaged archive itself, and counts it."""
    file = File(archive.path, archive.size, archive.mtime_ns)
    return tally.count(file, record_of(file, method, "", UserError(tally.damaged)))


class _Reader:
    """The images of a shard. An error of the archive is stored, since earlier images are not yet scored.

    Args:
        shard: The shard.
        files: Its files, unless it is an archive.

    Attributes:
        waiting: Files whose images are not yet scored, by position.
        damaged: Problem of the archive, or empty.
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
    """Returns the unique name of an image's pictures: shard, row, and the end of the image's name for a reader.

    A folder has at most `PER_FOLDER` of them.
    """
    path = suffix_source(path)  # without a query, which may hold a signature
    stem = re.sub(r"[^\w.-]+", "_", path.rstrip("/").rpartition("/")[2].rpartition(".")[0] or path)[-LONGEST_STEM:]
    return f"{_folder(number)}/{row // PER_FOLDER:04d}/{row % PER_FOLDER:03d}_{stem}"


def _folder(number: int) -> str:
    return f"{number // PER_FOLDER:04d}/{number:06d}"


def _remove_pictures(place: Path, number: int) -> None:
    """Removes the pictures of a shard that is inspected again, since it may now have fewer images."""
    for kind in KINDS:
        shutil.rmtree(place / kind / _folder(number), ignore_errors=True)
