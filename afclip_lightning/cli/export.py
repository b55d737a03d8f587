"""`python -m afclip_lightning export`: a head as an ONNX or torch.export graph."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from afclip_lightning.cli.model_options import add_model_names, few_shot_images, named_model, no_model
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM

PLACE = 43
DESCRIPTION = """\
Writes one file that works without afclip_lightning: ONNX for any runtime, or a program for torch.export.load. Text,
learned prompts, the memory bank of --few_shot_dir and the normalisation of pixels are inside.

  input    image  [batch, S, S, 3], uint8, RGB, resized to S × S with an antialiased bicubic filter (Pillow's BICUBIC)
  outputs  score  [batch], float32; higher is more anomalous
           map    [batch, S, S], float32, the same of each pixel

The file takes its name only if it gives the numbers of the Python model. FILE.json beside it, and the file's own
metadata, say what it is: S, category, backbone, the thresholds and where they come from: calibration, or default, which
are the head's own and know nothing of your product.
"""
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}


@command("Stopped. Nothing was written.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 130 interrupted."""
    options = _parser().parse_args(args)

    from afclip_lightning.inspection.export import export  # with torch and more, which `--help` has no use for
    from afclip_lightning.inspection.predictor import load

    if not (named := named_model(options)):
        raise no_model("export", f"--to {options.to}")
    few_shot = few_shot_images(options.few_shot_dir)
    out = options.out or Path(Path(named).with_suffix(SUFFIXES[options.to]).name)
    model = load(named, device="cpu", category=options.category, few_shot=few_shot)
    facts = export(model, out, options.to)
    print(
        f"{out}: {out.stat().st_size / 2**20:.0f} MB, {facts['method']} on {facts['backbone']}\n"
        f"Largest difference to the Python model: {facts['largest_difference']:.1e}\n"
        f"{out}.json says how to use it."
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} export", description=DESCRIPTION)
    add_model_names(parser.add_argument_group("model"))
    parser.add_argument("--to", required=True, choices=list(SUFFIXES), help="kind of file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file; by default the model's name, here")
    parser.add_argument(
        "--category",
        default="object",
        metavar="CLASS_NAME",
        help="what prompts call the product (default: %(default)s)",
    )
    parser.add_argument("--few_shot_dir", type=Path, metavar="DIR", help="few-shot images: a folder of normal ones")
    return parser
