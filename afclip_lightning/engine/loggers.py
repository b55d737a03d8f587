"""The loggers of a run: files in its folder, and one Weights & Biases run per folder, offline without a key."""

import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from requests.utils import get_netrc_auth

from afclip_runtime.errors import UserError, WriteError, shown
from afclip_runtime.files import parse_yaml, read_text, write_text


class RunLog(CSVLogger):
    """The CSV file in the run folder. If the disk is full, the file ends with a whole line."""

    def save(self) -> None:
        """Writes the metrics that are not written yet.

        Raises:
            WriteError: The disk is full or not writable.
        """
        try:
            super().save()
        except OSError as error:
            path = Path(error.filename or Path(self.log_dir) / "metrics.csv")
            _cut_to_lines(path)
            raise WriteError(
                f"{shown(path)}: cannot be written ({error.strerror or error}). Free some space."
            ) from error


def _cut_to_lines(path: Path) -> None:
    """Removes what follows the last line break of a file."""
    with suppress(OSError), path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


@rank_zero_only
def prepare(logger: Logger, folder: Path, command: str, tags: Sequence[str]) -> None:
    """Points a logger without a folder at the run folder, and gives a W&B run its name, group, tags and id.

    Values of the config or of a `WANDB_…` variable have priority. A run folder has one W&B run: resuming the run
    resumes the W&B run too. Without a key, W&B asks for nothing and sends nothing, unless `WANDB_MODE` is set.

    Args:
        logger: Logger as the config built it. The run folder was not known then, hence the private attributes.
        folder: The run folder.
        command: `fit`, `validate`, `test` or `predict`.
        tags: Tags of the run: the method and the datasets.
    """
    if isinstance(logger, TensorBoardLogger) and logger.save_dir == ".":
        logger._root_dir, logger._name, logger._version = str(folder), "tensorboard", ""
    if not isinstance(logger, WandbLogger):
        return
    init = logger._wandb_init
    if logger.save_dir == ".":
        folder.mkdir(parents=True, exist_ok=True)
        init["dir"] = logger._save_dir = str(folder)
    group, name = folder.resolve().parts[-2:]
    described = {
        "name": ("WANDB_NAME", f"{group}/{name}"),
        "group": ("WANDB_RUN_GROUP", group),
        "job_type": ("WANDB_JOB_TYPE", command),
        "tags": ("WANDB_TAGS", list(tags)),
    }
    for key, (variable, value) in described.items():
        if init.get(key) is None and variable not in os.environ:
            init[key] = value
    if init["id"] is None and "WANDB_RUN_ID" not in os.environ:  # an agent of a sweep has chosen one
        init["id"] = logger._id = _run_id(folder / "wandb" / "run_id")
    if logger._offline or (init.get("mode") is None and "WANDB_MODE" not in os.environ and not _has_key()):
        init["mode"] = "offline"


def _run_id(path: Path) -> str:
    """Returns the id in a file. If there is no file, writes one with a new id."""
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:8])
    return read_text(path, limit=100).strip()


def _has_key() -> bool:
    if "WANDB_API_KEY" in os.environ or "WANDB_IDENTITY_TOKEN_FILE" in os.environ:
        return True
    import wandb

    servers = {wandb.setup().settings.base_url}
    if "WANDB_BASE_URL" not in os.environ:
        servers.add("https://api.wandb.ai")  # the earlier default server
    return any(get_netrc_auth(server) for server in servers)


def wandb_runs(trainer: Trainer) -> list[Any]:
    """Returns the W&B runs of a trainer, on the first process; none on the others."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def record(trainer: Trainer, config: str, facts: Mapping[str, Any]) -> None:
    """Sends the resolved config and, under `run`, the facts of the run to the W&B run.

    Args:
        trainer: Trainer whose loggers are used.
        config: The config, as YAML.
        facts: Versions, git revision, backbone and so on.
    """
    for run in wandb_runs(trainer):
        run.config.update(
            {**parse_yaml(config, dict[str, Any], "the config"), "run": dict(facts)}, allow_val_change=True
        )


@contextmanager
def ending() -> Iterator[None]:
    """Ends the W&B run that the body started: as finished, or as failed if the body raises.

    Raises:
        UserError: W&B cannot start, for example because of a wrong key or no network.
    """
    before, exit_code = _active_run(), 1
    try:
        yield
        exit_code = 0
    except Exception as error:
        if "wandb" in sys.modules and isinstance(error, sys.modules["wandb"].Error):
            raise UserError(
                f"Weights & Biases: {error}\nWANDB_MODE=offline keeps the run on disk; --trainer.logger null does "
                "without."
            ) from error
        raise
    finally:
        run = _active_run()
        if run is not None and run is not before:
            run.finish(exit_code)


def _active_run() -> Any:
    return sys.modules["wandb"].run if "wandb" in sys.modules else None
