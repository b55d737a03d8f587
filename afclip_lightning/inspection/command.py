"""`python -m afclip_lightning inspect`: any image, any folder: score, verdict, regions, pictures."""

import argparse
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from afclip_lightning.errors import UserError
from afclip_lightning.files import atomic_path, write_json, write_text
from afclip_lightning.inspection.model_options import add_model_options, load_models, split_model_arguments

if TYPE_CHECKING:
    from afclip_lightning.inspection.predictor import Predictor
    from afclip_lightning.inspection.verdict import Inspection

COLUMNS = ("path", "method", "score", "probability", "threshold", "verdict", "area", "regions", "error", "name")
SAVES = ("map", "npy", "mask", "overlay")
JPEG_LIMIT = 65500  # longest side that the format can have

DESCRIPTION = """\
Inspects images: files, folders with all below them, patterns (*), or - for a list of paths from standard input.

The output folder gets, as it goes, a line an image:
  inspections.csv, .jsonl   path, method (of several), score, probability (0.5 = the threshold), threshold, verdict,
                            area (share of the image above the pixel threshold), regions (box = left, top, right,
                            bottom; area in pixels; highest score), error, name (of the files below)
  maps/NAME.png             --save map: 16 bits, value = low + pixel * step, both texts in the file; evaluate reads it
  npy/NAME.npy              --save npy: the map as float32
  masks/NAME.png            --save mask: 255 above the pixel threshold
  overlays/NAME.jpg         --save overlay: image, map and contours
All are of the image's own size. A run that was stopped goes on where it was, and tries again what failed.

Thresholds come from the command calibrate, or by hand. Without one there is no verdict.
Exit code: 0 all done, 1 some images could not be inspected (column error), 2 a mistake that the message explains.
"""


@dataclass(frozen=True)
class Input:
    """An image to be inspected.

    Attributes:
        path: As it was given.
        name: Its path from the folder that holds all that was given, without suffix: what its files are called. Of
            `shop/bolts` all names begin with `bolts`.
        error: Why it is no image; empty if it may be one.
    """

    path: Path
    name: str
    error: str = ""

    @property
    def key(self) -> str:
        """Returns what tells files apart."""
        return os.path.abspath(self.path)


def find_inputs(patterns: Iterable[str], leave_out: Path) -> list[Input]:
    """Returns the images of files, folders and patterns, each once, in the order in which they are named.

    What is not there, or a folder without an image, is an input with an error.

    Args:
        patterns: Files, folders, patterns.
        leave_out: Folder whose images are no inputs: that of the output.
    """
    from afclip_lightning.data.images import walk_images

    out = Path(os.path.abspath(leave_out))
    found: list[Path] = []
    parents: set[str] = set()
    problems: dict[Path, str] = {}
    for pattern in patterns:
        matches = [Path(pattern)]
        if not matches[0].exists() and not matches[0].is_symlink():
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))] or matches
        for match in matches:
            parents.add(os.path.dirname(os.path.abspath(match)))
            images = [match]
            if match.is_dir():
                try:
                    images = [p for p in walk_images(match) if not Path(os.path.abspath(p)).is_relative_to(out)]
                    if not images:
                        problems[match] = f"{match}: the folder has no image."
                except (UserError, OSError) as error:
                    images, problems[match] = [], str(error)
            found += images or [match]
    root = os.path.commonpath(parents) if parents else ""
    inputs: dict[str, Input] = {}
    for path in found:
        name = Path(os.path.relpath(os.path.abspath(path), root)).with_suffix("").as_posix()
        inputs.setdefault(os.path.abspath(path), Input(path, name, problems.get(path, "")))
    return list(inputs.values())


