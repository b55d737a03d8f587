"""Formats of other projects' trained heads, and the reader of their tensors for converters."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afclip_lightning.backbones.archives import is_finite
from afclip_lightning.backbones.building import Activation
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import PosEmbedResize

ALIKE = 1e-2  # tolerance of word embeddings relative to their norm, because a file may have half precision


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt in a file beside its learnable tokens. It identifies the CLIP on which these were trained.

    Attributes:
        words: Words after the learnable tokens, in our method.
        ids: Token ids `[T]`. The ids of the learnable tokens are arbitrary.
        learnable: Number of learnable tokens, after the start token.
        embeddings: CLIP's embeddings of all other tokens, `[T - learnable, width]`.
    """

    words: str
    ids: Tensor
    learnable: int
    embeddings: Tensor

    def check(self, backbone: ClipBackbone) -> None:
        """Compares the words and their embeddings with a backbone's.

        Raises:
            ValueError: The words or embeddings differ.
        """
        expected = backbone.tokenize([self.words])[0].cpu()
        expected = expected[: len(expected) - self.learnable]
        found = torch.cat([self.ids[:1], self.ids[1 + self.learnable :]]).to(expected)
        if not torch.equal(found, expected):
            raise ValueError(f"a prompt in it has other words than {self.words!r}, or was made by another tokenizer")
        own = backbone.text.token_embedding(expected.to(backbone.text.token_embedding.weight.device)).cpu().float()
        if own.shape != self.embeddings.shape or (own - self.embeddings).norm() > ALIKE * own.norm():
            raise ValueError("the embeddings of its words are those of another CLIP")


