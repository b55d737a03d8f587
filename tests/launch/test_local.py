"""Workers of this machine: a fault of one unit affects no other, and stopped work can be continued."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from afclip_runtime.errors import UserError
from afclip_runtime.files import take_lock
from afclip_runtime.launch import Outcome, Where, launch, signals
from afclip_runtime.launch.local import visible_devices
from afclip_runtime.launch.worker import run_claimed
from tests.support import REPOSITORY
from tests.support.small_jobs import HastyJob, SmallJob


def run(job: SmallJob, jobs: int = 1) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    ended = launch(job, Where(jobs=jobs), job.folder, outcomes.__setitem__)
    assert ended.signal is None
    assert ended.code == 0
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_befalls_a_unit_stays_with_it(tmp_path: Path, jobs: int, capfd: pytest.CaptureFixture[str]) -> None:
    job = SmallJob(tmp_path, ["done-1", "kill-2", "once-3", "raise-4", "refuse-5", "done-6"])
    outcomes = run(job, jobs)
    assert {name for name, outcome in outcomes.items() if outcome.status == "done"} == {"done-1", "once-3", "done-6"}
    assert outcomes["kill-2"].error.startswith("its process died 3 times, the last time it was killed by SIGKILL")
    assert outcomes["raise-4"].error == "MemoryError: no memory left"
    assert outcomes["refuse-5"].error == "it cannot be read"
    assert (tmp_path / "failed/kill-2").read_text() == outcomes["kill-2"].error
    assert Counter(job.ran()) == {"done-1": 1, "kill-2": 3, "once-3": 2, "raise-4": 1, "refuse-5": 1, "done-6": 1}
    assert "Traceback" in (tmp_path / "raise-4.txt").read_text()
    log = (tmp_path / "done-1.txt").read_text()
    assert re.fullmatch(rf"== process \d+ on {re.escape(platform.node())}\nthis is done-1\n", log)
    assert "once-3: its process was killed by SIGKILL; another takes its place." in capfd.readouterr().err
    assert job.left() == 0
    assert run(job) == {}  # nothing is left


@pytest.mark.slow
def test_a_unit_over_its_time_is_ended_and_the_others_have_their_own(tmp_path: Path) -> None:
    outcomes = run(HastyJob(tmp_path, ["sleep:1.6-1", "sleep:60-2", "sleep:1.6-3"]))
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "sleep:1.6-1": "done",
        "sleep:60-2": "failed",
        "sleep:1.6-3": "done",
    }
    assert outcomes["sleep:60-2"].error == "took longer than the limit of 3 s"


@pytest.mark.slow
def test_what_all_units_need_is_refused_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no model$"):
        run(SmallJob(tmp_path, ["done-1", "done-2"], start="refuse"), 2)
    with pytest.raises(UserError, match=r"3 workers have ended before they began any work.*SIGSEGV"):
        run(SmallJob(tmp_path, ["done-1", "done-2"], start="die"), 2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_each_worker_has_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    run(SmallJob(tmp_path, ["meets:60-1", "meets:60-2"]), 2)
    found = {tuple(line.split()[1:]) for line in (tmp_path / "ran").read_text().splitlines()}
    assert sorted(device for _, device in found) == ["3", "5"]
    for value, devices in {"": [], "7": [], "GPU-1,GPU-2": ["GPU-1", "GPU-2"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_devices() == devices


SCRIPT = """
import sys
from pathlib import Path
from afclip_runtime.launch import Where, launch
from tests.support.small_jobs import HastyJob, LoadingJob, SmallJob
if __name__ == "__main__":
    job = {cls}(Path({folder!r}), {names!r})
    job.time_limit = None
    sys.exit(launch(job, Where(jobs={jobs}), job.folder).code)
