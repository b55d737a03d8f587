"""`python -m afclip_lightning sweep`: search for the best options, here or on a cluster."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from afclip_runtime.cli.launch_options import add_launch_options, where_of
from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.launch import Outcome, Where, launch, require_launcher
from afclip_runtime.launch.signals import STOPPED

MOST_TRIALS = 10**6
COUNT = numeric(int, lambda count: 1 <= count <= MOST_TRIALS, f"from 1 to {MOST_TRIALS}")
SECONDS = numeric(float, lambda seconds: 0 < seconds < math.inf, "a number of seconds above 0")
SEED = numeric(int, lambda seed: 0 <= seed < 2**31, f"from 0 to {2**31 - 1}")  # trial numbers are added to it
PLACE = 33
DESCRIPTION = """\
Searches for the best options of `fit`. The sweep file has the format of `wandb sweep`:

  python -m afclip_lightning sweep --config experiments/sweeps/afclip.yaml --trials 20

The objective must be a metric of a validation on a set that is not reported: val/<dataset>/mean/<metric>.
A stopped or killed sweep resumes with the same command, and its trials resume at their last checkpoint.
Options after -- are passed to every trial.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 1 trials failed, 2 a mistake, 75 trials are left."""
    own = list(args[: args.index("--")]) if "--" in args else list(args)
    options = _parser().parse_args(own)
    where = where_of(options, "sweep", args)
    require_launcher(where)
    return _search(options, where, list(args[len(own) + 1 :]))


def _search(options: argparse.Namespace, where: Where, extra: list[str]) -> int:
    try:
        from afclip_lightning.sweep.space import read_sweep
        from afclip_lightning.sweep.study import Plan, told, write_table
        from afclip_lightning.sweep.trials import Trials
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
    job = Trials(plan, options.time_limit)

    def report(name: str, outcome: Outcome) -> None:
        with plan.reading():
            text = told(plan, job.study, int(name), outcome)
        print(text, flush=True)

    ended = launch(job, where, folder, report)
    with plan.reading():
        table = write_table(plan, job.study)
    print(table)
    left = job.left()
    if ended.signal is not None:
        return STOPPED
    if left > 0:
        print(f"{left} trials are left, or run by another process: run the same command again.", file=sys.stderr)
        return STOPPED
    return int(any(trial.state.name == "FAIL" for trial in job.study.get_trials(deepcopy=False)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        f"{PROGRAM} sweep",
        usage="%(prog)s --config FILE [options] [-- OPTIONS OF EVERY TRIAL]",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="sweep file in the format of Weights & Biases"
    )
    parser.add_argument(
        "--trials",
        type=COUNT,
        metavar="N",
        help="number of trials in all, including earlier calls; by default run_cap of the file",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of runs and table; by default runs/sweeps/<name>"
    )
    parser.add_argument(
        "--storage", metavar="FILE_OR_URL", help="file or database of the study; by default DIR/study.journal"
    )
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the search; by default 0")
    parser.add_argument(
        "--time_limit",
        type=SECONDS,
        metavar="SECONDS",
        help="end a trial that takes longer in one process; by default there is no limit",
    )
    add_launch_options(parser, "trials")
    return parser
