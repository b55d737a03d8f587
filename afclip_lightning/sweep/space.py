"""What is searched, and by what: a sweep file as Weights & Biases has it, in Optuna's terms."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from afclip_lightning.errors import UserError, message_of

PARAMETER_KEYS = {"value", "values", "min", "max", "q", "distribution"}


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        name: Name of the study.
        arguments: Arguments of `python -m afclip_lightning` before those of the trial.
        space: What is searched, by the name of the option.
        method: `grid`, `random` or `bayes`.
        metric: What is optimised.
        direction: `maximize` or `minimize`.
        halving: Arguments of successive halving, or `None`: no trial is given up early.
        cap: Most trials, or `None`.
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
            UserError: One of the parameters has no end of values.
        """
        axes: dict[str, Sequence[Any]] = {}
        for name, distribution in self.space.items():
            if isinstance(distribution, CategoricalDistribution):
                axes[name] = distribution.choices
            elif isinstance(distribution, IntDistribution):
                axes[name] = range(distribution.low, distribution.high + 1, distribution.step)
            else:
                raise UserError(f"{self.name}: a grid needs `values` for {name}.")
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Returns what draws one trial."""
        if self.method == "bayes":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        return optuna.samplers.RandomSampler(seed)  # a grid's trials lie in the queue, and nothing of them is drawn

    def pruner(self) -> optuna.pruners.BasePruner:
        """Returns what gives trials up: asynchronous halving, which is what W&B calls `hyperband`."""
        return optuna.pruners.SuccessiveHalvingPruner(**self.halving) if self.halving else optuna.pruners.NopPruner()


def read_sweep(path: Path) -> Sweep:
    """Returns what a sweep file says.

    Raises:
        UserError: The file cannot be read, is not a sweep's, chooses by test results, or asks for something that has no
            counterpart here.
    """
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
        metric, command, parameters = facts["metric"]["name"], facts["command"], facts["parameters"]
        begin, end = command.index("${program}"), command.index("${args}")
        method, direction = facts["method"], facts["metric"].get("goal", "minimize")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}: not a sweep file ({message_of(error)}). It needs method, metric, parameters, and a command with "
            "${program} and ${args}; see experiments/sweeps/."
        ) from error
    if not metric.startswith("val/"):
        raise UserError(
            f"{path}: the metric is {metric}. Choosing by results that are reported would be cheating: name one of a "
            "validation, val/<dataset>/mean/<metric>, and give the sweep data whose test set is a validation set."
        )
    if method not in ("grid", "random", "bayes") or direction not in ("minimize", "maximize"):
        raise UserError(f"{path}: method must be grid, random or bayes and goal minimize or maximize.")
    if macros := [part for part in command[begin + 1 : end] if "${" in str(part)] + command[end + 1 :]:
        raise UserError(f"{path}: {macros[0]} in the command is not understood; ${{args}} must come last.")
    return Sweep(
        name=str(facts.get("name", path.stem)),
        arguments=[str(part) for part in command[begin + 1 : end]],
        space={name: _distribution(f"{path}: {name}", parameter) for name, parameter in parameters.items()},
        method=method,
        metric=metric,
        direction=direction,
        halving=_halving(path, facts["early_terminate"]) if "early_terminate" in facts else None,
        cap=facts.get("run_cap"),
    )


def _distribution(where: str, parameter: Mapping[str, Any]) -> BaseDistribution:
    """Returns Optuna's counterpart of a parameter of a sweep file."""
    if unknown := set(parameter) - PARAMETER_KEYS:
        raise UserError(f"{where}: {', '.join(sorted(unknown))} is not understood.")
    if "value" in parameter or "values" in parameter:
        values = parameter["values"] if "values" in parameter else [parameter["value"]]
        return CategoricalDistribution([v if isinstance(v, (bool, int, float, str)) else str(v) for v in values])
    low, high = parameter.get("min"), parameter.get("max")
    if isinstance(low, bool) or not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low > high:
        raise UserError(f"{where}: needs values, or numbers min and max; got {dict(parameter)} (YAML wants 1.0e-4).")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = parameter.get("distribution", "int_uniform" if whole else "uniform")
    if kind == "int_uniform" and whole:
        return IntDistribution(int(low), int(high))
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "log_uniform_values" and low > 0:
        return FloatDistribution(low, high, log=True)
    if kind == "q_uniform":
        step = parameter.get("q", 1)
        if whole and isinstance(step, int):
            return IntDistribution(int(low), int(high), step=step)
        return FloatDistribution(low, high, step=step)
    raise UserError(
        f"{where}: the distribution {kind} of {low} to {high} has no counterpart; use values, uniform, int_uniform, "
        "q_uniform or log_uniform_values."
    )


def _halving(path: Path, early: Mapping[str, Any]) -> dict[str, int]:
    if (
        early.get("type") != "hyperband"
        or not isinstance(early.get("min_iter"), int)
        or set(early) - {"type", "min_iter", "eta"}
    ):
        raise UserError(f"{path}: early_terminate must be type: hyperband with min_iter, and eta if not 3.")
    return {"min_resource": early["min_iter"], "reduction_factor": early.get("eta", 3)}
