"""`python -m afclip_lightning inspect`: score, verdict and map of one's own images."""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_lightning.cli.model_options import (
    add_model_options,
    load_models,
    named_model,
    no_model,
    split_model_arguments,
)
from afclip_lightning.volumes.options import add_cut_options
from afclip_runtime.cli.options import add_calibration_options, thresholds_of, wanted_calibration
from afclip_runtime.cli.parser import CommandParser, command, finite
from afclip_runtime.errors import PROGRAM, UserError

if TYPE_CHECKING:
    from afclip_lightning.inspection.volumes import CutInputs

SAVES = ("map", "npy", "mask", "overlay", "nifti", "labelstudio", "coco")
OF_THRESHOLD = ("mask", "labelstudio", "coco")  # what there is none of without a pixel threshold

PLACE = 41
DESCRIPTION = """\
Inspects images: files, folders with all below them, patterns (*), or - for a list of paths from standard input.

The output folder gets, as it goes, one line per image:
  inspections.csv, .jsonl   path, method (of several), score, probability (0.5 = the threshold), threshold,
                            threshold_from (calibration, hand or default), verdict, area (share of the image above the
                            pixel threshold), regions (box = left, top, right, bottom; area in pixels; highest score),
                            drift (higher or lower: the calibration no longer holds, see below), error, name (of the
                            files below); in .jsonl also size and mtime_ns of the file
  maps/NAME.png             --save map: 16 bits, value = low + pixel * step, both texts in the file; evaluate reads it
  npy/NAME.npy              --save npy: the map as float32
  masks/NAME.png            --save mask: 255 above the pixel threshold
  overlays/NAME.jpg         --save overlay: image, map and contours
With --axis, volumes (NIfTI, NRRD, MetaImage, DICOM series) are cut into slices, below volumes/, which are images; and
  volumes.csv, .jsonl       one line per volume: score (--volume_score), verdict, slices above the threshold, map
  labelstudio.json          --save labelstudio: tasks with what is above the pixel threshold as predictions, a brush per
                            region with its score; labelstudio.xml is the labelling interface for them
  coco.json                 --save coco: the same as COCO's instances, masks as run lengths; datasets import reads both
  nifti/VOLUME.nii.gz       --save nifti: its map as float32, of the volume's own shape, affine and order of axes
All are of the image's own size. An overlay without calibration says that its colours have no common scale.
A run that was stopped goes on where it was, tries again what failed, and judges a file again that was replaced (its
size or time has changed). One process writes into an output folder at a time.

Files of a folder that could be images and are of no kind that is read here (.heic, .cr2 …) get a line with an error as
well, and are counted as left out; texts, tables, archives, hidden files and what --ignore names do not. A folder that
cannot be read costs one line.

Thresholds come from the command calibrate, or by hand; else a ready model has its own, which know nothing of your
product: threshold_from says default then. Without a threshold there is no verdict.

As images come, their scores are compared with those of the calibration's normal images. Where they have become higher
or lower (light, camera or product have changed), the calibration no longer holds: column drift from that image on, a
note, and exit code 3. At most 1 % of runs without a change ever say so, if at most half of the images are anomalous and
no more than 40 in a row. Slices of volumes are not compared.

Exit codes: 0 all images were judged; 1 some could not be read or were left out (column error); 3 the calibration no
longer holds (column drift), whether or not all could be read; 2 a mistake that the message explains; 70 an error of
this program; 130 interrupted.
"""


