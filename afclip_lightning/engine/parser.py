"""The parser of `fit`, `validate`, `test` and `predict`: references between options, and short error messages."""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store import FeatureCache
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.discovery import descendants
from afclip_lightning.discovery.messages import one_line
from afclip_lightning.engine.arguments import (
    check_files,
    unclosed,
    with_found_configs,
    with_sections,
    without_leftovers,
)
from afclip_lightning.engine.callbacks.evaluation import Evaluation
from afclip_lightning.engine.callbacks.pictures import Pictures
from afclip_lightning.engine.head_model import with_model_of_head
from afclip_lightning.engine.interpolation import resolve
from afclip_lightning.engine.presets import NAME, with_presets, without_preset
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import PROGRAM, UserError

FORMER = {"words": "class_names", "run_dir": "out"}
"""Former names of options, with the names that replaced them."""

GROUPS: dict[str, type] = {"loading": Loading, "features": FeatureCache, "pictures": Pictures, "evaluation": Evaluation}


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of a run to those of trainer, model and data."""
    parser.add_argument(
        "--out", "--run_dir", type=str | None, default=None, help="Run folder; runs/<config>/<time> by default."
    )
    parser.add_argument(
        "--ckpt_path",
        "--checkpoint",
        type=str | None,
        default=None,
        help="Trained head: a checkpoint, the folder of a run or a ready model (real). If no config and no --model "
        "names a method, the head does. With fit: the checkpoint from which training resumes.",
    )
    parser.add_argument("--test_before_fit", type=bool, default=False, help="Test the untrained method first.")
    parser.add_argument("--test_after_fit", type=bool, default=True, help="Test when training has ended.")
    parser.add_argument(
        "--few_shot_dir",
        type=Path | None,
        default=None,
        help="Few-shot images chosen by hand, instead of a random selection: DIR/[<dataset>/]<category>/*.",
    )
    parser.add_argument(
        "--heads",
        type=dict[str, Path],
        default={},
        help="Other heads of the same backbone to test in the same pass, by name: runs, checkpoints or configs.",
    )
    for name, cls in GROUPS.items():
        parser.add_class_arguments(cls, name)
    for action in parser._actions:
        # Lightning annotates `float | int | None`. The first type would read 1 (one batch) as 1.0 (all batches).
        if action.dest.startswith("trainer.limit_"):
            action._typehint = int | float | None  # type: ignore[attr-defined]


def parse(parser: LightningArgumentParser, args: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Returns the options of a command, and one sentence per dataset whose values were left out.

    Raises:
        UserError: A config or a checkpoint cannot be read.
    """
    args = with_found_configs(args)
    check_files(args)
    kept, notes = without_leftovers(with_presets(with_model_of_head(args)))
    return parser.parse_args(with_sections(kept)), notes


class AnomalyArgumentParser(LightningArgumentParser):
    """Reports an error in a few lines, with the nearest name, instead of listing every option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and ends with exit code 2."""
        if self.exit_on_error:
            hints = "".join(f"\nDid you mean {close!r} instead of {key!r}?" for key, close in self._nearest(message))
            args = getattr(self, "args", None) or []
            words = [*self.prog.split(), *args]  # the command's own parser has it in its name, the parent in `args`
            command = next((f" {word}" for word in words if word in LightningCLI.subcommands()), "")
            message = unclosed(args) or one_line(message, AnomalyMethod, AnomalyData)
            print(f"error: {message}{hints}\nAll options: {PROGRAM}{command} --help", file=sys.stderr)
            sys.exit(2)
        raise UserError(message) from ex

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Reads a config without its preset, whose values were filled in before."""
        return super().parse_string(without_preset(content) if f"{NAME}:" in content else content, *args, **kwargs)

    def _parse_common(self, cfg: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        """Fills in references once all files and options of a command are merged.

        The library would do so one level higher, where a config's `${model...}` does not resolve.
        """
        commands = self._subcommands_action
        name = commands and cfg.get(commands.dest)
        if commands and name and "${" in str(cfg[name]):
            parser, files = commands.choices[name], cfg[name].get("config")
            plain = yaml.safe_load(parser.dump(cfg[name], skip_validation=True, skip_none=False))
            try:
                cfg[name] = parser._apply_actions(resolve(plain))
            except UserError as error:
                self.error(str(error), error)
            cfg[name].config = files
        return super()._parse_common(cfg, *args, **kwargs)

    def _nearest(self, message: str) -> Iterator[tuple[str, str]]:
        found = re.findall(r"[Oo]ption '([\w.]+)'|arguments: --([\w.]+)|[Kk]ey '([\w.]+)'", message)
        unknown = {next(filter(None, groups)) for groups in found}
        actions = [action for parser in self._with_subcommands() for action in parser._actions]
        options = {action.dest for action in actions}
        options |= {flag.lstrip("-") for action in actions for flag in action.option_strings}
        names = _argument_names()
        for key in sorted(unknown):
            if former := FORMER.keys() & key.split("."):  # for `words: {a: plug}` the library names the key `words.a`
                yield from ((name, FORMER[name]) for name in former)
                continue
            prefix, dot, last = key.rpartition(".")
            if len(last) <= 2:  # too short to resemble a name: the nearest of `lr` is `blur`
                continue
            candidates = (options | {prefix + dot + name for name in names}) - {key}
            close = difflib.get_close_matches(key, candidates, n=1)
            if close:
                nearest: str = close[0]
                yield key, FORMER.get(nearest, nearest)

    def _with_subcommands(self) -> Iterator[argparse.ArgumentParser]:
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def _argument_names() -> set[str]:
    """Returns the names of all constructor arguments of methods, data modules, the backbone and the trainer."""
    classes: list[type] = [*descendants(AnomalyMethod), *descendants(AnomalyData), ClipBackbone, Trainer]
    names = {name for cls in classes for name in inspect.signature(cls).parameters}
    return names | {"class_path", "init_args", NAME}
