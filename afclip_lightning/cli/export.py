"""`python -m afclip_lightning export`: a head as a bundle, or as an ONNX or torch.export graph."""

import argparse
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
    tiling_of,
    wanted_calibration,
    white_of,
)
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, UserError

if TYPE_CHECKING:
    from afclip_lightning.inspection.predictor import Predictor

PLACE = 43
DESCRIPTION = """\
--to bundle writes a folder that judges images on a PC without torch, Lightning or open_clip: the graph, its card
(category, backbone, tiles, region of interest, thresholds of the calibration), the SHA-256 of each file, a note on
licences, requirements.txt and afclip_runtime, which runs it. Options are those that inspect would be given. On the PC:

  cd DIR; python -m pip install -r requirements.txt; python -m afclip_runtime inspect photos/

The bundle takes its place only if every engine that is installed here (ONNX Runtime, OpenVINO) gives the numbers of the
Python model, in tiles too. docs/deployment.md says more.

--to onnx and --to torch_export write one file that works without afclip_lightning: ONNX for any runtime, or a program
for torch.export.load. Text, learned prompts, the memory bank of --few_shot_dir and the normalisation of pixels are
inside.

  input    image  [batch, S, S, 3], uint8, RGB, resized to S × S with an antialiased bicubic filter (Pillow's BICUBIC)
  outputs  score  [batch], float32; higher is more anomalous
           map    [batch, S, S], float32, the same of each pixel

The file takes its name only if it gives the numbers of the Python model. FILE.json beside it, and the file's own
metadata, say what it is: S, category, backbone, the thresholds and where they come from: calibration, or default, which
are the head's own and know nothing of your product.
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
        raise UserError("--overwrite is of bundles (--to bundle): a file is replaced without it.")
    out = options.out or Path(Path(named).stem + SUFFIXES[options.to])
    if options.to == "bundle":
        from afclip_lightning.inspection.bundle import check_place

        check_place(out, options.overwrite)  # before minutes of work
    (_write_bundle if options.to == "bundle" else _write_graph)(_load(named, options, arguments), out, options)
    return 0


def _load(named: str, options: argparse.Namespace, arguments: dict[str, Any]) -> "Predictor":
    from afclip_lightning.inspection.predictor import load  # with torch and more, which `--help` has no use for

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


def _write_bundle(model: "Predictor", out: Path, options: argparse.Namespace) -> None:
    from afclip_lightning.inspection.bundle import LICENCE, REQUIREMENTS, export_bundle
    from afclip_runtime.cli.options import thresholds_of

    largest = export_bundle(model, out, options.overwrite)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(
        f"{out}: {size / 2**20:.0f} MB, {model.engine.method} on {model.engine.backbone}\n"
        f"{thresholds_of(model)}\n"
        f"Largest difference to the Python model: {largest:.1e}\n"
        f"On the PC: cd {out}; python -m pip install -r {REQUIREMENTS}; python -m afclip_runtime inspect photos/\n"
        f"Read {out / LICENCE} before you pass it on."
    )


def _write_graph(model: "Predictor", out: Path, options: argparse.Namespace) -> None:
    from afclip_lightning.inspection.export import export

    facts = export(model, out, options.to)
    print(
        f"{out}: {out.stat().st_size / 2**20:.0f} MB, {facts['method']} on {facts['backbone']}\n"
        f"Largest difference to the Python model: {facts['largest_difference']:.1e}\n"
        f"{out}.json says how to use it."
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} export", description=DESCRIPTION)
    model = parser.add_argument_group("model")
    add_model_names(model)
    model.add_argument("--model.KEY", metavar="VALUE", help="an argument of the method, as in fit and test")
    parser.add_argument("--to", required=True, choices=list(SUFFIXES), help="a bundle, or the kind of file")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="the folder or the file; by default the model's name, here"
    )
    parser.add_argument("--overwrite", action="store_true", help="take the place of a bundle that is there")
    parser.add_argument(
        "--category",
        default="object",
        metavar="CLASS_NAME",
        help="what prompts call the product (default: %(default)s)",
    )
    parser.add_argument("--few_shot_dir", type=Path, metavar="DIR", help="few-shot images: a folder of normal ones")
    add_calibration_options(parser.add_argument_group("thresholds"))
    add_view_options(parser)
    return parser
