"""`inspect` by shards: its options and its run."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_runtime.cli.launch_options import add_launch_options, check_launch_options, where_of
from afclip_runtime.cli.parser import before_inspection, numeric
from afclip_runtime.errors import UserError, counted, shown

if TYPE_CHECKING:
    from afclip_runtime.bulk.parts import Facts
    from afclip_runtime.bulk.plan import Plan
    from afclip_runtime.bulk.summary import Manifest
    from afclip_runtime.inspection.inspector import Inspector

    Load = Callable[[argparse.Namespace, bool], Mapping[str, Inspector]]

PLANNED = "--planned"  # for tasks on other machines: the plan exists, and the launcher writes the summary
NOT_BY_SHARDS = ("watch", "move_to", "webhook", "feedback", "axis")
SAVES_OF_A_TABLE = {"labelstudio", "coco", "nifti"}
STOPPED = 75
_shard_images = numeric(int, lambda value: 1 <= value <= 10**6, "from 1 to 1,000,000")

DESCRIPTION = """\
Very many images are inspected in shards: with --launcher, or if a source is a tar archive, a Parquet file or a URL.
  sources                   files, folders, patterns and lists, and also: tar archives in the WebDataset format (.tar,
                            .tar.gz; shards-{000..127}.tar), Parquet files with the bytes of images or their paths
                            (--image_column), and all of these at URLs (s3://, gs://, https:// …)
  parts/0000/000000.parquet one file per shard, with the columns of inspections.csv, size and mtime_ns. There is no
                            inspections.csv or .jsonl
  manifest.json             result of the job: numbers of shards and failed images, damaged or missing archives, drift
  plan/                     list of the shards. New images of a later run become new shards
Pictures are named by shard and row, at most 1,000 per folder. Two jobs with the same output share its shards. See
docs/scale.md.
"""


def add_bulk_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of shards and of the launcher."""
    group = parser.add_argument_group("very many images, by shards")
    group.add_argument(
        "--shard_images", type=_shard_images, metavar="N", help="images per shard, of files and Parquet rows (1,000)"
    )
    group.add_argument(
        "--image_column",
        metavar="NAME",
        help="column of a Parquet file: bytes of images, a struct of bytes and path, or paths from the file's folder "
        "and URLs; found by its type by default",
    )
    group.add_argument(PLANNED, action="store_true", help=argparse.SUPPRESS)
    add_launch_options(parser, "shards", optional=True)


def is_by_shards(options: argparse.Namespace, patterns: Sequence[str], saves: Sequence[str]) -> bool:
    """Returns whether images are inspected by shards, and checks that the options allow it.

    Args:
        options: Options of the command.
        patterns: Sources of images.
        saves: Values of `--save`.

    Raises:
        UserError: An option does not go with shards. The message names the option and the remedy.
    """
    from afclip_runtime.bulk.sources import is_sharded

    check_launch_options(options)
    by_source = is_sharded(patterns)
    if options.launcher is None and not by_source:
        names = ("shard_images", "image_column")
        if given := [name for name in names if getattr(options, name)]:
            raise UserError(f"--{given[0]} needs an inspection by shards: add --launcher local.")
        if options.jobs != 1:
            raise UserError("--jobs needs an inspection by shards: add --launcher local.")
        return False
    why = f"--launcher {options.launcher}" if options.launcher else "tar archives, Parquet files and URLs"
    others = [f"--{name}" for name in NOT_BY_SHARDS if getattr(options, name, None)]
    others += [f"--save {name}" for name in sorted(SAVES_OF_A_TABLE & set(saves))]
    if others:
        raise UserError(f"{others[0]} does not go with {why}: inspect local files without --launcher.")
    return True


def inspect_by_shards(
    options: argparse.Namespace,
    args: Sequence[str],
    program: str,
    patterns: Sequence[str],
    saves: Sequence[str],
    load: "Load",
    prepare: Callable[["Mapping[str, Inspector]"], None],
) -> int:
    """Inspects images by shards, prints a summary, and returns the exit code.

    Args:
        options: Options of the command.
        args: Arguments as typed, for tasks on other machines.
        program: Command of the program.
        patterns: Sources of images.
        saves: Kinds of pictures to write.
        load: Loads the models from the options; silently if the second argument is true. It must be picklable: a
            function of a module, or a `functools.partial` of one.
        prepare: Sets and prints the thresholds of the models, and checks the options against them.

    Raises:
        UserError: There is nothing to inspect, the output belongs to another job, or a file cannot be written.
    """
    from afclip_runtime.bulk.judging import Job
    from afclip_runtime.bulk.parts import require_pyarrow
    from afclip_runtime.bulk.plan import Plan
    from afclip_runtime.bulk.routes import judge_shards
    from afclip_runtime.bulk.sources import require_packages, require_sources
    from afclip_runtime.bulk.summary import finish
    from afclip_runtime.launch import require_launcher

    if os.name != "posix":
        raise UserError("images are inspected by shards on Linux and macOS only: name local files without --launcher.")
    require_pyarrow()
    require_packages(patterns)
    if not options.planned:
        require_sources(patterns)
    where = where_of(options, "inspect", [PLANNED, *args], program=program)
    require_launcher(where)
    out = Path(os.path.abspath(options.out))
    options = argparse.Namespace(**{**vars(options), "out": out, "threads": _threads(options, where.jobs)})
    with before_inspection():
        models = load(options, False)
        prepare(models)
        plan = Plan.wait_for(out, 0) if options.planned else _plan(options, patterns, models, saves)
    todo = plan.todo(out)
    gpu = any(model.engine.name == "torch" for model in models.values()) and getattr(options, "device", "cpu") != "cpu"
    job = Job(out, partial(_load_in_worker, load, options), tuple(saves), options.num_workers, gpu=gpu)
    elsewhere = where.launcher == "slurm"  # its tasks do not report to this process
    with _Progress(plan, todo, len(models), elsewhere) as progress:
        ended = judge_shards(job, todo, where, models, progress.add_shard, progress.add_image)
    if options.planned:
        return ended.code
    several = len(models) > 1
    normals = {name if several else None: m.calibration.good if m.calibration else None for name, m in models.items()}
    manifest = finish(out, normals)
    _say(manifest, len(todo) - len(plan.todo(out, todo)), out)
    if ended.code:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return ended.code
    return _exit_code(manifest, out)


def _load_in_worker(load: "Load", options: argparse.Namespace, threads: int | None = None) -> "Mapping[str, Inspector]":
    """Loads the models in a worker. `threads` applies if the options do not set the number of threads."""
    return load(argparse.Namespace(**{**vars(options), "threads": options.threads or threads}), True)


def _threads(options: argparse.Namespace, jobs: int) -> int | None:
    """Returns the number of threads per worker. The workers of this machine share its cores."""
    if options.threads is not None or options.launcher != "local" or jobs == 1:
        return options.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def _plan(
    options: argparse.Namespace, patterns: Sequence[str], models: "Mapping[str, Inspector]", saves: Sequence[str]
) -> "Plan":
    from afclip_runtime.bulk.plan import FOLDER, make_plan
    from afclip_runtime.bulk.sources import Listing
    from afclip_runtime.files import wait_for_lock
    from afclip_runtime.inspection.folder import check_settings, settings_of
    from afclip_runtime.progress import progress_of

    shard_images = options.shard_images or 1000
    listing = Listing(patterns, options.out, options.ignore, options.image_column, shard_images)
    with wait_for_lock(options.out / FOLDER / ".lock"):
        digest = check_settings(options.out, {**settings_of(models, saves), "output": "parts"})
        found = progress_of(listing, unit="files", desc="listed")
        return make_plan(options.out, found, digest, shard_images)


class _Progress:
    """Progress bar of a job: images, images per second, remaining time, and number of failures.

    Args:
        plan: The plan.
        todo: Numbers of the shards to inspect.
        methods: Number of methods per image.
        silent: Whether to show nothing.
    """

    def __init__(self, plan: "Plan", todo: Sequence[int], methods: int, silent: bool) -> None:
        from afclip_runtime.progress import progress_of

        counts = [plan.shards[number].images for number in todo]
        self.total = None if None in counts else sum(filter(None, counts)) * methods
        self.todo = len(todo)
        self.by_image = False  # whether this process counts single images
        self.shards = self.rows = self.failed = 0
        self.bar: Any = progress_of(total=self.total, silent=silent)

    def add_image(self) -> None:
        """Counts an image of this process."""
        self.by_image = True
        self.bar.update()

    def add_shard(self, facts: "Facts") -> None:
        """Counts a shard. Its images are counted only if this process does not count single images."""
        self.shards, self.rows, self.failed = self.shards + 1, self.rows + facts.rows, self.failed + facts.failed
        if self.total is None:  # the sizes of other shards are not known; the mean so far is assumed
            self.bar.total = round(self.rows / self.shards * self.todo)
        if self.failed:
            self.bar.set_postfix_str(f"{self.failed:,} failed", refresh=False)
        if not self.by_image:
            self.bar.update(facts.rows)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def _say(manifest: "Manifest", judged: int, out: Path) -> None:
    """Prints the summary of a job, of which this run has inspected `judged` shards."""
    from afclip_runtime.bulk.summary import first_failed
    from afclip_runtime.inspection.table import note_of_first

    print(
        f"{manifest.rows - manifest.failed - manifest.left_out:,} inspected, {manifest.failed:,} failed, "
        f"{manifest.left_out:,} left out, in {counted(manifest.done, 'shard')}, {judged:,} of them in this run: "
        f"{out / 'parts'}"
    )
    anomalous, normal = manifest.anomalous or 0, manifest.normal or 0
    if anomalous or normal:
        print(f"Verdicts: {anomalous:,} anomalous, {normal:,} normal")
    if first := first_failed(out, manifest):
        print(f"note: {note_of_first(*first, manifest.failed, out / 'parts')}", file=sys.stderr)
    for damage in manifest.damaged:
        print(f"note: {shown(damage.problem)}", file=sys.stderr)
    for method, alarm in manifest.drift.items():
        print(f"note: {method + ': ' if method else ''}{alarm}", file=sys.stderr)


def _exit_code(manifest: "Manifest", out: Path) -> int:
    if left := manifest.shards - manifest.done:
        print(
            f"{left:,} of {counted(manifest.shards, 'shard')} are not inspected yet: another job with this output has "
            "them, or their processes have ended. Start the same command again to check. The result so far is in "
            f"{out / 'manifest.json'}.",
            file=sys.stderr,
        )
        return STOPPED
    return 3 if manifest.drift else 1 if manifest.failed or manifest.left_out else 0
