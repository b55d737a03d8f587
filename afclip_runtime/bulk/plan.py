"""The plan of a job: its shards. It is on disk, so that workers on any machine read only their own shard."""

import secrets
import time
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from afclip_runtime.bulk.parts import Facts, facts_of, numbered
from afclip_runtime.bulk.sources import Archive, File
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import (
    TABLE_LIMIT,
    read_json,
    read_json_lines,
    shared,
    wait_for,
    write_json,
    write_json_lines,
)

FOLDER, PLAN = "plan", "plan.json"
REMEDY = "Choose another --out, or remove the folder."


class Shard(msgspec.Struct, frozen=True, omit_defaults=True):
    """A unit of inspection, written as one part.

    Attributes:
        digest: Digest of its images with their sizes and times.
        images: Number of its images; `None` if it is not known before reading.
        archive: Its archive; `None` for files, which are listed in a separate file.
    """

    digest: str
    images: int | None = None
    archive: Archive | None = None


class Plan(msgspec.Struct, frozen=True):
    """The shards of a job. The number of a shard is its position.

    Attributes:
        run: Identifier of the last run that made or updated the plan.
        settings: Digest of the job's settings.
        shards: The shards. Existing shards stay, and new images are appended as new shards.
    """

    run: str
    settings: str
    shards: list[Shard]

    @classmethod
    def read(cls, out: Path) -> "Plan":
        """Reads the plan of an output folder.

        Raises:
            UserError: The plan is missing or damaged.
        """
        return read_json(out / FOLDER / PLAN, cls, remedy=REMEDY, limit=TABLE_LIMIT)

    @classmethod
    def wait_for(cls, out: Path, number: int) -> "Plan":
        """Waits until the plan, which another machine may just have written, has a shard of this number. Returns it.

        Raises:
            UserError: The plan or the shard does not appear because a shared file system lags, or the plan is damaged.
        """
        path = out / FOLDER / PLAN
        wait_for(path)
        deadline = time.monotonic() + shared.LONGEST_LAG
        while number >= len((plan := cls.read(out)).shards):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{shown(path)} has no shard {number} after {shared.LONGEST_LAG:g} s: the shared file system "
                    "lags. Start the same command again later."
                )
            time.sleep(shared.LOOK)
        return plan

    def is_done(self, number: int, facts: Facts | None) -> bool:
        """Returns whether a part is up to date: it has the shard's images, without failures of earlier runs."""
        return (
            facts is not None
            and (facts.digest, facts.settings) == (self.shards[number].digest, self.settings)
            and (not facts.failed or facts.run == self.run)
        )

    def todo(self, out: Path, numbers: Iterable[int] | None = None) -> list[int]:
        """Returns the numbers of the shards to inspect in this run.

        Args:
            out: Output folder.
            numbers: Shards to check. By default all.
        """
        looked_at = range(len(self.shards)) if numbers is None else numbers
        return [number for number in looked_at if not self.is_done(number, facts_of(out, number))]


def files_path(out: Path, number: int) -> Path:
    """Returns the file that lists the files of a shard."""
    return numbered(out / FOLDER / "files", number, ".jsonl")


def read_files(out: Path, number: int) -> list[File]:
    """Returns the files of a shard, whose list another machine may just have written.

    Raises:
        UserError: Their list does not appear, or is damaged.
    """
    wait_for(files_path(out, number))
    return [file for _, file in read_json_lines(files_path(out, number), File, remedy=REMEDY)]


