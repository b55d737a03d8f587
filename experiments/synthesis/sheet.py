"""Draws a sheet of pseudo anomalies to look at: the image, the image with an anomaly, and the mask, one column each.

    python experiments/synthesis/sheet.py sheet.png
    python experiments/synthesis/sheet.py sheet.png --textures reference --size 518 --patch 14
    python experiments/synthesis/sheet.py sheet.png --textures DIR --images DIR

Images are products that the project draws, or those of a folder; the reference of an image is another product of its
category, or the next image of the folder. An image's column does not depend on how many others there are.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.components.synthesis import DraemSynthesis, FolderTextures, ProceduralTextures, ReferenceTextures
from afclip_lightning.data.images import read_image
from afclip_lightning.datasets.procedural import CATEGORIES, picture
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import atomic_path
from afclip_runtime.images.find import walk_images

Pair = tuple[np.ndarray, np.ndarray]  # an image and its reference
GAP = 4  # pixels between the pictures


def drawn_pairs(count: int, size: int) -> list[Pair]:
    """Returns flawless drawn products and another of the same category each, `[size, size, 3]`, uint8."""
    names = list(CATEGORIES)
    chosen = [(names[i % len(names)], i) for i in range(count)]
    return [(picture(name, None, [i, 0], size)[0], picture(name, None, [i, 1], size)[0]) for name, i in chosen]


def pairs_of_folder(folder: Path, count: int, size: int) -> list[Pair]:
    """Returns the first images of a folder and the image after each, `[size, size, 3]`, uint8.

    Raises:
        DatasetError: The folder holds no image.
    """
    paths = walk_images(folder)
    if not paths:
        raise DatasetError(f"{folder} holds no image.")
    images = [cv2.resize(read_image(path), (size, size), interpolation=cv2.INTER_AREA) for path in paths[: count + 1]]
    return [(images[i], images[(i + 1) % len(images)]) for i in range(min(count, len(paths)))]


def column(pair: Pair, synthesis: DraemSynthesis, seed: list[int], patch: int) -> np.ndarray:
    """Returns image, image with an anomaly and mask below each other, `[3 S + 2 GAP, S, 3]`, uint8."""
    image, _ = pair
    plain = Preprocess(image.shape[0], (0, 0, 0), (1, 1, 1))
    given, other = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 for pixels in pair)
    changed, mask = synthesis.synthesise(given, np.random.default_rng(seed), patch, plain, other)
    pixels = (changed * 255).round().byte().permute(1, 2, 0).numpy()
    white = np.repeat(mask.numpy()[..., None], 3, axis=-1) * np.uint8(255)
    gap = np.full((GAP, image.shape[1], 3), 255, np.uint8)
    return np.concatenate([image, gap, pixels, gap, white])


def main(argv: list[str] | None = None) -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG file")
    parser.add_argument("--textures", default="procedural", help="procedural, reference, or a folder of images")
    parser.add_argument("--images", type=Path, help="folder of images; drawn products by default")
    parser.add_argument("--count", type=int, default=12, help="columns")
    parser.add_argument("--size", type=int, default=240, help="side of the images in pixels")
    parser.add_argument("--patch", type=int, default=16, help="side of a backbone's patch in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    known = {"procedural": ProceduralTextures, "reference": ReferenceTextures}
    textures = known[args.textures]() if args.textures in known else FolderTextures(args.textures)
    synthesis = DraemSynthesis(textures)
    pairs = pairs_of_folder(args.images, args.count, args.size) if args.images else drawn_pairs(args.count, args.size)
    columns = [column(pair, synthesis, [args.seed, i], args.patch) for i, pair in enumerate(pairs)]
    gap = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
    sheet = np.concatenate([part for one in columns for part in (one, gap)][:-1], axis=1)
    with atomic_path(args.out) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")
    print(f"{args.out}: {len(columns)} images")


if __name__ == "__main__":
    main()
