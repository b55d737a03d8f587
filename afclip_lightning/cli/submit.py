"""`python -m afclip_lightning submit`: maps and masks for MVTec AD 2's server, checked and packed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_lightning.cli.model_options import (
    add_model_options,
    named_model,
    no_model,
    split_model_arguments,
)
from afclip_runtime.cli.options import tiling_of, white_of
from afclip_runtime.cli.parser import CommandParser, command, finite
from afclip_runtime.errors import PROGRAM, UserError, shown

if TYPE_CHECKING:
    from afclip_lightning.datasets.mvtec_ad_2 import MVTecAD2
    from afclip_lightning.inspection.predictor import Predictor
    from afclip_lightning.inspection.submission.layout import Item
    from afclip_lightning.inspection.submission.score import PublicScore
    from afclip_lightning.inspection.submission.sources import MapSource

PLACE = 24
DESCRIPTION = """\
Writes a submission to MVTec AD 2's server (benchmark.mvtec.com), from a model or from maps of any program:

  anomaly_images/<category>/<part>/<name>.tiff              float16
  anomaly_images_thresholded/<category>/<part>/<name>.png   255 above the threshold, at the size of the image
  submission.tar.gz                                         both, once all files exist and the check finds no problem
  submission.json                                           thresholds, scales and their settings; not packed

<part> is test_private and test_private_mixed. The threshold of a category is fixed without labels: the mean of the
pixels of validation/good plus 3 standard deviations (--factor). Maps store (score - threshold) * a power of two. This
gives float16 its finest steps around the threshold, and values above 0 are above the threshold.

--maps reads <category>/<part>/<name> with .npy, .tiff or .png, of test_private, test_private_mixed and, for the
threshold, validation/good; or run folders of predict (--data.part test_private …), for methods that see all test
images. A map that is smaller than its image is upsampled for its mask, and stored at its own size.

--public also writes the public part, which is not packed, and prints its SegF1 at that threshold and its PRO up to
0.05. --check checks a folder or a packed file of any program for problems that the server would refuse.

A stopped run resumes. Only one process may write into a folder at a time.

Exit codes: 0 done, or no problem found; 1 the check found problems (it names them), or only a part was written; 2 a
mistake that the message explains; 130 interrupted.
"""


@command("Stopped. The same command goes on from here.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see the description."""
    others, arguments = split_model_arguments(args)
    options = _parser().parse_args(others)
    data = _data(options)
    return _check(options, data) if options.check else _write(options, arguments, data)


def _data(options: argparse.Namespace) -> "MVTecAD2":
    from afclip_lightning.datasets.mvtec_ad_2 import MVTecAD2

    try:
        return MVTecAD2(options.root, categories=options.categories)
    except ValueError as error:
        raise UserError(f"--categories: {error}.") from error


def _check(options: argparse.Namespace, data: "MVTecAD2") -> int:
    from afclip_lightning.inspection.submission.check import check

    expected: list[Item] | None = None
    if options.root is not None or not data.is_absent():
        expected = [item for category in _categories(data, options) for item in _private(data, category)]
        _note_count(data, len(expected))
    else:
        print(f"note: without the dataset ({data.root}) names and sizes are not compared; --root DIR.", file=sys.stderr)
    report = check(options.check, expected, lambda files: _progress(files, None, "checking"))
    for line in report.lines():
        print(shown(line))
    verdict = "The server would refuse it, or score it wrongly." if report.problems else "No problem found."
    print(f"{options.check}: {report.maps} maps, {report.masks} masks. {verdict}")
    return 1 if report.problems else 0


