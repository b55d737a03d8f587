"""The search space and the search method: a sweep file in the format of Weights & Biases, converted for Optuna."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import optuna
from msgspec import Meta
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from afclip_runtime.errors import UserError
from afclip_runtime.files import read_yaml

REMEDY = (
    "A sweep file needs method, metric, parameters, and a command with ${program} and ${args}; see experiments/sweeps/."
)
PARAMETER_KEYS = {"value", "values", "min", "max", "q", "distribution"}
OWN_OPTIONS = ("config", "out", "run_dir", "checkpoint", "ckpt_path")  # the sweep sets them
MOST_COMBINATIONS = 10_000  # limit of a grid
LARGEST = 2**53  # every whole number up to this is a float


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file.

    Attributes:
        name: Name of the study.
        arguments: Arguments of `python -m afclip_lightning` before those of the trial.
        space: Distribution of each option that is searched.
        method: `grid`, `random` or `bayes`.
        metric: Metric that is optimised.
        direction: `maximize` or `minimize`.
        halving: Arguments of successive halving; with `None`, no trial is stopped early.
        cap: Largest number of trials, or `None`.
    """

    name: str
    arguments: list[str]
    space: dict[str, BaseDistribution]
    method: str
    metric: str
    direction: str
    halving: dict[str, int] | None
    cap: int | None

    def grid(self) -> list[dict[str, Any]]:
        """Returns all combinations.

        Raises:
            UserError: A parameter has an infinite number of values.
        """
        axes: dict[str, Sequence[Any]] = {}
        count = 1
        for name, distribution in self.space.items():
            if isinstance(distribution, CategoricalDistribution):
                axes[name] = distribution.choices
            elif isinstance(distribution, IntDistribution):
                axes[name] = range(distribution.low, distribution.high + 1, distribution.step)
            else:
                raise UserError(f"{self.name}: a grid needs `values` for {name}.")
            count *= len(axes[name])
            if count > MOST_COMBINATIONS:
                raise UserError(
                    f"{self.name}: the grid has {count} combinations or more, and {MOST_COMBINATIONS} is the most. "
                    "Use method random or bayes."
                )
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def examples(self) -> list[dict[str, Any]]:
        """Returns trials that contain each value of each choice, and both ends of each range, at least once."""
        axes = {
            name: list(d.choices) if isinstance(d, CategoricalDistribution) else [d.low, d.high]  # type: ignore[attr-defined]
            for name, d in self.space.items()
        }
        longest = max(map(len, axes.values()))
        return [{name: axis[i % len(axis)] for name, axis in axes.items()} for i in range(longest)]

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Returns the sampler of one trial."""
        if self.method == "bayes":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        return optuna.samplers.RandomSampler(seed)  # the trials of a grid are queued, and nothing is drawn

    def pruner(self) -> optuna.pruners.BasePruner:
        """Returns the rule that stops trials early: asynchronous halving, which W&B calls `hyperband`."""
        return optuna.pruners.SuccessiveHalvingPruner(**self.halving) if self.halving else optuna.pruners.NopPruner()


@dataclass(frozen=True)
class _Metric:
    name: str
    goal: str = "minimize"


@dataclass(frozen=True)
class _File:
    """A sweep file. Keys that only W&B uses are ignored."""

    method: str
    metric: _Metric
    command: list[str | int | float | bool]
    parameters: dict[str, dict[str, Any]]
    name: str | int = ""
    early_terminate: dict[str, Any] | None = None
    run_cap: Annotated[int, Meta(ge=1)] | None = None


def read_sweep(path: Path) -> Sweep:
    """Returns the content of a sweep file.

    Raises:
        UserError: The file cannot be read, is not a sweep file, selects by test results, or uses a feature that has no
            counterpart here.
    """
    facts = read_yaml(path, _File, remedy=REMEDY)
    name, metric, direction = str(facts.name or path.stem), facts.metric.name, facts.metric.goal
    command = [str(part) for part in facts.command]
    if any(command.count(macro) != 1 for macro in ("${program}", "${args}")):
        raise UserError(f"{path}: not a sweep file: the command has not one ${{program}} and one ${{args}}. {REMEDY}")
    begin, end = command.index("${program}"), command.index("${args}")
    if not metric.startswith("val/"):
        raise UserError(
            f"{path}: the metric is {metric}. Choosing by results that are reported would be cheating: name one of a "
            "validation, val/<dataset>/mean/<metric>, and give the sweep data whose test set is a validation set."
        )
    if facts.method not in ("grid", "random", "bayes") or direction not in ("minimize", "maximize"):
        raise UserError(f"{path}: method must be grid, random or bayes and goal minimize or maximize.")
    if macros := [part for part in command[begin + 1 : end] if "${" in part] + command[end + 1 :]:
        raise UserError(f"{path}: {macros[0]} in the command is not understood; ${{args}} must come last.")
    if not name.isprintable() or "/" in name or name in (".", "..") or len(name) > 100:
        raise UserError(f"{path}: the name {name!r} cannot name a folder. Use a short one without / and line breaks.")
    return Sweep(
        name=name,
        arguments=command[begin + 1 : end],
        space=_space(path, facts.parameters),
        method=facts.method,
        metric=metric,
        direction=direction,
        halving=None if facts.early_terminate is None else _halving(path, facts.early_terminate),
        cap=facts.run_cap,
    )


def _space(path: Path, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    if not parameters:
        raise UserError(f"{path}: parameters: is empty; name at least one option to search.")
    for name in parameters:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name) or name in OWN_OPTIONS:
            raise UserError(f"{path}: parameters: {name!r} cannot be searched. Write an option as model.temperature.")
    return {name: _distribution(f"{path}: {name}", parameter) for name, parameter in parameters.items()}


def _distribution(where: str, parameter: Mapping[str, Any]) -> BaseDistribution:
    """Returns Optuna's counterpart of a parameter of a sweep file."""
    if unknown := set(parameter) - PARAMETER_KEYS:
        raise UserError(f"{where}: {', '.join(sorted(unknown))} is not understood.")
    if "value" in parameter or "values" in parameter:
        kind = parameter.get("distribution", "categorical")
        if len(parameter.keys() - {"distribution"}) > 1 or kind not in ("categorical", "constant"):
            raise UserError(f"{where}: has values and something else; give either values, or min and max.")
        values = parameter["values"] if "values" in parameter else [parameter["value"]]
        return CategoricalDistribution(_choices(where, values))
    low, high = parameter.get("min"), parameter.get("max")
    if not (_is_number(low) and _is_number(high)):
        raise UserError(f"{where}: needs values, or numbers min and max; got {dict(parameter)} (YAML wants 1.0e-4).")
    if low > high:
        raise UserError(f"{where}: min {low} is above max {high}.")
    whole = (low, high) if isinstance(low, int) and isinstance(high, int) else None
    kind = parameter.get("distribution", "int_uniform" if whole else "uniform")
    if "q" in parameter and kind != "q_uniform":
        raise UserError(f"{where}: q goes with the distribution q_uniform, and not with {kind}.")
    if kind == "int_uniform" and whole:
        return IntDistribution(*whole)
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "log_uniform_values" and low > 0:
        return FloatDistribution(low, high, log=True)
    if kind == "q_uniform":
        step = parameter.get("q", 1)
        if not _is_number(step) or not 0 < step <= max(high - low, step if low == high else 0):
            raise UserError(f"{where}: q must be a number above 0 and at most max - min, got {step!r}.")
        if whole and isinstance(step, int):
            return IntDistribution(*whole, step=step)
        return FloatDistribution(low, high, step=step)
    raise UserError(
        f"{where}: the distribution {kind} of {low} to {high} is not supported; use values, uniform, int_uniform (of "
        "whole numbers), q_uniform or log_uniform_values (above 0)."
    )


