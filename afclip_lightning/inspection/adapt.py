"""Adapts a zero-shot head to one product: a memory bank of normal images, and a threshold from their scores."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from afclip_lightning.engine import factory
from afclip_lightning.engine.checkpoint import HEAD_FILE, PACKED, read_checkpoint
from afclip_lightning.heads.card import Card, TrainedOn
from afclip_lightning.heads.file import Head, write_head_file
from afclip_lightning.heads.pack import dated, read_head
from afclip_lightning.inspection.few_normals import FEWEST_HELD_OUT, from_held_out, pixel_tail, unlike_the_rest
from afclip_lightning.inspection.fit_head import Drawn, check, draw, fit
from afclip_lightning.inspection.named_model import calibration_path, find_model
from afclip_lightning.inspection.predictor import DATASET, Predictor, Progress, load
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import UserError
from afclip_runtime.inspection.calibration import ANY_PRODUCT, Calibration, Threshold, is_product, origin
from afclip_runtime.inspection.drift import keep
from afclip_runtime.types import Tiling

FOLDS = 8  # maximum number of folds in which normal images are held out


@dataclass(frozen=True)
class Seen:
    """How images are cut and prepared, and what the product is called. See `load`."""

    tiling: Tiling
    category: str = "object"
    device: str = "auto"
    batch_size: int = 8
    num_workers: int = 0
    white: int | str | None = None


@dataclass(frozen=True)
class Adapted:
    """The result of an adaptation.

    Attributes:
        head: The head file.
        image: Threshold of image scores.
        pixel: Threshold of the values of maps.
        scores: Score of each normal image by a memory without it.
        unlike: Images that score far above the others.
        is_toy: See `Predictor.is_toy`.
    """

    head: Path
    image: Threshold
    pixel: Threshold
    scores: np.ndarray
    unlike: list[int]
    is_toy: bool


@dataclass(frozen=True)
class Recipe:
    """How to build the method of one product.

    Attributes:
        model: `model` section of the method.
        checkpoint: Source of the trained tensors: a zero-shot head, or a method that was adapted before.
        card: Card of the checkpoint.
        head: Trained tensors of the head beside the memory. They replace those of the checkpoint.
    """

    model: dict[str, Any]
    checkpoint: Mapping[str, Any] | None = None
    card: Card = field(default_factory=Card)
    head: Mapping[str, Tensor] | None = None

    def build(self, arguments: Mapping[str, Any], backbones: factory.Backbones) -> AnomalyMethod:
        """Returns the method with an empty memory, in eval mode on the CPU.

        Raises:
            UserError: An argument is wrong, or the head does not fit the method.
        """
        method = factory.build(self.model, arguments, backbones)
        if self.checkpoint is not None:
            adapted_before = _short(self.checkpoint["method"]) == _short(self.model["class_path"])
            part = method if adapted_before else method.head
            assert part is not None  # named by the recipe
            factory.restore(part, {**self.checkpoint, "memory": {}})
        if self.head is not None:
            assert method.head is not None  # it was fitted
            method.head.load_state_dict(dict(self.head), strict=False)
        return method


def recipe_of(name: str, arguments: Mapping[str, Any]) -> Recipe:
    """Returns how to build the method of one product from a model.

    A method that trains nothing and takes few-shot images is used as it is. Any other model is a zero-shot head. It is
    combined with a memory of the layers that it taps, in the method that `holds_head`.

    Args:
        name: A checkpoint, a head file, the folder of one, a config, or the name of a ready model or of a method.
        arguments: Constructor arguments that replace the model's.

    Raises:
        UserError: The model cannot be read.
    """
    found = find_model(name)
    if isinstance(found, str):
        model: dict[str, Any] = {"class_path": found}
    elif found.suffix in factory.CONFIG_SUFFIXES:
        model = factory.read_model(found, arguments)
    else:
        head = read_head(found)
        given = factory.with_arguments(head.model, arguments)
        if head.tensors and not factory.method_class(_short(head.method)).holds_head:
            return Recipe(_beside(head.method, given, head.features.layers), read_checkpoint(found), head.card)
        kept = {"class_path": _short(head.method), "init_args": given}
        return Recipe(kept, read_checkpoint(found) if head.tensors else None, head.card)
    cls, given = factory.method_class(model["class_path"]), factory.with_arguments(model, arguments)
    if cls.judges_with_few_shot():
        return Recipe({"class_path": model["class_path"], "init_args": given})
    return Recipe(_beside(cls.__name__, given, given.get("layers")))


def _beside(method: str, given: dict[str, Any], layers: Sequence[int] | None) -> dict[str, Any]:
    """Returns the `model` section of a head beside a memory, from the head's arguments."""
    own = {name: value for name, value in given.items() if name != "backbone"}
    if own.get("k_shot"):
        own["k_shot"] = 0  # here the head judges an image without few-shot images
    arguments = {"head": _short(method), "head_arguments": own}
    taps = {"layers": list(layers)} if layers else {}
    holder = next(name for name, cls in factory.methods().items() if cls.holds_head)
    return {"class_path": holder, "init_args": {"backbone": given.get("backbone") or {}, **taps, **arguments}}


