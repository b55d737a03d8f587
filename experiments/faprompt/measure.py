"""Measures FAPrompt beside AnomalyCLIP on the demo, over several seeds; with `--ablation` also their variants.

    python -m experiments.faprompt.measure --output runs/faprompt --ablation

Every number comes from a run of the command line; runs that are there already are not repeated. The table is written to
`<output>/measured.md`.
"""

import argparse
from pathlib import Path

from experiments.runs import run, table

OVERRIDES = {  # Tables 3, 4 and 5 of FAPrompt, in its order
    "+ CAP": "faprompt_cap",
    "+ CAP without orthogonality": "faprompt_cap_without_orthogonality",
    "+ DAP": "faprompt_dap",
    "+ DAP without its loss": "faprompt_dap_without_prior_loss",
    "image token, as CoCoOp": "faprompt_image_prior_cocoop",
    "image token with the prior loss": "faprompt_image_prior_loss",
    "image token, CAP": "faprompt_image_prior",
    "AnomalyCLIP Ensemble": "anomalyclip_ensemble",
    "AnomalyCLIP Ensemble*": "anomalyclip_ensemble_star",
    "best match": "faprompt_best_match",
    "weighted": "faprompt_weighted",
}


def config_of(override: str) -> list[str]:
    """Returns the options of a variant: the demo of its method, and the override."""
    method = override.split("_")[0]
    return [f"--config=configs/{method}_demo.yaml", f"--config=configs/ablation/{override}.yaml"]


def main() -> None:
    """Reads the command line, measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/faprompt"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", action="store_true", help="also the variants of the paper's tables")
    arguments = parser.parse_args()
    variants = {
        "AnomalyCLIP": ["--config=configs/anomalyclip_demo.yaml"],
        "FAPrompt": ["--config=configs/faprompt_demo.yaml"],
        "FAPrompt, the released code's choices": [
            "--config=configs/faprompt_demo.yaml",
            "--config=configs/official/faprompt.yaml",
        ],
    }
    if arguments.ablation:
        variants |= {name: config_of(override) for name, override in OVERRIDES.items()}
    # float32 gives the same numbers as without, and all runs share one pass over the images
    cache = [f"--features.cache={arguments.output / 'features'}", "--features.dtype=float32"]
    lines = []
    for name, options in variants.items():
        folders = [arguments.output / f"{name}-{seed}" for seed in arguments.seeds]
        for seed, folder in zip(arguments.seeds, folders, strict=True):
            run("fit", folder, [*options, *cache, f"--seed_everything={seed}"])
        if (folders[0] / "results_untrained.csv").exists():
            lines.append((f"{name}, untrained", [folder / "results_untrained.csv" for folder in folders]))
        lines.append((name, [folder / "results.csv" for folder in folders]))
    tables = "\n\n".join(f"{dataset}\n\n{part}" for dataset, part in table(lines).items())
    (arguments.output / "measured.md").write_text(tables + "\n", encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