def _write(options: argparse.Namespace, arguments: dict[str, Any], data: "MVTecAD2") -> int:
    from afclip_lightning.inspection.submission.check import check
    from afclip_lightning.inspection.submission.layout import PUBLIC, VALIDATION, items_of
    from afclip_lightning.inspection.submission.score import score
    from afclip_lightning.inspection.submission.sources import FileMaps
    from afclip_lightning.inspection.submission.write import Rules, pack, write
    from afclip_runtime.files import only_writer

    rules = Rules(options.factor, options.threshold, not options.no_masks, options.longest)
    if options.longest is not None and options.longest < 1:
        raise UserError(f"--longest must be at least 1 pixel, got {options.longest}.")
    categories = _categories(data, options)
    private = {category: _private(data, category) for category in categories}
    public = {category: items_of(data, category, PUBLIC) if options.public else [] for category in categories}
    source: MapSource = FileMaps(options.maps) if options.maps else _model(options, arguments, data)
    with only_writer(options.out):
        plan = {
            category: (
                items_of(data, category, VALIDATION, may_be_absent=True),
                [*private[category], *public[category]],
            )
            for category in categories
        }
        fixed = write(source, plan, options.out, rules, _progress)
        for category, found in fixed.items():
            print(f"{category}: {_threshold_text(found, rules.factor, options.threshold is not None)}")
            if found.beyond:
                print(
                    f"note: {category}: {found.beyond} pixels are beyond float16's range, and clipped to its limits.",
                    file=sys.stderr,
                )
        if options.public:
            scores = []
            for category in categories:
                samples = data.find_samples(category, "test")
                scores.append(score(public[category], samples, options.out, rules.masks, _progress))
            _print(scores)
        items = [item for category in categories for item in private[category]]
        report = check(options.out, items, lambda files: _progress(files, None, "checking"))
        for line in report.lines():
            print(shown(line))
        if report.problems:
            print(f"{options.out}: not packed.")
            return 1
        if absent := [category for category in data.published if category not in categories]:
            print(f"{options.out}: not packed, since the server wants all categories. Missing: {', '.join(absent)}.")
            return 1
        print(f"{pack(options.out, items, rules.masks, _progress)}: {report.maps} maps, {report.masks} masks.")
        _note_count(data, len(items))
    return 0


def _note_count(data: "MVTecAD2", count: int) -> None:
    """Prints a note if the dataset is not the published one."""
    from afclip_lightning.datasets.mvtec_ad_2 import PRIVATE_IMAGES

    if count != PRIVATE_IMAGES and data.categories is None:
        print(
            f"note: {data.root} has {count} private images, and the server expects {PRIVATE_IMAGES}: "
            "it would refuse this submission.",
            file=sys.stderr,
        )


def _categories(data: "MVTecAD2", options: argparse.Namespace) -> list[str]:
    """Returns the categories in use.

    Raises:
        UserError: A category is missing.
    """
    from afclip_lightning.datasets import catalogue
    from afclip_lightning.datasets.mvtec_ad_2 import PRIVATE, MVTecAD2

    for part in PRIVATE:
        catalogue.check(MVTecAD2(data.root, part, data.categories), "predict")
    if options.public:
        catalogue.check(data, "test")
    return data.selected_categories()


def _private(data: "MVTecAD2", category: str) -> "list[Item]":
    from afclip_lightning.datasets.mvtec_ad_2 import PRIVATE
    from afclip_lightning.inspection.submission.layout import items_of

    return [item for part in PRIVATE for item in items_of(data, category, part)]


