"""`inspect --watch DIR`: its options and its run."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.cli.parser import numeric
from afclip_runtime.errors import UserError, counted

if TYPE_CHECKING:
    from afclip_runtime.inspection.folder import Done, Keep, Observer
    from afclip_runtime.inspection.inspector import Inspector
    from afclip_runtime.inspection.webhook import Webhook

OUTBOX = "webhook.sqlite"  # in the output folder
GRACE = 5.0  # seconds for the delivery of each message after the watch has ended; after a signal, of all messages
QUIET, POLL = 2.0, 1.0

DESCRIPTION = """\
With --watch DIR, the files of a folder and its subfolders are inspected: existing files first, then new files as they
arrive. The tables are the same, and each file is inspected once, even if the command is stopped and started again. A
file is inspected when its size and time have not changed for --watch_quiet seconds and no process has it open for
writing (which the system tells only for your own files on local disks of Linux). Hidden files (.NAME) and temporary
files (.tmp, .part …) are skipped. A file that is replaced later is inspected again: the last line of a path counts. If
the disk is full or a folder is not available, the command waits.
  --move_to good/,bad/      moves each file to the folder of its verdict, normal or anomalous, with its path below DIR.
                            A third folder is for files that could not be inspected. No file is overwritten: a number is
                            added to the name. The column moved_to has the new path.
  --webhook URL             sends one JSON message per image. webhook.sqlite in the output folder keeps it until the
                            receiver has answered with 2xx. docs/production.md describes the message.
