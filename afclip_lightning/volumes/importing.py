"""Imports many volumes as a set of slices: pseudonyms, splits by patients, the manifest. A stopped import resumes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from afclip_lightning.types import Split
from afclip_lightning.volumes import SLICES
from afclip_lightning.volumes.cutting import Cutting, VolumeRecord, cut_volume
from afclip_lightning.volumes.find import Source
from afclip_runtime.errors import UserError
from afclip_runtime.files import (
    csv_text,
    parse_json,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text,
)

VOLUMES = "volumes.jsonl"  # one line per finished volume
SETTINGS = "import.json"
NAMES = "names.csv"  # files by pseudonym; written only on request


@dataclass(frozen=True)
class Done:
    """The result of an import.

    Attributes:
        records: Records of all volumes of the set.
        new: Number of volumes that this run cut.
        failed: Problem of each unreadable volume, by its name.
    """

    records: list[VolumeRecord]
    new: int
    failed: dict[str, str]


def pseudonyms(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Returns the pseudonyms of each volume and its patient: numbers, in the order of the volumes."""
    patients: dict[str, str] = {}
    for source in sources:
        patients.setdefault(source.patient, f"patient-{len(patients) + 1:04d}")
    return [(f"volume-{number:04d}", patients[source.patient]) for number, source in enumerate(sources, 1)]


def state_of(source: Source) -> str:
    """Returns a digest of the sizes and times of a volume's files. It does not include their names.

    Raises:
        UserError: A file is gone.
    """
    digest = hashlib.sha256()
    for path in (*source.files, *source.masks, *source.segmentations):
        try:
            facts = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}). Restore the file.") from error
        digest.update(f"{facts.st_size} {facts.st_mtime_ns};".encode())
    return digest.hexdigest()[:16]


def settings_of(cutting: Cutting) -> dict[str, Any]:
    """Returns the settings of the cutting as plain values."""
    values = parse_json(json.dumps(asdict(cutting)), dict[str, Any], "settings")
    return {**values, **values.pop("reading")}


def check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of the cutting, and raises if volumes of the folder were cut with others.

    Raises:
        UserError: Volumes were cut with other settings, or the file cannot be written.
    """
    path = folder / SETTINGS
    if (folder / VOLUMES).exists() and path.exists():
        before = read_json(path, dict[str, Any], remedy="Choose another --out.")
        if before != settings:
            names = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            raise UserError(
                f"{folder}: volumes there were cut with another {', '.join(names)}. Choose another --out, or remove it."
            )
    write_json(path, settings)


def cut_all(
    sources: Sequence[Source],
    names: Sequence[tuple[str, str]],
    out: Path,
    cutting: Cutting,
    skip: bool,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> Done:
    """Cuts the volumes that are not cut yet. Each is added to the manifest at once, so that a stopped run can resume.

    Args:
        sources: The volumes.
        names: Pseudonyms of each volume and its patient.
        out: Folder of the set.
        cutting: How the volumes are cut.
        skip: Whether an unreadable volume is reported without ending the run.
        progress: Wraps the numbers of the volumes, and shows its progress.

    Raises:
        UserError: A volume cannot be read or differs from that of an earlier run, or the disk is full.
    """
    path = out / VOLUMES
    before = {record.volume: record for record in read_volumes(path)} if path.exists() else {}
    failed: dict[str, str] = {}
    new = 0
    records: list[VolumeRecord] = []
    for number in progress(range(len(sources))):
        source, (volume, patient) = sources[number], names[number]
        state = state_of(source)
        if earlier := before.get(volume):
            if (earlier.state, earlier.patient) != (state, patient):
                raise UserError(
                    f"{out}: {volume} was cut from another file than {source.name}, or has another patient: volumes "
                    "were added, removed or changed since. Choose another --out."
                )
            records.append(earlier)
            continue
        try:
            records.append(cut_volume(source, (volume, patient), state, out, cutting))
        except UserError as error:
            if not skip:
                raise
            failed[volume] = str(error)
            continue
        new += 1
        done = [*before.values(), *(record for record in records if record.volume not in before)]
        write_json_lines(path, map(msgspec.to_builtins, done))
    return Done(records, new, failed)


def read_volumes(path: Path) -> list[VolumeRecord]:
    """Returns the volumes of a set.

    Raises:
        UserError: The file is damaged.
    """
    return [record for _, record in read_json_lines(path, VolumeRecord, remedy="Import the volumes again.")]


def splits(patients: Iterable[str], train_share: float, seed: int) -> dict[str, Split]:
    """Returns the split of each patient, which holds all volumes and slices of the patient.

    Args:
        patients: Pseudonyms of the patients.
        train_share: Share of the patients in `train`. Unless it is 0, at least one patient is in each split.
        seed: Seed of the selection, which is the same on every machine.

    Raises:
        UserError: There is only one patient.
    """
    known = sorted(set(patients))
    if train_share and len(known) < 2:
        raise UserError("--train_share: there is one patient, who cannot be in both splits. Leave it out.")
    order = sorted(known, key=lambda patient: hashlib.sha256(f"{seed} {patient}".encode()).hexdigest())
    count = min(max(1, round(train_share * len(known))), len(known) - 1) if train_share else 0
    return {patient: "train" if place < count else "test" for place, patient in enumerate(order)}


def write_slices(out: Path, records: Sequence[VolumeRecord], split_of: Mapping[str, Split], category: str) -> None:
    """Writes the manifest of slices: one line per slice, sorted by volume and index.

    Args:
        out: Folder of the set.
        records: Records of the volumes.
        split_of: Split of each patient.
        category: Category of all slices.

    Raises:
        UserError: The file cannot be written.
    """
    rows = []
    for record in records:
        cut = record.cut
        for index, label in zip(record.indices, record.labels, strict=True):
            row = {
                "image": record.image(index),
                "label": "anomalous" if label else "normal",
                **({"mask": record.mask(index)} if label else {}),
                "category": category,
                "split": split_of[record.patient],
                "group": record.volume,
                "patient": record.patient,
                "axis": record.axis,
                "index": index,
                "voxel_axis": cut.stored,
                "voxel_index": cut.voxel(index),
                "pixel_spacing": record.pixel_spacing,
            }
            rows.append(row)
    write_json_lines(out / SLICES, rows)


def write_names(out: Path, sources: Sequence[Source]) -> None:
    """Writes the file names of the volumes by pseudonym, readable by the owner only.

    Raises:
        UserError: The file cannot be written.
    """
    rows = [[*names, source.name] for names, source in zip(pseudonyms(sources), sources, strict=True)]
    path = out / NAMES
    write_text(path, csv_text(("volume", "patient", "path"), rows))
    with suppress(OSError):
        path.chmod(0o600)
