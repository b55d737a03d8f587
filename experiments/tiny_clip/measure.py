"""Measures the embedded CLIP on the demo: fixed prompts, AF-CLIP before and after training, few-shot.

    python -m experiments.tiny_clip.measure --output runs/measure --ablation --real

`--ablation` adds V1 to V3 of AF-CLIP's Table 4; `--real` tests the heads on the real sets of `real.yaml` that lie under
`AFCLIP_DATA`. Every number comes from a run of the command line; runs that are there already are not repeated. The
tables are written to `<output>/measured.md`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import run, table

CONFIG = "--config=configs/afclip_demo.yaml"
LAST = "--model.layers=[8]"
REAL = "--config=experiments/tiny_clip/real.yaml"
VARIANTS = {  # Table 4 of AF-CLIP at the depth of the tiny network
    "base": ["--config=configs/ablation/afclip_base.yaml", LAST],
    "V1": ["--config=configs/ablation/afclip_v1.yaml", LAST],
    "V2": ["--config=configs/ablation/afclip_v2.yaml", LAST],
    "V3": ["--config=configs/ablation/afclip_v3.yaml"],
}
SHOTS = (1, 2, 4)


def measure(output: Path, seeds: Sequence[int], ablation: bool, real: bool) -> str:
    """Returns the tables over all runs, as Markdown."""
    for seed in seeds:
        seeded = [f"--seed_everything={seed}"]
        run("fit", output / f"afclip-{seed}", [CONFIG, *seeded])
        head = f"--ckpt_path={output / f'afclip-{seed}' / 'head.ckpt'}"
        for shots in SHOTS:
            few = [CONFIG, head, f"--model.k_shot={shots}", f"--model.shot_seed={seed}"]
            run("test", output / f"shots-{shots}-{seed}", [*seeded, *few])
        for name, overrides in VARIANTS.items():
            if name == "base" or ablation:
                run("fit", output / f"{name}-{seed}", [CONFIG, *overrides, *seeded, "--test_before_fit=false"])
        if real:
            run("test", output / f"real-{seed}", [CONFIG, REAL, *seeded, head])
            run("test", output / f"real-base-{seed}", [CONFIG, REAL, *VARIANTS["base"], *seeded])

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
