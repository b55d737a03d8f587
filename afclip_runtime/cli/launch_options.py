"""Launcher options of the commands with many units of work."""

import argparse
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence

from afclip_runtime.cli.parser import numeric
from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.launch import Where

OPTIONS = ("--launcher", "--jobs", "--ray_address", "--sbatch")
OF_ONE_LAUNCHER = {"ray_address": "ray", "sbatch": "slurm"}
JOBS = numeric(int, lambda jobs: jobs >= 1, "at least 1")


def add_launch_options(parser: argparse.ArgumentParser, units: str, optional: bool = False) -> None:
    """Adds the options of the launcher.

    Args:
        parser: Parser of the command.
        units: Name of its units of work, as `cells`.
        optional: Whether the command can run without a launcher.
    """
    group = parser.add_argument_group("where the work runs")
    group.add_argument(
        "--launcher",
        choices=["local", "slurm", "ray"],
        default=None if optional else "local",
        help=f"local: processes of this machine take the {units}; slurm: tasks of a SLURM array; ray: tasks of a Ray "
        "cluster. All machines see the same files. " + ("By default one process" if optional else "local by default"),
    )
    group.add_argument("--jobs", type=JOBS, default=1, metavar="N", help=f"workers: {units} at a time; 1 by default")
    group.add_argument(
        "--ray_address",
        metavar="ADDRESS",
        help="running Ray cluster: HOST:6379, or auto; without it Ray runs on this machine until the command ends",
    )
    group.add_argument(
        "--sbatch",
        type=_words,
        default=[],
        metavar="OPTIONS",
        help="options for sbatch, of each task: '--time=2:00:00 --gres=gpu:1'",
    )


def where_of(
    options: argparse.Namespace, verb: str, args: Sequence[str], drop: Collection[str] = (), program: str = PROGRAM
) -> Where:
    """Returns where the work shall run.

    Args:
        options: Options of a parser with `add_launch_options`.
        verb: Verb of the command, as `features build`.
        args: Arguments after the verb, as typed.
        drop: Flags without a value that tasks on other machines shall not get.
        program: Command of the program.

    Raises:
        UserError: An option belongs to another launcher.
    """
    check_launch_options(options)
    command = [sys.executable, *program.split()[1:], *verb.split(), *_of_a_task(args, drop)]
    return Where(options.launcher or "local", options.jobs, options.ray_address, options.sbatch, command)


def check_launch_options(options: argparse.Namespace) -> None:
    """Refuses an option of another launcher, which would do nothing.

    Args:
        options: Options of a parser with `add_launch_options`.

    Raises:
        UserError: Names the option and its launcher.
    """
    for name, launcher in OF_ONE_LAUNCHER.items():
        if getattr(options, name) and options.launcher != launcher:
            raise UserError(f"--{name} needs --launcher {launcher}: add that, or leave out --{name}.")


def _of_a_task(args: Sequence[str], drop: Collection[str]) -> Iterator[str]:
    """Yields the arguments of the same command with one local worker. Arguments after `--` stay at the end."""
    end = list(args).index("--") if "--" in args else len(args)
    rest = iter(args[:end])
    for arg in rest:
        if arg in OPTIONS:
            next(rest, None)
        elif arg.partition("=")[0] not in OPTIONS and arg not in drop:
            yield arg
    yield from ("--launcher=local", "--jobs=1", *args[end:])


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text}") from error
