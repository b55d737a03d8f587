"""`python -m afclip_runtime inspect`: score, verdict and map of images, with a bundle."""

import argparse
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.cli.bulk import DESCRIPTION as OF_SHARDS
from afclip_runtime.cli.bulk import add_bulk_options, inspect_by_shards, is_by_shards
from afclip_runtime.cli.feedback import add_feedback_options, give_feedback, require_images
from afclip_runtime.cli.options import (
    RUNTIME,
    add_bundle_options,
    add_calibration_options,
    bundle_of,
    load_bundle,
    thresholds_of,
    wanted_calibration,
)
from afclip_runtime.cli.parser import CommandParser, before_inspection, command, finite, numeric
from afclip_runtime.cli.watch_options import DESCRIPTION as OF_WATCHING
from afclip_runtime.cli.watch_options import (
    add_watch_options,
    check_threshold,
    check_watch_options,
    parse_paths_or_watch,
    watch,
)
from afclip_runtime.errors import UserError

if TYPE_CHECKING:
    from afclip_runtime.inspection.folder import Done, Keep
    from afclip_runtime.inspection.inputs import Input
    from afclip_runtime.inspection.inspector import Inspector

PLACE = 41
SAVES = ("map", "npy", "mask", "overlay")
OF_THRESHOLD = ("mask", "labelstudio", "coco")  # outputs that need a pixel threshold
_megapixels = numeric(float, lambda value: value > 0, "above 0")
FILES = """\
Inspects images: files, folders with their subfolders, patterns (*), or - for a list of paths from standard input.

The output folder gets one line per image, as soon as it is inspected:
  inspections.csv, .jsonl   path, method (of several), score, probability (0.5 = the threshold), threshold,
                            threshold_from (calibration, hand or default), verdict, area (share of inspected pixels
                            above the pixel threshold), regions (box = left, top, right, bottom; area in pixels; highest
                            score), drift (higher or lower: the calibration no longer holds, see below), error, name (of
                            the files below); in .jsonl also size and mtime_ns of the file
  maps/NAME.png             --save map: 16 bits, value = low + pixel * step; low and step are texts in the file. The
                            command evaluate reads it
  npy/NAME.npy              --save npy: the map as float32
  masks/NAME.png            --save mask: 255 above the pixel threshold
  overlays/NAME.jpg         --save overlay: image, map and contours
"""
RUNS = f"""\
All pictures have the size of the image. An overlay without calibration notes that its colours have no common scale.
A stopped run continues where it was. It tries failed images again, and inspects a replaced file (whose size or time has
changed) again. Only one process at a time can write into an output folder.

Files of a folder that may be images but whose format is not read here (.heic, .cr2 …) get a line with an error and
count as left out. Texts, tables, archives, hidden files and files that match --ignore get no line. A folder that cannot
be read gets one line.

Thresholds come from the command calibrate, or are set by hand. Otherwise a ready model has default thresholds, which do
not depend on your product; threshold_from is then default. Without a threshold there is no verdict.

Drift: the scores of the images are compared with those of the calibration's normal images. If they have become higher
or lower (light, camera or product have changed), the calibration no longer holds. Then the column drift is set from
this image on, a note is printed, and the exit code is 3. At most 1 % of runs without a change report a drift, if at
most half of the images are anomalous and at most 40 of them in a row.

Feedback: to correct a wrong verdict, run the same command on these images with --feedback normal (a false alarm) or
--feedback anomalous (a missed anomaly). This moves the threshold within its confidence interval; --feedback undo
withdraws it. The audit file beside the calibration, head.feedback.jsonl, gets one line per mark. The calibration itself
does not change.

{OF_WATCHING}
Exit codes: 0 all images were inspected; 1 some could not be read or were left out (column error); 3 the calibration no
longer holds (column drift), even if some could not be read; 2 a mistake that the message explains; 70 a fault of the
program; 130 interrupted.
"""
STRAY = "Name all images in one place, and join several kinds of pictures with commas: --save overlay,map"
DESCRIPTION = f"""\
{FILES}\
{RUNS}
{OF_SHARDS}
Volumes (NIfTI, DICOM series …) and files for annotation tools need `afclip inspect` of afclip_lightning.
"""


