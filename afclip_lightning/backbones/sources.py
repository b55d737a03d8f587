"""Finds the file that `weights` or `vision_weights` names: by a tag, a path, a hub or an installed package."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from torch import Tensor

from afclip_lightning.backbones.packages import recipes_of
from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD
from afclip_runtime.errors import WeightsError, shown

Channels = tuple[float, float, float]
RANDOM = "random"
EMBEDDED = "embedded"
HUB = "hf-hub:"  # Hugging Face's hub
TIMM = "timm:"
PIP = "pip:"
MODELS = Path(__file__).parent / "models"  # the project's own configs and weights
LOCAL_WAY = (
    "On a machine without internet, download the file elsewhere and give its path as `weights`, on the command line "
    "--model.backbone.weights FILE (OpenAI's TorchScript archive, .pt, .bin or .safetensors); `weights: random` is for "
    "tests only."
)
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
TOWER_FILES = (*CLIP_FILES[2:], *CLIP_FILES[:2])

open_clip.add_model_config(MODELS)


@dataclass(frozen=True)
class Repository:
    """A repository of Hugging Face's hub, and the possible names of its file of weights.

    Attributes:
        name: `ORG/NAME`.
        files: Possible names of the file, the preferred one first.
        revision: Branch, tag or commit; the main branch if `None`.
    """

    name: str
    files: tuple[str, ...]
    revision: str | None = None

    @property
    def url(self) -> str:
        """Returns the address of the preferred file, for messages. A browser can download it there."""
        return hf_hub_url(self.name, self.files[0], revision=self.revision)

    def cached(self, cache_dir: str | None = None) -> Path | None:
        """Returns the path of the file in the cache, or `None` if the cache does not hold it."""
        for file in self.files:
            path = try_to_load_from_cache(self.name, file, cache_dir=cache_dir, revision=self.revision)
            if isinstance(path, str):
                return Path(path)
        return None


def repository_of(model: str, weights: str, files: tuple[str, ...] = CLIP_FILES) -> Repository:
    """Returns the repository that a tag, a `timm:` or an `hf-hub:` name stands for.

    Args:
        model: Architecture of a tag.
        weights: `openai`, `timm:NAME.TAG`, or `hf-hub:ORG/NAME`, optionally with `@REVISION` and `/FILE`.
        files: Possible names of the file in a repository that no library lists.

    Raises:
        WeightsError: The tag or name does not exist.
    """
    if weights.startswith(HUB):
        repository, revision, file = _split(weights)
        return Repository(repository, (file,) if file else files, revision)
    if weights.startswith(TIMM):
        name = weights.removeprefix(TIMM)
        config = _timm_config(name)
        if not config:
            near = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}*")[:4])
            raise WeightsError(f"{weights}: timm has no such weights" + (f"; it has: {near}." if near else "."))
        repository, _, revision = (config.get("hf_hub_id") or "").partition("@")
        named = config.get("hf_hub_filename")
        return Repository(repository, (named,) if named else TOWER_FILES, revision or None)
    config = listed_config(model, weights)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise WeightsError(f"{model} has no weights tagged {weights!r}; it has: {tags}. {LOCAL_WAY}")
    repository, _, file = config["hf_hub"].rpartition("/")
    safe = (f"{file[:-4]}.safetensors",) if file.endswith((".bin", ".pth")) else ()
    return Repository(repository, (*safe, file) if file else CLIP_FILES)


def is_local_file(weights: str) -> bool:
    """Returns whether `weights` is a path. Otherwise it is a tag, or a name on a hub or in a package."""
    if weights.startswith((HUB, TIMM, PIP)):
        return False
    return Path(weights).suffix in {".pt", ".pth", ".bin", ".safetensors"} or "/" in weights


def listed_config(model: str, weights: str) -> dict[str, Any]:
    """Returns open_clip's config of this tag or hub repository for the model; empty if it lists none."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights.startswith(HUB):
        repository = _split(weights)[0]
        configs = [listed_config(model, tag) for tag in tags]
        return next((c for c in configs if c.get("hf_hub", "").rpartition("/")[0] == repository), {})
    config = open_clip.get_pretrained_cfg(model, weights) or {}
    place, _, named = config.get("hf_hub", "").rstrip("/").rpartition(".")
    if named in tags and named != weights:  # open_clip 3.3.0 lists epoch 31 of ViT-B-16-plus-240 for epoch 32
        return {**config, "hf_hub": f"{place}.{weights}/"}
    return config


def normalisation_of(model: str, weights: str, vision_weights: str | None = None) -> tuple[Channels, Channels]:
    """Returns the mean and standard deviation of the channels that these weights were trained with.

    Weights that are not listed get the values of the listed weights of their architecture, if these all agree. The list
    is open_clip's, or timm's for a tower without weights in open_clip. Otherwise the values are CLIP's own.
    """
    own = vision_weights or weights
    if own.startswith(PIP):
        recipe = recipes_of(own.removeprefix(PIP))[0]
        return recipe.mean, recipe.std
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tower := next((name for name in (own, model) if name.startswith(TIMM)), ""):
        configs = [_timm_config(tower.removeprefix(TIMM))]
    elif listed := listed_config(model, weights):
        configs = [listed]
    elif tags:
        configs = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    else:
        vision: dict[str, Any] = (open_clip.get_model_config(model) or {}).get("vision_cfg", {})
        configs = [_timm_config(vision.get("timm_model_name", ""))]
    found = {(tuple(c.get("mean") or CLIP_MEAN), tuple(c.get("std") or CLIP_STD)) for c in configs}
    return found.pop() if len(found) == 1 else (CLIP_MEAN, CLIP_STD)


