"""Where a job runs, and how a launch ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import SIGINT, Signals
from typing import Literal

from afclip_runtime.launch.job import Outcome
from afclip_runtime.launch.signals import STOPPED

Report = Callable[[str, Outcome], None]


@dataclass(frozen=True)
class Where:
    """Where the work runs.

    Attributes:
        launcher: `local`: worker processes of this machine. `slurm`: tasks of an array. `ray`: tasks of a Ray cluster.
        jobs: Number of workers.
        ray_address: Address of a running Ray cluster; `None` starts Ray on this machine.
        sbatch: Options for sbatch.
        command: Command that does the same work with one local worker, for tasks on other machines.
    """

    launcher: Literal["local", "slurm", "ray"] = "local"
    jobs: int = 1
    ray_address: str | None = None
    sbatch: Sequence[str] = ()
    command: Sequence[str] = ()


HERE = Where()
"""One worker process of this machine."""


@dataclass(frozen=True)
class Ended:
    """How a launch ended. The outcomes of the units are on disk.

    Attributes:
        signal: Signal that stopped it; `None` if it ran until no unit was left to claim.
    """

    signal: Signals | None = None

    @property
    def code(self) -> int:
        """The exit code: 0, 130 after Ctrl-C, 75 after another signal."""
        if self.signal is None:
            return 0
        return 130 if self.signal == SIGINT else STOPPED
