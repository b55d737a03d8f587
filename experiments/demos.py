"""Measures a method on the demo over several seeds, beside its baseline and the variants of its paper's tables.

    python -m experiments.demos faprompt --ablation
    python -m experiments.demos kanoclip --ablation

Every number comes from a run of the command line; runs that are there already are not repeated, and all of a method
share one pass over the images. The table is written to `<output>/measured.md`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import run, table

# name of a variant to its configs; each is a method's demo, with an override over it
MAIN: dict[str, dict[str, Sequence[str]]] = {
    "faprompt": {
        "AnomalyCLIP": ["anomalyclip_demo"],
        "FAPrompt": ["faprompt_demo"],
        "FAPrompt, the released code's choices": ["faprompt_demo", "official/faprompt"],
    },
    "kanoclip": {"KAnoCLIP": ["kanoclip_demo"]},
}
ABLATION: dict[str, dict[str, Sequence[str]]] = {
    "faprompt": {  # Tables 3, 4 and 5, in the paper's order
        "+ CAP": ["faprompt_demo", "ablation/faprompt_cap"],
        "+ CAP without orthogonality": ["faprompt_demo", "ablation/faprompt_cap_without_orthogonality"],
        "+ DAP": ["faprompt_demo", "ablation/faprompt_dap"],
        "+ DAP without its loss": ["faprompt_demo", "ablation/faprompt_dap_without_prior_loss"],
        "image token, as CoCoOp": ["faprompt_demo", "ablation/faprompt_image_prior_cocoop"],
        "image token with the prior loss": ["faprompt_demo", "ablation/faprompt_image_prior_loss"],
        "image token, CAP": ["faprompt_demo", "ablation/faprompt_image_prior"],
        "AnomalyCLIP Ensemble": ["anomalyclip_demo", "ablation/anomalyclip_ensemble"],
        "AnomalyCLIP Ensemble*": ["anomalyclip_demo", "ablation/anomalyclip_ensemble_star"],
        "best match": ["faprompt_demo", "ablation/faprompt_best_match"],
        "weighted": ["faprompt_demo", "ablation/faprompt_weighted"],
    },
    "kanoclip": {  # Table 3, and each part left out by itself
        "base": ["kanoclip_demo", "ablation/kanoclip_base"],
        "KnPL": ["kanoclip_demo", "ablation/kanoclip_knpl"],
        "KnPL, CLIP-VV": ["kanoclip_demo", "ablation/kanoclip_knpl_vv"],
        "KnPL, CLIP-VV, Bi-CMCI": ["kanoclip_demo", "ablation/kanoclip_without_conv_adapter"],
        "without KnPL": ["kanoclip_demo", "ablation/kanoclip_without_knpl"],
        "without CLIP-VV": ["kanoclip_demo", "ablation/kanoclip_without_vv"],
        "without Bi-CMCI": ["kanoclip_demo", "ablation/kanoclip_without_interaction"],
    },
}


def main() -> None:
    """Reads the command line, measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=sorted(MAIN))
    parser.add_argument("--output", type=Path, help="runs/<method> by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", action="store_true", help="also the variants of the paper's tables")
    arguments = parser.parse_args()
    output = arguments.output or Path("runs") / arguments.method
    variants = MAIN[arguments.method] | (ABLATION[arguments.method] if arguments.ablation else {})
    # float32 gives the same numbers as without a store
    cache = [f"--features.cache={output / 'features'}", "--features.dtype=float32"]
    lines = []
    for name, configs in variants.items():
        folders = [output / f"{name}-{seed}" for seed in arguments.seeds]
        options = [f"--config=configs/{config}.yaml" for config in configs]
        for seed, folder in zip(arguments.seeds, folders, strict=True):
            run("fit", folder, [*options, *cache, f"--seed_everything={seed}"])
        if len(configs) == 1:
            lines.append((f"{name}, untrained", [folder / "results_untrained.csv" for folder in folders]))
        lines.append((name, [folder / "results.csv" for folder in folders]))
    tables = "\n\n".join(f"{dataset}\n\n{part}" for dataset, part in table(lines).items())
    (output / "measured.md").write_text(tables + "\n", encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