def _model(options: argparse.Namespace, arguments: dict[str, Any], data: "MVTecAD2") -> "MapSource":
    """Returns the maps of the model that the options name."""
    from afclip_lightning.inspection.predictor import load
    from afclip_lightning.inspection.submission.sources import ModelMaps

    if not (named := named_model(options)):
        raise no_model("submit", "--out DIR", "; --maps DIR, maps of another program")
    if options.batch_size < 1 or options.num_workers < 0 or options.k_shot < 0:
        raise UserError("--batch_size must be at least 1, and --num_workers and --k_shot not negative.")
    tiling, white = tiling_of(options), white_of(options, [])
    backbones: dict[str, Any] = {}

    def model(category: str) -> "Predictor":
        made = load(
            named,
            arguments=arguments,
            device=options.device,
            tiling=tiling,
            category=data.class_name_of(category),
            calibration=None,
            white=white,
            batch_size=options.batch_size,
            backbones=backbones,
        )
        memory = made.method.memory
        k_shot = options.k_shot or (0 if memory and memory.is_kept else made.method.k_shot)
        if made.method.needs_references and not k_shot:
            raise UserError(f"{type(made.method).__name__} compares an image with few-shot images: give --k_shot K.")
        if k_shot:
            seed = made.method.shot_seed if options.shot_seed is None else options.shot_seed
            chosen = data.few_shot(k_shot, seed)[data.name, category]
            made.fit_few_shot([sample.image_path for sample in chosen])
        return made

    return ModelMaps(model, options.num_workers)


def _threshold_text(fixed: Any, factor: float, by_hand: bool) -> str:
    if by_hand:
        return f"threshold {fixed.threshold:.5g}, by hand"
    if not fixed.of_validation:
        return f"no threshold; maps are scaled by {fixed.images} private images"
    return (
        f"threshold {fixed.threshold:.5g} = {fixed.mean:.5g} + {factor:g} × {fixed.sd:.3g}, "
        f"of the pixels of {fixed.images} validation images"
    )


def _print(scores: "Sequence[PublicScore]") -> None:
    """Prints the scores of the public part in percent, and their mean over categories."""
    import numpy as np

    columns = {
        "SegF1": [s.seg_f1 for s in scores],
        "best F1": [s.f1_max for s in scores],
        "PRO@0.05": [s.pro_05 for s in scores],
        "P-AUROC": [s.pixel_auroc for s in scores],
        "P-FPR": [s.fpr for s in scores],
    }
    print(f"{'public part, %':16}" + "".join(f"{name:>10}" for name in columns))
    for row, name in enumerate([*(s.category for s in scores), "mean"]):
        cells = []
        for values in columns.values():
            known = [value for value in values if value is not None]
            mean = float(np.mean(known)) if len(known) == len(values) else None
            value = values[row] if row < len(scores) else mean
            cells.append(f"{'-' if value is None else f'{100 * value:.1f}':>10}")
        print(f"{name:16}" + "".join(cells))


def _progress(items: Any, total: int | None, what: str) -> Any:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, unit=" images", disable=None)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} submit", description=DESCRIPTION)
    parser.add_argument(
        "--out", type=Path, default=Path("submission"), metavar="DIR", help="folder of the submission (%(default)s)"
    )
    parser.add_argument("--check", type=Path, metavar="DIR|FILE", help="check a submission and write nothing")
    parser.add_argument(
        "--maps",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of maps in place of a model; may be given again",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of MVTec AD 2; by default mvtec_ad_2 in AFCLIP_DATA"
    )
    data.add_argument(
        "--categories", nargs="+", metavar="NAME", help="categories to write; a part of them is not packed"
    )
    data.add_argument("--public", action="store_true", help="also write the public part, and print its metrics")
    data.add_argument(
        "--k_shot",
        type=int,
        default=0,
        metavar="K",
        help="number of few-shot images of train/good; by default that of the model",
    )
    data.add_argument(
        "--shot_seed", type=int, metavar="N", help="seed of their selection; by default that of the model"
    )
    rules = parser.add_argument_group("maps and masks")
    rules.add_argument(
        "--factor",
        type=finite,
        default=3.0,
        metavar="X",
        help="number of standard deviations of the threshold above the mean (%(default)s)",
    )
    rules.add_argument("--threshold", type=finite, metavar="X", help="threshold by hand, in the unit of the maps")
    rules.add_argument("--no_masks", action="store_true", help="write no masks; the server then gives no SegF1")
    rules.add_argument(
        "--longest",
        type=int,
        metavar="PX",
        help="longest side of a stored map, in pixels; by default that of the image",
    )
    add_model_options(parser, few_shot=False, category=False, roi=False)
    return parser
