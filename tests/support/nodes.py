"""Two nodes on this machine that share one folder and nothing else: see tests/nodes/two_nodes.sh."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import REPOSITORY

SCRIPT = REPOSITORY / "tests/nodes/two_nodes.sh"
PROBE = "unshare --net --uts --ipc --mount --pid --fork --mount-proc sh -ec"
"""Makes the namespaces of a node, in which a cable between two of them is laid."""
PROBED = "hostname node1; mount -t tmpfs tmpfs /mnt; ip link add type veth; ip link set lo up"


@dataclass(frozen=True)
class TwoNodes:
    """Two nodes, `node1` and `node2`.

    Attributes:
        folder: What they share, and the working folder of all that they run.
    """

    folder: Path

    def begin(self, node: int, *command: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Starts a command on a node: with this source, one thread, and what it says as text, stderr with stdout."""
        place = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "AFCLIP_CACHE": "/tmp/cache"}
        place |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        whole = [str(SCRIPT), "run", str(self.folder.parent), str(node), *map(str, command)]
        return subprocess.Popen(
            whole, env={**os.environ, **place, **variables}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, node: int, *command: str | Path, **variables: str) -> str:
        """Runs a command on a node to its end, which must be a success, and returns what it said."""
        return finished(self.begin(node, *command, **variables))

    def torchrun(self, job: str, *command: str, restarts: int = 0, **variables: str) -> list[subprocess.Popen[str]]:
        """Starts a command of the project on both nodes, one process each, as torchrun does.

        Args:
            job: What the job is called.
            command: The command and its options, without those that say where it runs.
            restarts: How often torchrun begins anew when a process dies.
            variables: Of the environment.
        """
        meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29500"]
        meet += [f"--rdzv-id={job}", f"--max-restarts={restarts}"]
        spread = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
        whole = ["torchrun", *meet, "-m", "afclip_lightning", *command, *spread]
        return [self.begin(node, *whole, **variables) for node in (1, 2)]

    def lose(self, node: int) -> None:
        """Ends a node with all that runs there, at once."""
        subprocess.run([SCRIPT, "lose", self.folder.parent, str(node)], check=True)


def finished(*processes: subprocess.Popen[str], timeout: float = 300) -> str:
    """Waits for processes, which must succeed, and returns what they said."""
    said = [process.communicate(timeout=timeout)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert not any(codes), "\n".join(said)
    return "\n".join(said)


def _refusal() -> str | None:
    """Returns why this machine cannot be made two nodes, or `None`."""
    try:
        done = subprocess.run([*PROBE.split(), PROBED], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Gives two nodes, which end with the body; skips the test where this machine cannot be made two.

    Args:
        folder: They share `shared/` in it.
    """
    if reason := _refusal():
        pytest.skip(f"no namespaces to make two nodes of: {reason}")
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, timeout=60)
        yield TwoNodes(folder / "shared")
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)
