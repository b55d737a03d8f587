"""Runs over several processes or nodes, whose files must equal those of one process up to the rounding of sums."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afclip_lightning.backbones.store_layout import feature_files


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_alike(found: list[dict[str, str]], expected: list[dict[str, str]], limit: float = 1e-5) -> None:
    """Compares tables: numbers within the limit, all else exactly."""
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for column, value in other.items():
            try:
                assert float(row[column]) == pytest.approx(float(value), rel=limit, abs=limit), column
            except ValueError:
                assert row[column] == value, column


def assert_same_training(found: Path, expected: Path) -> None:
    """Compares the runs of two folders: steps, trained weights and the losses of each step."""
    weights = [torch.load(run / "head.ckpt", weights_only=True) for run in (expected, found)]
    assert weights[0]["global_step"] == weights[1]["global_step"] > 0
    for name, tensor in weights[0]["state_dict"].items():
        # Adam steps by nearly lr * sign(gradient), which another order of sums turns where a gradient is near 0
        off = (weights[1]["state_dict"][name] - tensor).abs() > 1e-5 * (1 + tensor.abs())
        assert off.float().mean() < 0.01, f"{name}: {off.sum()} of {off.numel()}"
    assert_alike(rows(found / "log/metrics.csv"), rows(expected / "log/metrics.csv"), limit=5e-5)


def assert_same_features(found: Path, expected: Path, limit: float = 1e-5) -> None:
    """Compares two stores of features, file by file; the limit is that of a difference."""
    stores = [{p.relative_to(s): load_file(p) for p in s.rglob("*.safetensors")} for s in (expected, found)]
    assert stores[0].keys() == stores[1].keys()
    for path, tensors in stores[0].items():
        torch.testing.assert_close(stores[1][path], tensors, rtol=1e-5, atol=limit)


def contents(store: str | Path) -> dict[str, bytes]:
    """Returns the files of features in a store, by their paths in it."""
    return {str(path.relative_to(store)): path.read_bytes() for path in feature_files(Path(store))}


def files_of(folder: Path) -> list[str]:
    """Returns every file below a folder, by its path there, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
