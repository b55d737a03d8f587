"""How soon a drift is found, and how often a false alarm occurs.

    python -m experiments.drift.measure shifts                    # simulated scores: images until a shift is found
    python -m experiments.drift.measure stable --streams 200      # false alarms of stable streams of 10,000 images
    python -m experiments.drift.measure light                     # photos under another light, embedded CLIP

Shifts are in standard deviations of normal images' scores, after 1,000 images without one; 5 % of all images are
anomalous. The tables are those of docs/production.md.
"""

import argparse
from collections.abc import Iterable

import numpy as np

from afclip_runtime.inspection.drift import Drift, NormalScores, keep

BEFORE = 1000  # images before a shift
AFTER = 5000  # images after which a shift counts as not found
ANOMALOUS = 0.05
NEVER = 10**9
LIGHTS = (1.0, 0.85, 0.7, 0.5, 1.2, 1.5, 2.0)  # by which the values of an image are multiplied
SIDE = 160  # pixels of a cut
PLAY = 8  # pixels by which a part may lie elsewhere


def found_after(kept: NormalScores | None, scores: Iterable[float]) -> int:
    """Returns the number of the image at which a drift is found, from 1; `NEVER` without drift."""
    drift = Drift(kept)
    return next((drift.images for score in scores if drift.add(float(score))), NEVER)


def stream(rng: np.random.Generator, images: int, shift: float = 0.0) -> np.ndarray:
    """Returns scores of a stream `[images]`: normal ones of one normal distribution, and anomalous ones above it."""
    scores = rng.normal(shift, 1.0, images)
    scores[rng.random(images) < ANOMALOUS] += 4
    return scores


def shown(delays: list[int]) -> str:
    """Returns the median and the 90th percentile of numbers of images."""
    ordered = sorted(delays)
    return " / ".join(
        f"{value:,}" if value < NEVER else "—"
        for value in (ordered[len(ordered) // 2], ordered[9 * len(ordered) // 10])
    )


def shifts(streams: int) -> None:
    """Prints a table: per number of normal images and shift, after how many images it is found."""
    sizes = (20, 50, 200, 1000)
    print("| shift | " + " | ".join(f"{n} normal images" for n in sizes) + " |\n|---|" + "---|" * len(sizes))
    for shift in (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 4.0):
        cells = []
        for n in sizes:
            delays = []
            for seed in range(streams):
                rng = np.random.default_rng([n, seed])
                kept = keep(rng.normal(size=n))
                scores = np.concatenate([stream(rng, BEFORE), stream(rng, AFTER, shift)])
                at = found_after(kept, scores)
                delays.append(at - BEFORE if BEFORE < at < NEVER else NEVER)
            cells.append(shown(delays))
        print(f"| {shift:+g} | " + " | ".join(cells) + " |", flush=True)


def stable(streams: int) -> None:
    """Prints how many stable streams of 10,000 images raised an alarm."""
    for n in (20, 200, 1000):
        alarms = 0
        for seed in range(streams):
            rng = np.random.default_rng([n, seed, 1])
            alarms += found_after(keep(rng.normal(size=n)), stream(rng, 10_000)) < NEVER
        print(f"{n} normal images: {alarms} of {streams} streams of 10,000 images raised an alarm", flush=True)


def cuts(rng: np.random.Generator, photo: np.ndarray, images: int) -> Iterable[np.ndarray]:
    """Yields cuts of a photo `[H, W]`, `[SIDE, SIDE, 3]`, uint8: a part shifted by a few pixels, with noise."""
    for _ in range(images):
        y, x = rng.integers(100, 100 + PLAY, 2)
        noisy = photo[y : y + SIDE, x : x + SIDE] + rng.normal(0, 2.0, (SIDE, SIDE))
        yield np.repeat(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def light(streams: int) -> None:
    """Prints, per light and photo, the change of scores, and the number of images until it is found."""
    import skimage.data

    from afclip_lightning import load

    normal, images, few = 100, 150, 8
    print("| light | photo | shift | found after |\n|---|---|---|---|")
    for name in ("brick", "gravel"):
        photo = getattr(skimage.data, name)().astype(np.float64)
        rng = np.random.default_rng(0)
        few_shot = list(cuts(rng, photo, few))
        model = load("configs/anomalydino_demo.yaml", device="cpu", calibration=None, few_shot=few_shot)
        before = [found.score for found in model.predict_many(list(cuts(rng, photo, normal)))]
        kept = keep(np.array(before))
        for factor in LIGHTS:
            seen = list(cuts(np.random.default_rng(1), photo * factor, images))
            scores = np.array([found.score for found in model.predict_many(seen)])
            shift = (scores.mean() - np.mean(before)) / np.std(before)
            rng = np.random.default_rng(2)
            delays = [found_after(kept, rng.choice(scores, AFTER)) for _ in range(streams)]
            print(f"| × {factor:g} | {name} | {shift:+.1f} | {shown(delays)} |", flush=True)


def main() -> None:
    """Runs one of the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("shifts", "stable", "light"))
    parser.add_argument("--streams", type=int, default=40, metavar="N", help="per number in the table (%(default)s)")
    options = parser.parse_args()
    {"shifts": shifts, "stable": stable, "light": light}[options.what](options.streams)


if __name__ == "__main__":
    main()