@dataclass(frozen=True)
class Converted:
    """The converted contents of a file.

    Attributes:
        tensors: Trained tensors, with the names of our method.
        arguments: Arguments of the method, from the shapes.
        prompts: Prompts that identify the backbone.
        left_out: Names of unused tensors.
        known: Further facts in the file, by fields of `heads.card.Card`.
    """

    tensors: Mapping[str, Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[StoredPrompt] = ()
    left_out: Sequence[str] = ()
    known: Mapping[str, Any] = field(default_factory=dict)


def papers_backbone(pos_embed: PosEmbedResize, activation: Activation) -> dict[str, Any]:
    """Returns the backbone arguments common to the papers' code, with the given ones in which they differ."""
    return {
        "model": "ViT-L-14-336",
        "weights": "openai",
        "image_size": 518,
        "pos_embed": pos_embed,
        "activation": activation,
    }


def alone(path: Path) -> tuple[Path, ...]:
    """Returns the files of a head that consists of one file."""
    return (path,)


@dataclass(frozen=True)
class Format:
    """The format in which a project's code writes trained heads. Files are recognised by their keys.

    Attributes:
        method: Our class for these heads.
        project: Repository whose code wrote them.
        weights: Where the project offers trained heads, and their training data.
        licence: Licence of the heads as stated by the project.
        backbone: Arguments of the backbone that its code fixes and no file holds.
        arguments: Arguments of the method that its code fixes and no file holds, in place of our defaults.
        recognises: Whether the contents of a file have the format, or a part of it.
        convert: Converts the contents of the files, in the order of `files`, to our tensors. It raises `ValueError` if
            a tensor is absent, unknown or of another shape.
        files: Returns the files of the head, given one of them. It raises `ValueError` if its name leads to no other.
        classes: Full names of classes whose pickled objects are modules that hold tensors.
    """

    method: str
    project: str
    weights: str
    licence: str
    backbone: Mapping[str, Any]
    arguments: Mapping[str, Any]
    recognises: Callable[[Any], bool]
    convert: Callable[[Sequence[Any]], Converted]
    files: Callable[[Path], tuple[Path, ...]] = alone
    classes: tuple[str, ...] = ()


def only(content: Mapping[str, Any], name: str) -> Any:
    """Returns the only entry of a file.

    Raises:
        ValueError: There are other entries, which would be dropped silently.
    """
    if others := sorted(map(str, content.keys() - {name})):
        raise ValueError(f"holds an entry that is not known here: {others[0]}")
    return content[name]


class Tensors:
    """The tensors of a file by name. Each is taken once, and tensors left at the end are unknown.

    Args:
        state: Tensors by name.

    Raises:
        ValueError: The state does not hold tensors by name.
    """

    def __init__(self, state: Any) -> None:
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise ValueError("holds no tensors by name where a head has them")
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} is not a tensor")
        self.left: dict[str, Tensor] = dict(state)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Returns a tensor of floating-point numbers in float32.

        Args:
            name: Name in the file.
            shape: Shape of the tensor; `None` for any length.

        Raises:
            ValueError: The tensor is absent, has another shape or type, or is not finite.
        """
        tensor = self._take(name, shape)
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise ValueError(f"{name} holds other values than finite floating-point numbers")
        return tensor.detach().float()

    def take_ids(self, name: str, *shape: int | None) -> Tensor:
        """Returns a tensor of whole numbers; see `take`."""
        tensor = self._take(name, shape)
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} does not hold whole numbers")
        return tensor.long()

    def take_all(self, name: str, *shape: int | None) -> list[Tensor]:
        """Returns tensors that are numbered from 0, in the order of their numbers.

        Args:
            name: Name in the file, with `{}` for the number.
            shape: See `take`.

        Raises:
            ValueError: A number is absent. See also `take`.
        """
        pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))
        numbers = sum(bool(pattern.fullmatch(found)) for found in self.left)
        return [self.take(name.format(number), *shape) for number in range(numbers)]

    def take_prompts(self, state: str, words: str, copies: int, learnable: int, width: int) -> list[StoredPrompt]:
        """Returns the prompts of one state, from the buffers of AnomalyCLIP's code and its descendants.

        Args:
            state: `pos` or `neg`.
            words: See `StoredPrompt`.
            copies: Number of prompts.
            learnable: See `StoredPrompt`.
            width: Width of the text tower.

        Raises:
            ValueError: See `take`.
        """
        start = self.take(f"token_prefix_{state}", 1, copies, 1, width)[0]
        rest = self.take(f"token_suffix_{state}", 1, copies, None, width)[0]
        length = learnable + 1 + rest.shape[1]
        ids = self.take_ids(f"tokenized_prompts_{state}", 1, copies, length)[0]
        return [StoredPrompt(words, ids[i], learnable, torch.cat([start[i], rest[i]])) for i in range(copies)]

    def take_deep(self, width: int) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Returns the deep tokens of the same code, one row per block, and the arguments that follow from them.

        The first result is empty without deep tokens. Their projections are left out, because nothing uses them.

        Args:
            width: Width of the text tower.

        Raises:
            ValueError: Blocks have different numbers of deep tokens. See also `take_all`.
        """
        blocks = self.take_all("compound_prompts_text.{}", None, width)
        if not blocks:
            return {}, {"prompt_depth": 1}
        if any(len(tokens) != len(blocks[0]) for tokens in blocks):
            raise ValueError("has different numbers of deep tokens in its blocks")
        return {"deep.tokens": torch.stack(blocks)}, {"prompt_depth": 1 + len(blocks), "deep_tokens": len(blocks[0])}

    def leave(self, start: str) -> list[str]:
        """Takes the unused tensors whose names begin with `start`, and returns their names."""
        names = [name for name in self.left if name.startswith(start)]
        for name in names:
            del self.left[name]
        return names

    def end(self) -> None:
        """Raises if a tensor is left.

        Raises:
            ValueError: A tensor was not taken, and would be dropped silently.
        """
        if self.left:
            more = f" and {len(self.left) - 3} more" if len(self.left) > 3 else ""
            raise ValueError(f"holds a tensor that is not known here: {', '.join(sorted(self.left)[:3])}{more}")

    def _take(self, name: str, shape: Sequence[int | None]) -> Tensor:
        if name not in self.left:
            raise ValueError(f"has no {name}")
        tensor = self.left.pop(name)
        fits = tensor.dim() == len(shape) and all(
            length > 0 and wanted in (None, length) for length, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("…" if length is None else str(length) for length in shape)
            raise ValueError(f"{name} is of shape {list(tensor.shape)}, not [{wanted}]")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} names more values than the file holds")
        return tensor