def _short(method: str) -> str:
    return method.rpartition(".")[2]


def adapt(
    recipe: Recipe,
    normal: Sequence[Path],
    out: Path,
    seen: Seen,
    fpr: float,
    pixel_fpr: float,
    progress: Progress,
    fit_seed: int | None = None,
) -> Adapted:
    """Makes a model of one product and writes it: the head file with the memory, and its calibration beside it.

    The threshold comes from held-out scores. The images are divided into at most `FOLDS` folds, and each fold is scored
    by a memory of the other folds (and by a head fitted on them, with `fit_seed`). The final memory holds all images. A
    new normal image therefore scores slightly lower than the held-out ones did, and the threshold gives fewer false
    alarms rather than more.

    Args:
        recipe: Result of `recipe_of`.
        normal: Normal images, without repeats.
        out: Output folder.
        seen: How images are cut and prepared.
        fpr: Share of normal images that the threshold may call anomalous, in (0, 1).
        pixel_fpr: Share of the pixels of their maps that the pixel threshold may call anomalous.
        progress: Wraps a loop, given its items and their number, and shows its progress.
        fit_seed: Seed of the pseudo-anomalies that the head is trained on. `None` does not train the head.

    Raises:
        UserError: There are too few images, an image cannot be read, the head cannot be trained, or the folder cannot
            be written.
    """
    if len(normal) < FEWEST_HELD_OUT:
        raise UserError(
            f"{normal[0] if normal else 'the folder'}: one normal image is too few: a threshold needs a second one to "
            "compare with. Give at least two different images; four are a start."
        )
    backbones: factory.Backbones = {}
    parts = _Parts(recipe, normal, seen, backbones, progress, fit_seed)
    model = parts.model(range(len(normal)), progress)
    method, key = model.method, (DATASET, seen.category)
    product = product_of(out, seen.category)
    assert method.memory is not None  # the method takes few-shot images
    whole = method.memory
    whole.keep(whole.to_tensors(key))  # rounded as in the file
    scores, pixel = _held_out(model, normal, parts, seen.num_workers, pixel_fpr, progress)
    image = from_held_out(scores, fpr)
    method.memory = whole
    written = out / PACKED
    arguments = {**recipe.model["init_args"], "k_shot": len(normal)}
    for file in (out / HEAD_FILE, calibration_of(out)):  # left by an earlier run: they would not fit the new model
        with suppress(FileNotFoundError):
            file.unlink()
    write_head_file(
        written,
        Head(
            method.state_dict(),
            f"{type(method).__module__}.{type(method).__qualname__}",
            _plain(method.hparams),
            method.spec,
            {"class_path": recipe.model["class_path"], "init_args": arguments},
            card_of(recipe.card, normal, product, parts.drawn),
            whole.to_tensors(key),
        ),
    )
    ready = load(
        written,
        device=seen.device,
        tiling=seen.tiling,
        category=seen.category,
        calibration=None,
        white=None if model.white is None else model.white,
        backbones=backbones,
    )
    made = origin(product, str(normal[0].parent), len(normal))
    kept = keep(scores, held_out=True)
    Calibration(image, pixel, ready.checkpoint, ready.settings, made, kept).save(calibration_of(out))
    return Adapted(written, image, pixel, scores, unlike_the_rest(scores), ready.is_toy)


