"""Tests trained heads on real photos through the command line, and prints mean and standard deviation over the seeds.

    python -m experiments.real_head.measure runs/real_head/heads/seed-*.ckpt --out runs/real_head/measured

The sets are those of `configs/real.yaml` that are on disk, in `AFCLIP_DATA`. About 5 minutes for the first head on one
core; the others take kept features (`--features.cache`).
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from afclip_lightning.results import METRICS


def main() -> None:
    """Tests each head and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("heads", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for head in args.heads:
        out = args.out / head.stem
        options = ["--config", "configs/real.yaml", "--checkpoint", str(head), "--out", str(out)]
        options += ["--features.cache", str(args.out / "features")]
        subprocess.run([sys.executable, "-m", "afclip_lightning", "test", *options], check=True)
        for row in json.loads((out / "results.json").read_text())["rows"]:
            for name in METRICS:
                if row["category"] != "mean" and name in row["metrics"]:  # each set has one category
                    found[f"{row['dataset']}/{row['category']}", name].append(100 * row["metrics"][name])
    for (category, name), values in sorted(found.items()):
        print(f"{category:36} {name:14} {statistics.mean(values):6.1f} ± {statistics.pstdev(values):.1f}")


if __name__ == "__main__":
    main()
