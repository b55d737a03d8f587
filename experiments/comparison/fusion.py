"""Fusions of heads that a benchmark trained: their tests beside its cells, and their gain over their members.

python -m experiments.comparison.fusion runs/demo demo    # fuses, and tests as the benchmark's cells are tested
python -m experiments.comparison.fusion runs/real real

UniADet, PatchLogit and patch rarity of each seed become one head, with scales from the normal images of the training
set. These three share a pass, and were chosen before any was measured here: those of experiments/fusion. `tables` then
lists the fusion among the methods, and writes which of its members it beats.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

import yaml
from scipy.stats import t as student

from afclip_lightning.benchmark.matrix import QUIET, load_matrix, plan
from afclip_lightning.benchmark.probe import section
from afclip_lightning.benchmark.runner import command_line
from afclip_lightning.benchmark.table import DONE, Done, assemble
from afclip_lightning.engine.checkpoint import read_checkpoint
from afclip_lightning.inspection.fuse import fuse as write_fusion
from afclip_lightning.results import TITLE
from afclip_runtime.files import write_json, write_text
from afclip_runtime.images.find import walk_images
from experiments.pages import table_row

HERE = Path(__file__).parent
NAME = "Fusion of three"
MEMBERS = ("UniADet", "PatchLogit", "Patch rarity")
TRAINED = MEMBERS[:2]
CONFIG = "configs/fusion_demo.yaml"
CONFIDENCE = 0.95

Values = Mapping[tuple[str, str], Sequence[float]]  # in percent, one per seed, by dataset and metric


def measure(out: Path, matrix_path: Path) -> None:
    """Fuses the heads of each seed, and tests the fusion on each test set, into the benchmark's folder."""
    matrix = load_matrix([matrix_path])
    sections = {name: section(name, value) for name, value in matrix.datasets.items()}
    for transfer in matrix.transfers:
        given = sections[transfer.train]["init_args"]
        normal = [Path(given["root"], category, "test", "good") for category in given["categories"]]
        for seed in matrix.seeds:
            folder = cell_folder(out, NAME, transfer.train, seed)
            folder.mkdir(parents=True, exist_ok=True)
            heads = [cell_folder(out, name, transfer.train, seed) / "fit" / "head.ckpt" for name in TRAINED]
            head, config = fuse(heads, normal, folder)
            for test in transfer.test:
                data, at = folder / f"data-{test}.yaml", folder / f"{test}-0"
                write_text(data, yaml.safe_dump({"data": sections[test]}))
                store = (f"--features.cache={out / 'features'}", "--features.dtype=float32")
                options = (*QUIET, *store, *matrix.options, f"--seed_everything={seed}")
                files = (f"--config={config}", f"--config={data}", f"--ckpt_path={head}", f"--out={at}")
                if code := command_line(["test", *files, *options]):
                    raise SystemExit(code)
                write_json(at / DONE, asdict(Done(NAME, transfer.train, seed, test, 0, 0.0, "")))
    assemble(out, plan(matrix, out).cells)


def fuse(heads: Sequence[Path], normal: Sequence[Path], folder: Path) -> tuple[Path, Path]:
    """Writes a fusion of trained heads and patch rarity into a folder; returns its head file and its config."""
    given = read_checkpoint(heads[0])["model"]["init_args"]
    untrained, config, head = folder / "patch_rarity.yaml", folder / "fusion.yaml", folder / "head.safetensors"
    arguments = {key: given[key] for key in ("backbone", "layers")}
    write_text(untrained, yaml.safe_dump({"model": {"class_path": "PatchRarity", "init_args": arguments}}))
    groups = [walk_images(of_category) for of_category in normal]
    write_fusion([str(part) for part in (*heads, untrained)], groups, head, lambda images, _: images)
    write_text(config, yaml.safe_dump({"model": read_checkpoint(head)["model"]}))
    return head, config


def cell_folder(out: Path, method: str, train: str, seed: int) -> Path:
    """Returns the folder of a cell of the benchmark."""
    return out / "cells" / f"{method.replace(' ', '-')}_{train}_{seed}"


def render(values: Mapping[str, Values], columns: Sequence[tuple[str, str]]) -> str:
    """Returns the gain of the fusion over its best member, as Markdown; empty if one of them was not measured.

    The best member is the one with the highest mean on the test images, in hindsight. The interval is of the mean over
    seeds, by Student's t: it says what another training would give, and nothing of other test images.

    Args:
        values: Values by method, for the fusion and its members.
        columns: Datasets and metrics.
    """
    if not {NAME, *MEMBERS} <= values.keys():
        return ""
    lines = [table_row(["", *MEMBERS, NAME, "best member", "above it"]), "|---|" + "---:|" * 4 + "---|---:|"]
    for column in columns:
        own, members = values[NAME][column], {name: values[name][column] for name in MEMBERS}
        best = max(members, key=lambda name: fmean(members[name]))
        of_best = members[best] * len(own) if len(members[best]) == 1 else members[best]  # no seed plays a part in it
        low, mean, high = interval([mine - its for mine, its in zip(own, of_best, strict=True)])
        dataset, metric = column
        means = [f"{fmean(each):.1f}" for each in (*members.values(), own)]
        lines.append(table_row([f"{dataset}: {TITLE[metric]}", *means, best, f"{mean:+.1f} [{low:.1f}, {high:.1f}]"]))
    return "\n".join(lines) + "\n"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean of at least two values between the ends of its confidence interval, by Student's t."""
    mean = fmean(values)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean - half, mean, mean + half


def main() -> None:
    """Makes and tests the fusions of a benchmark's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the benchmark, in which the members' heads are")
    parser.add_argument("setting", choices=["demo", "real"])
    options = parser.parse_args()
    measure(options.out, HERE / f"{options.setting}.yaml")


if __name__ == "__main__":
    main()