def product_of(out: Path, category: str) -> str:
    """Returns the name of the product: the category, or the name of the output folder for a category without a name."""
    name = out.resolve().name
    return name if category == ANY_PRODUCT and is_product(name) else category


def calibration_of(out: Path) -> Path:
    """Returns the path of the calibration of an adapted model."""
    place = calibration_path(out / PACKED)
    assert place is not None  # a file's has a place
    return place


class _Parts:
    """Makes models from parts of the normal images. With `fit_seed` the head is fitted on the same part.

    Raises:
        UserError: An image cannot be read, or the head cannot be trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        normal: Sequence[Path],
        seen: Seen,
        backbones: factory.Backbones,
        progress: Progress,
        fit_seed: int | None,
    ) -> None:
        self.recipe, self.normal, self.seen, self.backbones = recipe, normal, seen, backbones
        self.fit_seed = 0 if fit_seed is None else fit_seed
        self.drawn: Drawn | None = None
        if fit_seed is not None:
            model = self._predictor(recipe)
            head = check(model.method.head)
            self.drawn = draw(head, [(path, model.views(path)) for path in normal], seen.category, fit_seed, progress)

    def _predictor(self, recipe: Recipe) -> Predictor:
        seen = self.seen
        model = Predictor(
            lambda more: recipe.build(more, self.backbones), seen.tiling, seen.category, seen.device, seen.batch_size
        )
        if seen.white is not None:
            model.white = None if seen.white == "bits" else int(seen.white)
        return model

    def model(self, images: Sequence[int], progress: Progress | None = None) -> Predictor:
        """Returns the model of some of the normal images, given by number. No other image influences it."""
        recipe = self.recipe
        if self.drawn is not None:
            head = self._predictor(recipe).method.head
            assert head is not None  # `check` has tested this
            fit(head, self.drawn, images, self.fit_seed)
            recipe = replace(recipe, head=head.state_dict())
        model = self._predictor(recipe)
        model.fit_few_shot([self.normal[i] for i in images], progress)
        return model


def _held_out(
    model: Predictor, normal: Sequence[Path], parts: _Parts, num_workers: int, pixel_fpr: float, progress: Progress
) -> tuple[np.ndarray, Threshold]:
    """Returns the score of each image by a model without it, and the threshold of the maps.

    Raises:
        UserError: An image cannot be read.
    """
    whole, key = model.method.memory, (DATASET, model.category)
    assert whole is not None
    scores, tail = np.zeros(len(normal)), pixel_tail(len(normal), pixel_fpr)
    folds = [list(range(first, len(normal), FOLDS)) for first in range(min(FOLDS, len(normal)))]

    def outcomes() -> Iterable[tuple[int, Any]]:
        for fold in folds:
            if parts.drawn is None:
                part = model
                part.method.memory = whole.without(key, fold)
            else:
                part = parts.model([i for i in range(len(normal)) if i not in fold])
            for index, outcome in part.stream([normal[i] for i in fold], num_workers, keep_images=False):
                yield fold[index], outcome

    for index, outcome in progress(outcomes(), len(normal)):
        if isinstance(outcome, UserError):
            raise outcome
        scores[index] = outcome.score
        tail.add(outcome.inspected)
    return scores, tail.threshold()


def card_of(base: Card, normal: Sequence[Path], product: str, drawn: Drawn | None) -> Card:
    """Returns the card of an adapted model: the head's card without its results and thresholds (no longer valid)."""
    images = [TrainedOn(dataset=f"normal images in {normal[0].parent.name}", images=len(normal))]
    if drawn is not None:
        images.append(TrainedOn(dataset="pseudo-anomalies drawn onto these", images=int(drawn.marked.sum())))
    limits = (f"It knows one product ({product}), as these {len(normal)} normal images show it.", *base.limits)
    card = msgspec.structs.replace(
        base,
        title=f"{base.title or 'A memory'}, adapted to {len(normal)} normal images",
        trained_on=(*base.trained_on, *images),
        results=(),
        thresholds=None,
        limits=limits,
        version="",
        date="",
    )
    return dated(card)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns plain values with the types of JSON."""
    plain: dict[str, Any] = msgspec.to_builtins(dict(values))
    return plain
