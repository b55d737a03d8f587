"""Checks of a command's options that need neither data nor model, so that errors come at once."""

import importlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import nn

from afclip_lightning.discovery.sections import check_nulls
from afclip_lightning.types import MAIN_HEAD
from afclip_runtime.errors import UserError, message_of

LARGEST_SEED = np.iinfo(np.uint32).max
PRECISIONS = ("16-true", "bf16-true", "64-true", "64")  # precisions that the methods do not support
LEAST = {
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.gradient_clip_val": 0,
    "trainer.log_every_n_steps": 0,
    "trainer.min_epochs": 0,
    "pictures.count": 0,
    "evaluation.tolerance": 0,
    "map_sigma": 0,
}
MOST = {"batch_size": 2**20, "num_workers": 2**10}  # more is a typing error that would exhaust the machine's memory
NOT_HERE = {
    "default_root_dir": "use --out for the run folder",
    "model_registry": "checkpoints stay in the run folder",
}


def check_options(config: Mapping[str, Any], command: str) -> None:
    """Checks the values of all options of a command.

    Args:
        config: The options, as plain values.
        command: `fit`, `validate`, `test` or `predict`.

    Raises:
        UserError: An option is out of its range, or this machine has no such device.
    """
    for section in ("model", "data"):
        check_nulls(None, config[section], section)
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, got {value}.")
        least = LEAST.get(key, LEAST.get(key.rpartition(".")[2]))
        if least is not None and isinstance(value, int | float) and value < least:
            raise UserError(f"{key} must be at least {least}, got {value}.")
        most = MOST.get(key.rpartition(".")[2])
        if most is not None and isinstance(value, int) and value > most:
            raise UserError(f"{key} must be at most {most}, got {value}.")
    seed, trainer = config["seed_everything"], config["trainer"]
    if seed is not None and not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed_everything must be from 0 to {LARGEST_SEED}, got {seed}.")
    if str(trainer["precision"]) in PRECISIONS:
        raise UserError(f"precision {trainer['precision']} is not supported: use 32-true, 16-mixed or bf16-mixed.")
    if config["heads"] and command == "predict":
        raise UserError("--heads are for test, validate and fit: predict writes the maps of one method.")
    for name, path in config["heads"].items():
        if name == MAIN_HEAD:
            raise UserError(f"--heads: {name!r} is the name of the run's own head. Choose another.")
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"--heads: {name!r} is not a valid name for a head. Use letters, digits, _ and -.")
        if not Path(path).exists():
            raise UserError(f"--heads: {name}: {path} does not exist.")
    if config["few_shot_dir"] is not None and not config["few_shot_dir"].is_dir():
        raise UserError(f"--few_shot_dir: {config['few_shot_dir']} is not a folder.")
    for option, instead in NOT_HERE.items():
        if trainer[option] is not None:
            raise UserError(f"--trainer.{option}: {instead}.")
    if trainer["barebones"]:
        raise UserError("--trainer.barebones leaves out the tables and checkpoints that a run is for.")
    if trainer["val_check_interval"] == 0:
        raise UserError("--trainer.val_check_interval 0 means never: use --trainer.limit_val_batches 0 for that.")
    for tested, part in (("test", "test"), ("validate", "val"), ("predict", "predict")):
        if command == tested and _is_zero(trainer[f"limit_{part}_batches"]):
            raise UserError(f"--trainer.limit_{part}_batches 0 leaves nothing to {tested}.")
    quiet_trainer(trainer)
    _check_optimizer(config["model"].get("init_args", {}).get("optimizer"))
    if command == "fit":
        if config["test_after_fit"] and _is_zero(trainer["limit_test_batches"]):
            raise UserError("--trainer.limit_test_batches 0 leaves nothing to test: use --test_after_fit false.")
        for option in ("max_epochs", "max_steps", "limit_train_batches"):
            if _is_zero(trainer[option]):
                raise UserError(f"--trainer.{option} 0 trains nothing. To test a head as it is, use the command test.")


def _check_optimizer(options: Any) -> None:
    """Checks the options of the optimiser by building it with a dummy parameter."""
    if not isinstance(options, Mapping) or "class_path" not in options:
        return  # a function of ours
    module, _, name = options["class_path"].rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    try:
        cls([nn.Parameter(torch.zeros(1))], **options.get("init_args", {}))
    except (ValueError, TypeError) as error:
        raise UserError(f"--model.optimizer: {message_of(error)}.") from error


def quiet_trainer(options: Mapping[str, Any]) -> Trainer:
    """Returns a trainer that writes and prints nothing, with the options of its devices and its training.

    Raises:
        UserError: Lightning refuses an option, or this machine has no such device.
    """
    own = ("logger", "callbacks", "plugins", "default_root_dir", "model_registry", "barebones")
    plain = {key: value for key, value in options.items() if key not in own and not isinstance(value, Mapping)}
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Trainer(**{**plain, **quiet})  # type: ignore[arg-type]
    except Exception as error:  # Lightning's errors, and those of its checks on unexpected values
        raise UserError(f"--trainer: {' '.join(message_of(error).split())}") from error
    finally:
        log.setLevel(level)


def _is_zero(value: Any) -> bool:
    return value == 0 and not isinstance(value, bool)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested options with their keys."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if not isinstance(name, str) and not key.startswith("data"):  # a dataset checks this itself
                raise UserError(f"{key}: {name!r} is not text. Put a name that reads as a number in quotes.")
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{key}[{number}]")
    else:
        yield key, value
