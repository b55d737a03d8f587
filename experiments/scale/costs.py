"""Measurements behind the plan for 10^8 images: bytes of maps by size, time of decoding, inspecting and listing.

    python -m experiments.scale.costs

Times are processor time of one core.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from afclip_runtime.bulk.parts import Facts, facts_of, new_part, part_path
from afclip_runtime.bulk.plan import make_plan
from afclip_runtime.bulk.sources import Listing
from afclip_runtime.images.maps import write_map
from afclip_runtime.images.reader import read
from afclip_runtime.inspection.bundle import open_bundle
from afclip_runtime.inspection.table import Record, RegionRecord
from experiments.scale.material import working_folder, write_bundle, write_images

SIDES = (256, 512, 1024, 2048)


def processor_seconds(work: Callable[[], object]) -> float:
    """Returns the processor time of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def of_sides(place: Path) -> dict[int, dict[str, float]]:
    """Returns, by the side of an image in pixels, the bytes of its map, and the seconds of decoding and inspecting."""
    model = open_bundle(write_bundle(place / "model"), engine="onnx", threads=1, calibration=None)
    found = {}
    for side in SIDES:
        [*paths] = sorted(write_images(place / str(side), 8, side, "jpg").iterdir())
        model.predict(paths[0])
        maps = [model.predict(path).anomaly_map for path in paths]
        files = [place / f"{side}_{number}.png" for number in range(len(maps))]
        saving = processor_seconds(lambda maps=maps, files=files: list(map(write_map, files, maps)))
        found[side] = {
            "map_bytes": sum(path.stat().st_size for path in files) / len(files),
            "jpeg_bytes": sum(path.stat().st_size for path in paths) / len(paths),
            "decode_seconds": processor_seconds(lambda paths=paths: [read(path).rgb(None) for path in paths]) / 8,
            "inspect_seconds": processor_seconds(lambda paths=paths: list(model.stream(paths))) / 8,
            "map_seconds": saving / len(maps),
        }
    return found


def of_files(place: Path, count: int) -> dict[str, float]:
    """Returns the seconds of listing 100,000 files in folders of 1,000, and of a plan."""
    folder, first = place / "files", place / "one.png"
    first.write_bytes(b"x" * 100)
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)
    share = 100_000 / count
    listing = Listing([str(folder)], place / "out")
    return {
        "list_seconds": processor_seconds(lambda: [None for _ in listing]) * share,
        "plan_seconds": processor_seconds(lambda: make_plan(place / "out", listing, "x", 1000)) * share,
        "plan_again_seconds": processor_seconds(lambda: make_plan(place / "out", listing, "x", 1000)) * share,
    }


def of_parts(place: Path, count: int) -> dict[str, float]:
    """Returns the processor time of reading the metadata of a part, in milliseconds."""
    for number in range(count):
        with new_part(place / "out", number) as part:
            part.close(Facts(shard=number, digest="x", settings="x", run="x"))
    return {"part_ms": 1000 / count * processor_seconds(lambda: [facts_of(place / "out", n) for n in range(count)])}


def of_rows(place: Path, regions: int) -> float:
    """Returns the bytes of a row in a part of 1,000 rows with different scores, each with a given number of regions."""
    rng = np.random.default_rng(0)
    with new_part(place / "rows", regions) as part:
        for number in range(1000):
            score, probability, area = (float(f"{value:.9g}") for value in rng.random(3))
            corners = rng.integers(0, 1024, (regions, 4)).tolist()
            found = [RegionRecord(tuple(box), int(rng.integers(1, 10**5)), float(rng.random())) for box in corners]
            values: dict[str, Any] = {
                "score": score,
                "probability": probability,
                "threshold": 0.5,
                "threshold_from": "calibration",
            }
            values |= {"verdict": "anomalous" if regions else "normal", "area": area, "regions": found}
            path = f"/share/images/{number // 1000:05d}/{number:08d}.jpg"
            facts = {"size": int(rng.integers(10**5, 10**6)), "mtime_ns": int(rng.integers(1, 10**18))}
            part.add(Record(path=path, error="", name=f"0000/000012/{number:08d}", **facts, **values))
        part.close(Facts(shard=regions, digest="x", settings="x", run="x"))
    return part_path(place / "rows", regions).stat().st_size / 1000


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where bundle and images are kept for the next time")
    options = parser.parse_args()
    with working_folder(options.folder) as place:
        print(json.dumps({"images": of_sides(place)}, indent=1), flush=True)
        print(
            json.dumps(
                {
                    **of_files(place, 50_000),
                    **of_parts(place, 500),
                    "row_bytes": {n: of_rows(place, n) for n in (0, 5)},
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
