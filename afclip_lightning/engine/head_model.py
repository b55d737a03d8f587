"""`test --checkpoint FILE` without a model: the file says how its method is built, and a config names the data only."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from afclip_lightning.engine.arguments import CONFIG, option_at, read_config
from afclip_lightning.engine.factory import model_of
from afclip_lightning.engine.resume import find_checkpoint

COMMANDS = ("test", "validate", "predict")  # fit needs an optimiser, which is in no head file
CHECKPOINT = ("--checkpoint", "--ckpt_path")


def with_model_of_head(args: Sequence[str]) -> list[str]:
    """Returns the arguments of a command. The model of its checkpoint comes first if no argument names a method.

    Later arguments override it: `--model.k_shot 4`, or arguments in a config without `class_path`.

    Raises:
        CheckpointError: The file is absent or damaged, or does not say how its method is built.
        UserError: A config cannot be read.
    """
    given = [option_at(args, place) for place in range(len(args))]
    checkpoint = next((value for option, value in reversed(given) if option in CHECKPOINT), "")
    if not args or args[0] not in COMMANDS or not checkpoint or any(map(_names_method, given)):
        return list(args)
    model = model_of(find_checkpoint(checkpoint, args[0]))
    return [args[0], f"--model={json.dumps(model)}", *args[1:]]


def _names_method(given: tuple[str, str]) -> bool:
    option, value = given
    if option not in CONFIG:
        return option == "--model"
    model: Any = read_config(value).get("model")
    return isinstance(model, Mapping) and "class_path" in model
