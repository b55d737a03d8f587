"""A benchmark on this machine, on Ray and on SLURM: the same matrix gives the same table."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from afclip_runtime import progress
from afclip_runtime.errors import UserError
from afclip_runtime.launch import Where, elsewhere, launch, ray_cluster, require_launcher
from afclip_runtime.launch import slurm as slurm_arrays
from tests.support import REPOSITORY, matrices
from tests.support.sharded import web_server
from tests.support.slurm import finish, needs_nodes, slurm
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
    matrices.enter(tmp_path, MATRIX, monkeypatch)
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
from tests.support.small_jobs import SmallJob
if __name__ == "__main__":
    job = SmallJob(Path({str(folder)!r}), {[name]!r})
    sys.exit(launch(job, Where(), job.folder).code)
""")
    return [sys.executable, str(script)]


def launched(folder: Path, name: str) -> subprocess.Popen[str]:
    """Starts a process that runs a unit in a task of Ray, and returns it when the unit has begun."""
    script = folder / "launch.py"
    script.write_text(f"""
import sys
from pathlib import Path
from afclip_runtime.launch import Where, launch
from tests.support.small_jobs import SmallJob
if __name__ == "__main__":
    job = SmallJob(Path({str(folder)!r}), {[name]!r})
    sys.exit(launch(job, Where("ray", command={worker(folder, name)!r}), job.folder).code)
""")
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if (folder / f"{name}.txt").exists():
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    return process


@pytest.mark.slow
def test_a_signal_ends_the_tasks_of_ray_between_two_steps(folder: Path) -> None:
    pytest.importorskip("ray")
    process = launched(folder, "stops:100-1")
    process.send_signal(signal.SIGINT)
    assert "Stopping the tasks" in process.communicate(timeout=40)[1]
    assert process.returncode == 130
    assert SmallJob(folder, ["stops:100-1"]).left() == 1
    pid = int((folder / "ran").read_text().split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_tasks_of_ray_at_once(folder: Path) -> None:
    pytest.importorskip("ray")
    process = launched(folder, "sleep:100-1")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "Stopping the tasks, at the latest in 60 s. Ctrl-C again stops at once." not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=40)
    assert process.returncode == 130
    pid = int((folder / "ran").read_text().split()[1])
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():  # it looks for no signal
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_tasks_that_all_end_with_a_mistake_are_one_error(folder: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-c", "import sys; print('error: there is no model', file=sys.stderr); sys.exit(2)"]
    with pytest.raises(UserError, match=r"ray/1\.log: there is no model"):
        launch(SmallJob(folder, ["done-1"]), Where("ray", command=command), folder)


@contextmanager
def silence() -> Iterator[int]:
    """Yields a port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def web_pages() -> Iterator[int]:
    """Yields the port of a web server, as Ray's own dashboard is one."""
    with web_server(Path()) as address:
        yield int(address.rpartition(":")[2])


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(("other", "reason"), [(silence, "timed out"), (web_pages, "what answers there is not Ray")])
def test_an_address_where_something_else_answers_is_one_error(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: Callable[[], AbstractContextManager[int]],
    reason: str,
    scheme: str,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda *args, **options: pytest.fail("it waits")))
    monkeypatch.setattr(ray_cluster, "ANSWER", 1.0)
    with other() as port, pytest.raises(UserError) as caught:
        launch(SmallJob(folder, ["done-1"]), Where("ray", ray_address=f"{scheme}127.0.0.1:{port}"), folder)
    assert str(caught.value) == (
        f"--ray_address {scheme}127.0.0.1:{port}: Ray cannot be used ({reason}). `ray start --head` starts a cluster "
        "and prints its address."
    )


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_one_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda *args, **options: pytest.fail("it waits")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    where = Where("ray", ray_address=f"{scheme}127.0.0.1:{port}")
    with pytest.raises(UserError, match=rf"--ray_address {where.ray_address}: Ray cannot be used \(.*refused"):
        launch(SmallJob(folder, ["done-1"]), where, folder)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    job = SmallJob(tmp_path, ["done-1"])
    with pytest.raises(UserError, match=r"ray is not installed: pip install 'afclip_lightning\[scale\]'"):
        launch(job, Where("ray"), tmp_path)
    with pytest.raises(UserError, match=r"ray is not installed: pip install 'afclip_lightning\[scale\]'"):
        require_launcher(Where("ray"))
    absent = r"^sbatch was not found: --launcher slurm needs a SLURM cluster\. Use --launcher local or ray\.$"
    with pytest.raises(UserError, match=absent):
        launch(job, Where("slurm", command=["python", "-m", "x", "y"]), tmp_path)
    with pytest.raises(UserError, match=absent):
        require_launcher(Where("slurm"))


