"""Finds the volumes of a folder, their masks and their patients. It opens only the headers of DICOM files."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from afclip_lightning.data.names import normal_form
from afclip_lightning.volumes.dicom_series import Header, read_header
from afclip_runtime.errors import DatasetError, counted
from afclip_runtime.files import read_rows
from afclip_runtime.images.find import DICOM_BY_CONTENT, OTHER_NAMES, VOLUME_SUFFIXES, first_bytes, walk_folders
from afclip_runtime.images.reader import DICOM_SUFFIXES, is_dicom

MASK_ENDS = re.compile(r"[_.-](?:seg|segmentation|mask|masks|label|labels|gt)$", re.IGNORECASE)
FIRST_CHANNEL = "_0000"  # nnU-Net's suffix of the name of a volume, which the name of its mask lacks
OTHER_DICOM = "left out: {files} with neither images nor segments, as RTSTRUCT and reports are; the first is {first}"
NO_DICOM = (
    "left out: {files} beside DICOM series that begin neither as DICOM does nor as a slice that was cut off; the first "
    "is {first}"
)
BIDS = re.compile(r"sub-[A-Za-z0-9]+")


@dataclass(frozen=True)
class Tree:
    """A layout that is recognised by the names of its files.

    Attributes:
        name: Name of the layout.
        volume: Pattern of the names of volumes, without suffix. `key` is the part that a mask shares with its volume.
        mask: Pattern of the names of masks.
        modality: Modality of its volumes.
        window: Window that replaces `auto`.
        anomalous: Values of masks that mean anomalous; `None` for all but 0.
        sequence: Image that is read if a scan has several, as named in the files; empty if there is one.
        patient: Pattern of the part of a key that names the patient. The rest names visits.
    """

    name: str
    volume: re.Pattern[str]
    mask: re.Pattern[str]
    modality: str
    window: str
    anomalous: tuple[int, ...] | None = None
    sequence: str = ""
    patient: re.Pattern[str] = re.compile(".*")


TREES = (
    Tree(
        "BraTS",
        re.compile(r"(?P<key>brats.*?)[_-](?P<sequence>flair|t1ce|t1gd|t1c|t1n|t1|t2f|t2w|t2)"),
        re.compile(r"(?P<key>brats.*?)[_-]seg"),
        "MR",
        "percentile",
        sequence="flair",
        patient=re.compile(r"brats-[a-z]+-\d+(?=-\d+$)|.*"),
    ),
    Tree("LiTS", re.compile(r"volume-(?P<key>\d+)"), re.compile(r"segmentation-(?P<key>\d+)"), "CT", "liver", (2,)),
)
ALIKE = {"flair": ("flair", "t2f"), "t1": ("t1", "t1n"), "t1ce": ("t1ce", "t1gd", "t1c"), "t2": ("t2", "t2w")}


@dataclass(frozen=True)
class Source:
    """A volume on disk.

    Attributes:
        files: Its file, or the files of its series.
        patient: Identity of its patient; never written.
        masks: Files of its masks.
        is_dicom: Whether it is a DICOM series or object.
        segmentations: Its DICOM segmentations.
        modality: Modality of its layout; empty if unknown.
        series: Identity of the series of DICOM files; never written.
        frame: Identity of the space of DICOM files; never written.
        frames: Number of frames of DICOM files in all.
    """

    files: tuple[Path, ...]
    patient: str = ""
    masks: tuple[Path, ...] = ()
    is_dicom: bool = False
    segmentations: tuple[Path, ...] = ()
    modality: str = ""
    series: str = ""
    frame: str = ""
    frames: int = 0

    @property
    def name(self) -> str:
        """Returns the name of the volume in messages."""
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)


@dataclass(frozen=True)
class Sources:
    """The volumes of a folder.

    Attributes:
        volumes: The volumes, sorted by path.
        tree: Layout that was recognised, or `None`.
        told_by: How patients were told apart, in words.
        notes: Further notes, one line each.
    """

    volumes: list[Source]
    tree: Tree | None
    told_by: str
    notes: list[str] = field(default_factory=list)


def stem(path: Path) -> str:
    """Returns the name of a volume's file without its suffix, in composed Unicode form."""
    name = path.name
    cut = next((suffix for suffix in (".nii.gz", *VOLUME_SUFFIXES) if name.lower().endswith(suffix)), path.suffix)
    return normal_form(name[: len(name) - len(cut)])


