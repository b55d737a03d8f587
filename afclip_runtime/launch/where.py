"""Where a job runs, and how that ended."""

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
        launcher: `local`: worker processes of this machine; `slurm`: tasks of an array; `ray`: tasks of a Ray cluster.
        jobs: Workers.
        ray_address: Of a running Ray cluster; `None` starts Ray on this machine.
        sbatch: Options for sbatch.
        command: The command that does the same work with one local worker, for tasks on other machines.
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
    """How a launch ended. What became of the units lies on disk, whatever the launcher.

    Attributes:
        signal: What stopped it; `None` if it ran until there was nothing left that it could take.
    """

    signal: Signals | None = None

    @property
    def code(self) -> int:
        """The exit code: 0, 130 after Ctrl-C, 75 after another signal."""
        if self.signal is None:
            return 0
        return 130 if self.signal == SIGINT else STOPPED