def test_the_reason_of_sbatch_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "")
    said = "sbatch: error: fetch_config: DNS SRV lookup failed\nsbatch: fatal: Could not establish a source"
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/bash\necho '{said}' >&2; exit 1")
    require_launcher(Where("slurm"))
    with pytest.raises(UserError) as raised:
        launch(SmallJob(tmp_path, ["done-1"]), Where("slurm", command=["python", "-m", "x", "y"]), tmp_path)
    assert str(raised.value) == (
        "SLURM cannot be used (sbatch: Could not establish a source). Correct --sbatch or the cluster, or use "
        "--launcher local or ray."
    )


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """Puts a cluster on the path whose array number 7 has two tasks. Each prints a line and ends."""
    tools = {
        "sbatch": f"for arg; do case $arg in --output=*) log=${{arg#--output=}};; esac; done\n"
        f"for n in 1 2; do echo '{task}' >\"${{log/\\%A_\\%a/7_$n}}\"; done; cat >script; echo '7;test'",
        "squeue": "echo 6",
    }
    for name, text in tools.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)


def test_an_array_whose_tasks_all_end_with_a_mistake_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Where("slurm", 2, command=["python", "-m", "x", "y", "--a", "b c"])
    stand_in(tmp_path, monkeypatch, "error: there is no model")
    with pytest.raises(UserError, match=r"slurm/7_1\.log: there is no model"):
        launch(SmallJob(tmp_path, ["done-1", "done-2"]), where, tmp_path)
    assert (tmp_path / "script").read_text() == "#!/bin/bash\nexec srun python -m x y --a 'b c'\n"
    stand_in(tmp_path, monkeypatch, "1 of 2 units are done")
    assert launch(SmallJob(tmp_path, ["done-1", "done-2"]), where, tmp_path).code == 0


def test_a_queue_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_arrays, "LOOK", 0.01)
    folder = tmp_path / "100%u"
    stand_in(tmp_path, monkeypatch, "")
    (tmp_path / "bin/sbatch").write_text("#!/bin/bash\nprintf '%s\\n' \"$@\" >flags; echo 7")
    silent = "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1"
    queue = f"#!/bin/bash\necho asked >>asked\ncase $(wc -l <asked) in 1|4) echo 7;; 2|3) {silent};; *) echo 6;; esac\n"
    (tmp_path / "bin/squeue").write_text(queue)
    where = Where("slurm", command=["python", "-m", "x", "y"])
    assert launch(SmallJob(tmp_path, ["done-1"]), where, folder).code == 0
    assert len((tmp_path / "asked").read_text().split()) == 5
    assert f"--output={tmp_path}/100%%u/slurm/%A_%a.log" in (tmp_path / "flags").read_text().splitlines()
    monkeypatch.setattr(slurm_arrays, "SILENCE", 0.05)
    (tmp_path / "bin/squeue").write_text(f"#!/bin/bash\n{silent}\n")
    with pytest.raises(UserError, match=r"^SLURM has not answered for 0\.05 s, and array 7 may still run\."):
        launch(SmallJob(tmp_path, ["done-1"]), where, folder)


@pytest.mark.slow
def test_ctrl_c_that_reaches_squeue_too_ends_the_waiting_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "")
    (tmp_path / "bin/squeue").write_text("#!/bin/bash\ntouch asked\nsleep 2\necho 7\n")
    code = "from pathlib import Path; from afclip_runtime.launch import Where, launch; "
    code += "from tests.support.small_jobs import SmallJob; folder = Path(); "
    code += "where = Where('slurm', command=['python', '-m', 'x', 'y']); "
    code += "print(launch(SmallJob(folder, ['done-1']), where, folder).code)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not Path("asked").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to all processes of the command
    out, said = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "130", said
    assert said == "SLURM array 7 goes on; scancel 7 ends the array.\n"


def test_work_on_other_machines_is_counted_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(elsewhere, "EVERY", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    job = SmallJob(tmp_path, ["done-1", "done-2", "done-3", "done-4"])
    with elsewhere.progress_elsewhere(job) as count:
        (tmp_path / "done").mkdir()
        (tmp_path / "done/done-2").touch()
        count()
        time.sleep(0.5)
    assert "25% 1/4" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", [pytest.param("slurm", marks=needs_nodes(1))])
def test_a_task_that_makes_room_goes_into_the_queue_again(
    launcher: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    job = SmallJob(folder, ["stops:8-1"])
    launcher_of_it = multiprocessing.get_context("spawn").Process(
        target=launch, args=(job, Where(launcher, command=worker(folder, "stops:8-1")), folder)
    )
    launcher_of_it.start()
    for _ in range(600):
        if (folder / "stops:8-1.txt").exists():
            break
        time.sleep(0.1)
    [log] = (folder / "slurm").glob("*.log")
    slurm("scancel", "--signal=USR1", log.stem)
    finish(log.stem, log)
    launcher_of_it.join(60)
    assert launcher_of_it.exitcode == 0
    assert f"SLURM job {log.stem} goes into the queue again" in log.read_text()
    assert job.ran() == ["stops:8-1"] * 2
    assert job.left() == 0
