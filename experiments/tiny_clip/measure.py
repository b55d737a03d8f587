"""Measures the embedded CLIP on the demo: fixed prompts, AF-CLIP before and after training, few-shot, the ablation.

    python -m experiments.tiny_clip.measure --output runs/measure

Every number comes from a run of the command line; runs that are there already are not repeated. The table is written to
`<output>/measured.md`.
"""

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from afclip_lightning.cli import main as afclip

CONFIG = "configs/afclip_demo.yaml"
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
LAST = "--model.layers=[8]"
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


def mean_row(path: Path) -> dict[str, float]:
    """Returns the means over the categories of a results table, in percent."""
    with path.open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["category"] == "mean")
    return {metric: 100 * float(row[metric]) for metric in METRICS}


def line(title: str, paths: Sequence[Path]) -> str:
    """Returns a table row: mean ± standard deviation over runs."""
    rows = [mean_row(path) for path in paths]
    cells = []
    for metric in METRICS:
        values = [row[metric] for row in rows]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    return f"| {title} | " + " | ".join(cells) + " |"


def measure(output: Path, seeds: Sequence[int], ablation: bool) -> str:
    """Returns the table over all runs, as Markdown."""
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
    lines = ["| | I-AUROC | I-AP | P-AUROC | P-AP | PRO |", "|---|---:|---:|---:|---:|---:|"]
    lines.append(line("fixed prompts, nothing trained (base)", [output / f"base-{s}" / "results.csv" for s in seeds]))
    lines.append(line("AF-CLIP untrained", [output / f"afclip-{s}" / "results_untrained.csv" for s in seeds]))
    for name in ("V1", "V2", "V3") if ablation else ():
        lines.append(line(name, [output / f"{name}-{s}" / "results.csv" for s in seeds]))
    lines.append(line("AF-CLIP trained (V4)", [output / f"afclip-{s}" / "results.csv" for s in seeds]))
    for shots in SHOTS:
        lines.append(line(f"AF-CLIP+, {shots}-shot", [output / f"shots-{shots}-{s}" / "results.csv" for s in seeds]))
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/measure"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", action="store_true", help="also V1 to V3, trained for each seed")
    arguments = parser.parse_args()
    table = measure(arguments.output, arguments.seeds, arguments.ablation)
    (arguments.output / "measured.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
