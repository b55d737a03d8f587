"""Commands in guides and module docstrings exist, and so do their flags and configs."""

import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

import afclip_lightning.methods
from afclip_lightning.cli import verbs
from afclip_lightning.datasets.catalogue import dataset_classes
from afclip_lightning.discovery import import_submodules
from afclip_lightning.engine.parser import _argument_names, add_run_arguments
from afclip_lightning.importers import command as importing
from afclip_runtime.cli.parser import CommandParser
from tests.support import REPOSITORY
from tests.support.options import options_of

RUNS = {"demo", "fit", "validate", "test", "predict"}
PROGRAM = re.compile(r"(?:-m afclip_lightning|(?<![\w./-])afclip) ([a-z]\w*)\b([^\n]*)")
FILES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "data/README.md", "docs/**/*.md"]
FILES += ["experiments/**/*.md", "experiments/**/*.yaml", "experiments/**/*.sbatch", "configs/**/*.yaml"]
TO_BE_WRITTEN = {"configs/off_centre_demo.yaml", "configs/x_mvtec.yaml"}  # by who follows the guide


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Returns each shown command: its place, its verb, and its arguments."""
    for path in sorted({path for pattern in FILES for path in REPOSITORY.glob(pattern)}):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"\\\n[#\s]*", " ", text)
        for verb, rest in PROGRAM.findall(text):
            rest = re.split(r"`|\s#|\"\$@\"", rest)[0]
            yield f"{path.relative_to(REPOSITORY)}: {verb} {rest}", verb, shlex.split(rest)


@cache
def flags_of(verb: str) -> set[str]:
    if verb not in RUNS:
        return options_of(importlib.import_module(f"afclip_lightning.cli.{verb}")._parser())
    parser = LightningArgumentParser()
    parser.add_class_arguments(Trainer, "trainer")
    add_run_arguments(parser)
    return {*options_of(parser), "--config", "--seed_everything", "--model", "--data"}


@cache
def flags_of_import() -> set[str]:
    return set().union(*(options_of(importing.parser(["--from", kind], CommandParser)) for kind in importing.kinds()))


def known(verb: str, flag: str, args: list[str]) -> bool:
    """Returns whether a verb has a flag. Arguments of a method or a dataset may be of any class."""
    if verb == "datasets" and args[:1] == ["import"]:
        return flag in flags_of_import()
    if verb == "features" and args[:1] == ["build"]:
        return flag in flags_of(verb) or known("fit", flag, args)
    section, dot, _ = flag.removeprefix("--").partition(".")
    of_a_class = dot and section in {"model", "data"} and (section == "model" or verb in RUNS)
    if of_a_class or (verb == "datasets" and {"check", "show"} & set(args)):
        return flag in flags_of(verb) or flag.removeprefix("--").rpartition(".")[2] in _argument_names()
    return flag in flags_of(verb) or (verb in RUNS and section == "heads")


def test_commands_that_are_shown_are_ones_that_there_are() -> None:
    import_submodules(afclip_lightning.methods)
    dataset_classes()
    names = {verb.name for verb in verbs.verbs()}
    shown = list(commands())
    assert {verb for _, verb, _ in shown} >= names - {"validate"}
    wrong = [place for place, verb, _ in shown if verb not in names]
    for place, verb, args in shown:
        own = list(itertools.takewhile(lambda arg: arg != "--", args))
        flags = [arg.partition("=")[0] for arg in own if arg.startswith("--") and " " not in arg]
        wrong += [f"{place}: {flag}" for flag in flags if verb in names and not known(verb, flag, own)]
        configs = {Path(arg) for arg in own if re.match(r"(configs|experiments)/.*\.yaml$", arg)}
        wrong += [f"{place}: {c}" for c in configs if str(c) not in TO_BE_WRITTEN and not (REPOSITORY / c).is_file()]
    assert wrong == []


def test_the_walk_of_the_guide_names_what_there_is() -> None:
    (figure,) = re.findall(r"```text\n(cli/test\.py.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)
    steps = [(file, names) for file, names in re.findall(r"^([\w/]+)\.py +(\w+(?:\.\w+)?)", figure, re.MULTILINE)]
    assert len(steps) == len(figure.splitlines())
    for file, names in steps:
        if file == "methods/x":  # any method
            continue
        whole = file if file.startswith("afclip_runtime/") else f"afclip_lightning/{file}"
        module = importlib.import_module(whole.replace("/", "."))
        first, _, last = names.partition(".")
        places = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        found = [getattr(place, first) for place in places if hasattr(place, first)]
        assert found, (file, names)
        assert not last or hasattr(found[0], last), (file, names)
