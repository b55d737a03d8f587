"""Finds the file of `--checkpoint`, and checks whether training can resume from it, before anything is built."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from afclip_lightning.engine.checkpoint import LAST, head_in
from afclip_lightning.engine.options import quiet_trainer
from afclip_lightning.heads import ready
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import CheckpointError, message_of
from afclip_runtime.files import is_there


def find_checkpoint(given: str, command: str) -> Path:
    """Returns the file that `--checkpoint` names.

    Args:
        given: A file or the folder of a run. A folder stands for its trained head, or with `fit` for its last
            checkpoint. Commands other than `fit` also accept the name of a ready model.
        command: `fit`, `validate`, `test` or `predict`.

    Raises:
        CheckpointError: There is no such file, or the name is one of Lightning's keywords, which are not supported.
    """
    if given in ("best", "last", "hpc") or given.startswith("registry"):
        raise CheckpointError(
            f"--checkpoint {given}: this word names no checkpoint here. Give the folder of a run, or one of its files."
        )
    if "://" in given:
        raise CheckpointError(f"--checkpoint {given}: only files of this machine are read. Copy the checkpoint first.")
    path = Path(given)
    if not is_there(path):
        if command != "fit" and given in ready.names():
            return ready.path_of(given)
        raise CheckpointError(f"Checkpoint {path} does not exist.")
    if not path.is_dir():
        return path
    if command != "fit":
        return head_in(path)
    if not (path / LAST).is_file():
        raise CheckpointError(f"{path} has no {LAST}: it is not the folder of a run of `fit`.")
    return path / LAST


def how_to_go_on(path: Path | None) -> str:
    """Returns a sentence on how to resume a command that was stopped.

    Args:
        path: The last checkpoint of its run; `None` if no checkpoint is kept.
    """
    if path is None or not path.exists():
        return "Nothing of it was kept. The same command starts again."
    return f"To go on: the same command with --out {path.parents[1]} --checkpoint {path}."


def check_resumable(path: Path, checkpoint: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Checks from the content of a checkpoint that training can resume from it.

    Args:
        path: Path of the checkpoint, for the message.
        checkpoint: Content of the checkpoint.
        trainer: Options of the trainer.

    Raises:
        CheckpointError: Training cannot resume from it.
    """
    if "optimizer_states" not in checkpoint:
        raise CheckpointError(f"{path} has no optimiser state to go on from: use {LAST} of its run.")
    loops = checkpoint.get("loops")
    given = loops.get("fit_loop") if isinstance(loops, Mapping) else None
    problem = _damage(quiet_trainer({"accelerator": "cpu"}).fit_loop.state_dict(), given, "loops.fit_loop")
    if not problem and not all(map(_is_position, given["state_dict"].get("combined_loader", []))):  # type: ignore[index]
        problem = "the position in the epoch"
    if not problem and not isinstance(checkpoint.get("lr_schedulers"), list):
        problem = "lr_schedulers"
    if not problem and not _is_count(checkpoint.get("global_step")):
        problem = "global_step"
    if not problem and not _are_callback_states(checkpoint.get("callbacks")):
        problem = "callbacks"
    if problem:
        raise CheckpointError(f"{path}: {problem} is absent or damaged, so that training cannot go on from it.")
    assert given is not None
    done = given["epoch_progress"]["current"]["completed"], checkpoint["global_step"]
    for count, option in zip(done, ("max_epochs", "max_steps"), strict=True):
        limit = trainer.get(option)
        if limit not in (None, -1) and limit < count:
            unit = option.removeprefix("max_")
            raise CheckpointError(
                f"{path} has {count} {unit} already done, and --trainer.{option} is {limit}: give at least {count}."
            )


def check_optimizer(path: Path, states: Any, method: AnomalyMethod) -> None:
    """Checks the state of the optimiser by one step on copies of the parameters, with gradients of zero.

    Args:
        path: Path of the checkpoint, for the message.
        states: The checkpoint's `optimizer_states`.
        method: The method as it will be trained.

    Raises:
        CheckpointError: The state is damaged, or belongs to another optimiser or other parameters.
    """
    assert method.optimizer is not None
    names = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    fresh, trial = (_with_zero_gradients(method) for _ in range(2))
    fresh.step()
    try:
        (state,) = states
        trial.load_state_dict(deepcopy(state))
        trial.step()
        reached = trial.state_dict()["state"]
        for number, expected in fresh.state_dict()["state"].items():
            for key, value in expected.items():
                if isinstance(value, Tensor) and not _is_like(reached[number].get(key), value):
                    raise ValueError(f"{key} of {names[number]} does not fit")
        if fresh.state and not state["state"]:
            raise ValueError("it is empty")
    except Exception as error:  # torch's checks, and its errors on unexpected values
        reason = message_of(error) or type(error).__name__
        raise CheckpointError(
            f"{path}: the state of its optimiser does not fit {type(fresh).__name__} on this head ({reason}). Go on "
            "with the options that it was trained with."
        ) from error


def _with_zero_gradients(method: AnomalyMethod) -> Optimizer:
    """Returns an optimiser of copies of a method's trainable parameters."""
    copies = [nn.Parameter(p.detach().clone()) for p in method.parameters() if p.requires_grad]
    for parameter in copies:
        parameter.grad = torch.zeros_like(parameter)
    assert method.optimizer is not None
    return method.optimizer(copies)


def _is_like(given: Any, expected: Tensor) -> bool:
    return isinstance(given, Tensor) and given.shape == expected.shape and bool(torch.isfinite(given).all())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_position(state: Any) -> bool:
    """Returns whether a loader can resume from a state; see `AnomalyLoader`."""
    if not isinstance(state, Mapping) or not _is_count(state.get("given")):
        return False
    try:
        if state.get("order") is not None:
            torch.Generator().set_state(state["order"])
    except (TypeError, RuntimeError):
        return False
    return state.get("order") is not None or state["given"] == 0


def _are_callback_states(states: Any) -> bool:
    """Returns whether the states of callbacks, including random generators, can be loaded."""
    if not isinstance(states, Mapping) or not all(isinstance(state, Mapping) for state in states.values()):
        return False
    random = states.get("Preemption", {}).get("random_states", [])
    if not isinstance(random, list) or not all(isinstance(state, Tensor) for state in random):
        return False
    try:
        for state in random[:1]:  # the generator of the CPU; those of GPUs are set if there are any
            torch.Generator().set_state(state)
    except (TypeError, RuntimeError):
        return False
    return True


def _damage(expected: Any, given: Any, key: str) -> str:
    """Returns the key of a nested counter that is absent or has another type; an empty text if there is none."""
    if isinstance(expected, Mapping):
        if not isinstance(given, Mapping):
            return key
        return next(
            filter(None, (_damage(value, given.get(name), f"{key}.{name}") for name, value in expected.items())), ""
        )
    if isinstance(expected, bool):
        return "" if isinstance(given, bool) else key
    return "" if _is_count(given) else key