@command("Stopped. The same command goes on from here.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code, see the description."""
    from afclip_runtime.inspection.inputs import find_inputs, require_any

    options = parse_paths_or_watch(_parser(), args)
    saves = saves_of(options, SAVES)
    patterns = patterns_of(options.paths)
    by_shards = is_by_shards(options, patterns, saves)
    check_watch_options(options, saves, several=False)
    folder = bundle_of(options)
    if options.feedback:
        images = [Path(path) for path in patterns]
        require_images(images, options)
        model = load_bundle(folder, options, wanted_calibration(options), images)
        give_feedback(model, options.feedback, images, options.feedback_by)
        return 0
    if by_shards:
        options.bundle = Path(os.path.abspath(folder))
        prepare = partial(set_thresholds, options=options, saves=saves)
        return inspect_by_shards(options, args, RUNTIME, patterns, saves, load_of_bundle, prepare)
    require_any(patterns)
    with before_inspection():
        inputs = find_inputs(patterns, options.out, options.ignore)
        check_inputs(inputs, options)
        model = load_bundle(folder, options, wanted_calibration(options), readable(inputs))
    models = {model.engine.method: model}
    set_thresholds(models, options, saves)
    with inspected(models, inputs, options, saves) as done:
        pass
    return report(models, inputs, done, options.out)


def load_of_bundle(options: argparse.Namespace, silent: bool) -> "dict[str, Inspector]":
    """Loads the model of a bundle with the options of the command. Returns it by name.

    Args:
        options: Options of the command, with the bundle.
        silent: Whether to print nothing.

    Raises:
        UserError: See `load_bundle`.
    """
    with redirect_stderr(io.StringIO()) if silent else nullcontext():
        model = load_bundle(options.bundle, options, wanted_calibration(options))
    give_thresholds([model], options)
    return {model.engine.method: model}


def check_inputs(inputs: "Sequence[Input]", options: argparse.Namespace) -> None:
    """Checks that there is something to inspect.

    Raises:
        UserError: There is no file, and no folder to watch.
    """
    if not inputs and options.watch is None:
        raise UserError("there is nothing to inspect: name files or folders, or give --watch DIR.")


def add_inspect_options(parser: argparse.ArgumentParser, saves: Sequence[str]) -> None:
    """Adds the options of inputs and outputs.

    Args:
        parser: Parser of the command.
        saves: Allowed values of `--save`.
    """
    parser.add_argument("paths", nargs="*", metavar="PATH", help="file, folder, pattern, or - for a list")
    parser.add_argument(
        "--out", type=Path, default=Path("inspections"), metavar="DIR", help="folder of the output (%(default)s)"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="pattern of file names in folders that get no line, such as '*.heic'; may be given again",
    )
    parser.add_argument(
        "--save", default="", metavar="WHAT", help=f"pictures to write: {', '.join(saves)}, separated by commas"
    )
    parser.add_argument(
        "--max_megapixels",
        type=_megapixels,
        metavar="N",
        help="size limit of an image, in megapixels; a larger one gets a line with an error before it is decoded "
        "(by default 134)",
    )
    add_watch_options(parser)


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of thresholds."""
    thresholds = parser.add_argument_group("thresholds")
    add_calibration_options(thresholds)
    thresholds.add_argument(
        "--threshold", type=finite, metavar="X", help="image threshold: scores above it are anomalous"
    )
    thresholds.add_argument(
        "--pixel_threshold", type=finite, metavar="X", help="pixel threshold: values of the map above it are anomalous"
    )


def saves_of(options: argparse.Namespace, known: Sequence[str]) -> list[str]:
    """Returns the values of `--save`.

    Raises:
        UserError: A value is not allowed.
    """
    saves = list(filter(None, options.save.split(",")))
    if unknown := set(saves) - set(known):
        raise UserError(f"--save takes {', '.join(known)}, got {', '.join(sorted(unknown))}.")
    return saves


def patterns_of(paths: Sequence[str]) -> list[str]:
    """Returns the paths of a command line, with the lines of standard input in place of `-`."""
    return list(filter(None, _patterns(paths)))


def _patterns(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if path != "-":
            yield path
        elif hasattr(sys.stdin, "buffer"):
            yield from map(os.fsdecode, sys.stdin.buffer.read().splitlines())  # names are any bytes
        else:
            yield from sys.stdin.read().splitlines()


def readable(inputs: "Sequence[Input]") -> list[Path]:
    """Returns the files that may be images."""
    return [item.path for item in inputs if not item.error]


def set_thresholds(models: "Mapping[str, Inspector]", options: argparse.Namespace, saves: Sequence[str]) -> None:
    """Sets the models' thresholds that are given by hand, and prints the thresholds of all models.

    Raises:
        UserError: There is no pixel threshold, which a value of `--save` needs, or no threshold, which `--move_to`
            needs.
    """
    give_thresholds(models.values(), options)
    for name, model in models.items():
        print(f"{name}: {thresholds_of(model)}", file=sys.stderr)
    needing = [what for what in saves if what in OF_THRESHOLD]
    if needing and any(model.thresholds[1] is None for model in models.values()):
        raise UserError(f"--save {needing[0]} needs a pixel threshold: calibrate first, or give --pixel_threshold.")
    check_threshold(options, models)


def give_thresholds(models: "Iterable[Inspector]", options: argparse.Namespace) -> None:
    """Sets the models' thresholds that are given by hand, and their limit of image sizes."""
    for model in models:
        model.threshold, model.pixel_threshold = options.threshold, options.pixel_threshold
        model.most_pixels = None if options.max_megapixels is None else int(options.max_megapixels * 10**6)


@contextmanager
def inspected(
    models: "Mapping[str, Inspector]",
    inputs: "Sequence[Input]",
    options: argparse.Namespace,
    saves: Sequence[str],
    keeps: "Sequence[Keep]" = (),
) -> "Iterator[Done]":
    """Inspects images into the output folder, which stays locked for this process until the body has ended.

    Args:
        models: Models by name.
        inputs: The files; empty if a folder is watched.
        options: Options of the command.
        saves: Kinds of pictures to write.
        keeps: See `folder.inspect`.

    Raises:
        UserError: See `folder.inspect` and `check_settings`.
    """
    from afclip_runtime.files import only_writer
    from afclip_runtime.inspection.folder import check_settings, inspect, settings_of

    with only_writer(options.out):
        settings = settings_of(models, saves)
        scope = check_settings(options.out, settings | ({"move_to": options.move_to} if options.move_to else {}))
        if options.watch is None:
            yield inspect(models, inputs, options.out, saves, options.num_workers, keeps)
        else:
            yield watch(models, options, saves, scope, keeps)


def report(
    models: "Mapping[str, Inspector]",
    inputs: "Sequence[Input]",
    done: "Done",
    out: Path,
    lines: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> int:
    """Prints the summary of a run, and returns the exit code.

    Args:
        models: Models by name.
        inputs: The files; empty if a folder was watched.
        done: Result of the run.
        out: Output folder.
        lines: More lines of the summary.
        notes: More notes.
    """
    from afclip_runtime.images.picture import say
    from afclip_runtime.inspection.inputs import count_left_out
    from afclip_runtime.inspection.table import note_of_first, verdicts_in

    table = out / "inspections.csv"
    judged, before = done.new - done.failed - done.left_out, len(inputs) * len(models) - done.new
    others = f"{before} done before, {count_left_out(inputs)}" if inputs else f"{done.left_out} left out"
    print(f"{judged} inspected, {done.failed} failed, {others}: {table}")
    for method, verdicts in verdicts_in(done.rows.values()).items():
        print(f"{method + ', in' if method else 'In'} the table: {verdicts}")
    for line in lines:
        print(line)
    if done.replaced:
        print(f"{done.replaced} of these were inspected before and have been replaced since.")
    first = done.first_failed
    failure = [note_of_first(first.path, first.error, done.failed, table)] if first else []
    for sentence in [*failure, *notes, *say(sum((model.remarks for model in models.values()), Counter[str]()))]:
        print(f"note: {sentence}", file=sys.stderr)
    drifted = any(row.drift for row in done.rows.values())
    for name, drift in done.drifts.items():
        if alarm := drift.finish() if inputs else drift.alarm:  # a watched stream has no end to test
            drifted = True
            print(f"note: {name}: {alarm}", file=sys.stderr)
    return 3 if drifted else 1 if done.failed or done.left_out else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{RUNTIME} inspect", stray=STRAY, description=DESCRIPTION)
    add_inspect_options(parser, SAVES)
    add_threshold_options(parser)
    add_feedback_options(parser)
    add_bundle_options(parser)
    add_bulk_options(parser)
    return parser
