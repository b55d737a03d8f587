"""Size limits of images, checked before the pixels are decoded."""

from afclip_runtime.errors import DatasetError

MAX_PIXELS = 2**27  # per image: 400 MB as RGB, in each loader process


def check_size(name: object, width: int, height: int) -> None:
    """Checks an image's size before its pixels are decoded.

    Args:
        name: The file, or the name of the image in messages.
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.

    Raises:
        DatasetError: The image has more than `MAX_PIXELS` pixels, or none.
    """
    if width * height > MAX_PIXELS:
        raise too_large(name)
    if width < 1 or height < 1:
        raise DatasetError(f"{name}: has {width}×{height} pixels. Replace the file.")


def check_most(name: object, shape: tuple[int, int], most: int) -> None:
    """Checks the number of pixels against a limit of the user.

    Args:
        name: The file, or the name of the image in messages.
        shape: Height and width, in pixels.
        most: Maximum number of pixels.

    Raises:
        DatasetError: The image has more pixels.
    """
    height, width = shape
    if width * height > most:
        raise DatasetError(
            f"{name}: has {width} × {height} pixels, and the limit is {most / 10**6:g} million (--max_megapixels). "
            "Make it smaller, or raise the limit."
        )


def too_large(name: object) -> DatasetError:
    """Returns the error of an image above the limit."""
    return DatasetError(
        f"{name}: has more than {MAX_PIXELS:,} pixels, the limit of one image (MAX_PIXELS). Make it smaller or cut it "
        "into tiles: the input of a backbone has a few hundred pixels per side."
    )
