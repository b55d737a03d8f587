"""The matrix of a benchmark: methods, training and test sets, seeds and shots, divided into cells and their steps."""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import MISSING, OmegaConf

from afclip_lightning.benchmark.files import load_yaml, read_yaml, reading
from afclip_runtime import files
from afclip_runtime.errors import UserError

if TYPE_CHECKING:
    from afclip_lightning.datasets.cross_dataset import CrossDataset

REMEDY = "experiments/benchmark.yaml is an example of a matrix."
OWN_OPTIONS = ("config", "out", "run_dir", "checkpoint", "ckpt_path", "seed_everything")  # the benchmark sets them
LONGEST_NAME = 100  # characters; it is part of a folder's name
CELL = "@cell"  # placeholder in commands for the folder of a cell's runs; it needs no quoting in a shell
QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--pictures.count=0",
)


@dataclass
class Method:
    """A method of the matrix.

    Attributes:
        configs: Config files, as for the command line. Later ones override earlier ones. Their `data` is ignored.
            `{train}` and `{test}` in a path stand for the names of the datasets.
        options: Further options of the command line, such as `--model.steps=0`.
        shots: Numbers of normal images per category. Each number is a separate test of the same head.
        seeds: Seeds in place of the matrix's, for a method that does not depend on them.
        tests: Test sets of the method; all by default.
        trains: Whether the method is fitted. Otherwise it is tested once on each test set.
        published: Names of the method in the published numbers, including variants in ablations; by default its name in
            the matrix.
    """

    configs: list[str] = MISSING
    options: list[str] = field(default_factory=list)
    shots: list[int] = field(default_factory=lambda: [0])
    seeds: list[int] | None = None
    tests: list[str] | None = None
    trains: bool = True
    published: list[str] | None = None


@dataclass
class Transfer:
    """Training sets of a head, and its test sets.

    Attributes:
        train: A training set, or a list of datasets that are trained on together.
        test: Test sets.
    """

    train: Any = MISSING
    test: list[str] = MISSING

    @property
    def sets(self) -> tuple[str, ...]:
        """Returns the training sets; none for a method that is not fitted."""
        return tuple(filter(None, [self.train] if isinstance(self.train, str) else self.train))

    @property
    def label(self) -> str:
        """Returns the name of the training sets in tables, such as `visa + btad`."""
        return " + ".join(self.sets)


@dataclass
class Matrix:
    """A benchmark.

    Attributes:
        methods: Methods by name.
        datasets: Datasets by their name in the table: a `data` section with `class_path`, or a file of `configs/data/`.
        transfers: Training and test sets.
        leave_one_out: Datasets. Each in turn is the test set of heads that are fitted on all the others together.
        cross_dataset: Further arguments of `CrossDataset`, such as `{train_sampling: evenly, near_copies: warn}`.
        seeds: Seeds. Each one gives separate cells, and also draws the few-shot images.
        options: Options of the command line for all cells.
        store: Whether methods that allow it read the features of a backbone from a common store.
        published: Folder of the published numbers, which must exist. By default it is `experiments/published`; without
            that folder there are no published numbers.
    """

    methods: dict[str, Method] = MISSING
    datasets: dict[str, Any] = MISSING
    transfers: list[Transfer] = field(default_factory=list)
    leave_one_out: list[str] = field(default_factory=list)
    cross_dataset: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    options: list[str] = field(default_factory=list)
    store: bool = True
    published: str | None = None

    @property
    def rows(self) -> list[Transfer]:
        """Returns the transfers, with those of `leave_one_out` at the end."""
        left_out = [Transfer([s for s in self.leave_one_out if s != held], [held]) for held in self.leave_one_out]
        return [*self.transfers, *left_out]


@dataclass(frozen=True)
class Step:
    """One run of the command line.

    Attributes:
        name: Name of its folder in that of the cell: `fit`, or the test set and the shots, `mvtec-4`.
        arguments: Arguments of the command line. `CELL` in them stands for the folder of the cell's runs.
        digest: Digest of everything that the run depends on. A run with another digest is repeated.
        dataset: Test set; empty for `fit`.
        shots: Normal images per category.
    """

    name: str
    arguments: tuple[str, ...]
    digest: str
    dataset: str = ""
    shots: int = 0