def is_volume_file(path: Path) -> bool:
    """Returns whether a file has the suffix of a volume file."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def find_volumes(
    folder: Path,
    masks: Path | None = None,
    leave_out: Collection[Path] = (),
    patients: Path | None = None,
    sequence: str = "",
) -> Sources:
    """Returns the volumes of a folder, or of a file, with their masks.

    Args:
        folder: Folder of the volumes.
        masks: Folder of the masks. By default they are beside the volumes, with `_seg`, `_mask`, `_label` … after their
            names.
        leave_out: Folders that are not searched.
        patients: Table with the columns `volume` (a path relative to `folder`) and `patient`.
        sequence: Sequence of BraTS to read; FLAIR by default.

    Raises:
        DatasetError: A mask has no volume, or several; two files belong to one scan; a sequence is given for files
            without sequences; or a file cannot be read.
    """
    found = _files(folder, [*leave_out, *([masks] if masks and masks.resolve() != folder.resolve() else [])])
    apart = _files(masks, leave_out) if masks and masks.resolve() != folder.resolve() else []
    files = [path for path in found if is_volume_file(path)]
    mask_files = [path for path in apart if is_volume_file(path)]
    tree = next((tree for tree in TREES if _is(tree, files, mask_files)), None)
    if sequence and not (tree and tree.sequence):
        raise DatasetError(
            f"--sequence {sequence}: only BraTS's files have sequences, and all names must follow BraTS. Leave it out."
        )
    series, segmentations, others = _dicom([path for path in (*found, *apart) if not is_volume_file(path)])
    if tree:
        volumes = _of_tree(tree, files, mask_files, sequence)
    else:
        beside = files if folder.is_dir() else ()  # a single named file is meant by itself
        rest = [*mask_files, *(path for path in beside if MASK_ENDS.search(stem(path)))]
        volumes = [Source((path,)) for path in files if path not in set(rest)]
        volumes = _with_masks([*volumes, *series], rest, folder, masks or folder)
    volumes = _with_segmentations(sorted(volumes, key=lambda source: source.files[0]), segmentations)
    strange = _no_dicom(series)
    notes = [OTHER_DICOM.format(files=counted(len(others), "DICOM file"), first=others[0])] if others else []
    notes += [NO_DICOM.format(files=counted(len(strange), "file"), first=strange[0])] if strange else []
    return _with_patients(Sources(volumes, tree, "", notes), folder, patients)


def _files(place: Path, leave_out: Collection[Path]) -> list[Path]:
    """Returns the files below a folder that hold volumes or DICOM, sorted by path, without hidden ones.

    Raises:
        DatasetError: A file cannot be read and its name does not tell its kind. See also `walk_folders`.
    """
    if place.is_file():
        return [place] if _is_read(place) else []
    if not place.is_dir():
        raise DatasetError(f"{place} does not exist. Name a folder of volumes.")
    inside = (path for folder in walk_folders(place, leave_out) for path in folder.iterdir() if not path.is_dir())
    return sorted(path for path in inside if not path.name.startswith(".") and _is_read(path))


def _is_read(path: Path) -> bool:
    """Returns whether a file holds a volume or DICOM.

    Raises:
        DatasetError: The name does not tell, and the file cannot be read: a slice could be missing silently.
    """
    if is_volume_file(path) or path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if not _may_be_dicom(path):
        return False
    if not os.access(path, os.R_OK):
        raise DatasetError(f"{path}: cannot be read. Allow it to be read, restore it, or remove it.")
    return is_dicom(first_bytes(path))


def _may_be_dicom(path: Path) -> bool:
    """Returns whether the name of a file does not tell its kind."""
    unnamed = not path.suffix or path.suffix[1:].isdigit() or path.suffix.lower() in DICOM_BY_CONTENT
    return unnamed and path.name.lower() not in OTHER_NAMES


def _no_dicom(series: Iterable[Source]) -> list[Path]:
    """Returns files beside those of series that do not begin like DICOM, but may have been meant as slices."""
    beside = {path for source in series for folder in {f.parent for f in source.files} for path in folder.iterdir()}
    meant = (path for path in beside if _may_be_dicom(path) and path.is_file() and not path.name.startswith("."))
    return sorted(path for path in meant if not is_dicom(first_bytes(path)))


def _is(tree: Tree, files: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Returns whether all files have names of a layout, and some are names of volumes."""
    names = [stem(path).lower() for path in (*files, *masks)]
    volumes = [name for name in names if tree.volume.fullmatch(name)]
    return bool(volumes) and all(tree.volume.fullmatch(name) or tree.mask.fullmatch(name) for name in names)


