"""Identifies a file of weights: checks that it is undamaged and finds the architectures with exactly its tensors."""

import logging
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

from afclip_lightning.backbones.archives import (
    check_archive,
    is_finite,
    is_torchscript,
    load_saved,
    read_torchscript,
    reason,
)
from afclip_lightning.backbones.downloads import sha256
from afclip_lightning.backbones.layouts import converted, foreign_layout
from afclip_lightning.backbones.packages import SHIPPED
from afclip_lightning.backbones.presets import PRESETS
from afclip_lightning.backbones.sources import TIMM
from afclip_runtime.errors import WeightsError, shown
from afclip_runtime.files import open_regular

Shapes = dict[str, tuple[int, ...]]
NO_MATTER = ("logit_scale", "logit_bias")  # a number, a list of one number, or absent
SIZES = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives hold them beside the weights
VOCABULARY = 49408
WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge", 1536: "giant"}


@dataclass(frozen=True)
class Weights:
    """Facts of a file of weights.

    Attributes:
        file: Path of the file.
        bytes: Size of the file in bytes.
        sha256: SHA-256 of the file.
        format: `safetensors`, `TorchScript archive` or `torch.save`.
        layout: Library or project whose tensor names the file uses.
        tensors: Number of tensors.
        values: Number of values in all tensors.
        dtypes: Number of tensors per data type.
        what: Kind of the model: a whole CLIP, a vision tower, or not known.
        architectures: Architectures with exactly these tensors, by name and shape; `timm:NAME` for a tower.
        presets: Presets with one of these architectures.
        known: Published file with this hash; empty if there is none.
        use: Options that load the file; empty if no architecture matches.
    """

    file: str
    bytes: int
    sha256: str
    format: str
    layout: str
    tensors: int
    values: int
    dtypes: dict[str, int]
    what: str
    architectures: tuple[str, ...]
    presets: tuple[str, ...]
    known: str
    use: str


def recognise(path: Path) -> Weights:
    """Returns the facts of a file of weights. Reads every value once.

    Raises:
        WeightsError: The file is damaged, is not a file of weights, or holds NaN, infinity or objects other than
            tensors.
    """
    with open_regular(path, error=WeightsError) as file:
        digest, size = sha256(file), file.tell()
    shapes, dtypes = {}, Counter[str]()
    kind = _format(path)
    with _reading(path):
        for name, tensor in _tensors(path, kind):
            if not is_finite(tensor):
                raise WeightsError(f"{shown(path)}: {name} holds NaN or infinity. Get the file again.")
            shapes[name] = tuple(tensor.shape)
            dtypes[str(tensor.dtype).removeprefix("torch.")] += 1
    if not shapes:
        raise WeightsError(f"{shown(path)}: holds no tensors. Is it the right file?")
    layout, what, architectures = _architectures(shapes)
    presets = tuple(name for name, entry in PRESETS.items() if _tower_of(entry.model) in architectures)
    return Weights(
        file=str(path),
        bytes=size,
        sha256=digest,
        format=kind,
        layout=layout,
        tensors=len(shapes),
        values=sum(torch.Size(shape).numel() for shape in shapes.values()),
        dtypes=dict(dtypes),
        what=what,
        architectures=architectures,
        presets=presets,
        known=_known(digest),
        use=_use(path, what, architectures, presets),
    )


def _format(path: Path) -> str:
    if path.suffix == ".safetensors":
        return "safetensors"
    return "TorchScript archive" if is_torchscript(path) else "torch.save"


