"""Which files the presets need, and which of them are on this machine already; nothing here uses the network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from afclip_lightning.backbones.packages import INSTALL, find_package
from afclip_lightning.backbones.presets import PRESETS, Preset
from afclip_lightning.backbones.sources import EMBEDDED, MODELS, PIP, RANDOM, TIMM, TOWER_FILES, repository_of
from afclip_runtime.errors import WeightsError


@dataclass(frozen=True)
class Needed:
    """What a preset needs.

    Attributes:
        preset: Its name.
        model: Its architecture.
        weights: What fills it: a tag, `timm:NAME.TAG`, `pip:PACKAGE`.
        download_mb: Size of the download in MB of 10^6 bytes, as its page says; `None` where no page was at hand.
        size: The same in words; counted from the parameters where no page was at hand.
        licence: Of the weights; `None` where that is not known.
        path: Where the file lies on this machine; `None` if it does not.
        get: What gets it: a repository of the hub, or a command of pip.
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
    """Yields what each preset needs, in the order of the table.

    Args:
        cache_dir: Where downloads are kept; the hub's own place by default.
    """
    for preset in PRESETS.values():
        weights = own_weights(preset)
        path = locate(preset.model, weights, cache_dir)
        get = INSTALL if weights.startswith(PIP) else repository_of(preset.model, weights).name
        where = None if path is None else str(path)
        yield Needed(preset.name, preset.model, weights, preset.download_mb, preset.size, preset.licence, where, get)


def own_weights(preset: Preset) -> str:
    """Returns the weights that fill a preset's model, or its vision tower where it has no text."""
    return preset.vision_weights or preset.weights


def locate(model: str, weights: str, cache_dir: str | None = None) -> Path | None:
    """Returns where weights lie on this machine: in the package, in an installed package or in the cache; else `None`.

    Args:
        model: Architecture that a tag is of.
        weights: A tag, `embedded`, or a name that begins with `hf-hub:`, `timm:` or `pip:`.
        cache_dir: Where downloads are kept; the hub's own place by default.

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