Ctrl-C and SIGTERM end a watch after the current image, with an exit code as below. A second signal ends it at once,
with exit code 130.
"""

_seconds = numeric(float, lambda value: 0 <= value < math.inf, "a number of seconds, 0 or more")


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    watch = parser.add_argument_group("watching a folder")
    watch.add_argument("--watch", type=Path, metavar="DIR", help="inspect the files of a folder as they arrive")
    watch.add_argument(
        "--watch_quiet",
        type=_seconds,
        metavar="SECONDS",
        help=f"time that a file must be unchanged, in seconds (by default {QUIET:g}; use 10 on a network share, or 0 "
        "if files are renamed into the folder)",
    )
    watch.add_argument(
        "--watch_poll",
        type=_seconds,
        metavar="SECONDS",
        help=f"time between two scans of the folder, in seconds ({POLL:g} by default)",
    )
    watch.add_argument(
        "--watch_idle",
        type=_seconds,
        metavar="SECONDS",
        help="end after this time without a new file, in seconds; by default never",
    )
    watch.add_argument(
        "--move_to", metavar="NORMAL,ANOMALOUS[,UNREAD]", help="folders for inspected files, such as good/,bad/"
    )
    watch.add_argument("--webhook", metavar="URL", help="send a message per image to this http or https address")
    watch.add_argument(
        "--webhook_secret_file",
        type=Path,
        metavar="FILE",
        help="text file with the secret that signs messages (HMAC-SHA256), 24 characters or more",
    )


def parse_paths_or_watch(parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.Namespace:
    """Parses the options of a command that inspects files and folders, or watches a folder.

    Args:
        parser: Parser of the command. Without paths and --watch, it ends the program with exit code 2.
        args: Arguments of the command.
    """
    options = parser.parse_args(args)
    if not options.paths and options.watch is None:
        parser.error("name files or folders, or a folder to watch: --watch DIR")
    return options


def check_watch_options(options: argparse.Namespace, saves: Sequence[str], several: bool) -> None:
    """Checks that the options go together, before anything is loaded. Warns of a secret that others can read.

    Args:
        options: Options of the command.
        saves: Kinds of pictures to write.
        several: Whether there are several models.

    Raises:
        UserError: They do not. The message names the options and the remedy.
    """
    if options.watch is None:
        names = ("watch_quiet", "watch_poll", "watch_idle", "move_to", "webhook", "webhook_secret_file")
        if given := [name for name in names if getattr(options, name) is not None]:
            raise UserError(
                f"--{given[0]} goes with --watch DIR; with --watch_idle 0, it ends when all files are inspected."
            )
        return
    from afclip_runtime.files import exposed
    from afclip_runtime.inspection.moving import Destinations
    from afclip_runtime.inspection.watching import check_watched
    from afclip_runtime.inspection.webhook import check_url, read_secret

    if options.paths:
        raise UserError("give either files and folders, or --watch DIR.")
    check_watched(options.watch)
    if options.move_to is not None:
        Destinations.read(options.move_to, options.watch)
        if several:
            raise UserError("--move_to needs one verdict per image, and several models are named. Name one.")
        if {"labelstudio", "coco"} & set(saves):
            raise UserError(
                "--save labelstudio and coco record paths of images, and --move_to moves them. Leave one of them out."
            )
    if options.webhook is not None:
        check_url(options.webhook)
    if options.webhook_secret_file is not None:
        if options.webhook is None:
            raise UserError("--webhook_secret_file signs the messages of --webhook URL, which is not given.")
        read_secret(options.webhook_secret_file)
        if warning := exposed(options.webhook_secret_file):
            _say(warning)


def check_threshold(options: argparse.Namespace, models: "Mapping[str, Inspector]") -> None:
    """Checks that files to be moved get a verdict.

    Raises:
        UserError: A model has no threshold.
    """
    if options.move_to is not None and any(model.thresholds[0] is None for model in models.values()):
        raise UserError("--move_to needs a threshold of the score: calibrate first, or give --threshold.")


def watch(
    models: "Mapping[str, Inspector]",
    options: argparse.Namespace,
    saves: Sequence[str],
    scope: str,
    keeps: "Sequence[Keep]" = (),
    observers: "Sequence[Observer]" = (),
) -> "Done":
    """Watches a folder until the end is requested. Returns the result.

    Args:
        models: Models by name.
        options: Options of the command, checked.
        saves: Kinds of pictures to write.
        scope: Identifier of the models and their settings.
        keeps: See `folder.inspect`.
        observers: See `folder.inspect`.

    Raises:
        UserError: See `Line.run`; or the queue of messages is damaged, or used by another process.
    """
    from afclip_runtime.inspection.folder import Done
    from afclip_runtime.inspection.line import Line, until_signalled
    from afclip_runtime.inspection.moving import Destinations, Mover
    from afclip_runtime.inspection.outbox import Outbox
    from afclip_runtime.inspection.table import Table
    from afclip_runtime.inspection.watching import WatchedFolder
    from afclip_runtime.inspection.webhook import Webhook, read_secret
    from afclip_runtime.supervision import Heartbeat, notify

    destinations = Destinations.read(options.move_to, options.watch) if options.move_to is not None else None
    quiet = QUIET if options.watch_quiet is None else options.watch_quiet
    alive = _at_most_once_per_second(Heartbeat(options.out).beat)
    watched = WatchedFolder(
        options.watch, [options.out, *(destinations.folders if destinations else ())], quiet, _say, alive
    )
    with ExitStack() as stack:
        stopped = stack.enter_context(until_signalled())
        table = stack.enter_context(Table(options.out, len(models) > 1, moves=destinations is not None))
        webhook = None
        if options.webhook is not None:
            secret = read_secret(options.webhook_secret_file) if options.webhook_secret_file is not None else None
            outbox = Outbox(options.out / OUTBOX)
            stack.callback(outbox.close)
            webhook = Webhook(options.webhook, outbox, secret, _say)
            stack.callback(_close, webhook, lambda: not stopped())
            webhook.start()
        line = Line(
            models,
            watched,
            table,
            options.out,
            saves,
            options.num_workers,
            POLL if options.watch_poll is None else options.watch_poll,
            options.watch_idle,
            _say,
            stopped,
            ignore=options.ignore,
            keeps=keeps,
            observers=observers,
            mover=Mover(destinations, options.watch, table) if destinations else None,
            webhook=webhook,
            scope=scope,
            alive=alive,
        )
        _say(f"watching {options.watch}: one line per image in {options.out / 'inspections.csv'}")
        try:
            line.run()
        finally:
            notify("STOPPING=1")
        return Done(line.new, line.failed, line.left_out, table.replaced, line.drifts, table.rows)


def _close(webhook: "Webhook", patient: Callable[[], bool]) -> None:
    if waiting := webhook.close(GRACE, patient):
        said = counted(waiting, "message waits", "messages wait")
        _say(f"webhook: {said} in {webhook.outbox.path} for the next run.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _at_most_once_per_second(call: Callable[[], None]) -> Callable[[], None]:
    last = -math.inf

    def sparingly() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1:
            last = now
            call()

    return sparingly