def _choices(where: str, values: Any) -> list[bool | int | float | str]:
    """Returns the values in the form of the command line: lists and `null` as text."""
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: values must be a list of at least one value, got {values!r}.")
    choices: list[bool | int | float | str] = []
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: the value {value} is not a finite number.")
        try:
            choice = value if isinstance(value, (bool, int, float, str)) else json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:  # a date, or NaN in a list
            raise UserError(f"{where}: the value {value!r} is not understood; write it in quotes.") from error
        if choice in choices:  # also 1 and true: the study could not distinguish them
            raise UserError(f"{where}: the value {value!r} is listed twice.")
        choices.append(choice)
    return choices


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _halving(path: Path, early: Mapping[str, Any]) -> dict[str, int]:
    least = {"min_iter": 1, "eta": 2}
    numbers = {"eta": 3, **{key: value for key, value in early.items() if key != "type"}}
    wrong = numbers.keys() != least.keys() or early.get("type") != "hyperband"
    if wrong or any(type(numbers[key]) is not int or not low <= numbers[key] <= LARGEST for key, low in least.items()):
        raise UserError(
            f"{path}: early_terminate must be type: hyperband, min_iter: 1 or more, and eta: 2 or more, or none."
        )
    return {"min_resource": numbers["min_iter"], "reduction_factor": numbers["eta"]}
