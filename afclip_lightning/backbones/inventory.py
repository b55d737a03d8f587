"""Files that the presets need, and whether they are on this machine. Nothing here uses the network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from afclip_lightning.backbones.packages import INSTALL, find_package
from afclip_lightning.backbones.presets import PRESETS, Preset
from afclip_lightning.backbones.sources import EMBEDDED, MODELS, PIP, RANDOM, TIMM, TOWER_FILES, repository_of
from afclip_runtime.errors import WeightsError


@dataclass(frozen=True)
class Needed:
    """The weights of a preset.

    Attributes:
        preset: Name of the preset.
        model: Architecture.
        weights: Weights: a tag, `timm:NAME.TAG`, `pip:PACKAGE`.
        download_mb: Size of the download in MB of 10^6 bytes, as its page says. `None` if no page was at hand.
        size: The same in words. It is counted from the parameters if no page was at hand.
        licence: Licence of the weights. `None` if it is unknown.
        path: Path of the file on this machine. `None` if it is absent.
        get: How to get the file: a repository of the hub, or a pip command.
    """

    preset: str
    model: str
    weights: str
    download_mb: int | None
    size: str
    licence: str | None
    path: str | None
    get: str


def needed(cache_dir: str | None = None) -> Iterator[Needed]:
    """Yields the weights of each preset, in the order of the table.

    Args:
        cache_dir: Folder of downloads. The default is the hub's.
    """
    for preset in PRESETS.values():
        weights = own_weights(preset)
        path = locate(preset.model, weights, cache_dir)
        get = INSTALL if weights.startswith(PIP) else repository_of(preset.model, weights).name
        where = None if path is None else str(path)
        yield Needed(preset.name, preset.model, weights, preset.download_mb, preset.size, preset.licence, where, get)


def own_weights(preset: Preset) -> str:
    """Returns the weights of a preset's model, or of its vision tower if it has no text."""
    return preset.vision_weights or preset.weights


def locate(model: str, weights: str, cache_dir: str | None = None) -> Path | None:
    """Returns the path of weights in the package, in an installed package or in the cache. `None` if they are absent.

    Args:
        model: Architecture of a tag.
        weights: A tag, `embedded`, or a name that starts with `hf-hub:`, `timm:` or `pip:`.
        cache_dir: Folder of downloads. The default is the hub's.

    Raises:
        WeightsError: There are no such weights.
    """
    if weights == EMBEDDED:
        return MODELS / f"{model}.safetensors"
    if weights == RANDOM:
        return None
    if weights.startswith(PIP):
        try:
            return find_package(weights.removeprefix(PIP))[0]
        except WeightsError:
            return None
    files = TOWER_FILES if weights.startswith(TIMM) else ()
    place = repository_of(model, weights, files) if files else repository_of(model, weights)
    return place.cached(cache_dir)