@command("Stopped. The same command goes on from here.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code, as the description has them."""
    others, arguments = split_model_arguments(args)
    return _run(_parser().parse_args(others), arguments)


def _run(options: argparse.Namespace, arguments: dict[str, Any]) -> int:
    named = [*filter(None, [named_model(options), *options.methods.split(",")])]
    if not named:
        raise no_model("inspect", shlex.join(options.paths), "; --methods NAMES, those that train nothing")
    saves = list(filter(None, options.save.split(",")))
    if unknown := set(saves) - set(SAVES):
        raise UserError(f"--save takes {', '.join(SAVES)}, got {', '.join(sorted(unknown))}.")
    by_hand = {"threshold": options.threshold, "pixel_threshold": options.pixel_threshold}
    if len(named) > 1 and (options.calibration or any(value is not None for value in by_hand.values())):
        raise UserError("a threshold or a calibration is of one model, and several are named.")

    if options.axis and {"labelstudio", "coco"} & set(saves):
        raise UserError("--save labelstudio and coco are of images, not of the slices of volumes (--axis).")
    if "nifti" in saves and not options.axis:
        raise UserError("--save nifti is of volumes: say along which axis they are cut, --axis axial.")

    from afclip_lightning.inspection.preannotations import TOOLS, keep_regions, write_preannotations
    from afclip_lightning.inspection.volumes import check_rule, judge, keep_for_volume
    from afclip_lightning.volumes.maps import NIFTI
    from afclip_lightning.volumes.windows import check_window
    from afclip_runtime.files import only_writer
    from afclip_runtime.images.picture import say
    from afclip_runtime.inspection.folder import check_settings, inspect
    from afclip_runtime.inspection.inputs import count_left_out, find_inputs

    check_window(options.window)
    check_rule(options.volume_score)

    patterns = list(filter(None, _patterns(options.paths)))
    cut = _cut(patterns, options) if options.axis else None
    inputs = find_inputs(patterns, options.out, options.ignore, cut.taken if cut else ())
    inputs += cut.inputs if cut else []
    if not inputs:
        raise UserError("there is nothing to inspect: the list of paths is empty.")
    images = [item.path for item in inputs if not item.error]
    models = load_models(named, options, arguments, wanted_calibration(options), images)
    for model in models.values():
        model.threshold, model.pixel_threshold = by_hand["threshold"], by_hand["pixel_threshold"]
    for name, model in models.items():
        print(f"{name}: {thresholds_of(model)}", file=sys.stderr)
    needing = [what for what in saves if what in OF_THRESHOLD]
    if needing and any(m.thresholds[1] is None for m in models.values()):
        raise UserError(f"--save {needing[0]} needs a pixel threshold: calibrate first, or give --pixel_threshold.")
    facts = {name: [m.checkpoint, m.settings, *m.thresholds] for name, m in models.items()}
    keeps = [keep_for_volume] if NIFTI in saves else []
    keeps += [keep_regions] if set(TOOLS) & set(saves) else []
    with only_writer(options.out):
        check_settings(options.out, {"model": facts, "save": sorted(saves)})
        done = inspect(models, inputs, options.out, saves, options.num_workers, keeps)
        for path in write_preannotations(done.rows.values(), options.out, saves, options.image_url):
            print(f"for the annotation tool: {path}", file=sys.stderr)
        verdicts = judge(done.rows, cut, options.out, options.volume_score, saves) if cut else []
    left_out = sum(item.left_out for item in inputs)
    judged, before = done.new - done.failed - left_out * len(models), len(inputs) * len(models) - done.new
    print(
        f"{judged} inspected, {done.failed} failed, {before} done before, {count_left_out(inputs)}: "
        f"{options.out / 'inspections.csv'}"
    )
    if cut and verdicts:
        print(f"{len(verdicts)} verdicts on {len(cut.paths)} volumes: {options.out / 'volumes.csv'}")
    if done.replaced:
        print(f"{done.replaced} of these had been inspected before and were replaced since.")
    for note in cut.notes if cut else ():
        print(f"note: {note}", file=sys.stderr)
    for sentence in say(sum((model.remarks for model in models.values()), Counter[str]())):
        print(f"note: {sentence}", file=sys.stderr)
    drifted = any(row.drift for row in done.rows.values())
    for name, drift in done.drifts.items():
        if alarm := drift.finish():
            drifted = True
            print(f"note: {name}: {alarm}", file=sys.stderr)
    return 3 if drifted else 1 if done.failed or left_out else 0


def _cut(patterns: Sequence[str], options: argparse.Namespace) -> "CutInputs":
    """Returns what became of the volumes among the inputs."""
    from tqdm import tqdm

    from afclip_lightning.inspection.volumes import cut_inputs
    from afclip_lightning.volumes.cutting import Cutting
    from afclip_lightning.volumes.volume import Reading

    reading = Reading(options.channel, options.form, options.codes)
    cutting = Cutting(options.axis, options.window, reading=reading)
    return cut_inputs(patterns, options.out, cutting, lambda n: tqdm(n, unit=" volumes", disable=None))


def _patterns(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if path != "-":
            yield path
        elif hasattr(sys.stdin, "buffer"):
            yield from map(os.fsdecode, sys.stdin.buffer.read().splitlines())  # names are any bytes
        else:
            yield from sys.stdin.read().splitlines()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} inspect", description=DESCRIPTION)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, pattern, or - for a list")
    parser.add_argument(
        "--out", type=Path, default=Path("inspections"), metavar="DIR", help="folder of the output (%(default)s)"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="names of files that are left out of folders without a line, as '*.heic'; may be given again",
    )
    parser.add_argument(
        "--image_url",
        default="/data/local-files/?d=",
        metavar="PREFIX",
        help="what stands before the path of an image in labelstudio.json (%(default)s: Label Studio's local files)",
    )
    parser.add_argument(
        "--save", default="", metavar="WHAT", help=f"pictures to write, of {', '.join(SAVES)}, with commas between"
    )
    parser.add_argument(
        "--methods", default="", metavar="NAMES", help="methods that train nothing, by name or config, commas between"
    )
    volumes = parser.add_argument_group("volumes")
    add_cut_options(volumes.add_argument, None)
    volumes.add_argument(
        "--volume_score",
        default="highest",
        metavar="RULE",
        help="score of a volume from those of its slices: highest, mean, or mean_top_N of the N highest (%(default)s)",
    )
    thresholds = parser.add_argument_group("thresholds")
    add_calibration_options(thresholds)
    thresholds.add_argument("--threshold", type=finite, metavar="X", help="image scores above it are anomalous")
    thresholds.add_argument("--pixel_threshold", type=finite, metavar="X", help="likewise, values of the map")
    add_model_options(parser, engine=True)
    return parser
