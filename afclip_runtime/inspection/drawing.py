"""Overlays of anomaly maps on images, with numpy and Pillow alone."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

COLD = 0.1  # heat of a typical normal value; there the image is unchanged
HEAT = 0.6  # maximum opacity of the map's colour
CONTOUR = (255, 255, 255)
TURBO = bytes.fromhex(  # 256 colours, RGB: Turbo by A. Mikhailov (Google, 2019; Apache-2.0), as OpenCV rounds them
    "30123b32154333184a341b51351e5836215f37246638276d392a733a2d793b2f803c32863d358b3e38913f3b973f3e9c"
    "4040a24143a74146ac4249b1424bb5434eba4451bf4454c34456c74559cb455ccf455ed34661d64664da4666dd4669e0"
    "466be3476ee64771e94773eb4776ee4778f0477bf2467df44680f64682f84685fa4687fb458afc458cfd448ffe4391fe"
    "4294ff4196ff4099ff3e9bfe3d9efe3ba0fd3aa3fc38a5fb37a8fa35abf833adf731aff52fb2f42eb4f22cb7f02ab9ee"
    "28bceb27bee925c0e723c3e422c5e220c7df1fc9dd1ecbda1ccdd81bd0d51ad2d21ad4d019d5cd18d7ca18d9c818dbc5"
    "18ddc218dec018e0bd19e2bb19e3b91ae4b61ce6b41de7b21fe9af20eaac22ebaa25eca727eea42aefa12cf09e2ff19b"
    "32f29835f39438f4913cf58e3ff68a43f78746f8844af8804ef97d52fa7a55fa7659fb735dfc6f61fc6c65fd6969fd66"
    "6dfe6271fe5f75fe5c79fe597dff5680ff5384ff5188ff4e8bff4b8fff4992ff4796fe4499fe429cfe409ffd3fa1fd3d"
    "a4fc3ca7fc3aa9fb39acfb38affa37b1f936b4f836b7f735b9f635bcf534bef434c1f334c3f134c6f034c8ef34cbed34"
    "cdec34d0ea34d2e935d4e735d7e535d9e436dbe236dde037dfdf37e1dd37e3db38e5d938e7d739e9d539ebd339ecd13a"
    "eecf3aefcd3af1cb3af2c93af4c73af5c53af6c33af7c13af8be39f9bc39faba39fbb838fbb637fcb336fcb136fdae35"
    "fdac34fea933fea732fea431fea130fe9e2ffe9b2dfe992cfe962bfe932afe9029fd8d27fd8a26fc8725fc8423fb8122"
    "fb7e21fa7b1ff9781ef9751df8721cf76f1af66c19f56918f46617f36315f26014f15d13f05b12ef5811ed5510ec530f"
    "eb500eea4e0de84b0ce7490ce5470be4450ae2430ae14109df3f08dd3d08dc3b07da3907d83706d63506d43305d23105"
    "d02f05ce2d04cc2b04ca2a04c82803c52603c32503c12302be2102bc2002b91e02b71d02b41b01b21a01af1801ac1701"
    "a91601a71401a41301a112019e10019b0f01980e01950d01920b018e0a018b09028808028507028106027e05027a0403"
)


def blend(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns an image with a coloured map over it, `[H, W, 3]`, uint8. The opacity increases with the heat.

    Args:
        image: `[H, W, 3]`, uint8, RGB.
        heat: `[H, W]`, float32, in [0, 1].
    """
    level = Image.fromarray((255 * heat).astype(np.uint8))
    cover = HEAT * np.clip((np.arange(256) / 255 - COLD) / (1 - COLD), 0, 1)
    share = level.point(np.rint(255 * cover).astype(int).tolist())
    level.putpalette(TURBO)
    return np.array(Image.composite(level.convert("RGB"), Image.fromarray(image), share))


def outline(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Returns the contours of the regions of a mask and of their holes, `[H, W]`, bool.

    The lines are centred on the outermost pixels of the regions.

    Args:
        mask: `[H, W]`, bool.
        thickness: Thickness of the lines, in pixels. 2 is drawn as 3, 4 as 5.
    """
    lines = np.zeros_like(mask)
    marked = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    if len(marked[0]):
        rows, columns = (slice(max(0, there[0] - thickness), there[-1] + 1 + thickness) for there in marked)
        part = mask[rows, columns]
        around = np.pad(part, 1)
        inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        lines[rows, columns] = _thickened(part & ~inner, thickness)
    return lines


def with_caption(picture: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Returns a picture `[H, W, 3]`, uint8, with a band at the bottom for the first caption that fits, if any."""
    from PIL import ImageDraw, ImageFont

    height, width, _ = picture.shape
    size = min(max(round(min(height, width) / 22), 11), 60)
    font = ImageFont.load_default(size)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    for caption in captions:
        lines: list[str] = []
        for word in caption.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and draw.textlength(longer, font) <= width - size:
                lines[-1] = longer
            else:
                lines.append(word)
        band = round(1.3 * size * len(lines) + 0.4 * size)
        if band <= 0.32 * height and max(draw.textlength(line, font) for line in lines) <= width - size / 2:
            draw.rectangle((0, height - band, width, height), (0, 0, 0, 190))
            draw.multiline_text(
                (size / 2, height - band + 0.2 * size), "\n".join(lines), "white", font, spacing=0.3 * size
            )
            return np.asarray(image)
    return picture


def _thickened(lines: np.ndarray, thickness: int) -> np.ndarray:
    """Returns the dilation of marked pixels by a disc, `[H, W]`, bool."""
    radius = thickness // 2
    heights = [math.isqrt(thickness**2 // 4 - across**2) for across in range(radius + 1)]
    thick, wide = lines.copy(), lines.copy()
    for across, height in enumerate(heights):
        if across:
            wide[:, across:] |= lines[:, :-across]
            wide[:, :-across] |= lines[:, across:]
        lower = heights[across + 1] + 1 if across < radius else 0  # the wider rows cover these
        for down in range(lower, height + 1):
            end = max(0, len(wide) - down)
            thick[down:] |= wide[:end]
            thick[:end] |= wide[down:]
    return thick