def _of_tree(tree: Tree, files: Iterable[Path], apart: Iterable[Path], sequence: str) -> list[Source]:
    """Returns the volumes of a layout, with their masks.

    Raises:
        DatasetError: Two volumes have the same name, a mask has no volume, or the sequence has no image.
    """
    wanted = ALIKE.get(sequence or tree.sequence, (sequence or tree.sequence,))
    volumes: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in (*files, *apart):
        name = stem(path).lower()
        if match := tree.mask.fullmatch(name):
            place = masks
        elif (match := tree.volume.fullmatch(name)) and match.groupdict().get("sequence", "") in wanted:
            place = volumes
        else:
            continue
        twin = place.setdefault(match["key"], path)
        if twin is not path:
            raise DatasetError(f"{path}: {twin} is of the same scan. Keep one of them.")
    if not volumes:
        raise DatasetError(f"there is no {wanted[0]} image among the {tree.name} files. Say which is read: --sequence.")
    sources = []
    for key, path in volumes.items():
        patient = tree.patient.match(key)
        assert patient is not None  # it takes anything
        mask = masks.pop(key, None)
        sources.append(Source((path,), patient[0], (mask,) if mask else (), modality=tree.modality))
    if masks:
        raise DatasetError(
            f"{next(iter(masks.values()))}: no volume is of the same scan. Restore it, or remove the mask."
        )
    return sources


def _with_masks(volumes: Sequence[Source], masks: Sequence[Path], root: Path, mask_root: Path) -> list[Source]:
    """Returns volumes with the masks of the same name, in the same relative folder, or anywhere if the name is unique.

    Raises:
        DatasetError: A mask has no volume, or several.
    """
    given: dict[int, list[Path]] = {}
    names = [_name(source) for source in volumes]
    for mask in masks:
        own = stem(mask)
        wanted = {own, MASK_ENDS.sub("", own)}
        fitting = [number for number, name in enumerate(names) if name in wanted]
        if len(fitting) > 1:
            folder = _folder(mask, mask_root)
            fitting = [number for number in fitting if _folder(volumes[number].files[0], root) == folder]
        if len(fitting) != 1:
            what = "several volumes have" if fitting else "no volume has"
            raise DatasetError(f"{mask}: {what} the name of this mask ({own}). Name it as its one volume.")
        given.setdefault(fitting[0], []).append(mask)
    return [replace(source, masks=tuple(given.get(number, ()))) for number, source in enumerate(volumes)]


def _name(source: Source) -> str:
    if len(source.files) > 1:
        return normal_form(source.files[0].parent.name)
    return stem(source.files[0]).removesuffix(FIRST_CHANNEL)


def _folder(path: Path, root: Path) -> str:
    return os.path.relpath(path.parent, root)


