"""Peak memory of sharded inspection with few and with many images: it must not grow with their number.

    python -m experiments.scale.memory --images 1000 20000 --launchers local ray

Memory is that of all processes of the command (PSS: what several share counts once), looked at every half second.
"""

import argparse
import json
import shutil
from pathlib import Path

from experiments.scale.material import ONE_CORE, command, run, working_folder, write_bundle, write_images

SIDE = 64  # pixels of the images


def main() -> None:
    """Measures and prints a line of JSON per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--launchers", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shard_images", type=int, default=250)
    parser.add_argument("--folder", type=Path, help="where bundle and images are kept for the next time")
    parser.add_argument("--bundle", type=Path, help="another bundle than that of the embedded model")
    options = parser.parse_args()
    with working_folder(options.folder) as place:
        bundle = options.bundle or write_bundle(place / "model")
        for launcher in options.launchers:
            for count in options.images:
                images, out = write_images(place / str(count), count, SIDE), place / "out"
                where = ["--launcher", launcher, "--jobs", str(options.jobs)]
                where += ["--shard_images", str(options.shard_images)]
                done = run(command(bundle, images, out, [*ONE_CORE, *where]), look=0.5, memory=True)
                peaks = {f"{name}_MB": round(held / 1e6, 1) for name, held in done.peaks.items()}
                size = {"bytes_per_row": sum(path.stat().st_size for path in out.glob("parts/*/*.parquet")) / count}
                size |= {"plan_bytes_per_row": sum(p.stat().st_size for p in out.glob("plan/**/*.json*")) / count}
                facts = {"launcher": launcher, "images": count, **peaks, **size, "seconds": round(done.clock, 1)}
                print(json.dumps(facts), flush=True)
                shutil.rmtree(out)


if __name__ == "__main__":
    main()
