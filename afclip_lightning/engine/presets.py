"""Replaces `preset` in a backbone's section, on the command line and in configs, by its values before parsing.

Values on the same command line, or in the same file, override those of the preset. The preset overrides values of an
earlier file. The config of a run records the values, not the name of the preset.
"""

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from afclip_lightning.backbones.presets import preset
from afclip_lightning.discovery import descendants
from afclip_lightning.engine.arguments import CONFIG, option_at, read_config, read_value
from afclip_lightning.engine.interpolation import resolve
from afclip_lightning.methods.base import AnomalyMethod

NAME = "preset"
BACKBONE = "backbone."
MODEL = "--model."
PAPERS_DEPTH = 24  # blocks of ViT-L, for which the defaults of `layer` and `vv_from` are made


def tap_arguments(method: type, depth: int, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """Returns the arguments of a method that are block numbers, for a vision tower of another depth.

    Several `layers` become those of a preset, if there is one. All others, `layer` and `vv_from` are scaled with the
    depth. A V-V path that begins at the first block does so in every tower.

    Args:
        method: Class of the method.
        depth: Number of blocks of the tower.
        layers: Block numbers of the tower's preset.
    """
    found: dict[str, Any] = {}
    for name in ("layers", "layer", "vv_from"):
        parameter = inspect.signature(method).parameters.get(name)
        default = None if parameter is None else parameter.default
        if isinstance(default, Sequence):
            chosen = layers if layers and len(default) > 1 else [_scaled(block, depth) for block in default]
            found[name] = list(chosen)
        elif isinstance(default, int) and default > 1:
            found[name] = _scaled(default, depth)
    return found


def _scaled(block: int, depth: int) -> int:
    return max(1, round(block * depth / PAPERS_DEPTH))


def fill_in(arguments: Mapping[str, Any], method: type | None) -> dict[str, Any]:
    """Returns the arguments of a method with a preset replaced by its values. Given arguments override these.

    Args:
        arguments: Arguments by name. A dot separates the backbone from its argument (`backbone.preset`). The preset's
            name may be a reference (`${oc.env:NAME}`).
        method: Class of the method. If it is `None`, only the arguments of the backbone are filled in.

    Raises:
        UserError: There is no such preset.
    """
    given = dict(arguments)
    if BACKBONE + NAME not in given:
        return given
    chosen = preset(resolve({NAME: given.pop(BACKBONE + NAME)})[NAME])
    backbone = {BACKBONE + name: value for name, value in chosen.arguments.items()}
    return backbone | (tap_arguments(method, chosen.depth, chosen.layers) if method else {}) | given


def fill_in_section(arguments: Mapping[str, Any], method: type | None) -> dict[str, Any]:
    """Returns the `init_args` of a method with a section `backbone`; see `fill_in`."""
    backbone = arguments.get("backbone")
    if not isinstance(backbone, Mapping) or NAME not in backbone:
        return dict(arguments)
    beside = {name: value for name, value in arguments.items() if name != "backbone"}
    return _nested(fill_in(beside | {BACKBONE + name: value for name, value in backbone.items()}, method))


def _nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments by name, with the arguments of the backbone in a section."""
    outer = {name: value for name, value in arguments.items() if not name.startswith(BACKBONE)}
    inner = {name.removeprefix(BACKBONE): arguments[name] for name in arguments if name not in outer}
    return outer | ({"backbone": inner} if inner else {})


def with_presets(args: Sequence[str]) -> list[str]:
    """Returns the arguments of a command. The values of each preset replace it, or follow its config.

    Raises:
        UserError: There is no such preset, or a config cannot be read.
    """
    options = [option_at(args, place) for place in range(len(args))]
    method = _method(options)
    beside = {option.removeprefix(MODEL) for option, _ in options}
    kept: list[str] = []
    place = 0
    while place < len(args):
        option, value = options[place]
        width = 1 if "=" in args[place] or option not in (*CONFIG, MODEL + BACKBONE + NAME) else 2
        if option == MODEL + BACKBONE + NAME:
            kept += _tokens({BACKBONE + NAME: value}, method, beside)
        else:
            kept += args[place : place + width]
        if option in CONFIG:
            section = _arguments(read_config(value))
            backbone = section.get("backbone")
            if isinstance(backbone, Mapping) and NAME in backbone:
                names = {*section, *(BACKBONE + name for name in backbone)}
                kept += _tokens({BACKBONE + NAME: backbone[NAME]}, method, names)
        place += width
    return kept


def without_preset(config: str) -> str:
    """Returns a config, as text, without the key `preset`, which the parser does not know; see `with_presets`."""
    tree = OmegaConf.create(config)  # it reads numbers like the parser
    for key in ("model.init_args.backbone", "model.backbone"):
        if OmegaConf.is_dict(backbone := OmegaConf.select(tree, key)):
            backbone.pop(NAME, None)
    return OmegaConf.to_yaml(tree)


def _tokens(arguments: Mapping[str, Any], method: type | None, beside: Collection[str]) -> list[str]:
    filled = {name: value for name, value in fill_in(arguments, method).items() if name not in beside}
    # the backbone is one section, so that it is parsed once
    return [f"{MODEL}{name}={json.dumps(value)}" for name, value in _nested(filled).items()]


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a config's method. They may also be beside its class."""
    model = config.get("model")
    section = model.get("init_args", model) if isinstance(model, Mapping) else {}
    return section if isinstance(section, dict) else {}


def _method(options: Sequence[tuple[str, str]]) -> type | None:
    """Returns the class of a command's method, if it has been imported."""
    name = ""
    for option, value in options:
        model = read_config(value).get("model") if option in CONFIG else None
        if option == "--model":
            mapping = read_value(option, value, dict[str, Any]) if value.startswith("{") else {"class_path": value}
            name = str(mapping.get("class_path", ""))
        elif isinstance(model, Mapping) and model.get("class_path"):
            name = str(model["class_path"])
    found = {cls.__name__: cls for cls in descendants(AnomalyMethod)}
    return found.get(name.rpartition(".")[2])
