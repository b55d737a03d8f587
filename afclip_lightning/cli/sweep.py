"""`python -m afclip_lightning sweep`: search for the best options, here or on a cluster."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.launch.signals import STOPPED

MOST_TRIALS = 10**6
COUNT = numeric(int, lambda count: 1 <= count <= MOST_TRIALS, f"from 1 to {MOST_TRIALS}")
SEED = numeric(int, lambda seed: 0 <= seed < 2**31, f"from 0 to {2**31 - 1}")  # numbers of trials are added to it
PLACE = 33
DESCRIPTION = """\
Searches for the options of `fit` that a sweep file names, the same file that `wandb sweep` takes:

  python -m afclip_lightning sweep --config experiments/sweeps/afclip.yaml --trials 20

What is chosen by must be a metric of a validation, on a set that is not reported: val/<dataset>/mean/<metric>.
A stopped or killed sweep goes on with the same command, its trials where their last checkpoint was.
Options after -- are given to every trial.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 1 trials failed, 2 a mistake, 75 trials left, 130 Ctrl-C."""
    own = list(args[: args.index("--")]) if "--" in args else list(args)
    options = _parser().parse_args(own)
    return _search(options, list(args[len(own) + 1 :]))


def _search(options: argparse.Namespace, extra: list[str]) -> int:
    try:
        from afclip_lightning.sweep.launch import run_local, run_slurm
        from afclip_lightning.sweep.space import read_sweep
        from afclip_lightning.sweep.study import Plan, write_table
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'afclip_lightning[sweeps]'.") from error
    sweep = read_sweep(options.config)
    folder: Path = options.out or Path("runs") / "sweeps" / sweep.name
    trials = options.trials or sweep.cap or (len(sweep.grid()) if sweep.method == "grid" else None)
    if trials is None:
        raise UserError("Say how many trials: --trials N, or run_cap in the file.")
    if sweep.method == "grid":
        trials = min(trials, len(sweep.grid()))
    storage = options.storage or str(folder / "study.journal")
    plan = Plan(options.config, sweep, folder, storage, trials, options.seed, extra)
    study = plan.study()
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    left = trials - sum(state.is_finished() for state in states)
    code = 0
    if left > 0:
        jobs = min(options.jobs, left)
        if options.launcher == "local":
            code = run_local(plan, jobs)
        else:
            run_slurm(plan, jobs, options.sbatch)
    print(write_table(plan, study))
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    left = trials - sum(state.is_finished() for state in states)
    if left > 0 and code == 0:
        print(f"{left} trials are left, or run by another process: the same command goes on.", file=sys.stderr)
        return STOPPED
    return code or int(any(state.name == "FAIL" for state in states))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        f"{PROGRAM} sweep",
        usage="%(prog)s --config FILE [options] [-- OPTIONS OF EVERY TRIAL]",
        description=DESCRIPTION,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="sweep file as of Weights & Biases")
    parser.add_argument("--trials", type=COUNT, metavar="N", help="trials in all, those of earlier calls too; run_cap")
    parser.add_argument("--jobs", type=COUNT, default=1, metavar="N", help="trials at once; 1")
    parser.add_argument("--launcher", choices=["local", "slurm"], default="local", help="where workers run; local")
    parser.add_argument("--out", type=Path, metavar="DIR", help="runs and table; runs/sweeps/<name>")
    parser.add_argument("--storage", metavar="FILE_OR_URL", help="file or database of the study; DIR/study.journal")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the search; 0")
    parser.add_argument(
        "--sbatch", type=_words, default=[], metavar="OPTIONS", help="options for sbatch: '--time=2:00:00 --gres=gpu:1'"
    )
    return parser


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text}") from error