@dataclass(frozen=True)
class Cell:
    """A method with a training set and a seed. It is fitted once, and that head is tested on every test set and shots.

    Attributes:
        name: Name of its folder.
        method: Name of the method.
        train: Training sets, as `Transfer.label`; empty for a method that is not fitted.
        seed: Seed.
        folder: Its folder.
        files: Contents of the config files that its commands read, by path.
        steps: Its runs, in order.
    """

    name: str
    method: str
    train: str
    seed: int
    folder: Path
    files: Mapping[Path, str]
    steps: tuple[Step, ...]

    def script(self) -> str:
        """Returns a shell script that repeats the cell. Its argument is the output folder."""
        lines = [shlex.join(["python", "-m", "afclip_lightning", *step.arguments]) for step in self.steps]
        head = ["#!/bin/sh", "# Makes this cell again: sh commands.sh FOLDER, where the benchmark ran.", "set -e"]
        return "\n".join([*head, *(line.replace(CELL, '"$1"') for line in lines), ""])


@dataclass(frozen=True)
class Plan:
    """The cells of a matrix on this machine.

    Attributes:
        cells: Cells that can be run.
        missing: One sentence per dataset that is not on disk.
        transfers: Training sets with test sets, one entry per test set.
    """

    cells: tuple[Cell, ...]
    missing: tuple[str, ...]
    transfers: "tuple[CrossDataset, ...]" = ()

    def refuse_copies(self) -> None:
        """Checks that training and test sets share no picture. Reads images, and draws datasets that are drawn.

        Raises:
            UserError: Two datasets share a picture, or a dataset is not as it must be.
        """
        for data in self.transfers:
            data.prepare_data()
            data.setup("fit")


def load_matrix(paths: Sequence[Path], changes: Sequence[str] = ()) -> Matrix:
    """Returns the matrix in the files. Later files override earlier ones, and changes like `seeds=[0,1]` override all.

    Raises:
        UserError: A file cannot be read, or has a key that a matrix does not have. The message names it.
    """
    merged = OmegaConf.structured(Matrix)
    for path in paths:
        content = load_yaml(path, REMEDY)
        with reading(path):
            merged = OmegaConf.merge(merged, content)
    with reading(*paths, *changes):
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(changes)))
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    matrix = files.to_type(plain, Matrix, ", ".join(map(str, paths)), remedy=REMEDY)
    try:
        _check(matrix)
    except UserError as error:
        raise UserError(f"{', '.join(map(str, paths))}: {error}") from error
    return matrix


def _check(matrix: Matrix) -> None:
    for kind, names in (("methods", matrix.methods), ("datasets", matrix.datasets)):
        _check_names(kind, list(names))
    _check_list("transfers", matrix.rows, twice=True)
    if len(matrix.leave_one_out) == 1:
        raise UserError("leave_one_out: names one dataset; heads are trained on the others, so name two or more.")
    if repeated := _repeated(matrix.leave_one_out):
        raise UserError(f"leave_one_out: {repeated[0]!r} is listed twice. Remove one.")
    _check_numbers("seeds", matrix.seeds, 2**32 - 1)
    _check_options("options", matrix.options)
    for name, method in matrix.methods.items():
        where = f"methods.{name}"
        _check_list(f"{where}.configs", method.configs, twice=True)
        _check_options(f"{where}.options", method.options)
        _check_numbers(f"{where}.shots", method.shots, 10**6)
        if method.seeds is not None:
            _check_numbers(f"{where}.seeds", method.seeds, 2**32 - 1)
        if method.published is not None:
            _check_list(f"{where}.published", method.published)
        if method.tests is not None:
            _check_list(f"{where}.tests", method.tests)
            if unknown := [test for test in method.tests if test not in matrix.datasets]:
                known = ", ".join(matrix.datasets)
                raise UserError(f"{where}.tests: {unknown[0]!r} is not one of the datasets {known}.")
    for number, transfer in enumerate(matrix.rows):
        where = f"transfers[{number}]" if number < len(matrix.transfers) else "leave_one_out"
        if not isinstance(transfer.train, str):
            files.to_type(transfer.train, list[str], f"{where}.train", remedy=REMEDY)
        _check_list(f"{where}.train", transfer.sets)
        _check_list(f"{where}.test", transfer.test)
        for name in (*transfer.sets, *transfer.test):
            if name not in matrix.datasets:
                raise UserError(
                    f"{where.partition('[')[0]} name the dataset {name!r}, which is not one of "
                    f"{', '.join(matrix.datasets)}."
                )
        if both := [name for name in transfer.sets if name in transfer.test]:
            raise UserError(f"{both[0]} would be trained on and tested on, which is not zero-shot.")
    if twice := _repeated(frozenset(transfer.sets) for transfer in matrix.rows):
        raise UserError(f"transfers train twice on {', '.join(sorted(twice[0]))}: list all their test sets in one.")


