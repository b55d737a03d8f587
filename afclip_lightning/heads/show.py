"""`head show`: all known facts of a head, as plain values or as text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import msgspec

from afclip_lightning.engine.checkpoint import head_in
from afclip_lightning.heads import ready
from afclip_lightning.heads.card import Card, Measured
from afclip_lightning.heads.file import Head
from afclip_lightning.heads.pack import read_head
from afclip_lightning.results import MEAN, TITLE
from afclip_runtime.errors import UserError, counted, shown
from afclip_runtime.files import fingerprint, read_json
from afclip_runtime.thresholds import DefaultThresholds
from afclip_runtime.types import in_pixels

WIDTH = 100  # width of the text in characters
UNKNOWN = "not known"


@dataclass(frozen=True)
class _Row:
    dataset: str
    category: str
    metrics: dict[str, float]
    normal: int = 0
    anomalous: int = 0


@dataclass(frozen=True)
class _Results:
    """The part of a run's results.json that is read."""

    rows: list[_Row]
    conditions: dict[str, Any] = field(default_factory=dict)


def find(name: str) -> Path:
    """Returns the file of a head: a file, the folder of a run or of a head, or the name of a ready model.

    Raises:
        UserError: No head has this name.
    """
    path = Path(name)
    if path.is_dir():
        return head_in(path)
    if path.exists() or not name.isidentifier():
        return path
    try:
        return ready.path_of(name)
    except UserError as error:
        raise UserError(f"there is no file {shown(name)}, and {error}") from error


def facts(name: str) -> dict[str, Any]:
    """Returns the known facts of a head as plain values: its method, its tensors, its card.

    Args:
        name: See `find`.

    Raises:
        UserError: The head cannot be read.
    """
    path, head, card = _read(name)
    return {
        "file": str(path),
        "fingerprint": fingerprint(path),
        "method": head.method,
        "model": head.model,
        "hyperparameters": head.hyperparameters,
        "features": head.features.to_dict(),
        "tensors": {key: list(tensor.shape) for key, tensor in head.tensors.items()},
        "memory": {key: list(tensor.shape) for key, tensor in head.memory.items()},
        "card": card.to_dict(),
    }


def describe(name: str) -> str:
    """Returns the known facts of a head as aligned text.

    Args:
        name: See `find`.

    Raises:
        UserError: The head cannot be read.
    """
    path, head, card = _read(name)
    sections = {
        "Head": [card.title or path.stem],
        "Method": [head.method.rpartition(".")[2], _arguments(head)],
        "Backbone": _backbone(head),
        "Tensors": [_sizes(head.tensors.values())],
        "Memory bank": [_sizes(head.memory.values())] if head.memory else [],
        "Trained on": _trained_on(card),
        "Results": _table(card.results),
        "Thresholds": _thresholds(card.thresholds),
        "Limits": card.limits or [UNKNOWN],
        "Licence": [card.licence or UNKNOWN],
        "Sources": card.sources,
        "Made by": [f"afclip_lightning {card.version}, {card.date}" if card.version else UNKNOWN],
        "File": [f"{shown(path)}, {path.stat().st_size / 2**20:.2f} MB, fingerprint {fingerprint(path)}"],
    }
    width = max(map(len, sections)) + 2
    lines: list[str] = []
    for title, said in sections.items():
        cut = [part for line in said if line for part in _cut(line, WIDTH - width)]
        lines += [f"{title if i == 0 else '':{width}}{shown(part)}".rstrip() for i, part in enumerate(cut)]
    return "\n".join(lines)


def _read(name: str) -> tuple[Path, Head, Card]:
    """Returns a head's file, the head, and its card. A card without results gets those of its run."""
    path = find(name)
    head = read_head(path)
    measured = head.card if head.card.results else msgspec.structs.replace(head.card, results=_measured(path))
    return path, head, measured


def _measured(path: Path) -> tuple[Measured, ...]:
    """Returns the means of the test in a head's folder, if the test was of this head."""
    table = path.with_name("results.json")
    if not table.is_file():
        return ()
    found = read_json(table, _Results)
    if found.conditions.get("checkpoint_fingerprint") != fingerprint(path):
        return ()
    shots = found.conditions.get("k_shot") or 0
    return tuple(
        Measured(row.dataset, row.metrics, images=row.normal + row.anomalous, k_shot=shots)
        for row in found.rows
        if row.category == MEAN
    )


def _cut(line: str, width: int) -> list[str]:
    return [line] if "  " in line else wrap(line, width, break_long_words=False, break_on_hyphens=False)  # a table


def _arguments(head: Head) -> str:
    given = {name: value for name, value in (head.model.get("init_args") or {}).items() if name != "backbone"}
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _backbone(head: Head) -> Sequence[str]:
    spec = head.features
    taps = ", ".join(spec.taps)
    return [
        f"{spec.model}, weights {shown(spec.weights)}, whose content is {spec.weights_hash}",
        f"{in_pixels(spec.image_size)}; taps {taps}",
    ]


def _sizes(tensors: Iterable[Any]) -> str:
    found = list(tensors)
    return f"{len(found)}, {sum(t.numel() for t in found):,} values, {sum(t.nbytes for t in found) / 2**20:.2f} MB"


def _trained_on(card: Card) -> Sequence[str]:
    lines = []
    for part in card.trained_on:
        said = [part.dataset]
        if part.categories:
            said.append(f"{counted(len(part.categories), 'category', 'categories')} ({', '.join(part.categories)})")
        if part.images is not None:
            said.append(counted(part.images, "image"))
        if part.licence:
            said.append(f"licence {part.licence}")
        lines.append(", ".join(said))
    seeds = ", ".join(map(str, card.seeds))
    about = [f"{'seed' if len(card.seeds) == 1 else 'seeds'} {seeds}"] if seeds else []
    about += [] if card.epochs is None else [f"{card.epochs:g} {'epoch' if card.epochs == 1 else 'epochs'}"]
    return [*lines, ", ".join(about)] if lines or about else [UNKNOWN]


def _table(results: Sequence[Measured]) -> Sequence[str]:
    """Returns results as a table in percent, with the standard deviation over seeds if known."""
    if not results:
        return [UNKNOWN]
    used = [(m, title) for m, title in TITLE.items() if any(m in r.metrics for r in results)]
    rows = [["dataset", "images", "shots", *(title for _, title in used)]]
    for one in results:
        name = one.dataset + (f" ({', '.join(one.categories)})" if one.categories else "")
        images = "" if one.images is None else str(one.images)
        rows.append([name, images, str(one.k_shot), *(_percent(one, metric) for metric, _ in used)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    notes = [f"{one.dataset}: {one.note}" for one in results if one.note]
    return ["in percent, mean ± standard deviation over the seeds", *lines, *notes]


def _percent(one: Measured, metric: str) -> str:
    if metric not in one.metrics:
        return "n/a"
    spread = f" ± {100 * one.spread[metric]:.1f}" if metric in one.spread else ""
    return f"{100 * one.metrics[metric]:.1f}{spread}"


def _thresholds(own: DefaultThresholds | None) -> Sequence[str]:
    if own is None:
        return ["none in this file: a calibration has them, which adapt and calibrate write beside it"]
    parts = {"image score": own.image, "map": own.pixel}
    values = [f"{what} {part.value:.4g}" for what, part in parts.items() if part is not None]
    return [", ".join(values), own.chosen, "They are a first guess for other products: calibrate on your own."]