def find_weights(model: str, weights: str, cache_dir: str | None) -> Path:
    """Returns the file of `weights`, which is a tag, a path, or a repository of the hub. A path needs no network.

    Raises:
        WeightsError: The file cannot be found or downloaded. The message explains how to use a local file.
    """
    if weights.startswith(HUB):
        return find_hub_file(repository_of(model, weights), cache_dir)
    if weights.startswith((TIMM, PIP)):
        raise WeightsError(
            f"{weights} is a vision tower, not a whole CLIP. Give it as `vision_weights`; `weights` is for the "
            "text tower beside it."
        )
    if is_local_file(weights):
        if not Path(weights).is_file():
            raise WeightsError(f"Backbone weights {weights} do not exist. {LOCAL_WAY}")
        return Path(weights)
    if weights == EMBEDDED:
        if not (MODELS / f"{model}.safetensors").is_file():
            there = ", ".join(sorted(path.stem for path in MODELS.glob("*.safetensors")))
            raise WeightsError(f"{model} has no weights in the package; these have: {there}. {LOCAL_WAY}")
        return MODELS / f"{model}.safetensors"
    repository_of(model, weights)
    with downloading(f"Weights {weights!r} of {model}"):
        return Path(open_clip.download_pretrained(listed_config(model, weights), cache_dir=cache_dir))


def find_hub_file(place: "Repository", cache_dir: str | None) -> Path:
    """Returns the file of weights of a repository of the hub. Downloads it if the cache does not hold it.

    Args:
        place: Repository of the file.
        cache_dir: Folder for downloads. Default: the hub's own cache.

    Raises:
        WeightsError: The repository cannot be reached or lacks the file. The message explains how to use a local file.
    """
    cached = place.cached(cache_dir)
    if cached is not None:
        return cached
    with downloading(place.url):
        for file in place.files:
            try:
                return Path(hf_hub_download(place.name, file, cache_dir=cache_dir, revision=place.revision))
            except LocalEntryNotFoundError:  # the hub was not reached, so no other name can be tried
                raise
            except EntryNotFoundError:
                continue
    raise WeightsError(f"{place.name}: the repository has no file named {' or '.join(place.files)}. {LOCAL_WAY}")


def timm_weights(name: str, cache_dir: str | None) -> dict[str, Tensor]:
    """Returns the state dict of timm's pretrained model, from timm's own loader. Downloads it if it is not cached.

    Args:
        name: `timm:MODEL.TAG`, as timm lists it, such as `timm:vit_small_patch14_dinov2.lvd142m`.
        cache_dir: Folder for downloads. Default: the hub's own cache.

    Raises:
        WeightsError: timm has no such weights, or they cannot be downloaded. The message explains how to use a local
            file.
    """
    repository_of("", name)
    with downloading(name):
        model = timm.create_model(name.removeprefix(TIMM), pretrained=True, num_classes=0, cache_dir=cache_dir)
    return dict(model.state_dict())


def _timm_config(name: str) -> dict[str, Any]:
    try:
        config = timm.models.get_pretrained_cfg(name) if name else None
    except RuntimeError:  # no such tag
        return {}
    return config.to_dict() if config is not None and config.has_weights else {}


def _split(name: str) -> tuple[str, str | None, str | None]:
    """Returns the repository, revision and file of `hf-hub:ORG/NAME@REVISION/FILE`."""
    parts = name.removeprefix(HUB).split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise WeightsError(f"{shown(name)}: expected {HUB}ORG/NAME, and @REVISION or /FILE after it where wanted.")
    title, _, revision = parts[1].partition("@")
    return f"{parts[0]}/{title}", revision or None, parts[2] if len(parts) > 2 else None


@contextmanager
def downloading(what: str, way: str = LOCAL_WAY) -> Iterator[None]:
    """Context of a download. Prints a notice, silences the hub client's retries, and turns any error into one kind.

    Args:
        what: Name of the download, for messages.
        way: End of the error message: how to work without the network.

    Raises:
        WeightsError: The body failed for any reason.
    """
    print(f"{what}: from the cache, else from the network, which may take a while.", file=sys.stderr)
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.CRITICAL)
    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(
            f"{what}: the repository asks for consent. Accept its terms on its page, log in (`hf auth login`) and try "
            f"again. {way}"
        ) from error
    except Exception as error:  # the hub clients raise errors of many unrelated classes
        raise WeightsError(f"{what} could not be downloaded ({type(error).__name__}). {way}") from error
    finally:
        hub_log.setLevel(level)
