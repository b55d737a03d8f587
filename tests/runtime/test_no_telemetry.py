"""Engines send no telemetry: they store no identifier of the machine, and open no connection."""

import os
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

from afclip_runtime.engines import GRAPH_ENGINES
from tests.support import REPOSITORY
from tests.support.bundles import write_bundle
from tests.support.uploads import encoded, picture

JUDGE = """
import socket, sys
from pathlib import Path

def refused(*args):
    raise AssertionError(f"a connection to {args}")

socket.getaddrinfo = socket.socket.connect = refused
from afclip_runtime.inspection.bundle import open_bundle

print(open_bundle(Path(sys.argv[1]), engine=sys.argv[2]).predict(Path(sys.argv[3])).score)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_an_engine_leaves_nothing_at_home(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(GRAPH_ENGINES[engine].package)
    bundle = write_bundle(tmp_path / "bundle")
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "LANG")}
    said = subprocess.run(
        [sys.executable, "-c", JUDGE, str(bundle), engine, str(tmp_path / "a.png")],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert isfinite(float(said.stdout))
    assert "telemetry" not in said.stderr.lower()
    assert [path for path in home.rglob("*") if path.is_file()] == []