def _tensors(path: Path, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and tensors of a file. A safetensors file is read one tensor at a time."""
    if kind == "safetensors":
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is not a mapping)
                yield name, opened.get_tensor(name)
        return
    with path.open("rb") as file:
        if is_zip := zipfile.is_zipfile(file):
            check_archive(file, path, WeightsError)
        file.seek(0)
        if not is_zip and file.read(1) != b"\x80":  # first byte of a pickle
            raise WeightsError(
                f"{shown(path)}: is neither a safetensors file nor a file of torch.save. Is it the right file?"
            )
    if kind == "TorchScript archive":
        with path.open("rb") as file:
            yield from ((name, tensor) for name, tensor in read_torchscript(file).items() if name not in SIZES)
        return
    state = load_saved(path, mmap=is_zip)
    while isinstance(state, dict) and isinstance(inner := state.get("state_dict", state.get("model")), dict):
        state = inner
    if not isinstance(state, dict):
        raise WeightsError(f"{shown(path)}: holds {type(state).__name__}, not tensors by name. Is it the right file?")
    yield from ((str(name), tensor) for name, tensor in state.items() if isinstance(tensor, Tensor))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # errors of many classes
        raise WeightsError(f"{shown(path)}: {reason(error)}. Get the file again, or name another.") from error


def _architectures(shapes: Shapes) -> tuple[str, str, tuple[str, ...]]:
    """Returns `layout`, `what` and `architectures` of `Weights`."""
    foreign = foreign_layout(list(shapes))
    shapes = {name.removeprefix("module."): shape for name, shape in shapes.items()}
    shapes = _shapes_of(converted({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}))
    if any(name.endswith("token_embedding.weight") for name in shapes) and any(n.startswith("visual.") for n in shapes):
        maker = foreign[0].name if foreign else "open_clip"
        maker += " with a tower of timm's" if any(name.startswith("visual.trunk.") for name in shapes) else ""
        if "token_ids" in shapes:  # see `expand_vocabulary`
            full = {"token_embedding.weight": (VOCABULARY, shapes["token_embedding.weight"][1])}
            cut = ("token_ids", "token_embedding.unknown")
            shapes = {name: shape for name, shape in shapes.items() if name not in cut} | full
            maker += ", its token table cut to the tokens in use"
        return maker, "a whole CLIP", _clips(shapes)
    if len(shapes.get("patch_embed.proj.weight", ())) == 4 and any(name.startswith("blocks.") for name in shapes):
        meta = "Meta's" if {"mask_token", "storage_tokens", "register_tokens"} & shapes.keys() else "timm's"
        return foreign[0].name if foreign else meta, "a vision tower", _towers(shapes)
    return "not known", "not known", ()


def _clips(shapes: Shapes) -> tuple[str, ...]:
    """Returns the models of open_clip that have these tensors."""
    table = next(shape for name, shape in shapes.items() if name.endswith("token_embedding.weight"))
    custom = any(name.startswith("text.") for name in shapes)
    wanted = shapes if custom else _shapes_of(_custom_text(shapes))
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text = config["text_cfg"]
        if "hf_model_name" in text or (text.get("vocab_size", VOCABULARY), text.get("width", 512)) != table:
            continue
        if not _may_see(config, shapes):
            continue
        with _on_meta():
            model = open_clip.create_model(
                name, pretrained=None, device="meta", pretrained_image=False, pretrained_text=False
            )
        built = dict(model.state_dict())
        if _equal(_shapes_of(built if hasattr(model, "text") else _custom_text(_shapes_of(built))), wanted):
            found.append(name)
    return tuple(found)


def _may_see(config: dict[str, Any], shapes: Shapes) -> bool:
    """Returns whether the vision tower of a config may have these tensors. Only building it gives certainty."""
    vision = config["vision_cfg"]
    if "visual.conv1.weight" not in shapes or "timm_model_name" in vision:
        return "visual.conv1.weight" not in shapes and "timm_model_name" in vision
    width, _, patch, _ = shapes["visual.conv1.weight"]
    tokens = (vision.get("image_size", 224) // patch) ** 2 + 1
    stated = (vision.get("width", 768), vision.get("patch_size", 16), tokens, config["embed_dim"])
    return stated == (width, patch, shapes["visual.positional_embedding"][0], shapes["visual.proj"][1])


def _custom_text(shapes: Shapes) -> dict[str, Tensor]:
    """Returns tensors of these shapes under the names of a model that keeps its text tower under `text`."""
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return dict(open_clip.model.convert_to_custom_text_state_dict(state))


def _towers(shapes: Shapes) -> tuple[str, ...]:
    """Returns the towers with these tensors: those of presets, or else timm's towers of the same width and patch."""
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    ours = [_tower_of(entry.model) for entry in PRESETS.values() if entry.vision_weights and entry.depth == depth]
    found = _fitting(dict.fromkeys(ours), shapes)
    if not found and width in WIDTHS:
        named = timm.list_models([f"vit_*{WIDTHS[width]}*patch{patch}_*", f"eva*{WIDTHS[width]}*patch{patch}_*"])
        found = _fitting([TIMM + name for name in named if _may_place(name, patch, shapes)], shapes)
    return tuple(found)


def _may_place(name: str, patch: int, shapes: Shapes) -> bool:
    """Returns whether a tower of timm's may have a positional embedding of this length."""
    config = timm.models.get_pretrained_cfg(name)
    side = config.input_size[1] if config is not None else 224
    length = shapes["pos_embed"][1] if "pos_embed" in shapes else (side // patch) ** 2
    return 0 <= length - (side // patch) ** 2 <= 8  # class token and registers


def _fitting(towers: Any, shapes: Shapes) -> list[str]:
    found = []
    for tower in towers:
        with _on_meta():
            model = timm.create_model(tower.removeprefix(TIMM), num_classes=0)
        if _equal(_as_timm(shapes, model), _shapes_of(model.state_dict())):
            found.append(tower)
    return found


def _as_timm(shapes: Shapes, model: nn.Module) -> Shapes:
    """Returns the shapes under timm's names, as `load_vision_weights` would load them into this tower."""
    wanted = model.state_dict().keys()
    known = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if known is None or shapes.keys() == wanted or len(shapes) < len(wanted) - 2:
        return shapes
    with _on_meta():
        try:
            return _shapes_of(known({n: torch.empty(s, device="meta") for n, s in shapes.items()}, model))
        except Exception:  # the filter expects other models
            return shapes


def _equal(given: Shapes, wanted: Shapes) -> bool:
    """Returns whether both have the same tensors, apart from the head and the scale and bias of the logits."""
    optional = (*NO_MATTER, "head.weight", "head.bias")
    one, two = ({n: s for n, s in shapes.items() if n not in optional} for shapes in (given, wanted))
    return one == two


def _shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _tower_of(model: str) -> str:
    """Returns the name of a model's architecture: `timm:NAME` for a vision tower alone, else the model's own name."""
    if model.startswith(TIMM):
        return model.partition(".")[0]
    config = open_clip.get_model_config(model) or {}
    vision = config.get("vision_cfg", {})
    alone = "timm_model_name" in vision and not open_clip.list_pretrained_tags_by_model(model)
    return TIMM + vision["timm_model_name"] if alone else model


def _known(digest: str) -> str:
    for entry in SHIPPED:
        if entry.sha256 == digest:
            return f"{entry.file} of {entry.package} {entry.version}"
    for model, tag in open_clip.list_pretrained():
        if digest in open_clip.get_pretrained_cfg(model, tag)["url"]:  # OpenAI's URLs contain the hash
            return f"the published file of {model}, {tag}"
    return ""


def _use(path: Path, what: str, architectures: tuple[str, ...], presets: tuple[str, ...]) -> str:
    if not architectures:
        return ""
    if what == "a vision tower":
        model = presets[0] if presets else architectures[0]
        option = "--model.backbone.preset" if presets else "--model.backbone.weights random --model.backbone.model"
        return f"{option} {model} --model.backbone.vision_weights {path}"
    activation = ""
    if any(f"{name}-quickgelu" in architectures for name in architectures) and not is_torchscript(path):
        activation = " --model.backbone.activation quick_gelu (OpenAI's weights) or gelu: the file does not tell"
    return f"--model.backbone.model {architectures[0]} --model.backbone.weights {path}{activation}"


@contextmanager
def _on_meta() -> Iterator[None]:
    """Models are built without values in this context. open_clip's warnings about missing values are silenced."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            yield
    finally:
        root.setLevel(level)
