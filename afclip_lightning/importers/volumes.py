"""Volumes: NIfTI, NRRD, MetaImage and DICOM series, cut into slices, with masks paired by their geometry."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from afclip_lightning.volumes.cutting import Cutting
from afclip_lightning.volumes.find import Source, Sources, find_volumes
from afclip_lightning.volumes.importing import (
    NAMES,
    Done,
    check_same,
    cut_all,
    pseudonyms,
    settings_of,
    splits,
    write_names,
    write_slices,
)
from afclip_lightning.volumes.options import add_cut_options
from afclip_lightning.volumes.volume import Reading
from afclip_lightning.volumes.windows import check_window
from afclip_runtime.errors import UserError, counted, typed
from afclip_runtime.files import only_writer
from afclip_runtime.images.find import VOLUME_SUFFIXES

DECATHLON = ("imagesTr", "labelsTr")  # folders of the Medical Segmentation Decathlon and of nnU-Net
LISTED = 10  # maximum number of lines per kind


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this kind."""
    add = parser.add_argument
    add("--masks", type=Path, metavar="DIR", help="folder of masks; by default beside the volumes (_seg, _mask …)")
    add_cut_options(add, "axial")
    add("--bits", type=int, choices=(8, 16), default=8, help="bits per pixel of a slice (%(default)s)")
    add(
        "--pixels",
        choices=("square", "stored"),
        default="square",
        help="shape of a pixel: square, or as the voxels (%(default)s)",
    )
    add(
        "--anomalous",
        metavar="VALUES",
        help="values of masks, or numbers of DICOM segments, that mean anomalous, as 2 or 1,4; by default all but 0",
    )
    add("--unmasked_are_normal", action="store_true", help="treat volumes without a mask as normal")
    add(
        "--min_content",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="leave out normal slices of which at most this share is not black (%(default)s: all-black slices)",
    )
    add(
        "--train_share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the patients in training (%(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the selection of patients (%(default)s)")
    add("--patients", type=Path, metavar="CSV", help="table with the columns volume and patient")
    add("--category", default="", help="name of the category; by default that of the set")
    add("--sequence", default="", metavar="NAME", help="sequence of BraTS: flair, t1, t1ce, t2 (flair)")
    add("--on_error", choices=("stop", "skip"), default="stop", help="skip: go on after a volume that cannot be read")
    add("--keep_names", action="store_true", help=f"write {NAMES}, which names the file of each volume")


def convert(options: argparse.Namespace) -> int:
    """Cuts the volumes of a folder into a set of slices and returns the exit code: 1 if some were not read.

    Raises:
        UserError: An option is wrong, a volume cannot be read, or a mask does not match its volume.
    """
    check_window(options.window)
    for name, high in (("train_share", 1), ("min_content", 1)):
        if not 0 <= getattr(options, name) < high:
            raise UserError(f"--{name} must be at least 0 and below {high}, got {getattr(options, name)}.")
    folder, masks = options.file, options.masks
    if masks is None and all((folder / name).is_dir() for name in DECATHLON):
        folder, masks = (folder / name for name in DECATHLON)
    found = find_volumes(folder, masks, [options.out], options.patients, options.sequence)
    if not found.volumes:
        kinds = ", ".join(VOLUME_SUFFIXES)
        raise UserError(f"{options.file}: there is no volume in it: no {kinds} and no DICOM series.")
    _check_masked(found.volumes, options)
    cutting = _cutting(options, found)
    names, skip = pseudonyms(found.volumes), options.on_error == "skip"
    split_of = splits((patient for _, patient in names), options.train_share, options.seed)
    with only_writer(options.out):
        check_same(options.out, settings_of(cutting))
        done = cut_all(found.volumes, names, options.out, cutting, skip, _progress)
        category = options.category or options.out.resolve().name
        write_slices(options.out, done.records, split_of, category)
        if options.keep_names:
            write_names(options.out, found.volumes)
    _say(options, cutting, found, done, split_of)
    return 1 if done.failed else 0


def _progress(numbers: Iterable[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(numbers, unit=" volumes", disable=None)


def _check_masked(volumes: Sequence[Source], options: argparse.Namespace) -> None:
    bare = [source for source in volumes if not source.masks and not source.segmentations]
    if bare and not options.unmasked_are_normal:
        raise UserError(
            f"{bare[0].name}: {len(bare)} of {len(volumes)} volumes have no mask, so it is unknown which of their "
            "slices are anomalous. Give --masks DIR, or, if all of them are normal, --unmasked_are_normal."
        )


def _cutting(options: argparse.Namespace, found: Sources) -> Cutting:
    anomalous = found.tree.anomalous if found.tree else None
    if options.anomalous is not None:
        try:
            anomalous = tuple(sorted({int(value) for value in options.anomalous.split(",")}))
        except ValueError as error:
            raise UserError(
                f"--anomalous {options.anomalous}: whole numbers are needed, with commas between."
            ) from error
    reading = Reading(options.channel, options.form, options.codes)
    cutting = Cutting(
        options.axis,
        options.window,
        options.bits,
        options.pixels == "square",
        anomalous,
        options.min_content,
        reading,
    )
    by_tree = options.window == "auto" and found.tree
    return replace(cutting, window=found.tree.window) if by_tree and found.tree else cutting


def _say(
    options: argparse.Namespace, cutting: Cutting, found: Sources, done: Done, split_of: Mapping[str, str]
) -> None:
    records = done.records
    patients = sorted({record.patient for record in records})
    labels = Counter(label for record in records for label in record.labels)
    if found.tree:
        print(f"The folder has the layout of {found.tree.name}.")
    print(
        f"{counted(len(records), 'volume')} of {counted(len(patients), 'patient')}, told apart {found.told_by}; "
        f"{done.new} of them new."
    )
    shares = ", ".join(f"{count} {split}" for split, count in sorted(Counter(map(split_of.get, patients)).items()))
    print(f"{labels[0]} normal and {labels[1]} anomalous slices, {cutting.axis}; split by patients: {shares}.")
    if left_out := sum(record.cut.count - len(record.indices) for record in records):
        share = f"{options.min_content:g}"
        print(f"{counted(left_out, 'normal slice')} left out: a share of at most {share} of the pixels is not black.")
    for rule, count in Counter(record.rule for record in records).items():
        print(f"black and white by {rule}: {counted(count, 'volume')}")
    values = sorted({value for record in records for value in record.mask_values})
    if values:
        chosen = cutting.anomalous
        marked = [value for value in values if (value != 0 if chosen is None else value in chosen)]
        print(f"values of masks: {_list(values)}; anomalous are {_list(marked) or 'none of them'}")
        if options.anomalous is not None and not marked and any(values):
            sentence = f"no mask holds a value of --anomalous {options.anomalous}, so all slices count as normal"
            print(f"note: {sentence}. If others are meant, name them, and another --out.", file=sys.stderr)
    for lines in (found.notes, [note for record in records for note in record.notes()], list(done.failed.values())):
        for line in lines[:LISTED]:
            print(f"note: {line}", file=sys.stderr)
        if len(lines) > LISTED:
            print(f"note: and {len(lines) - LISTED} more of this kind.", file=sys.stderr)
    print(f"Next: {typed('datasets', 'check', 'Volumes', '--root', options.out)}")
    print(f"Look: {typed('datasets', 'show', 'Volumes', '--root', options.out)}")


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:20])) + (" …" if len(values) > 20 else "")