def _check_names(kind: str, names: Sequence[str]) -> None:
    _check_list(kind, names)
    for name in names:
        if not (name.isprintable() and any(map(str.isalnum, _slug(name))) and len(name) <= LONGEST_NAME):
            raise UserError(
                f"{kind}: {name!r} cannot be the name of a folder. Use a name with a letter or digit, without line "
                f"breaks and control characters, of at most {LONGEST_NAME} characters."
            )
    slugs = Counter(_slug(name).casefold() for name in names)  # some file systems do not distinguish a and A
    if same := [name for name in names if slugs[_slug(name).casefold()] > 1]:
        raise UserError(f"the {kind} {', '.join(same)} would share one folder: give them other names.")


def _check_list(where: str, values: Sequence[Any], twice: bool = False) -> None:
    if not values:
        raise UserError(f"{where}: is empty; name at least one.")
    if not twice and (repeated := _repeated(values)):
        raise UserError(f"{where}: {repeated[0]!r} is listed twice. Remove one.")


def _check_numbers(where: str, values: Sequence[int], most: int) -> None:
    _check_list(where, values)
    if wrong := [value for value in values if not 0 <= value <= most]:
        raise UserError(f"{where}: must be whole numbers from 0 to {most}, got {wrong[0]}.")


def _check_options(where: str, options: Sequence[str]) -> None:
    for before, option in zip(["", *options], options, strict=False):
        is_value = before.startswith("--") and "=" not in before
        if not option.startswith("--") and not is_value:
            raise UserError(f"{where}: {option!r} is not an option. Write it as --trainer.max_epochs=4.")
        if option.partition("=")[0].removeprefix("--") in OWN_OPTIONS and option.startswith("--"):
            raise UserError(f"{where}: {option!r} is set by the benchmark. Leave it out.")


