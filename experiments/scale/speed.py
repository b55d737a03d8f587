"""Images per second of two local workers relative to one, and of Ray Data relative to `inspect`, without start-up.

    python -m experiments.scale.speed --images 20000          # all; 4 minutes on two quiet cores
    python -m experiments.scale.speed --only decode model     # the two local workers

Each way is run with few images and with many. The difference is what images cost; the rest is start-up. There are many
shards, because the workers do not end at the same moment and the last one works alone for up to one shard. Each worker
has one thread. Processor time is that of all processes: on a busy machine, elapsed time says little, and processor time
shows whether a further worker costs more per image. `others_cores` tells how busy the machine was: how many cores other
processes used, on average.
"""

import argparse
import json
import shutil
from pathlib import Path

from experiments.scale.material import ONE_CORE, command, run, working_folder, write_bundle, write_images

SHARD = {"decode": 5, "model": 50, "ray": 1000}  # images per shard
FEW = {"decode": 2, "model": 2, "ray": 1}  # shards that tell start-up


def seconds(
    case: str, count: int, side: int, kind: str, options: list[str], place: Path, bundle: Path, shards: bool = True
) -> dict[str, float]:
    """Returns images per second, by the clock and by processor time, and the seconds of start-up.

    Args:
        case: Key of `SHARD`.
        count: Images.
        side: Side of the images, in pixels.
        kind: Suffix of their files.
        options: Options of the command.
        place: Folder of images and outputs.
        bundle: The model.
        shards: Whether the command works by shards.
    """
    few = FEW[case] * SHARD[case]
    of = {n: write_images(place / f"{case}_{n}", n, side, kind) for n in (few, count)}
    cut = ["--shard_images", str(SHARD[case])] if shards else []
    runs = {}
    for n, images in of.items():
        out = place / "out"
        shutil.rmtree(out, ignore_errors=True)
        runs[n] = run(command(bundle, images, out, [*ONE_CORE, *cut, *options]))
    clock, processor = runs[count].clock - runs[few].clock, runs[count].processor - runs[few].processor
    return {
        "images_per_second": (count - few) / clock,
        "images_per_processor_second": (count - few) / processor,
        "startup_seconds": runs[few].clock - few * clock / (count - few),
        "whole_seconds": runs[count].clock,
        "others_cores": runs[count].others,
    }


def main() -> None:
    """Measures and prints a JSON object per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000, help="of Ray Data beside a plain inspect")
    parser.add_argument("--only", nargs="+", choices=list(SHARD), default=list(SHARD))
    parser.add_argument("--folder", type=Path, help="where bundle and images are kept for the next time")
    parser.add_argument("--bundle", type=Path, help="another bundle than that of the embedded model")
    options = parser.parse_args()
    with working_folder(options.folder) as place:
        bundle = options.bundle or write_bundle(place / "model")
        for case, count, side, kind in (("decode", 300, 2400, "jpg"), ("model", 1600, 112, "png")):
            if case in options.only:
                one, two = (
                    seconds(case, count, side, kind, ["--launcher", "local", "--jobs", jobs], place, bundle)
                    for jobs in "12"
                )
                found = {
                    "one": one,
                    "two": two,
                    "ratio": two["images_per_second"] / one["images_per_second"],
                    "ratio_processor": two["images_per_processor_second"] / one["images_per_processor_second"],
                }
                print(json.dumps({case: found}, indent=1), flush=True)
        if "ray" in options.only:
            plain = seconds("ray", options.images, 64, "png", [], place, bundle, shards=False)
            ray = seconds("ray", options.images, 64, "png", ["--launcher", "ray"], place, bundle)
            found = {
                "plain": plain,
                "ray": ray,
                "overhead": plain["images_per_second"] / ray["images_per_second"] - 1,
                "overhead_processor": plain["images_per_processor_second"] / ray["images_per_processor_second"] - 1,
            }
            print(json.dumps({"ray": found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