"""


def start(folder: Path, names: list[str], cls: str = "SmallJob", jobs: int = 1) -> subprocess.Popen[str]:
    script = folder / "launch.py"
    script.write_text(SCRIPT.format(cls=cls, folder=str(folder), names=names, jobs=jobs))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    pytest.fail(f"no {path}")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_stops_between_two_steps_and_the_same_command_goes_on(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    names = ["done-1", "stops:60-2", "done-3"]
    process = start(tmp_path, names)
    wait_for(tmp_path / "stops:60-2.txt", process)
    process.send_signal(sent)
    again = " Ctrl-C again stops at once." if sent == signal.SIGINT else ""
    said = process.communicate(timeout=120)[1].splitlines()
    assert f"Stopping between two steps, at the latest in 60 s.{again}" in said
    assert process.returncode == code
    assert {path.name for path in (tmp_path / "done").iterdir()} == {"done-1"}
    assert not (tmp_path / "failed").exists()
    lock = take_lock(tmp_path / "locks/stops:60-2")
    assert lock is not None
    with lock:
        assert lock.attempts == 0  # one that was stopped is none
    job = SmallJob(tmp_path, ["stops:60-2", "done-3"])
    job.names[0] = "done-2"
    assert {outcome.status for outcome in run(job).values()} == {"done"}


@pytest.mark.slow
def test_ctrl_c_ends_workers_that_still_load_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, ["done-1"], "LoadingJob")
    wait_for(tmp_path / "loads", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_process_that_does_the_work_itself(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from afclip_runtime.launch.here import run_here
from tests.support.small_jobs import SmallJob
run_here(SmallJob(Path({str(tmp_path)!r}), ["sleep:100-1"]), lambda name, outcome: None)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "ran", process)
    for sent in (signal.SIGTERM, signal.SIGTERM):  # a cluster may repeat it
        process.send_signal(sent)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "Stopping between two steps.\n" in (tmp_path / "sleep:100-1.txt").read_text()
    lock = take_lock(tmp_path / "locks/sleep:100-1")
    assert lock is not None
    with lock:
        assert lock.attempts == 0


@pytest.mark.slow
def test_who_does_not_stop_in_time_is_killed_which_is_no_attempt(tmp_path: Path) -> None:
    for _ in range(2):
        process = start(tmp_path, ["sleep:60-1"], "HastyJob")
        wait_for(tmp_path / "ran", process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode == 75
        (tmp_path / "ran").unlink()
    lock = take_lock(tmp_path / "locks/sleep:60-1")
    assert lock is not None
    with lock:
        assert lock.attempts == 0


@pytest.mark.slow
def test_workers_of_a_launcher_that_was_killed_end_and_their_unit_counts_as_begun(tmp_path: Path) -> None:
    process = start(tmp_path, ["sleep:60-1"], "HastyJob")
    wait_for(tmp_path / "sleep:60-1.txt", process)
    process.kill()
    process.communicate(timeout=120)
    for _ in range(600):
        if lock := take_lock(tmp_path / "locks/sleep:60-1"):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker is still there")
    with lock:
        assert lock.attempts == 1


@pytest.mark.slow
def test_two_launchers_share_the_units(tmp_path: Path) -> None:
    names = [f"sleep:0.05-{number}" for number in range(30)]
    both = [start(tmp_path, names, jobs=2) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    job = SmallJob(tmp_path, names)
    assert Counter(job.ran()) == dict.fromkeys(names, 1)
    assert job.left() == 0


def test_a_unit_that_took_three_launchers_with_it_has_failed(tmp_path: Path) -> None:
    job = SmallJob(tmp_path, ["kill-1"])
    for attempts in (1, 2, 3):
        unit = job.claim(())
        assert unit is not None
        assert job.begin(unit) == attempts
        unit.lock.release()  # its machine is gone
    unit = job.claim(())
    assert unit is not None
    assert run_claimed(job, unit) == Outcome("failed", "its process died 3 times")
    assert job.claim(()) is None
    assert not signals.requested()


def test_a_lock_is_its_process_and_is_free_when_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "folder/lock"
    lock = take_lock(path)
    assert lock is not None
    assert take_lock(path) is None  # not twice in one process
    code = "from pathlib import Path; from afclip_runtime.files import take_lock; "
    code += f"l = take_lock(Path({str(path)!r})); "
    other = [sys.executable, "-c", code + "print(l is not None, flush=True); import os; os.kill(os.getpid(), 9)"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(other, env=environment, capture_output=True, text=True, check=False).stdout == "False\n"
    lock.release()
    lock.release()
    assert subprocess.run(other, env=environment, capture_output=True, text=True, check=False).stdout == "True\n"
    with take_lock(path) or pytest.fail("it is still held"):
        pass
    with pytest.raises(UserError, match=r"lock: cannot be written .*--out"):
        take_lock(path / "below")