def _repeated(values: Iterable[Hashable]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def plan(matrix: Matrix, out: Path) -> Plan:
    """Divides a matrix into cells. Cells that need a dataset which is not on disk are left out.

    Raises:
        UserError: A config or dataset cannot be read or built, or a category is both trained on and tested on.
    """
    from afclip_lightning.benchmark.probe import absent, section, transfer

    sections = {name: section(name, value) for name, value in matrix.datasets.items()}
    used = [name for t in matrix.rows for name in (*t.sets, *t.test)]
    gone = {name: place for name in dict.fromkeys(used) if (place := absent(name, sections[name]))}
    if lacking := [f"{name} ({gone[name]})" for name in matrix.leave_one_out if name in gone]:
        raise UserError(
            f"leave_one_out: not on disk: {', '.join(lacking)}. All heads but one would be trained on it: get it, or "
            "take it from the list."
        )
    transfers = [
        transfer({name: sections[name] for name in row.sets}, {test: sections[test]}, matrix.cross_dataset)
        for row in matrix.rows
        for test in row.test
        if not gone.keys() & {*row.sets, test}
    ]
    cells = []
    for name, method in matrix.methods.items():
        rows = matrix.rows
        if not method.trains:
            rows = [Transfer("", list(dict.fromkeys(test for t in matrix.rows for test in t.test)))]
        for row in rows:
            tests = [t for t in row.test if t not in gone and (method.tests is None or t in method.tests)]
            if gone.keys() & set(row.sets) or not tests:
                continue
            for seed in matrix.seeds if method.seeds is None else method.seeds:
                cells.append(_Builder(matrix, name, row, seed, out, sections).cell(tests))
    if same := _repeated(cell.name for cell in cells):
        raise UserError(f"two cells would share the folder {same[0]}: give their methods or datasets other names.")
    missing = tuple(f"{name} ({place})" for name, place in gone.items())
    trains = any(method.trains for method in matrix.methods.values())
    return Plan(tuple(cells), missing, tuple(transfers) if trains else ())


@dataclass(frozen=True)
class _Data:
    """The data of a step.

    Attributes:
        name: Part of the name of its config file.
        section: Its `data` section.
        facts: The part on which the result of the step depends.
    """

    name: str
    section: Mapping[str, Any]
    facts: Mapping[str, Any]


class _Builder:
    """Builds the files and commands of one cell."""

    def __init__(
        self, matrix: Matrix, method: str, row: Transfer, seed: int, out: Path, sections: Mapping[str, Any]
    ) -> None:
        self.matrix, self.method, self.sections = matrix, matrix.methods[method], sections
        self.method_name, self.row, self.seed = method, row, seed
        self.name = "_".join([_slug(method), *([_folder_of(row.sets)] if row.sets else []), str(seed)])
        self.out, self.folder = out, out / "cells" / self.name
        self.files: dict[Path, str] = {}

    def cell(self, tests: Sequence[str]) -> Cell:
        steps = list(self._steps(tests))
        return Cell(self.name, self.method_name, self.row.label, self.seed, self.folder, self.files, tuple(steps))

    def _steps(self, tests: Sequence[str]) -> Iterator[Step]:
        from afclip_lightning.engine.checkpoint import HEAD_FILE

        fitted = ""
        if self.row.sets:
            fit = self._step(
                "fit", "fit", self._training(tests), "", ("--test_before_fit=false", "--test_after_fit=false")
            )
            fitted = fit.digest
            yield fit
        head = (f"--ckpt_path={CELL}/fit/{HEAD_FILE}",) if self.row.sets else ()
        for test in tests:
            for shots in self.method.shots:
                data = _Data(test, self.sections[test], self.sections[test])
                yield self._step("test", f"{_slug(test)}-{shots}", data, test, head, fitted, shots)

    def _training(self, tests: Sequence[str]) -> "_Data":
        """Returns the training data. A single dataset stays itself, so that options of the data apply to it."""
        if len(self.row.sets) == 1:
            (name,) = self.row.sets
            return _Data(name, self.sections[name], self.sections[name])
        trained, tested = ([self.sections[name] for name in names] for names in (self.row.sets, tests))
        arguments = {"train": trained, "test": tested, **self.matrix.cross_dataset}
        section = {"class_path": "CrossDataset", "init_args": arguments}
        return _Data(_folder_of(self.row.sets), section, {**arguments, "test": None})  # no head depends on a test set

    def _step(
        self, command: str, name: str, data: "_Data", test: str, more: Sequence[str], fitted: str = "", shots: int = 0
    ) -> Step:
        from afclip_lightning.benchmark.probe import find_method

        configs: dict[Path, Any] = {}
        for number, template in enumerate(self.method.configs, 1):
            path = Path(template.replace("{train}", "_".join(self.row.sets)).replace("{test}", test))
            same_folder = path.parent == Path(template).parent  # files of two folders may have the same name
            configs[self.folder / f"{number}-{path.name if same_folder else _slug(str(path))}"] = _without_data(path)
        store: tuple[str, ...] = ()
        cls = find_method(self.method_name, list(configs.values()))
        if shots and not cls.takes_few_shot:
            raise UserError(f"methods.{self.method_name}.shots: {cls.__name__} takes no images of the tested category.")
        if test and cls.takes_few_shot:  # also 0, because a config may set another number
            more = (f"--model.k_shot={shots}", f"--model.shot_seed={self.seed}", *more)
        if self.matrix.store and not cls.needs_pixels:
            store = (f"--features.cache={self.out / 'features'}", "--features.dtype=float32")
        facts: list[Any] = [[*configs.values(), {"data": data.facts}]]
        configs[self.folder / f"data-{_slug(data.name)}.yaml"] = {"data": data.section}
        options = (*QUIET, *store, *self.matrix.options, *self.method.options, f"--seed_everything={self.seed}", *more)
        self.files |= {path: yaml.safe_dump(config, sort_keys=False) for path, config in configs.items()}
        facts += [[o for o in options if o not in store], bool(store), fitted]
        digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
        files = [f"--config={path}" for path in configs]
        return Step(name, (command, *files, *options, f"--out={CELL}/{name}"), digest, test, shots)


def _without_data(path: Path) -> Any:
    return {key: value for key, value in read_yaml(path).items() if key != "data"}


def _folder_of(sets: Sequence[str]) -> str:
    """Returns the part of a folder's name for training sets. With many, a digest distinguishes them."""
    whole = "+".join(map(_slug, sets))
    if len(whole) <= LONGEST_NAME:
        return whole
    return f"{len(sets)}-sets-{hashlib.blake2b(whole.encode(), digest_size=6).hexdigest()}"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+*-]+", "-", name).replace("*", "-star").strip("-")
