"""The folder of a run: its name, and the record of the run itself."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import SaveConfigCallback

from afclip_lightning.engine import loggers
from afclip_lightning.engine.checkpoint import LAST
from afclip_lightning.engine.shared_pass import SharedPass
from afclip_runtime.errors import UserError, WriteError, is_for_want_of_space, shown
from afclip_runtime.files import is_there, read_json, write_json, write_text
from afclip_runtime.launch.signals import restarted

PACKAGES = ("afclip_lightning", "torch", "lightning", "open_clip_torch", "timm", "torchmetrics", "albumentations")
RECORD_FILE = "run.json"
NO_NAME = "none"  # torchrun's name for a job without --rdzv-id
RUN_FOLDER_VARIABLE = "AFCLIP_RUN_FOLDER"  # the first process's choice, for those that Lightning starts

MADE = (str(LAST), "head.*", "results*.json", "predictions*.csv")  # files that make a run's folder worth keeping


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Names the run folder if a library's error says only that the disk is full.

    Raises:
        WriteError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or not is_for_want_of_space(str(error)):
            raise
        raise WriteError(
            f"{shown(folder)}: a file there cannot be written ({error.strerror}). Free some space or choose another "
            "--out."
        ) from error


class RunRecord(SaveConfigCallback):
    """Records a run in its folder: the resolved config, versions, git revision, command and backbone."""

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes `config.yaml` and `run.json`."""
        folder = Path(trainer.default_root_dir)
        method = pl_module.main if isinstance(pl_module, SharedPass) else pl_module
        config = self.config.clone()  # can be repeated unchanged, into another folder
        config.out = config.trainer.default_root_dir = None
        if stage == "fit":
            config.ckpt_path = None  # a repetition of a resumed run trains from the start
        write_text(folder / "config.yaml", self.parser.dump(config, skip_none=False))
        facts = {
            "command": sys.argv,
            "job": _job_name(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "git_revision": git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: _version(name) for name in PACKAGES},
            "method": type(method).__name__,
            "trainable_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
            "backbone": method.backbone.description,
            "feature_spec": method.spec.to_dict(),
        }
        write_json(folder / RECORD_FILE, facts)
        loggers.record(trainer, (folder / "config.yaml").read_text(encoding="utf-8"), facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Returns the git revision of the source tree, with `-dirty` if files were changed; `None` if installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def choose_run_folder(config: Namespace, resumed: Path | None) -> Path:
    """Returns the run folder: the given folder, or a new one under `runs/`. All processes of a run get the same one.

    Args:
        config: The options of the command.
        resumed: The checkpoint from which training resumes.

    Raises:
        UserError: The folder holds another run.
    """
    chosen = os.environ.get(RUN_FOLDER_VARIABLE)
    if chosen and "LOCAL_RANK" in os.environ:
        return Path(chosen)
    if config.out:
        folder = Path(config.out)
    else:
        stem = Path(str(config.config[-1])).stem if config.get("config") else "run"
        job = _job_name()
        if job == NO_NAME or (job is None and int(config.trainer.num_nodes) > 1):
            raise UserError("The processes cannot agree on a run folder: give --out, or torchrun a --rdzv-id.")
        name = job or time.strftime("%Y%m%d-%H%M%S")
        folder = Path("runs") / stem / name
        number = 1
        while not job and folder.exists():
            number += 1
            folder = folder.with_name(f"{name}-{number}")
    resumes = resumed is not None and folder.resolve() in resumed.resolve().parents
    if has_left_something(folder) and not resumes and not is_repeated(folder):
        raise UserError(_how_to_get_on(folder))
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return folder


def has_left_something(folder: Path) -> bool:
    """Returns whether a folder holds output of a run. A run that was lost before it wrote any starts again there."""
    return (folder / "config.yaml").exists() and any(any(folder.glob(pattern)) for pattern in MADE)


def is_repeated(folder: Path) -> bool:
    """Returns whether the run in a folder is an earlier start of this run.

    SLURM repeats the command of a requeued job. torchrun repeats the command on each node when a process has died, and
    does not say so on nodes without a dead process. A user repeats it with the same `--rdzv-id`.

    Args:
        folder: The run folder.

    Raises:
        UserError: The record of the run is damaged.
    """
    if restarted():
        return True
    if (job := _job_name()) in (None, NO_NAME) or not is_there(folder / RECORD_FILE):
        return False
    facts = read_json(folder / RECORD_FILE, dict[str, Any], remedy="Give another --out.")
    return facts.get("job") == job and facts.get("command", [])[1:] == sys.argv[1:]


def _how_to_get_on(folder: Path) -> str:
    if (folder / LAST).exists():
        return (
            f"{folder} holds an earlier run. Give another --out, or continue that run: fit with "
            f"--checkpoint {folder / LAST}."
        )
    return f"{folder} holds an earlier run, without a checkpoint to go on from. Give another --out, or remove it."


def is_first_process() -> bool:
    """Returns whether this process writes the run folder. It is known before the processes are connected."""
    variables = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # of torchrun, Lightning, SLURM, LSF
    rank = next((os.environ[name] for name in variables if name in os.environ), "0")
    return rank == "0" and os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) in ("", "0")


def _job_name() -> str | None:
    """Returns a name that all processes of a cluster job can derive on their own, or `None` outside a job."""
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm-{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_STEP_ID', '0')}"
    return os.environ.get("TORCHELASTIC_RUN_ID")
