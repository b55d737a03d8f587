"""Measures the embedded CLIP on the demo: fixed prompts, AF-CLIP before and after training, few-shot.

    python -m experiments.tiny_clip.measure --output runs/measure --ablation --real

`--ablation` adds V1 to V3 of AF-CLIP's Table 4; `--real` tests the heads on the real sets of `real.yaml` that lie under
`AFCLIP_DATA`. Every number comes from a run of the command line; runs that are there already are not repeated. The
tables are written to `<output>/measured.md`.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from afclip_lightning.cli import main as afclip

CONFIG = "configs/afclip_demo.yaml"
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
LAST = "--model.layers=[8]"
REAL = "--config=experiments/tiny_clip/real.yaml"
VARIANTS = {  # Table 4 of AF-CLIP at the depth of the tiny network
    "base": ["--config=configs/ablation/afclip_base.yaml", LAST],
    "V1": ["--config=configs/ablation/afclip_v1.yaml", LAST],
    "V2": ["--config=configs/ablation/afclip_v2.yaml", LAST],
    "V3": ["--config=configs/ablation/afclip_v3.yaml"],
}
SHOTS = (1, 2, 4)


def run(command: str, folder: Path, arguments: Sequence[str]) -> None:
    """Runs one command into a folder, unless its results are there.

    Raises:
        RuntimeError: The command failed.
    """
    if (folder / "results.csv").exists():
        return
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--pictures.count=0"]
    code = afclip([command, f"--config={CONFIG}", *arguments, f"--run_dir={folder}", *quiet])
    if code:
        raise RuntimeError(f"{command} into {folder} ended with {code}")


def mean_rows(path: Path) -> dict[str, dict[str, float]]:
    """Returns the means over the categories in a results table, in percent: dataset to metric, absent ones left out."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] == "mean"]
    return {row["dataset"]: {m: 100 * float(row[m]) for m in METRICS if row.get(m)} for row in rows}


def table(lines: Iterable[tuple[str, Sequence[Path]]]) -> dict[str, str]:
    """Returns a Markdown table a dataset: a line a title, mean ± standard deviation over the results files."""
    rows: dict[str, list[str]] = defaultdict(
        lambda: ["| | I-AUROC | I-AP | P-AUROC | P-AP | PRO |", "|---|---:|---:|---:|---:|---:|"]
    )
    for title, paths in lines:
        runs = [mean_rows(path) for path in paths]
        for dataset in runs[0]:
            cells = []
            for metric in METRICS:
                values = [run[dataset][metric] for run in runs if metric in run[dataset]]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "n/a")
            rows[dataset].append(f"| {title} | " + " | ".join(cells) + " |")
    return {dataset: "\n".join(lines) for dataset, lines in rows.items()}


def measure(output: Path, seeds: Sequence[int], ablation: bool, real: bool) -> str:
    """Returns the tables over all runs, as Markdown."""
    for seed in seeds:
        seeded = [f"--seed_everything={seed}"]
        run("fit", output / f"afclip-{seed}", seeded)
        head = f"--ckpt_path={output / f'afclip-{seed}' / 'head.ckpt'}"
        for shots in SHOTS:
            few = [head, f"--model.k_shot={shots}", f"--model.shot_seed={seed}"]
            run("test", output / f"shots-{shots}-{seed}", [*seeded, *few])
        for name, overrides in VARIANTS.items():
            if name == "base" or ablation:
                run("fit", output / f"{name}-{seed}", [*overrides, *seeded, "--test_before_fit=false"])
        if real:
            run("test", output / f"real-{seed}", [REAL, *seeded, head])
            run("test", output / f"real-base-{seed}", [REAL, *VARIANTS["base"], *seeded])

    def results(name: str, file: str = "results.csv") -> list[Path]:
        return [output / f"{name}-{seed}" / file for seed in seeds]

    lines = [
        ("fixed prompts, nothing trained (base)", results("base")),
        ("AF-CLIP untrained", results("afclip", "results_untrained.csv")),
        *((name, results(name)) for name in (("V1", "V2", "V3") if ablation else ())),
        ("AF-CLIP trained (V4)", results("afclip")),
        *((f"AF-CLIP+, {shots}-shot", results(f"shots-{shots}")) for shots in SHOTS),
    ]
    parts = table(lines)
    if real:
        parts |= table([("fixed prompts", results("real-base")), ("AF-CLIP trained", results("real"))])
    return "\n\n".join(f"{dataset}\n\n{part}" for dataset, part in parts.items())


def main() -> None:
    """Reads the command line, measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/measure"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", action="store_true", help="also V1 to V3, trained for each seed")
    parser.add_argument("--real", action="store_true", help="also the heads on the real sets")
    arguments = parser.parse_args()
    tables = measure(arguments.output, arguments.seeds, arguments.ablation, arguments.real)
    (arguments.output / "measured.md").write_text(tables + "\n", encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