def _dicom(paths: Iterable[Path]) -> tuple[list[Source], list[Header], list[Path]]:
    """Returns DICOM images as series, the segmentations, and the files that are neither.

    Raises:
        DatasetError: A header cannot be read.
    """
    series: dict[str, list[Header]] = {}
    segmentations, others = [], []
    for path in paths:
        header = read_header(path)
        if header.is_segmentation:
            segmentations.append(header)
        elif header.is_image:
            series.setdefault(header.series, []).append(header)
        else:
            others.append(path)
    sources = []
    for uid, files in series.items():
        paths_of = tuple(header.path for header in files)
        frames = sum(header.frames for header in files)
        sources.append(Source(paths_of, files[0].patient, (), True, series=uid, frame=files[0].frame, frames=frames))
    return sources, segmentations, others


def _with_segmentations(volumes: Sequence[Source], found: Iterable[Header]) -> list[Source]:
    """Returns volumes with the segmentations that were drawn on them, matched by series, or otherwise by space.

    Raises:
        DatasetError: A segmentation matches none of the volumes, or several.
    """
    given: dict[int, list[Path]] = {}
    for header in found:
        fitting = [number for number, source in enumerate(volumes) if source.series in header.drawn_on]
        if not fitting and header.frame:
            fitting = [number for number, source in enumerate(volumes) if source.frame == header.frame]
        if len(fitting) != 1:
            what = "several series share its space" if fitting else "the series that it was drawn on is missing"
            raise DatasetError(
                f"{header.path}: a DICOM segmentation, and {what}. Add that series, or leave the file out."
            )
        given.setdefault(fitting[0], []).append(header.path)
    return [replace(source, segmentations=tuple(given.get(number, ()))) for number, source in enumerate(volumes)]


def _with_patients(found: Sources, root: Path, table: Path | None) -> Sources:
    """Returns sources with their patients.

    Patients come from the table; otherwise from the ID of DICOM files, `sub-…` of BIDS or the layout; otherwise from
    the first folder that differs between volumes. If all volumes are in one folder, each counts as one patient.

    Raises:
        DatasetError: The table lacks a volume, or names one twice.
    """
    if table is not None:
        owners = _owners(table)
        owned = []
        for source in found.volumes:
            names = {os.path.relpath(path, root if root.is_dir() else root.parent) for path in _names_of(source)}
            named = [owners[name] for name in sorted(names | {Path(name).name for name in names}) if name in owners]
            if not named:
                raise DatasetError(f"{table}: has no row for {source.name}. Name each volume by its path from {root}.")
            owned.append(replace(source, patient=named[0]))
        return Sources(owned, found.tree, f"by {table.name}", found.notes)
    if not found.volumes:
        return found
    parents = [source.files[0].parent for source in found.volumes]
    common = len(Path(os.path.commonpath(parents)).parts)
    volumes: list[Source] = []
    ways: dict[str, None] = {}
    for source in found.volumes:
        parts = source.files[0].parent.parts[common:]
        bids = BIDS.search("/".join((*source.files[0].parts[len(root.parts) :],)))
        patient, way = (
            (source.patient, "by the patient ID of DICOM files" if source.is_dicom else f"as {_tree(found)} names them")
            if source.patient
            else (bids[0], "by sub-… in their names")
            if bids
            else (parts[0], "by the folders that volumes lie in")
            if parts
            else (stem(source.files[0]), "by files alone, each as a patient (--patients is more reliable)")
        )
        ways[way] = None
        volumes.append(replace(source, patient=patient))
    return Sources(volumes, found.tree, "; ".join(ways), found.notes)


def _tree(found: Sources) -> str:
    return found.tree.name if found.tree else ""


def _names_of(source: Source) -> tuple[Path, ...]:
    return (source.files[0], source.files[0].parent) if source.is_dicom else source.files


def _owners(table: Path) -> Mapping[str, str]:
    owners: dict[str, str] = {}
    for number, row in read_rows(table, remedy="Correct the table.", error=DatasetError):
        volume, patient = (row.get(column, "").strip() for column in ("volume", "patient"))
        if not volume or not patient:
            raise DatasetError(f"{table}, line {number}: the columns volume and patient are needed, both filled in.")
        volume = os.path.normpath(volume)
        if owners.setdefault(volume, patient) != patient:
            raise DatasetError(f"{table}, line {number}: {volume} has two patients. Correct the table.")
    return owners
