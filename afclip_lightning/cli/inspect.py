"""`python -m afclip_lightning inspect`: score, verdict and map of your own images."""

import argparse
import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from functools import partial
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
from afclip_runtime.cli import inspect as of_runtime
from afclip_runtime.cli.bulk import DESCRIPTION as OF_SHARDS
from afclip_runtime.cli.bulk import add_bulk_options, inspect_by_shards, is_by_shards
from afclip_runtime.cli.feedback import add_feedback_options, give_feedback, require_images
from afclip_runtime.cli.inspect import (
    FILES,
    RUNS,
    STRAY,
    add_inspect_options,
    add_threshold_options,
    check_inputs,
    give_thresholds,
    inspected,
    patterns_of,
    readable,
    report,
    saves_of,
    set_thresholds,
)
from afclip_runtime.cli.options import wanted_calibration
from afclip_runtime.cli.parser import CommandParser, before_inspection, command
from afclip_runtime.cli.watch_options import check_watch_options, parse_paths_or_watch
from afclip_runtime.errors import PROGRAM, UserError

if TYPE_CHECKING:
    from afclip_lightning.inspection.volumes import CutInputs
    from afclip_runtime.inspection.inspector import Inspector

SAVES = (*of_runtime.SAVES, "nifti", "labelstudio", "coco")

PLACE = 41
DESCRIPTION = f"""\
{FILES}\
With --axis, volumes (NIfTI, NRRD, MetaImage, DICOM series) are cut into slices in volumes/, inspected as images; and
  volumes.csv, .jsonl       one line per volume: score (--volume_score), verdict, slices above the threshold, map
  labelstudio.json          --save labelstudio: tasks with the regions above the pixel threshold as predictions, one
                            brush per region with its score; labelstudio.xml is the labelling interface for them
  coco.json                 --save coco: these regions as COCO's instances with run lengths; datasets import reads both
  nifti/VOLUME.nii.gz       --save nifti: its map as float32, of the volume's own shape, affine and order of axes
{RUNS}\
Slices of volumes take no part in the comparison with normal images.

{OF_SHARDS}"""


