"""The configs of the project where there is no checkout: the package brings them along."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")  # of a wheel, and of a checkout


def find_config(path: str | Path) -> Path:
    """Returns the path of a config. One that does not exist is looked for among those of the package.

    Args:
        path: A path. One that begins with `configs/` may be of the package: `configs/afclip_demo.yaml`.
    """
    path = Path(path)
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    return next((place for folder in PLACES if (place := folder.joinpath(*path.parts[1:])).is_file()), path)
