"""A Ray cluster that asks for a token: the right one, another one, and none."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.nodes import RAY, Running, TwoNodes, two_nodes
from tests.support.spread import CODES, COMMANDS, to

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

RIGHT, OTHER = ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": digits * 4} for digits in ("01234567", "76543210"))


@pytest.fixture(scope="module")
def nodes(work: Path) -> Iterator[TwoNodes]:
    """Two nodes, the first of which has a cluster with a token."""
    with two_nodes(work.parent) as nodes:
        nodes.join_ray(1, **RIGHT)
        yield nodes


def inspect(nodes: TwoNodes, variables: Mapping[str, str], out: str) -> Running:
    place = ["--launcher=ray", f"--ray_address={RAY}", to("inspect", out)]
    return nodes.begin(1, "python", "-m", *COMMANDS["inspect"], *place, **variables)


def test_the_right_token(nodes: TwoNodes) -> None:
    command = inspect(nodes, RIGHT, "right")
    assert command.code() == CODES["inspect"], command.said()


@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_MODE": "token"}, OTHER])
def test_no_token_and_another_one_are_one_error(nodes: TwoNodes, variables: Mapping[str, str]) -> None:
    command = inspect(nodes, variables, "wrong")
    assert command.code() == 2, command.said()
    assert command.said().splitlines()[-1] == (
        f"error: --ray_address {RAY}: the cluster asks for a token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
        "what `ray get-auth-token` prints on the cluster's first node, or write it to ~/.ray/auth_token."
    )
