#!/bin/sh
# LightningCLI reads `--trainer.limit_test_batches 1` as 1.0, which means all batches. In Python, `limit_test_batches=1` is one batch.
# Lightning annotates the argument `float | int | None`, and jsonargparse takes the first type that fits. `overfit_batches`, which
# is annotated `int | float`, stays 1. Values from 2 on are right, because Lightning turns 2.0 into 2.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    lightning==2.6.6 'jsonargparse[signatures]==4.53.0'
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
from importlib.metadata import version

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader


class Counter(LightningModule):
    seen = 0

    def test_step(self, batch, batch_idx):
        self.seen += 1


def tested(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model = Counter()
    Trainer(**quiet, **options).test(model, DataLoader(torch.zeros(10, 1), batch_size=1), verbose=False)
    return model.seen


print("lightning", version("lightning"), "jsonargparse", version("jsonargparse"))
parser = LightningArgumentParser()
parser.add_lightning_class_args(Trainer, "trainer")
found = {}
for given in ("1", "2"):
    value = parser.parse_args([f"--trainer.limit_test_batches={given}"]).trainer.limit_test_batches
    found[given] = tested(limit_test_batches=int(given)), repr(value), tested(limit_test_batches=value)
    print(f"{given}: in Python {found[given][0]} of 10 batches; the command line gives {value!r}: {found[given][2]} of 10")
assert found == {"1": (1, "1.0", 10), "2": (2, "2.0", 2)}
assert repr(parser.parse_args(["--trainer.overfit_batches=1"]).trainer.overfit_batches) == "1"
PYTHON
