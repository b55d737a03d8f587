"""A benchmark on this machine, on Ray and on SLURM: the same matrix gives the same table."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afclip_runtime.errors import UserError
from afclip_runtime.launch import Where, launch
from tests.support import REPOSITORY
from tests.support.slurm import needs_nodes
from tests.support.small_jobs import SmallJob

DRAWN = "root: drawn, image_size: 112, train_normal: 2, test_normal: 2, test_anomalous: 2"
MATRIX = f"""
methods:
  Dual-Image: {{configs: [configs/dual_image_demo.yaml], options: [--model.steps=0], trains: false, seeds: [0, 1]}}
datasets:
  one: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [cloth]}}}}
  two: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [metal]}}}}
transfers: [{{train: one, test: [two]}}]
options: [--data.batch_size=2]
published: {REPOSITORY / "experiments/published"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "matrix.yaml").write_text(MATRIX)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order have other last bits
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    return tmp_path


def benchmark(*options: str) -> list[str]:
    return [sys.executable, "-m", "afclip_lightning", "benchmark", "--config=matrix.yaml", "--jobs=2", *options]


def table(out: str, *options: str) -> bytes:
    done = subprocess.run(benchmark(f"--out={out}", *options), capture_output=True, text=True, timeout=500, check=False)
    logs = "\n".join(path.read_text() for path in Path(out).glob("*/*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "2 of 2 cells are done." in done.stdout
    return (Path(out) / "results.csv").read_bytes()


@pytest.mark.parametrize(
    "launcher", [pytest.param("ray", marks=pytest.mark.slow), pytest.param("slurm", marks=needs_nodes(1))]
)
@pytest.mark.usefixtures("folder")
def test_a_cluster_gives_the_table_of_local_processes(launcher: str) -> None:
    pytest.importorskip("ray")
    assert table("there", f"--launcher={launcher}") == table("here")
    assert len(list(Path("there", launcher).glob("*.log"))) == 2


def worker(folder: Path, name: str) -> list[str]:
    """Returns a command that runs the units of a job with one local worker."""
    script = folder / "work.py"
    script.write_text(f"""
import sys
from pathlib import Path
from afclip_runtime.launch import Where, launch
from tests.support.slurm import needs_nodes
from tests.support.small_jobs import SmallJob
if __name__ == "__main__":
    job = SmallJob(Path({str(folder)!r}), {[name]!r})
    sys.exit(launch(job, Where(), job.folder).code)
""")
    return [sys.executable, str(script)]


@pytest.mark.slow
def test_a_signal_ends_the_tasks_of_ray_between_two_steps(folder: Path) -> None:
    pytest.importorskip("ray")
    script = folder / "launch.py"
    script.write_text(f"""
import sys
from pathlib import Path
from afclip_runtime.launch import Where, launch
from tests.support.slurm import needs_nodes
from tests.support.small_jobs import SmallJob
if __name__ == "__main__":
    job = SmallJob(Path({str(folder)!r}), ["stops:100-1"])
    sys.exit(launch(job, Where("ray", command={worker(folder, "stops:100-1")!r}), job.folder).code)
""")
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if (folder / "stops:100-1.txt").exists():
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "Stopping the tasks" in process.communicate(timeout=100)[1]
    assert process.returncode == 130
    assert SmallJob(folder, ["stops:100-1"]).left() == 1
    pid = int((folder / "ran").read_text().split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_tasks_that_all_end_with_a_mistake_are_one_error(folder: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-c", "import sys; print('error: there is no model', file=sys.stderr); sys.exit(2)"]
    with pytest.raises(UserError, match=r"ray/1\.log: there is no model"):
        launch(SmallJob(folder, ["done-1"]), Where("ray", command=command), folder)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    job = SmallJob(tmp_path, ["done-1"])
    with pytest.raises(UserError, match=r"ray is not installed: pip install 'afclip_lightning\[scale\]'"):
        launch(job, Where("ray"), tmp_path)
    with pytest.raises(UserError, match="sbatch is not there: --launcher slurm needs a SLURM cluster"):
        launch(job, Where("slurm", command=["python", "-m", "x", "y"]), tmp_path)