def make_plan(out: Path, listing: Iterable[File | Archive], settings: str, shard_images: int) -> Plan:
    """Updates the plan of an output folder, and returns it.

    Existing shards keep their files. The size and time of replaced files are updated in their shards. New images become
    new shards, in the order of the listing. Files that are no longer listed stay.

    Args:
        out: Output folder.
        listing: The current files and archives.
        settings: Digest of the job's settings.
        shard_images: Number of files per shard.

    Raises:
        UserError: The existing plan is damaged, there is nothing to inspect, or the disk is full.
    """
    path = out / FOLDER / PLAN
    shards = Plan.read(out).shards if path.exists() else []
    known: dict[str, tuple[int, int]] = {}  # by file: its shard, and its state
    archives = _Archives(shards)
    for number, shard in enumerate(shards):
        if shard.archive is None:
            files = read_files(out, number)
            known |= {file.key: (number, _state(file)) for file in files}
            shards[number] = shard_of(files)  # a killed run may have written the files but not the plan
    changed: dict[int, dict[str, File]] = {}
    new: list[File] = []

    def end_shard() -> None:
        if new:
            shards.append(_write_files(out, len(shards), new))
            new.clear()

    for item in listing:
        if isinstance(item, Archive):
            end_shard()
            archives.add(item)
        elif (before := known.get(item.key)) is None:
            known[item.key] = len(shards), _state(item)
            new.append(item)
            if len(new) == shard_images:
                end_shard()
        elif before[1] != _state(item):
            changed.setdefault(before[0], {})[item.key] = item
    end_shard()
    archives.end()
    for number, files_now in changed.items():
        files = [files_now.get(file.key, file) for file in read_files(out, number)]
        shards[number] = _write_files(out, number, files)
    if not shards:
        raise UserError("there is nothing to inspect: name files, folders, archives or URLs.")
    plan = Plan(secrets.token_hex(8), settings, shards)
    write_json(path, msgspec.to_builtins(plan))
    return plan


class _Archives:
    """The archives among the shards of a plan. A Parquet file has one or more shards.

    An unchanged archive keeps its shards. A replaced archive is divided again. A shard that it no longer has becomes
    empty and is inspected once more, so that its part becomes empty.

    Args:
        shards: Shards of the plan, which are updated.
    """

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.numbers: dict[str, dict[int, int]] = {}  # by file and first row group
        self.states: dict[str, tuple[object, ...]] = {}  # state of each file in the plan
        self.replaced: dict[str, set[int]] = {}  # replaced files, with the first row groups of their current shards
        for number, shard in enumerate(shards):
            if (archive := shard.archive) is not None:
                self.numbers.setdefault(archive.key, {})[archive.first] = number
                self.states.setdefault(archive.key, _state_of(archive))

    def add(self, archive: Archive) -> None:
        """Adds an archive of the current listing."""
        numbers = self.numbers.setdefault(archive.key, {})
        if self.states.get(archive.key) == _state_of(archive) and archive.key not in self.replaced:
            return
        self.replaced.setdefault(archive.key, set()).add(archive.first)
        shard = Shard(_digest([msgspec.to_builtins(archive)]), archive.images, archive)
        if archive.first in numbers:
            self.shards[numbers[archive.first]] = shard
        else:
            numbers[archive.first] = len(self.shards)
            self.shards.append(shard)

    def end(self) -> None:
        """Empties the shards that replaced archives no longer have."""
        for key, now in self.replaced.items():
            for first, number in self.numbers[key].items():
                archive = self.shards[number].archive
                if first not in now and archive is not None:
                    empty = msgspec.structs.replace(archive, groups=0, images=0, error="")
                    self.shards[number] = Shard(_digest([msgspec.to_builtins(empty)]), 0, empty)


def _state_of(archive: Archive) -> tuple[object, ...]:
    return archive.kind, archive.size, archive.mtime_ns, archive.column, archive.error


def shard_of(files: Sequence[File]) -> Shard:
    """Returns the shard of files."""
    return Shard(_digest([msgspec.to_builtins(file) for file in files]), len(files))


def _state(file: File) -> int:
    return hash((file.size, file.mtime_ns, file.error, file.left_out))


def _write_files(out: Path, number: int, files: Sequence[File]) -> Shard:
    write_json_lines(files_path(out, number), [msgspec.to_builtins(file) for file in files])
    return shard_of(files)


def _digest(values: list[object]) -> str:
    return sha256(repr(values).encode("utf-8", "backslashreplace")).hexdigest()[:16]
