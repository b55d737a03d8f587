"""A Ray cluster of two nodes that share one folder: the same tables as with one process, also if a node is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import TwoNodes, two_nodes
from tests.support.spread import CODES, COMMANDS, assert_same_outcome, of_one_process

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ADDRESS = "node1:6379"


@pytest.fixture(scope="module")
def nodes(work: Path) -> Iterator[TwoNodes]:
    """Two nodes of a Ray cluster with one processor each."""
    with two_nodes(work.parent) as nodes:
        small = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        nodes.run(1, "ray", "start", "--head", "--node-ip-address=10.203.0.1", "--include-dashboard=false", *small)
        nodes.run(2, "ray", "start", f"--address={ADDRESS}", "--node-ip-address=10.203.0.2", *small)
        yield nodes


@pytest.mark.parametrize("verb", COMMANDS)
def test_both_nodes_do_what_one_process_does(nodes: TwoNodes, work: Path, verb: str) -> None:
    place = ["--launcher=ray", f"--ray_address={ADDRESS}", "--jobs=2", f"--out=ray/{verb}"]
    command = nodes.begin(1, "python", "-m", *COMMANDS[verb], *place)
    assert command.code(timeout=400) == CODES[verb], command.said()
    assert_same_outcome(verb, work / "ray" / verb, of_one_process(verb, work))
