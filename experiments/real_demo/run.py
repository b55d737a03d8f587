"""`make demo-real`: photos, unchanged and with a drawn defect, inspected by the ready model `real`.

    python -m experiments.real_demo.run --out runs/demo-real [--photos DIR ...]

It runs the commands `inspect` and `report`, and writes their output: `inspections.csv`, overlays and one page.
"""

import argparse
import json
from pathlib import Path

from afclip_lightning.cli import inspect, report
from experiments.real_demo import pictures

TRAINED = ("brick", "grass", "gravel")  # the head has seen these photos, with other defects: see its card


def main() -> int:
    """Returns the exit code of `inspect`: 0 all images were judged, 1 some were left out, 2 a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-real"), metavar="DIR")
    parser.add_argument("--photos", nargs="*", default=[], metavar="DIR", help="folders of your own photos")
    parser.add_argument("--model", default="real", metavar="NAME")
    options = parser.parse_args()
    drawn = pictures.write(options.out / "photos")
    given = [str(options.out / "photos"), *options.photos]
    code = inspect.main(["--model", options.model, *given, "--out", str(options.out), "--save", "overlay"])
    if code not in (0, 1) or report.main([str(options.out)]) != 0:
        return code or 2
    print(_summary(options.out, {str(path) for path in drawn}))
    return code


def _summary(folder: Path, drawn: set[str]) -> str:
    """Returns the verdicts in words: of our pictures one by one, and counts for the user's images."""
    rows = [json.loads(line) for line in (folder / "inspections.jsonl").read_text().splitlines()]
    ours = [row for row in rows if row["path"] in drawn and not row["error"]]
    own = [row for row in rows if row["path"] not in drawn and not row["error"]]
    lines = ["", f"{'photo':22} {'score':>6}  verdict"]
    lines += [f"{Path(row['path']).stem:22} {row['score']:6.3f}  {row['verdict']}" for row in ours]
    for what, part in {
        "as they are": [row for row in ours if "_" not in Path(row["path"]).stem],
        "with a drawn defect": [row for row in ours if "_" in Path(row["path"]).stem],
        "of your own": own,
    }.items():
        if part:
            called = sum(row["verdict"] == "anomalous" for row in part)
            lines.append(f"{called} of {len(part)} photos {what} are called anomalous.")
    lines += [
        f"The model has seen the photos {', '.join(TRAINED)} in its training, with other defects drawn onto them; the",
        "coins are new to it. Its threshold is its default, which was not made for a product. For yours, calibrate on",
        "normal images of it (docs/own_images.md).",
        f"Look at: {folder / 'report.html'}, {folder / 'overlays'}, {folder / 'inspections.csv'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