class Table:
    """The two tables of a run: JSON lines, and the same as CSV. Every line is on disk before the next image.

    What an earlier run left is read from the JSON lines: lines of images that failed, and a last one that was cut off,
    are dropped, and both files written anew.

    Args:
        folder: Where they lie.
        several: Whether several methods share them.

    Attributes:
        done: Method and key of what is in them.
        names: Names of files that are taken, and the keys of their images.

    Raises:
        UserError: The folder cannot be written to, or the table cannot be read.
    """

    def __init__(self, folder: Path, several: bool) -> None:
        self.columns = [column for column in COLUMNS if several or column != "method"]
        self.json_path, self.csv_path = folder / "inspections.jsonl", folder / "inspections.csv"
        rows = [row for row in _read_lines(self.json_path) if not row["error"]]
        self.done = {(row.get("method"), os.path.abspath(row["path"])) for row in rows}
        self.names = {row["name"]: os.path.abspath(row["path"]) for row in rows}
        write_text(self.json_path, "".join(_json_line(row) for row in rows))
        self._write_csv(rows)
        self.files: list[IO[str]] = []

    def _write_csv(self, rows: Sequence[dict[str, Any]]) -> None:
        with atomic_path(self.csv_path) as temporary, temporary.open("w", **_TEXT) as file:
            file.write(_csv_lines([dict(zip(self.columns, self.columns, strict=True)), *rows], self.columns))

    def __enter__(self) -> "Table":
        self.files = [path.open("a", **_TEXT) for path in (self.json_path, self.csv_path)]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()

    def free_name(self, item: Input) -> str:
        """Returns the name of an image's files: its own unless another image has it; then its suffix tells them apart.

        Where that does not either, as it lies in other folders that an earlier run took for its root, its whole path.
        """
        whole = Path(item.key).relative_to(Path(item.key).anchor).as_posix()
        for name in (item.name, item.name + item.path.suffix, whole):
            if self.names.setdefault(name, item.key) == item.key:
                break
        return name

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row.

        Raises:
            UserError: The disk is full or not writable.
        """
        texts = (_json_line(row), _csv_lines([row], self.columns))
        for path, file, text in zip((self.json_path, self.csv_path), self.files, texts, strict=True):
            try:
                file.write(text)
                file.flush()
            except OSError as error:
                raise UserError(f"{path}: cannot be written ({error.strerror or error}). Free some space.") from error


_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # names are any bytes


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of JSON lines, without a last one that was cut off; none if there is no file.

    Raises:
        UserError: A line is no row of ours.
    """
    if not path.exists():
        return []
    rows, lines = [], path.read_text(encoding="utf-8", errors="replace").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "path": row["path"], "error": row["error"], "name": row["name"]})
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: is not of an inspection ({error!r}). Remove the line, or choose another "
                    "--output."
                ) from error
    return rows


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _csv_lines(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        cells = (row.get(column) for column in columns)
        writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
    return buffer.getvalue()


def row_of(item: Input, method: str | None, name: str, outcome: "Inspection | UserError") -> dict[str, Any]:
    """Returns the row of an image.

    Args:
        item: The image.
        method: Name of the method, where several share the table.
        name: Of its files.
        outcome: What the model says of it, or why it says nothing.
    """
    row: dict[str, Any] = {"path": str(item.path)} | ({} if method is None else {"method": method})
    if isinstance(outcome, UserError):
        nothing = dict.fromkeys(("score", "probability", "threshold", "verdict", "area", "regions"))
        return {**row, **nothing, "error": str(outcome), "name": name}
    verdict = None if outcome.anomalous is None else "anomalous" if outcome.anomalous else "normal"
    regions = None if outcome.regions is None else [{**asdict(r), "score": _short(r.score)} for r in outcome.regions]
    return {
        **row,
        "score": _short(outcome.score),
        "probability": _short(outcome.probability),
        "threshold": _short(outcome.threshold),
        "verdict": verdict,
        "area": _short(outcome.area),
        "regions": regions,
        "error": "",
        "name": name,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")  # what float32 holds


def save_pictures(outcome: "Inspection", folder: Path, name: str, saves: Sequence[str]) -> None:
    """Writes what of an inspection is to be saved, each file in one step.

    Raises:
        UserError: A file cannot be written.
    """
    import numpy as np
    from PIL import Image

    from afclip_lightning.data.maps import write_map

    if "map" in saves:
        write_map(folder / "maps" / f"{name}.png", outcome.anomaly_map)
    if "npy" in saves:
        with atomic_path(folder / "npy" / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, outcome.anomaly_map)
    if "mask" in saves and outcome.mask is not None:
        with atomic_path(folder / "masks" / f"{name}.png") as temporary:
            Image.fromarray(outcome.mask.view(np.uint8) * np.uint8(255)).save(temporary, "PNG", compress_level=1)
    if "overlay" in saves:
        overlay = Image.fromarray(outcome.overlay())
        kind, suffix = ("JPEG", ".jpg") if max(overlay.size) <= JPEG_LIMIT else ("PNG", ".png")
        with atomic_path(folder / "overlays" / f"{name}{suffix}") as temporary:
            overlay.save(temporary, kind, quality=90)


def inspect(
    models: "dict[str, Predictor]", inputs: Sequence[Input], folder: Path, saves: Sequence[str], num_workers: int
) -> tuple[int, int]:
    """Inspects what is not done yet, and returns how many inspections that were, and how many of them failed.

    Args:
        models: By name.
        inputs: The images.
        folder: Of the output.
        saves: Which pictures to write.
        num_workers: Processes that decode.

    Raises:
        UserError: A file cannot be written, or a model needs good images first.
    """
    from tqdm import tqdm

    several = len(models) > 1
    new = failed = 0
    with Table(folder, several) as table:
        for method, model in models.items():
            column = method if several else None
            place = folder / method if several else folder
            todo = [item for item in inputs if (column, item.key) not in table.done]
            images = [item for item in todo if not item.error]
            new += len(todo)
            with tqdm(total=len(todo), unit=" images", desc=method, disable=None) as bar:
                for item in (item for item in todo if item.error):
                    table.add(row_of(item, column, item.name, UserError(item.error)))
                    failed += 1
                    bar.update()
                for index, outcome in model.stream([i.path for i in images], num_workers, "overlay" in saves):
                    item, name = images[index], images[index].name
                    if isinstance(outcome, UserError):
                        failed += 1
                    else:
                        name = table.free_name(item)
                        save_pictures(outcome, place, name, saves)
                    table.add(row_of(item, column, name, outcome))
                    bar.update()
    return new, failed


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses a folder whose images were inspected otherwise; a new folder gets the settings.

    Raises:
        UserError: The folder has other settings, or cannot be written to.
    """
    path = folder / "inspect.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}). Choose another --output.") from error
        if before != settings:
            names = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            raise UserError(
                f"{folder} holds inspections with another {', '.join(names)} ({path}): one table must not mix them. "
                "Choose another --output, or remove the folder."
            )
    write_json(path, settings)


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code, as the description has them; 130 if it was interrupted."""
    try:
        others, arguments = split_model_arguments(args)
        options = _parser().parse_args(others)
        return _run(options, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, arguments: dict[str, Any]) -> int:
    named = ([options.checkpoint] if options.checkpoint else []) + list(filter(None, options.methods.split(",")))
    if not named:
        raise UserError("name a model: --checkpoint FILE, or --methods for those that train nothing.")
    saves = list(filter(None, options.save.split(",")))
    if unknown := set(saves) - set(SAVES):
        raise UserError(f"--save takes {', '.join(SAVES)}, got {', '.join(sorted(unknown))}.")
    by_hand = {"threshold": options.threshold, "pixel_threshold": options.pixel_threshold}
    if len(named) > 1 and (options.calibration or any(value is not None for value in by_hand.values())):
        raise UserError("a threshold or a calibration is of one model, and several are named.")
    patterns = [line for path in options.paths for line in (sys.stdin.read().splitlines() if path == "-" else [path])]
    inputs = find_inputs(filter(None, patterns), options.output)
    if not inputs:
        raise UserError("there is nothing to inspect: the list of paths is empty.")
    calibration = None if options.no_calibration else options.calibration or "auto"
    models = load_models(named, options, arguments, calibration, [item.path for item in inputs if not item.error])
    for model in models.values():
        model.threshold, model.pixel_threshold = by_hand["threshold"], by_hand["pixel_threshold"]
    if "mask" in saves and any(m.thresholds[1] is None for m in models.values()):
        raise UserError("--save mask needs a pixel threshold: calibrate first, or give --pixel_threshold.")
    facts = {name: [m.checkpoint, m.settings, *m.thresholds] for name, m in models.items()}
    check_settings(options.output, {"model": facts, "save": sorted(saves)})
    new, failed = inspect(models, inputs, options.output, saves, options.num_workers)
    before = len(inputs) * len(models) - new
    print(f"{new - failed} inspected, {failed} failed, {before} done before: {options.output / 'inspections.csv'}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m afclip_lightning inspect",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, pattern, or - for a list")
    parser.add_argument(
        "--output", type=Path, default=Path("inspections"), metavar="DIR", help="folder of the output (%(default)s)"
    )
    parser.add_argument(
        "--save", default="", metavar="WHAT", help=f"pictures to write, of {', '.join(SAVES)}, with commas between"
    )
    parser.add_argument(
        "--methods", default="", metavar="NAMES", help="methods that train nothing, by name or config, commas between"
    )
    thresholds = parser.add_argument_group("thresholds")
    thresholds.add_argument("--calibration", metavar="FILE", help="by default the one beside the checkpoint, if any")
    thresholds.add_argument("--no_calibration", action="store_true", help="take no calibration")
    thresholds.add_argument("--threshold", type=float, metavar="X", help="image scores above it are anomalous")
    thresholds.add_argument("--pixel_threshold", type=float, metavar="X", help="likewise, values of the map")
    add_model_options(parser)
    return parser
