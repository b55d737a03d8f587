"""`python -m afclip_lightning export`: a head as a bundle, or as an ONNX or torch.export graph."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_lightning.cli.model_options import (
    add_model_names,
    few_shot_images,
    named_model,
    no_model,
    split_model_arguments,
)
from afclip_runtime.cli.options import (
    add_calibration_options,
    add_view_options,
    progress,
    tiling_of,
    wanted_calibration,
    white_of,
)
from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, UserError

if TYPE_CHECKING:
    from afclip_lightning.inspection.export import Target
    from afclip_lightning.inspection.int8 import Int8
    from afclip_lightning.inspection.predictor import Predictor

PLACE = 43
DESCRIPTION = """\
--to bundle writes a folder that judges images on a PC without torch, Lightning or open_clip: the graph, its card
(category, backbone, tiles, region of interest, thresholds of the calibration), the SHA-256 of each file, a note on
licences, requirements.txt and afclip_runtime, which runs it. Give the same options as to inspect. On the PC:

  cd DIR; python -m pip install -r requirements.txt; python -m afclip_runtime inspect photos/

The bundle is written only if every installed engine (ONNX Runtime, OpenVINO) gives the numbers of the Python model,
also in tiles. docs/deployment.md has the details.

--to onnx and --to torch_export write one file that works without afclip_lightning: ONNX for any runtime, or a program
for torch.export.load. Text, learned prompts, the memory bank of --few_shot_dir and the normalisation of pixels are
inside.

  input    image  [batch, S, S, 3], uint8, RGB, resized to S × S with an antialiased bicubic filter (Pillow's BICUBIC)
  outputs  score  [batch], float32; higher is more anomalous
           map    [batch, S, S], float32, the same of each pixel

The file is written only if it gives the numbers of the Python model. FILE.json beside it and the metadata of the file
state S, category, backbone, and the thresholds with their source: calibration, or default. Default thresholds come
with the head. They are not calibrated for your product.

With --int8 (--to bundle or onnx) the linear layers of the backbone's blocks compute in 8-bit integers: the file is less
than half as large, and faster. Everything after the last block stays in float32. The command measures the changes on
the images of --calibration_images, some of which are held out, and prints them as a table. It writes nothing if one of
these shares is above --tolerance: the largest change of a score, as a share of the spread of the scores (from their 5th
to their 95th percentile); the root mean square of the change of the maps' values, as a share of their standard
deviation; the share of images whose verdict changes. A calibration of the float32 model does not hold for INT8 scores.
"""
SUFFIXES = {"bundle": "_bundle", "onnx": ".onnx", "torch_export": ".pt2"}


@command("Stopped. Nothing was written.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 130 interrupted."""
    others, arguments = split_model_arguments(args)
    options = _parser().parse_args(others)
    if not (named := named_model(options)):
        raise no_model("export", f"--to {options.to}")
    if options.overwrite and options.to != "bundle":
        raise UserError("--overwrite is only for bundles (--to bundle): a file is replaced without it.")
    int8 = _int8(options)
    out = options.out or Path(Path(named).stem + SUFFIXES[options.to])
    if options.to == "bundle":
        from afclip_lightning.inspection.bundle import check_place

        check_place(out, options.overwrite)  # before minutes of work
    model = _load(named, options, arguments)
    if options.to == "bundle":
        _write_bundle(model, out, options.overwrite, int8)
    else:
        _write_graph(model, out, options.to, int8)
    if int8 is not None and model.calibration is not None:
        print(f"note: {model.calibrated_by} holds for float32 scores and was left out: calibrate with the INT8 model.")
    return 0


def _int8(options: argparse.Namespace) -> "Int8 | None":
    """Returns how INT8 is made; `None` without `--int8`.

    Raises:
        UserError: Options exclude each other.
    """
    if not options.int8:
        if any(value is not None for value in (options.calibration_images, options.tolerance, options.quantiser)):
            raise UserError("--calibration_images, --tolerance and --quantiser need --int8: add it.")
        return None
    if options.to == "torch_export":
        raise UserError("--int8 writes ONNX: use --to bundle or --to onnx.")
    if options.calibration_images is None:
        raise UserError("--int8 needs --calibration_images DIR, a folder of images of the product.")
    from afclip_lightning.inspection.int8 import TOLERANCE, Int8

    return Int8(
        options.calibration_images,
        options.quantiser or "onnxruntime",
        TOLERANCE if options.tolerance is None else options.tolerance,
        say=print,
        progress=progress,
    )


def _load(named: str, options: argparse.Namespace, arguments: dict[str, Any]) -> "Predictor":
    from afclip_lightning.inspection.predictor import load  # imports torch and more, which `--help` does not need

    return load(
        named,
        arguments=arguments,
        device="cpu",
        tiling=tiling_of(options),
        category=options.category,
        few_shot=few_shot_images(options.few_shot_dir),
        calibration=wanted_calibration(options),
        white=white_of(options, []),
        roi=options.roi,
    )


def _write_bundle(model: "Predictor", out: Path, overwrite: bool, int8: "Int8 | None") -> None:
    from afclip_lightning.inspection.bundle import LICENCE, REQUIREMENTS, export_bundle
    from afclip_runtime.cli.options import thresholds_of

    largest = export_bundle(model, out, overwrite, int8)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(
        f"{out}: {size / 2**20:.0f} MB, {model.engine.method} on {model.engine.backbone}\n"
        f"{thresholds_of(model) if int8 is None else 'INT8, without calibration'}\n"
        f"Largest difference {'to the Python model' if int8 is None else 'between engines'}: {largest:.1e}\n"
        f"On the PC: cd {out}; python -m pip install -r {REQUIREMENTS}; python -m afclip_runtime inspect photos/\n"
        f"Read {out / LICENCE} before you share it."
    )


def _write_graph(model: "Predictor", out: Path, to: "Target", int8: "Int8 | None") -> None:
    from afclip_lightning.inspection.export import export
    from afclip_lightning.inspection.int8 import export_int8

    facts = export(model, out, to) if int8 is None else export_int8(model, out, int8)
    print(f"{out}: {out.stat().st_size / 2**20:.0f} MB, {facts['method']} on {facts['backbone']}")
    if int8 is None:
        print(f"Largest difference to the Python model: {facts['largest_difference']:.1e}")
    print(f"{out}.json says how to use it.")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} export", description=DESCRIPTION)
    model = parser.add_argument_group("model")
    add_model_names(model)
    model.add_argument("--model.KEY", metavar="VALUE", help="an argument of the method, as in fit and test")
    parser.add_argument("--to", required=True, choices=list(SUFFIXES), help="format: a bundle, or a kind of file")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="folder or file of the output; by default named like the model, in the working directory",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that exists")
    parser.add_argument(
        "--category",
        default="object",
        metavar="CLASS_NAME",
        help="name of the product in prompts (default: %(default)s)",
    )
    parser.add_argument("--few_shot_dir", type=Path, metavar="DIR", help="folder of normal images for few-shot")
    add_calibration_options(parser.add_argument_group("thresholds"))
    add_view_options(parser)
    group = parser.add_argument_group("INT8")
    group.add_argument("--int8", action="store_true", help="compute the backbone's blocks in 8-bit integers")
    group.add_argument(
        "--calibration_images",
        type=Path,
        metavar="DIR",
        help="a hundred images of the product: a folder of normal ones; good/ and others; or a product in MVTec AD's "
        "layout, whose test images are compared",
    )
    group.add_argument(
        "--quantiser",
        choices=["onnxruntime", "nncf"],
        help="quantiser that writes the file: by default that of ONNX Runtime; both engines run the file",
    )
    group.add_argument(
        "--tolerance", type=_share, metavar="SHARE", help="largest change that INT8 may cause, see above (default: 0.1)"
    )
    return parser


_share = numeric(float, lambda value: math.isfinite(value) and value >= 0, "a number, 0 or above")
