"""Judging one shard: read its images, judge them, save their pictures, write its part."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.bulk.parts import PER_FOLDER, Facts, facts_of, new_part, numbered
from afclip_runtime.bulk.plan import FOLDER, Plan, Shard, read_files, shard_of
from afclip_runtime.bulk.reading import open_archive, open_files
from afclip_runtime.bulk.sources import File
from afclip_runtime.errors import UserError
from afclip_runtime.files.locks import Lock, take_lock
from afclip_runtime.inspection.folder import save_pictures
from afclip_runtime.inspection.table import record_of

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
        load: Loads the models, by name; a function of a module, or a `functools.partial` of one.
        saves: Which pictures to write.
        num_workers: Threads that decode.
    """

    out: Path
    load: "Callable[[], Mapping[str, Inspector]]"
    saves: tuple[str, ...] = ()
    num_workers: int = 2


class Judge:
    """Judges shard after shard, with models that are loaded once.

    Args:
        job: The job.
        models: Those that are loaded already, if any.

    Raises:
        UserError: A model cannot be loaded, or there is no plan.
    """

    def __init__(self, job: Job, models: "Mapping[str, Inspector] | None" = None) -> None:
        self.job = job
        self.plan = Plan.read(job.out)
        self.models = job.load() if models is None else models

    def __call__(self, number: int) -> Facts | None:
        """Judges a shard unless that is done, and returns what its part says; `None` if another process has it.

        Raises:
            WriteError: A file cannot be written.
            UserError: A model needs few-shot images first.
        """
        lock = claim(self.job.out, number)
        if lock is None:
            return None
        try:
            return self.judge(number)
        finally:
            lock.release(remove=True)

    def judge(self, number: int) -> Facts:
        """Judges a shard that this process has claimed, unless another one had done so before; see `claim`.

        Raises:
            WriteError: A file cannot be written.
            UserError: A model needs few-shot images first.
        """
        before = facts_of(self.job.out, number)
        if before is not None and self.plan.is_done(number, before):
            return before
        return _judge(self.models, self.job, self.plan, number)


def claim(out: Path, number: int) -> Lock | None:
    """Returns the lock of a shard, which this process has from now on; `None` while another one has it.

    Raises:
        UserError: The output folder cannot be written.
    """
    return take_lock(numbered(out / FOLDER / "locks", number, ".lock"))


def _judge(models: "Mapping[str, Inspector]", job: Job, plan: Plan, number: int) -> Facts:
    begin = time.monotonic()
    shard = plan.shards[number]
    files = read_files(job.out, number) if shard.archive is None else []
    digest = shard.digest if shard.archive is not None else shard_of(files).digest
    rows = failed = left_out = 0
    damaged = ""
    with new_part(job.out, number) as part:
        for method, model in models.items():
            column, place = (method, job.out / method) if len(models) > 1 else (None, job.out)
            reader = _Reader(shard, files)
            _remove_pictures(place, number)
            for row, (file, outcome) in enumerate(_outcomes(model, reader, job)):
                name = _picture_name(number, row, file.path)
                if not isinstance(outcome, UserError):
                    save_pictures(outcome, place, name, job.saves)
                part.add(record_of(file, column, name, outcome))
                rows += 1
                failed += isinstance(outcome, UserError) and not file.left_out
                left_out += file.left_out
            if reader.damaged:
                damaged = reader.damaged
                assert shard.archive is not None
                source = File(shard.archive.path, shard.archive.size, shard.archive.mtime_ns)
                part.add(record_of(source, column, "", UserError(damaged)))
                rows, failed = rows + 1, failed + 1
        facts = Facts(
            shard=number,
            digest=digest,
            settings=plan.settings,
            run=plan.run,
            rows=rows,
            failed=failed,
            left_out=left_out,
            damaged=damaged,
            seconds=round(time.monotonic() - begin, 3),
        )
        part.close(facts)
    return facts


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
