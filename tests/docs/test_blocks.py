"""Blocks of code in README and docs: the names in them exist. Self-contained blocks run in test_run_blocks.py."""

import ast
import contextlib
import importlib.util
import io
import re
import textwrap
from pathlib import Path

import pytest

from afclip_lightning.cli import verbs
from afclip_lightning.datasets.catalogue import dataset_classes
from afclip_lightning.engine.app import main as run_main
from tests.support import REPOSITORY
from tests.support.blocks import Block, blocks, commands, program_of
from tests.support.deploy import RUNTIME, project_of

NEEDS = {
    "a fresh environment": "an environment to install into",
    "a run": "a trained head; a test has a small one",
    "files of your own": "files that only a reader has",
    "gpu": "a CUDA device",
    "minutes": "more time than a test may take",
    "network": "the internet",
    "part": "no whole program: a part of one, or a command with a gap that the reader fills",
    "photos of your own": "folders of images; a test has drawn ones",
    "ray": "a Ray cluster",
    "saved maps": "maps of another program",
    "server": "a program that goes on until it is stopped",
    "slurm": "a SLURM cluster",
    "weights": "weights that the package does not bring",
}
RUNS = {"fit", "validate", "test", "predict"}
GAPS = ("…", "CONFIG", "HEAD", "DIR")
BLOCKS = blocks("bash")
PROGRAMS = [(block, *program_of(words)) for block in BLOCKS for words in commands(block.text)]


def ids(value: object) -> str | None:
    return value.place if isinstance(value, Block) else None


def published() -> set[str]:
    return {cls.name for cls in dataset_classes() if getattr(cls, "name", "")}


@pytest.mark.parametrize("block", [block for block in [*BLOCKS, *blocks("python")] if block.needs], ids=ids)
def test_what_a_block_needs_is_one_of_the_known_things(block: Block) -> None:
    assert set(block.needs) <= {*NEEDS, *published()}, block.place


def test_programs_of_others_stand_in_blocks_that_say_what_they_need() -> None:
    ours = {"afclip", "afclip_runtime", "export", "cd"}
    assert [block.place for block, program, _ in PROGRAMS if program not in ours and not block.needs] == []


def test_verbs_are_ones_that_there_are() -> None:
    names = {verb.name for verb in verbs.verbs()}
    assert [
        f"{block.place}: {args[:1]}"
        for block, program, args in PROGRAMS
        if program == "afclip" and args[0] not in names
    ] == []


def printed_config(args: list[str]) -> str:
    """Returns the error message of a command for its options, or nothing."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
        try:
            run_main([*args, "--print_config"])
        except SystemExit as stop:
            return printed.getvalue() if stop.code else ""
    return "it ran"


def runs_that_only_a_reader_can_start() -> list[tuple[Block, list[str]]]:
    """Returns the runs of blocks that no test runs, each once; a head says itself how it is built, and is not there."""
    found: dict[tuple[str, ...], Block] = {}
    for block, program, args in PROGRAMS:
        complete = "--config" in args and "--checkpoint" not in args and not any(gap in args for gap in GAPS)
        if program == "afclip" and args[0] in RUNS and block.needs and complete:
            found.setdefault(tuple(args), block)
    return [(block, list(args)) for args, block in found.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "args"),
    runs_that_only_a_reader_can_start(),
    ids=ids,
)
def test_options_of_runs_are_taken(block: Block, args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert printed_config(args) == "", block.place


def test_targets_of_make_are_ones_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {args[0] for _, program, args in PROGRAMS if program == "make"}
    assert named
    assert named <= targets


def test_extras_that_are_installed_are_ones_that_there_are() -> None:
    projects = [project_of(folder) for folder in (REPOSITORY, RUNTIME)]
    extras = {project["name"]: set(project["optional-dependencies"]) for project in projects}
    named = re.findall(
        r"(afclip_\w+?)(?:-[\d.]+-py3-none-any\.whl)?\[([\w,]+)\]", "\n".join(block.text for block in BLOCKS)
    )
    assert named
    assert [(name, wanted) for name, wanted in named if not set(wanted.split(",")) <= extras[name]] == []


def test_scripts_and_modules_are_ones_that_there_are() -> None:
    for block, program, args in PROGRAMS:
        if program.startswith("experiments."):
            assert importlib.util.find_spec(program), block.place
        if program == "sbatch":
            (script,) = (arg for arg in args if arg.endswith(".sbatch"))
            assert Path(REPOSITORY / script).is_file(), block.place


@pytest.mark.parametrize("block", blocks("python"), ids=ids)
def test_python_is_python(block: Block) -> None:
    ast.parse(textwrap.dedent(block.text))
