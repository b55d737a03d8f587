"""Two nodes on this machine that share one folder and nothing else: see tests/nodes/two_nodes.sh."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import REPOSITORY

RAY = "node1:6379"
"""Address of the cluster that `TwoNodes.join_ray` starts."""
SCRIPT = REPOSITORY / "tests/nodes/two_nodes.sh"
PROBE = "unshare --net --uts --ipc --mount --pid --fork --mount-proc sh -ec"
"""Makes the namespaces of a node, in which a cable between two of them is laid."""
PROBED = "hostname node1; mount -t tmpfs tmpfs /mnt; ip link add type veth; ip link set lo up"


@dataclass(frozen=True)
class Running:
    """A command that runs on a node.

    Attributes:
        process: The process.
        log: Its output, stderr with stdout.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def code(self, timeout: float = 300) -> int:
        """Waits for its end and returns its exit code."""
        return self.process.wait(timeout)

    def said(self) -> str:
        """Returns its output so far."""
        return self.log.read_text(errors="replace")


@dataclass(frozen=True)
class TwoNodes:
    """Two nodes, `node1` and `node2`.

    Attributes:
        folder: The shared folder, which is the working folder of all commands.
    """

    folder: Path

    def begin(self, node: int, *command: str | Path, **variables: str) -> Running:
        """Starts a command on a node, with this source and one thread."""
        place = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "AFCLIP_CACHE": "/tmp/cache"}
        place |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        whole = [str(SCRIPT), "run", str(self.folder.parent), str(node), *map(str, command)]
        log = self.folder.parent / f"{len(list(self.folder.parent.glob('*.txt')))}-node{node}.txt"
        with log.open("xb") as file:
            # as of a new login: a library called by a test may have set more
            given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            environment = {**given, **place, **variables}
            return Running(subprocess.Popen(whole, env=environment, stdout=file, stderr=subprocess.STDOUT), log)

    def run(self, node: int, *command: str | Path, **variables: str) -> str:
        """Runs a command on a node to its end, which must be a success, and returns what it said."""
        return finished(self.begin(node, *command, **variables))

    def torchrun(self, job: str, *command: str, restarts: int = 0, **variables: str) -> list[Running]:
        """Starts a command of the project on both nodes, one process each, as torchrun does.

        Args:
            job: Name of the job.
            command: The command and its options, without those that say where it runs.
            restarts: Number of restarts by torchrun when a process dies.
            variables: Environment variables.
        """
        meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29500"]
        meet += [f"--rdzv-id={job}", f"--max-restarts={restarts}"]
        spread = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
        whole = ["torchrun", *meet, "-m", "afclip_lightning", *command, *spread]
        # else a restarted process may read the address of one that has ended (docs/clusters.md)
        variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **variables}
        return [self.begin(node, *whole, **variables) for node in (1, 2)]

    def join_ray(self, node: int, **variables: str) -> None:
        """Starts Ray with one processor on a node: the cluster on node 1, and node 2 joins it."""
        place = ["--head", "--include-dashboard=false"] if node == 1 else [f"--address={RAY}"]
        small = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        self.run(node, "ray", "start", *place, f"--node-ip-address=10.203.0.{node}", *small, **variables)

    def lose(self, node: int) -> None:
        """Ends a node with all that runs there, at once."""
        subprocess.run([SCRIPT, "lose", self.folder.parent, str(node)], check=True)


def finished(*commands: Running, timeout: float = 300) -> str:
    """Waits for commands, which must succeed, and returns what they said."""
    end = time.monotonic() + timeout
    left = list(commands)
    while left and not any(command.process.poll() for command in commands) and time.monotonic() < end:
        left = [command for command in left if command.process.poll() is None]
        time.sleep(0.1)
    said = "\n".join(command.said() for command in commands)
    assert [command.process.poll() for command in commands] == [0] * len(commands), said
    return said


def _refusal() -> str | None:
    """Returns why this machine cannot be split into two nodes, or `None`."""
    try:
        done = subprocess.run([*PROBE.split(), PROBED], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Gives two nodes, which end with the body; skips the test if this machine cannot be split.

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
