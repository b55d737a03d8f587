"""A Ray cluster of two nodes that share one folder: the same tables as with one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import RAY, TwoNodes, two_nodes
from tests.support.spread import CODES, COMMANDS, assert_same_outcome, of_one_process, to, workers_until_the_end

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(work: Path) -> Iterator[TwoNodes]:
    """Two nodes of a Ray cluster with one processor each."""
    with two_nodes(work.parent) as nodes:
        for node in (1, 2):
            nodes.join_ray(node)
        yield nodes


@pytest.mark.parametrize("verb", COMMANDS)
def test_both_nodes_do_what_one_process_does(nodes: TwoNodes, work: Path, verb: str) -> None:
    out = work / "ray" / verb
    place = ["--launcher=ray", f"--ray_address={RAY}", "--jobs=2", to(verb, f"ray/{verb}")]
    command = nodes.begin(1, "python", "-m", *COMMANDS[verb], *place)
    workers = workers_until_the_end(verb, out, command.process)
    assert command.code(timeout=1) == CODES[verb], command.said()
    assert_same_outcome(verb, out, of_one_process(verb, work))
    assert workers == {"node1", "node2"}, command.said()
