"""Photos of scikit-image, each unchanged and with a drawn defect: the images of `make demo-real`.

    python experiments/real_demo/pictures.py --out runs/demo-real/photos

The photos are cut to what looks like a product: textures (brick, grass, gravel) and coins. Each is written as it is and
with a defect of the drawn products (`datasets.procedural.draw_defect`), from a fixed seed: the same files each time.
brick, grass and gravel are CC0; the coins are of the Brooklyn Museum, without known copyright restrictions.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from afclip_lightning.datasets.procedural import draw_defect

SIDE = 384  # pixels of a picture
STRENGTH = 0.75  # of a defect: visible at a glance
SAMPLE = "brick_crack"  # which of them is web/sample.jpg, the picture that the page of `serve` brings
PICTURES = (  # photo, left and top of the cut in shares of what is free, kinds of defects with their seeds
    ("brick", (0.0, 0.0), {"crack": 2, "scratch": 7}),
    ("grass", (0.3, 0.3), {"hole": 0, "stain": 1}),
    ("gravel", (0.3, 0.3), {"scratch": 0, "fibre": 1}),
    ("coins", (0.0, 0.0), {"scratch": 0, "crack": 1}),
)


def photo(name: str, at: tuple[float, float]) -> NDArray[np.float32]:
    """Returns a square cut of a photo, `[3, SIDE, SIDE]`, float32 in [0, 1]."""
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    side = min(SIDE, *image.size)
    left, top = (int(share * (length - side)) for share, length in zip(at, image.size, strict=True))
    cut = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(cut, np.float32).transpose(2, 0, 1) / 255


def write(folder: Path) -> list[Path]:
    """Writes the pictures, and returns their paths: `brick.jpg`, `brick_scratch.jpg` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, at, kinds in PICTURES:
        image = photo(name, at)
        whole = np.ones(image.shape[1:], bool)
        made = {name: image}
        for kind, seed in kinds.items():
            rng = np.random.default_rng([seed, 7])
            made[f"{name}_{kind}"], _ = draw_defect(kind, image, whole, rng, STRENGTH)
        for stem, pixels in made.items():
            paths.append(folder / f"{stem}.jpg")
            levels = np.rint(pixels * 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(levels).save(paths[-1], quality=92)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    found = write(parser.parse_args().out)
    print(f"{len(found)} pictures: {found[0].parent}")
