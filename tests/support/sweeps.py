"""A sweep of minutes over the miniature MVTec AD."""

import json
from pathlib import Path

import yaml

from tests.support.commands import MVTEC, arguments

PARAMETERS = {
    "model.optimizer.init_args.lr": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0e-2},
    "model.prompt_tokens": {"values": [4, 8]},
}


def write_sweep(path: Path, epochs: int = 2, **changes: object) -> Path:
    """Writes a sweep over the miniature MVTec AD: trained on two categories, with the objective on a third."""
    options = arguments(trainer__max_epochs=str(epochs), test_after_fit="false", data__skip_missing="false")
    options = [option for option in options if not option.startswith("--out")]
    sets = ["--data.seen_if_alone=false", f"--data.train.categories=[{MVTEC[0]},{MVTEC[1]}]"]
    held_out = {"root": "data/mvtec", "categories": [MVTEC[2]], "num_workers": 0}
    sets += [f"--data.test={json.dumps([{'class_path': 'MVTecAD', 'init_args': held_out}])}"]
    sets += ["--data.allow_train_test_overlap=true"]  # the miniature categories have the same images
    sets += ["--trainer.limit_val_batches=1.0", "--trainer.num_sanity_val_steps=0", "--features.cache=features"]
    facts = {
        "name": "small",
        "program": "afclip_lightning",
        "command": ["${env}", "${interpreter}", "-m", "${program}", "fit", *options, *sets, "${args}"],
        "method": "bayes",
        "metric": {"name": "val/mvtec/mean/pixel_auroc", "goal": "maximize"},
        "parameters": PARAMETERS,
        **changes,
    }
    path.write_text(yaml.safe_dump(facts))
    return path