@command("Stopped. The same command goes on from here.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see the description."""
    others, arguments = split_model_arguments(args)
    return _run(parse_paths_or_watch(_parser(), others), arguments, args)


def _run(options: argparse.Namespace, arguments: dict[str, Any], args: Sequence[str]) -> int:
    named = [*filter(None, [named_model(options), *options.methods.split(",")])]
    if not named:
        raise no_model("inspect", shlex.join(options.paths), "; --methods NAMES, those that train nothing")
    saves = saves_of(options, SAVES)
    patterns = patterns_of(options.paths)
    by_shards = is_by_shards(options, patterns, saves)
    if options.feedback:
        _mark(named, patterns, options, arguments)
        return 0
    by_hand = options.threshold is not None or options.pixel_threshold is not None
    if len(named) > 1 and (options.calibration or by_hand):
        raise UserError("a threshold or a calibration belongs to one model, and several are named.")

    if options.axis and {"labelstudio", "coco"} & set(saves):
        raise UserError("--save labelstudio and coco are for images, not for the slices of volumes (--axis).")
    if "nifti" in saves and not options.axis:
        raise UserError("--save nifti is for volumes: name the axis along which they are cut, --axis axial.")
    check_watch_options(options, saves, len(named) > 1)
    if by_shards:
        load = partial(load_by_name, named, arguments)
        prepare = partial(set_thresholds, options=options, saves=saves)
        return inspect_by_shards(options, args, PROGRAM, patterns, saves, load, prepare)
    if options.watch is not None and options.axis:
        raise UserError("--watch is for images: cut volumes in a run of their own (--axis).")

    from afclip_lightning.inspection.preannotations import TOOLS, keep_regions, write_preannotations
    from afclip_lightning.inspection.volumes import check_rule, judge, keep_for_volume
    from afclip_lightning.volumes.maps import NIFTI
    from afclip_lightning.volumes.windows import check_window
    from afclip_runtime.inspection.inputs import find_inputs, require_any

    check_window(options.window)
    check_rule(options.volume_score)

    require_any(patterns)
    with before_inspection():
        cut = _cut(patterns, options) if options.axis else None
        inputs = find_inputs(patterns, options.out, options.ignore, cut.taken if cut else ())
        inputs += cut.inputs if cut else []
        check_inputs(inputs, options)
        models = load_models(named, options, arguments, wanted_calibration(options), readable(inputs))
    set_thresholds(models, options, saves)
    keeps = [keep_for_volume] if NIFTI in saves else []
    keeps += [keep_regions] if set(TOOLS) & set(saves) else []
    lines = []
    with inspected(models, inputs, options, saves, keeps) as done:
        for path in write_preannotations(done.rows.values(), options.out, saves, options.image_url):
            print(f"for the annotation tool: {path}", file=sys.stderr)
        if cut and (verdicts := judge(done.rows, cut, options.out, options.volume_score, saves)):
            lines = [f"{len(verdicts)} verdicts on {len(cut.paths)} volumes: {options.out / 'volumes.csv'}"]
    return report(models, inputs, done, options.out, lines, cut.notes if cut else ())


def load_by_name(
    named: Sequence[str], arguments: dict[str, Any], options: argparse.Namespace, silent: bool
) -> "dict[str, Inspector]":
    """Returns the models of a command by name.

    Args:
        named: Checkpoints, configs, methods, bundles.
        arguments: Arguments of the method; see `split_model_arguments`.
        options: Options of the command.
        silent: Whether notes on the models are left out, because they were printed before.

    Raises:
        UserError: See `load_models`.
    """
    with redirect_stderr(io.StringIO()) if silent else nullcontext():
        models = load_models(named, options, arguments, wanted_calibration(options))
    give_thresholds(models.values(), options)
    return models


def _mark(
    named: Sequence[str], patterns: Sequence[str], options: argparse.Namespace, arguments: dict[str, Any]
) -> None:
    """Marks the named images with the value of --feedback."""
    images = [Path(path) for path in patterns]
    require_images(images, options)
    if len(named) > 1:
        raise UserError("feedback is for one model, and several are named.")
    if options.feedback_to == "memory":
        from afclip_lightning.inspection.few_shot_feedback import mark_few_shot

        if options.few_shot_dir is None:
            raise UserError("--feedback_to memory is for few-shot images: name their folder, --few_shot_dir DIR.")
        load_models(named, options, arguments, None, images)  # refuses methods without a memory, and bundles
        for image in images:
            mark_few_shot(options.few_shot_dir, options.feedback, image, options.feedback_by)
        print(
            f"The few-shot images have changed: {options.few_shot_dir}. Calibrate again with them: earlier thresholds "
            "do not hold for another memory, and are refused."
        )
        return
    (model,) = load_models(named, options, arguments, wanted_calibration(options), images).values()
    give_feedback(model, options.feedback, images, options.feedback_by)


def _cut(patterns: Sequence[str], options: argparse.Namespace) -> "CutInputs":
    """Returns the volumes among the inputs, cut into slices."""
    from tqdm import tqdm

    from afclip_lightning.inspection.volumes import cut_inputs
    from afclip_lightning.volumes.cutting import Cutting
    from afclip_lightning.volumes.volume import Reading

    reading = Reading(options.channel, options.form, options.codes)
    cutting = Cutting(options.axis, options.window, reading=reading)
    return cut_inputs(patterns, options.out, cutting, lambda n: tqdm(n, unit=" volumes", disable=None))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} inspect", stray=STRAY, description=DESCRIPTION)
    add_inspect_options(parser, SAVES)
    parser.add_argument(
        "--image_url",
        default="/data/local-files/?d=",
        metavar="PREFIX",
        help="prefix of the path of an image in labelstudio.json (%(default)s: Label Studio's local files)",
    )
    parser.add_argument(
        "--methods",
        default="",
        metavar="NAMES",
        help="methods that train nothing, by name or config, separated by commas",
    )
    volumes = parser.add_argument_group("volumes")
    add_cut_options(volumes.add_argument, None)
    volumes.add_argument(
        "--volume_score",
        default="highest",
        metavar="RULE",
        help="score of a volume from those of its slices: highest, mean, or mean_top_N of the N highest (%(default)s)",
    )
    add_threshold_options(parser)
    add_feedback_options(parser).add_argument(
        "--feedback_to",
        choices=("threshold", "memory"),
        default="threshold",
        help="target of the feedback: the threshold of the calibration, or the few-shot images. Normal images are "
        "copied to --few_shot_dir, below feedback/, and the thresholds must be calibrated again (%(default)s)",
    )
    add_model_options(parser, engine=True)
    add_bulk_options(parser)
    return parser
