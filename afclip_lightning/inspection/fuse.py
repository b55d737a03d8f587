"""Fuses several heads into one head file: their tensors, and their scales from normal images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from afclip_lightning.engine import factory
from afclip_lightning.engine.presets import tap_arguments
from afclip_lightning.heads.card import Card, TrainedOn
from afclip_lightning.heads.file import Head, write_head_file
from afclip_lightning.heads.pack import dated
from afclip_lightning.inspection.named_model import build_model, card_of, find_model
from afclip_lightning.inspection.predictor import Predictor, Progress
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import UserError, shown
from afclip_runtime.types import Tiling

FUSION = "Fusion"


def fuse(
    names: Sequence[str],
    normal: Sequence[Sequence[Path]],
    out: Path,
    progress: Progress,
    arguments: dict[str, Any] | None = None,
    category: str = "object",
    device: str = "auto",
) -> Path:
    """Writes a fusion of heads as one self-contained head file, and returns it.

    Args:
        names: Name of each head: a checkpoint, a head file or its folder, another project's head, a config of a method
            that trains nothing, a ready model, or a method. A method is built on the backbone of the first head, and
            taps it at the relative depths of its paper.
        normal: Normal images, grouped by what they show. Differences between groups do not count as noise.
        out: Head file to write.
        progress: Wraps the loop over the images, given its items and their number, and shows its progress.
        arguments: Constructor arguments that replace those of the heads, usually of the backbone.
        category: Name of the product in prompts.
        device: See `predictor.load`.

    Raises:
        UserError: A head or an image cannot be read, the heads cannot share a backbone pass, a head needs more than one
            image, there are too few images, or the file cannot be written.
    """
    backbones: factory.Backbones = {}
    heads: list[AnomalyMethod] = []
    for name in names:
        found = find_model(name)
        shared = _like_the_first(found, heads[0], backbones) if isinstance(found, str) and heads else {}
        heads.append(build_model(found, {**shared, **(arguments or {})}, backbones))
    _check_backbones(names, heads)
    model = {
        "class_path": FUSION,
        "init_args": {
            "backbone": next(
                factory.backbone_arguments(key) for key, known in backbones.items() if known is heads[0].backbone
            ),
            "heads": [{"method": type(head).__name__, "arguments": _plain(head.hparams)} for head in heads],
        },
    }
    predictor = Predictor(lambda more: _fused(model, heads, backbones), Tiling(), category, device, 1)
    fusion: Any = predictor.method  # built by name: this module imports no method
    groups: list[list[Tensor]] = [[] for _ in normal]
    every = [(group, path) for group, images in zip(groups, normal, strict=True) for path in images]
    with torch.inference_mode():
        for group, path in progress(every, len(every)):
            batch = predictor.engine.batch_of(predictor.views(path))
            group.append(fusion.statistics_of(fusion.extract(batch), batch).cpu())
    fusion.take_normal([torch.cat(group) for group in groups if group])
    write_head_file(
        out,
        Head(
            fusion.state_dict(),
            f"{type(fusion).__module__}.{type(fusion).__qualname__}",
            _plain(fusion.hparams),
            fusion.spec,
            model,
            _card(names, normal),
        ),
    )
    return out


def _like_the_first(method: str, head: AnomalyMethod, backbones: factory.Backbones) -> dict[str, Any]:
    """Returns arguments for a method that is given by name: the first head's backbone, and taps of its own depth."""
    backbone = factory.backbone_arguments(next(iter(backbones)))
    taps = tap_arguments(factory.method_class(method), head.backbone.vision.depth)
    return {f"backbone.{key}": value for key, value in backbone.items()} | taps


def _check_backbones(names: Sequence[str], heads: Sequence[AnomalyMethod]) -> None:
    """Raises if the heads do not use the same backbone.

    Raises:
        UserError: The backbones differ. The message names the differences.
    """
    first = heads[0].spec.untapped
    for name, head in zip(names[1:], heads[1:], strict=True):
        if problems := first.differences(head.spec.untapped.to_dict(), (f"of {shown(names[0])}", f"of {shown(name)}")):
            raise UserError(
                f"{shown(name)} uses another backbone than {shown(names[0])}. Fused heads share one backbone:\n  "
                + "\n  ".join(problems)
            )


def _fused(model: dict[str, Any], heads: Sequence[AnomalyMethod], backbones: factory.Backbones) -> AnomalyMethod:
    """Returns the fusion with the tensors of its heads, in eval mode."""
    fusion: Any = factory.build(model, None, backbones)
    for own, head in zip(fusion.members, heads, strict=True):
        kept: dict[str, Any] = {head.CHECKPOINT_HYPER_PARAMS_KEY: dict(head.hparams), "state_dict": head.state_dict()}
        head.on_save_checkpoint(kept)
        factory.restore(own, kept)
    return fusion  # type: ignore[no-any-return]


def _card(names: Sequence[str], normal: Sequence[Sequence[Path]]) -> Card:
    """Returns the card of a fusion: the training data of its heads and the source of its scales."""
    cards = [card for card in (card_of(find_model(name)) for name in names) if card is not None]
    folders = {images[0].parent: len(images) for images in normal if images}
    scales = [TrainedOn(dataset=f"scales: normal images in {at.name}", images=count) for at, count in folders.items()]
    return dated(
        Card(
            title=f"A fusion of {', '.join(Path(name).name for name in names)}",
            trained_on=(*(part for card in cards for part in card.trained_on), *scales),
            limits=tuple(dict.fromkeys(limit for card in cards for limit in card.limits)),
            licence="; ".join(dict.fromkeys(card.licence for card in cards if card.licence)),
            sources=tuple(dict.fromkeys(source for card in cards for source in card.sources)),
        )
    )


def _plain(values: Any) -> dict[str, Any]:
    """Returns plain values with the types of JSON."""
    plain: dict[str, Any] = msgspec.to_builtins(dict(values))
    return plain
