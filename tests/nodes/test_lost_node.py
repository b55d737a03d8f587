"""A node of a Ray cluster that is lost while it works: the others do its work, with the result of one process."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import RAY, TwoNodes, two_nodes
from tests.support.spread import CODES, COMMANDS, assert_same_outcome, of_one_process, results_in, to, workers_of

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

# by default Ray misses a node only after some time; a user sets the same variables
SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1500"}
LEFT = r"Node node2 \(10\.203\.0\.2\) has left the Ray cluster\. What ran there is run again on another node\."


@pytest.fixture
def nodes(work: Path) -> Iterator[TwoNodes]:
    """Two nodes of a Ray cluster with a processor each."""
    with two_nodes(work.parent) as nodes:
        for node in (1, 2):
            nodes.join_ray(node, **SOON)
        yield nodes


@pytest.mark.parametrize("verb", ["inspect", "features", "benchmark"])
def test_the_node_that_is_left_does_the_rest(nodes: TwoNodes, work: Path, verb: str) -> None:
    expected, out = of_one_process(verb, work), work / "lost" / verb
    place = ["--launcher=ray", f"--ray_address={RAY}", "--jobs=2", to(verb, f"lost/{verb}")]
    command = nodes.begin(1, "python", "-m", *COMMANDS[verb], *place)
    while "node2" not in workers_of(verb, out):
        assert command.process.poll() is None, command.said()
        time.sleep(0.02)
    nodes.lose(2)
    kept = results_in(out)
    assert len(kept) < len(results_in(expected))
    assert command.code(timeout=250) == CODES[verb], command.said()
    assert len(re.findall(LEFT, command.said())) == 1, command.said()
    assert results_in(out).items() >= kept.items()
    assert_same_outcome(verb, out, expected)
