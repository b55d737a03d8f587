"""Finds the configs of the project, from a checkout or inside the installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in a wheel, and in a checkout


def find_config(path: str | Path) -> Path:
    """Returns the path of a config. A path that does not exist is searched among the package's configs.

    Args:
        path: A path. A path that begins with `configs/` may be in the package: `configs/afclip_demo.yaml`.
    """
    path = Path(path)
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    return next((place for folder in PLACES if (place := folder.joinpath(*path.parts[1:])).is_file()), path)
