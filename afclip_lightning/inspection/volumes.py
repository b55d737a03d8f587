"""Inspection of volumes: they are cut into slices and judged as a whole, and their maps are resampled to their grid."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from afclip_lightning.volumes.cutting import Cutting, VolumeRecord
from afclip_lightning.volumes.find import Source, find_volumes
from afclip_lightning.volumes.importing import NAMES, check_same, cut_all, settings_of
from afclip_lightning.volumes.maps import HELD_MAPS, NIFTI, map_path, put_back
from afclip_runtime.errors import UserError
from afclip_runtime.files import atomic_path, csv_text, only_writer, read_rows, write_json_lines, write_text
from afclip_runtime.inspection.inputs import Input
from afclip_runtime.inspection.table import Record
from afclip_runtime.thresholds import is_anomalous

if TYPE_CHECKING:
    from afclip_runtime.inspection.verdict import Inspection

FOLDER = "volumes"  # folder of the slices, in the output folder
RULE = re.compile(r"highest|mean|mean_top_[1-9]\d*")


@dataclass(frozen=True)
class CutInputs:
    """The volumes among the inputs, cut into slices.

    Attributes:
        inputs: Slices of the volumes, and one input with an error per volume that cannot be read.
        taken: Absolute paths of the volumes' files and masks, which are not inputs themselves.
        records: Record of how each volume was cut, by its name.
        paths: Path of each volume, by its name.
        notes: Notes for the user, one sentence each.
    """

    inputs: list[Input]
    taken: set[str]
    records: dict[str, VolumeRecord]
    paths: dict[str, str]
    notes: list[str]


def keep_for_volume(outcome: "Inspection", folder: Path, item: Input, name: str) -> None:
    """Stores the map of a slice until its volume is complete. It does nothing for other images.

    Args:
        outcome: Inspection of the slice.
        folder: Output folder.
        item: The slice.
        name: Name of its files.

    Raises:
        UserError: The file cannot be written.
    """
    if item.slice is None:
        return
    import numpy as np

    path = map_path(folder / NIFTI / HELD_MAPS / item.volume, item.slice)
    with atomic_path(path, durable=False) as temporary, temporary.open("wb") as file:
        np.save(file, outcome.anomaly_map)


class VolumeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The row of a volume in the tables.

    Attributes:
        volume: Name of the volume in this folder.
        path: Path of the volume as given.
        method: Name of the method, if several share the table.
        axis: Axis along which the slices follow one another.
        slices: Number of slices that were judged.
        rule: Rule that gives the score from those of the slices.
        score: Score of the volume.
        threshold: Threshold of the slices.
        verdict: Verdict; `None` without a threshold.
        anomalous_slices: Number of slices above the threshold; `None` without a threshold.
        highest_slice: Number of the slice with the highest score.
        map: Path of the map as a NIfTI file, relative to this folder; empty if it was not saved.
        error: Reason why the volume or some slices have no score; otherwise empty.
    """

    volume: str
    path: str
    method: str | None = None
    axis: str
    slices: int
    rule: str
    score: float | None = None
    threshold: float | None = None
    verdict: Literal["anomalous", "normal"] | None = None
    anomalous_slices: int | None = None
    highest_slice: int | None = None
    map: str = ""
    error: str = ""


def check_rule(rule: str) -> str:
    """Returns the rule for a volume's score: `highest`, `mean`, or `mean_top_N` (mean of the N highest slices).

    Raises:
        UserError: The rule is none of these.
    """
    if not RULE.fullmatch(rule):
        raise UserError(f"--volume_score {rule}: give highest, mean or mean_top_N, as mean_top_5.")
    return rule


def score_of(scores: Sequence[float], rule: str) -> float:
    """Returns the score of a volume from those of its slices, at least one."""
    ordered = sorted(scores, reverse=True)
    count = 1 if rule == "highest" else len(ordered) if rule == "mean" else int(rule.rpartition("_")[2])
    best = ordered[:count]
    return sum(best) / len(best)


def cut_inputs(
    patterns: Iterable[str], out: Path, cutting: Cutting, progress: Callable[[Iterable[int]], Iterable[int]]
) -> CutInputs:
    """Cuts the volumes among files, folders and patterns into slices, in the output folder.

    DICOM files of one slice stay images. A volume keeps its number when others are added.

    Args:
        patterns: Files, folders and patterns.
        out: Output folder.
        cutting: How the volumes are cut.
        progress: See `cut_all`.

    Raises:
        UserError: A folder or a DICOM header cannot be read, or a volume was replaced since an earlier run.
    """
    sources, taken, notes = _sources(patterns, out)
    place = out / FOLDER
    with only_writer(place):
        check_same(place, settings_of(cutting))
        names = _numbered(place, sources)
        done = cut_all(sources, [(name, "") for name in names], place, cutting, True, progress)
    records = {record.volume: record for record in done.records}
    inputs = []
    for source, name in zip(sources, names, strict=True):
        if record := records.get(name):
            inputs += [_slice(place, record, index) for index in record.indices]
        else:
            inputs.append(Input(source.files[0], name, done.failed[name], volume=name))
    notes += [note for record in records.values() for note in record.notes()]
    paths = {name: source.name for name, source in zip(names, sources, strict=True)}
    return CutInputs(inputs, taken, records, paths, notes)


