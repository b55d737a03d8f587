"""The end of a sharded job: the column drift over all parts in their order, and manifest.json."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from afclip_runtime.bulk.judging import claim
from afclip_runtime.bulk.parts import Facts, facts_of, part_path, replace_column, rows_of
from afclip_runtime.bulk.plan import Plan, read_files
from afclip_runtime.errors import without_secrets
from afclip_runtime.files import write_json
from afclip_runtime.inspection.drift import Drift

if TYPE_CHECKING:
    import pyarrow

    from afclip_runtime.inspection.drift import NormalScores

MANIFEST = "manifest.json"


class Damage(msgspec.Struct, frozen=True):
    """A damaged archive: its path, the problem, and the shard with the readable images."""

    path: str
    problem: str
    shard: int


class Part(msgspec.Struct, frozen=True):
    """A part: its file in the output folder, its number of rows, and the number of failed rows."""

    file: str
    rows: int
    failed: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a job.

    Attributes:
        settings: Digest of inspect.json.
        shards: Number of shards.
        done: Number of shards with an up-to-date part. The same command inspects the others.
        rows: Number of rows of all parts: one per image and method.
        failed: Number of rows with an error, without files that were left out.
        left_out: Number of rows of files of a kind that is not read.
        anomalous: Number of rows with this verdict; `None` if a part is of an earlier version, without this number.
        normal: Number of rows with this verdict; `None` likewise.
        seconds: Total duration of all parts, in all workers, in seconds.
        damaged: Archives that could not be read to the end.
        drift: Per method (`""` for a single one), why the calibration no longer holds. Without methods whose
            calibration holds.
        parts: The parts, in the order of the shards.
    """

    settings: str
    shards: int
    done: int
    rows: int
    failed: int
    left_out: int
    anomalous: int | None
    normal: int | None
    seconds: float
    damaged: list[Damage]
    drift: dict[str, str]
    parts: list[Part]


def finish(out: Path, normals: "Mapping[str | None, NormalScores | None]") -> Manifest:
    """Sets the column drift if all shards are done, and writes the manifest.

    The scores are processed in the order of the shards, as if one process had inspected all images. Parts whose column
    changes are written again.

    Args:
        out: Output folder.
        normals: Per method (`None` for a single one), the normal scores of its calibration.

    Raises:
        UserError: A part is damaged, or the disk is full.
    """
    plan = Plan.read(out)
    found = [facts_of(out, number) for number in range(len(plan.shards))]
    parts = [facts for facts in found if facts is not None]
    done = sum(plan.is_done(number, facts) for number, facts in enumerate(found))
    drift: dict[str, str] = {}
    if done == len(found):
        drift = _set_drift(out, parts, normals)
    manifest = Manifest(
        settings=plan.settings,
        shards=len(found),
        done=done,
        rows=sum(facts.rows for facts in parts),
        failed=sum(facts.failed for facts in parts),
        left_out=sum(facts.left_out for facts in parts),
        anomalous=_sum(facts.anomalous for facts in parts),
        normal=_sum(facts.normal for facts in parts),
        seconds=round(sum(facts.seconds for facts in parts), 3),
        damaged=[Damage(_archive(plan, facts), facts.damaged, facts.shard) for facts in parts if facts.damaged],
        drift=drift,
        parts=[Part(_name(out, facts.shard), facts.rows, facts.failed) for facts in parts],
    )
    write_json(out / MANIFEST, msgspec.to_builtins(manifest))
    return manifest


def first_failed(out: Path, manifest: Manifest) -> tuple[str, str] | None:
    """Returns path and error of the first image that failed, in the order of the shards.

    Returns `None` if there is none. The rows of damaged archives do not count: the manifest names the archives.

    Raises:
        UserError: A part is damaged.
    """
    if not manifest.failed:
        return None
    plan, archives = Plan.read(out), {damage.problem for damage in manifest.damaged}
    for part in manifest.parts:
        if not part.failed:
            continue
        left_out = _left_out(out, plan, int(Path(part.file).stem))
        for batch in rows_of(out / part.file, ["path", "error"]):
            for path, error in _values(batch):
                if error and error not in archives and path not in left_out:
                    return path, error
    return None


def _left_out(out: Path, plan: Plan, number: int) -> set[str]:
    """Returns the paths of a shard's files that are of a kind that is not read."""
    if plan.shards[number].archive is not None:
        return set()
    return {without_secrets(file.path) for file in read_files(out, number) if file.left_out}


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(filter(None, known))


def _archive(plan: Plan, facts: Facts) -> str:
    archive = plan.shards[facts.shard].archive
    return without_secrets(archive.path) if archive else ""


def _name(out: Path, number: int) -> str:
    return part_path(out, number).relative_to(out).as_posix()


def _set_drift(
    out: Path, parts: Sequence[Facts], normals: "Mapping[str | None, NormalScores | None]"
) -> dict[str, str]:
    """Updates the column drift of all parts. Returns per method why its calibration no longer holds."""
    watched = {method: Drift(scores) for method, scores in normals.items() if scores is not None}
    drifted: dict[str, str] = {}
    for facts in parts if watched else ():
        path = part_path(out, facts.shard)
        column, differs = [], False
        for batch in rows_of(path, ["method", "score", "drift"]):
            for method, score, before in _values(batch):
                drift = watched.get(method)
                alarm = drift.add(score) if drift and score is not None else None
                column.append(alarm.side if alarm else None)
                differs |= column[-1] != before
                if alarm:
                    drifted[method or ""] = str(alarm)
        if differs and (lock := claim(out, facts.shard)) is not None:
            with lock:
                if facts_of(out, facts.shard) == facts:  # else another job has it, and will set the column
                    replace_column(path, "drift", _taking(column))
    for method, drift in watched.items():
        if alarm := drift.finish():
            drifted[method or ""] = str(alarm)
    return drifted


def _values(batch: "pyarrow.RecordBatch") -> "Iterator[tuple[Any, ...]]":
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _taking(values: Sequence[str | None]) -> Any:
    """Returns a function that returns a given number of next values."""
    import pyarrow as pa

    rest = iter(values)
    return lambda count: pa.array([next(rest) for _ in range(count)], pa.string())
