"""Changes of metrics when maps are stored in float16: unchanged, and as `submit` stores them.

    python -m experiments.submission.float16 --data data/synthetic
    python -m experiments.submission.float16 --longest 112 56     # and as `submit --longest` does, upsampled again

Methods that train nothing, on the demo's six test categories; the threshold of SegF1 is the mean plus 3 standard
deviations of the pixels of the normal training images, without the few-shot images. Printed is a Markdown table: the
largest difference over the categories to the same metric of the float32 maps, in points of percent. Metrics are exact:
all pixels are sorted. `values` is how many of 1,000 distinct scores are still distinct. Squeezed maps are the same as
0.5 + score / 100, as a head gives them whose probabilities hardly leave 0.5. The demo's images have 224 pixels a side.
The masks of a submission, and so its SegF1, do not depend on `--longest`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afclip_lightning.datasets.synthetic import SYNTHETIC_TEST, Synthetic
from afclip_lightning.inspection.predictor import Predictor, load
from afclip_lightning.inspection.submission.encoding import Encoding, resized
from afclip_lightning.inspection.submission.score import seg_f1
from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.metrics.fixed_thresholds import Moments, mean_plus_sd
from afclip_runtime.thresholds import is_anomalous

CONFIGS = {
    "PatchRarity": "patch_rarity",
    "CLIP": "clip",
    "WinCLIP": "winclip",
    "NearestNeighbours": "nearest_neighbours",
}
SHOTS = 4
METRICS = ("pixel_auroc", "pixel_ap", "pixel_pro", "pixel_pro_05")
FORMS = ("float16", "submit")
Scores = dict[str, float]
Found = dict[str, tuple[Scores, float]]


def maps_of(model: Predictor, images: Sequence[Path]) -> np.ndarray:
    """Returns the maps of images, `[N, H, W]`, float32."""
    return np.stack([found.anomaly_map for found in model.predict_many(images)])


def scores_of(maps: np.ndarray, masks: np.ndarray, threshold: float) -> Scores:
    """Returns the pixel metrics and SegF1 of maps, in percent."""
    metrics = AnomalyMetrics(exact=True)
    metrics.update(maps.astype(np.float32), masks)
    found = {key: 100 * value for key, value in metrics.compute().items() if key in METRICS}
    called, truth = is_anomalous(maps, threshold), masks > 0
    f1 = seg_f1(int((called & truth).sum()), int((called & ~truth).sum()), int((~called & truth).sum()))
    return {**found, "seg_f1": 100 * (f1 or 0.0)}


def compare(
    data: Synthetic,
    category: str,
    model: Predictor,
    few_shot: bool,
    squeezes: Sequence[float],
    longest: Sequence[int] = (),
) -> list[Found]:
    """Returns the scores of a category by the storage of its maps, and the share of distinct values that is left.

    Args:
        data: The demo.
        category: A category of the dataset.
        model: Whose maps they are.
        few_shot: Whether it is given few-shot images.
        squeezes: Divisors of the distance of a score to 0.5, with one result each; 1 changes nothing.
        longest: Sides of smaller maps.
    """
    normal = [sample.image_path for sample in data.find_samples(category, "train")]
    if few_shot:
        model.fit_few_shot(normal[:SHOTS])
    tested = data.find_samples(category, "test")
    seen = maps_of(model, normal[SHOTS:]), maps_of(model, [sample.image_path for sample in tested])
    masks = np.stack([_mask(sample.mask_path, seen[1].shape[1:]) for sample in tested])
    return [
        stored(*(maps if by == 1 else 0.5 + maps / np.float32(by) for maps in seen), masks, longest) for by in squeezes
    ]


def stored(validation: np.ndarray, maps: np.ndarray, masks: np.ndarray, longest: Sequence[int] = ()) -> Found:
    """Returns scores and share of distinct values, by how maps `[N, H, W]` are stored."""
    threshold = mean_plus_sd(Moments.merged(map(Moments.of, validation)))
    encoding = Encoding.around(threshold, float(validation.min()), float(validation.max()))
    encoded, beyond = encoding.encode(maps)
    assert not beyond
    forms = {"float32": (maps, threshold), "float16": (maps.astype(np.float16), threshold), "submit": (encoded, 0.0)}
    for side in longest:
        small = encoding.encode(np.stack([resized(one, side, side) for one in maps]))[0].astype(np.float32)
        forms[_smaller(side)] = np.stack([resized(one, *maps.shape[1:]) for one in small]), 0.0
    distinct = len(np.unique(maps))
    return {
        name: (scores_of(values, masks, limit), len(np.unique(values)) / distinct)
        for name, (values, limit) in forms.items()
    }


def _smaller(side: int) -> str:
    return f"submit --longest {side}"


def _mask(path: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    from afclip_runtime.images.reader import read

    return np.zeros(shape, np.uint8) if path is None else read(path, stored=True).region(None).astype(np.uint8)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/synthetic"), help="where the demo is drawn")
    parser.add_argument("--methods", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--longest", nargs="+", type=int, default=[], metavar="PX", help="sides of smaller maps too")
    options = parser.parse_args()
    data = Synthetic(options.data, categories=list(SYNTHETIC_TEST))
    data.prepare_data()
    print(
        "| maps | stored | P-AUROC | P-AP | PRO | PRO@0.05 | SegF1 | values |\n|---|---|---:|---:|---:|---:|---:|---:|"
    )
    for name in options.methods:
        squeezes = (1, 100) if name == "PatchRarity" else (1,)
        found: list[list[Found]] = []
        for category in SYNTHETIC_TEST:
            config = Path(f"configs/{CONFIGS[name]}_demo.yaml")
            model = load(config, category=data.class_name_of(category), calibration=None)
            few_shot = name == "NearestNeighbours"
            found.append(compare(data, category, model, few_shot, squeezes, options.longest))
        for number, by in enumerate(squeezes):
            title = name if by == 1 else f"{name}, squeezed"
            for form in (*FORMS, *map(_smaller, options.longest)):
                print(row(title, form, [category[number] for category in found]), flush=True)


def row(title: str, form: str, found: Sequence[Found]) -> str:
    """Returns a line of the table, from the results of each category."""
    cells = []
    for key in (*METRICS, "seg_f1"):
        moved = [abs(category[form][0][key] - category["float32"][0][key]) for category in found]
        cells.append(f"{max(moved):.4f}")
    share = f"{1000 * float(np.mean([category[form][1] for category in found])):.0f}"
    if form not in FORMS:  # masks are made before, and upsampled values are others
        cells[-1] = share = "–"
    return " | ".join([f"| {title}", form, *cells, f"{share} |"])


if __name__ == "__main__":
    main()