def _slice(place: Path, record: VolumeRecord, index: int) -> Input:
    path = place / record.image(index)
    facts = path.stat()
    name = f"{record.volume}/{record.axis}-{index:04d}"
    return Input(path, name, "", False, facts.st_size, facts.st_mtime_ns, record.volume, index)


def _sources(patterns: Iterable[str], out: Path) -> tuple[list[Source], set[str], list[str]]:
    """Returns the volumes without their masks, the absolute paths of all their files, and the notes."""
    found: dict[str, Source] = {}
    taken: set[str] = set()
    notes: list[str] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) if not os.path.lexists(pattern) else [pattern]
        for match in matches:
            here = find_volumes(Path(match), leave_out=[out])
            notes += here.notes
            for source in here.volumes:
                if source.frames == 1:
                    continue
                taken |= {os.path.abspath(path) for path in (*source.files, *source.masks, *source.segmentations)}
                found.setdefault(os.path.abspath(source.files[0]), replace(source, masks=(), segmentations=()))
    return list(found.values()), taken, notes


def _numbered(place: Path, sources: Sequence[Source]) -> list[str]:
    """Returns the name of each volume, the one of an earlier run if any, and writes the list of names."""
    path = place / NAMES
    known = {row["path"]: row["volume"] for _, row in read_rows(path)} if path.exists() else {}
    for source in sources:
        known.setdefault(os.path.abspath(source.files[0]), f"volume-{len(known) + 1:04d}")
    write_text(path, csv_text(("volume", "path"), [[name, where] for where, name in known.items()]))
    return [known[os.path.abspath(source.files[0])] for source in sources]


def judge(
    rows: Mapping[tuple[str | None, str], Record], cut: CutInputs, out: Path, rule: str, saves: Sequence[str]
) -> list[VolumeVerdict]:
    """Writes `volumes.jsonl` and `volumes.csv`, one line per volume and method, and the complete maps.

    The threshold is that of the slices. With `highest`, a volume is anomalous if any of its slices is. The more slices
    a volume has, the more often a normal volume is then called anomalous.

    Args:
        rows: Rows of the table of images.
        cut: The volumes.
        out: Output folder.
        rule: See `check_rule`.
        saves: Kinds of files that are saved.

    Returns:
        The lines.

    Raises:
        UserError: A file cannot be written.
    """
    by_volume: dict[tuple[str | None, str], list[Record]] = {}
    for (method, _), row in rows.items():
        if row.volume in cut.paths:
            by_volume.setdefault((method, row.volume), []).append(row)
    verdicts = []
    for (method, volume), slices in by_volume.items():
        record, judged = cut.records.get(volume), [row for row in slices if row.score is not None]
        verdict = VolumeVerdict(
            volume=volume,
            path=cut.paths[volume],
            method=method,
            axis=record.axis if record else "",
            slices=len(judged),
            rule=rule,
            error=next((row.error for row in slices if row.error), ""),
        )
        if judged:
            verdict = _judged(verdict, judged)
        if record and NIFTI in saves and not verdict.error:
            place = Path(method or "") / NIFTI / f"{volume}.nii.gz"
            put_back(record, out / (method or "") / NIFTI / HELD_MAPS / volume, out / place, out / FOLDER)
            verdict = msgspec.structs.replace(verdict, map=place.as_posix())
        verdicts.append(verdict)
    lines = [msgspec.to_builtins(verdict) for verdict in verdicts]
    columns = list(VolumeVerdict.__struct_fields__)
    write_json_lines(out / "volumes.jsonl", lines)
    write_text(out / "volumes.csv", csv_text(columns, [[line[column] for column in columns] for line in lines]))
    return verdicts


def _judged(verdict: VolumeVerdict, slices: Sequence[Record]) -> VolumeVerdict:
    scores = {row.slice: row.score for row in slices if row.score is not None}
    score, threshold = score_of(list(scores.values()), verdict.rule), slices[0].threshold
    above = None if threshold is None else [index for index, value in scores.items() if is_anomalous(value, threshold)]
    return msgspec.structs.replace(
        verdict,
        score=float(f"{score:.9g}"),
        threshold=threshold,
        verdict=None if threshold is None else "anomalous" if is_anomalous(score, threshold) else "normal",
        anomalous_slices=None if above is None else len(above),
        highest_slice=max(scores, key=lambda index: scores[index]),
    )
