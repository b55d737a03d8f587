"""Tokenizers of text towers: CLIP's, which comes with open_clip, and tokenizers of the hub or in a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from afclip_lightning.backbones.archives import reason
from afclip_lightning.backbones.sources import downloading
from afclip_runtime.errors import UserError, WeightsError, shown

Pooling = Literal["argmax", "eos", "last"]
EXTRA = "pip install 'afclip_lightning[hub]'"
NEEDED = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Tokenizer:
    """Turns prompts into token ids, and finds the end of each.

    Attributes:
        encode: open_clip's tokenizer.
        pooling: Position of the prompt's embedding: that of the largest id (CLIP), of the first end-of-text token
            (MetaCLIP 2), or the last position (SigLIP).
        eos_id: Id of the end-of-text token, for `eos`.
    """

    encode: Callable[..., Tensor]
    pooling: Pooling
    eos_id: int

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Returns token ids `[K, context_length]`, int64, padded.

        Raises:
            UserError: A prompt exceeds the context length of the text tower.
        """
        ids = self.encode(list(prompts))
        length = ids.shape[1]
        ends = self.ends(ids)
        for row in (ends >= length - 2).nonzero().flatten().tolist():  # full, or silently truncated
            if self.ends(self.encode([prompts[row]], context_length=length + 1))[0] > ends[row]:
                raise UserError(
                    f"The text tower takes {length} tokens, and this prompt has more: {shown(prompts[row][:80])!r}… "
                    "Give its category a shorter class name (`class_names` of the dataset), or shorten the sentence."
                )
        return ids

    def ends(self, ids: Tensor) -> Tensor:
        """Returns the position of the end-of-text token per prompt, the last before the padding, `[K]`.

        Args:
            ids: `[K, T]`.
        """
        if self.pooling == "argmax":
            return ids.argmax(dim=1)  # CLIP's end token has the largest id
        if self.pooling == "eos":
            return (ids == self.eos_id).int().argmax(dim=1)
        pad = self._id("pad") or 0  # CLIP's own tokenizer pads with 0
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        last = places.where(ids != pad, 0).amax(dim=1)
        return (last + 1).clamp(max=ids.shape[1] - 1) if self._id("eos") == pad else last

    def word(self, token_id: int) -> str:
        """Returns the word, or the part of a word, of a token id."""
        return str(self._inner.decode([token_id])).strip()

    @property
    def _inner(self) -> Any:
        return getattr(self.encode, "tokenizer", self.encode)  # open_clip wraps the tokenizers of Hugging Face

    def _id(self, kind: Literal["pad", "eos"]) -> int | None:
        found: int | None = getattr(self._inner, f"{kind}_token_id", None)
        return found


@lru_cache
def load_tokenizer(model: str, folder: str | None, cache_dir: str | None) -> Callable[..., Tensor]:
    """Returns the tokenizer of a model of open_clip. It is cached, as it reads a vocabulary of at least 49,408 words.

    Args:
        model: open_clip's name of an architecture.
        folder: Folder with the files of a tokenizer. By default CLIP's tokenizer, or that of the hub.
        cache_dir: Folder of downloads. The default is the hub's.

    Raises:
        WeightsError: The tokenizer is not available. The message says how to use a folder.
        UserError: The package that reads it is not installed.
    """
    text = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
    name = text.get("hf_tokenizer_name")
    if not name:
        if folder is not None:
            raise ValueError(f"{model} has CLIP's own tokenizer, got tokenizer: {folder}; leave it out")
        own: Callable[..., Tensor] = open_clip.get_tokenizer(model)
        return own
    if find_spec("transformers") is None:
        raise UserError(f"{model}: its tokenizer ({name}) is read by the package transformers. Install it: {EXTRA}.")
    options = {"context_length": text.get("context_length"), "tokenizer_mode": text.get("tokenizer_mode")}
    options |= text.get("tokenizer_kwargs", {})
    if folder is None:
        with downloading(f"The tokenizer of {model} ({name})", _way(name)):
            return HFTokenizer(name, cache_dir=cache_dir, **options)
    missing = [file for file in NEEDED if not (Path(folder) / file).is_file()]
    if missing:
        raise WeightsError(f"{folder}, the folder of the tokenizer, has no {' and no '.join(missing)}. {_way(name)}")
    try:
        found = HFTokenizer(str(folder), local_files_only=True, **options)
    except Exception as error:  # a file that is not valid JSON, or is made for another version
        raise WeightsError(f"{folder}: its tokenizer cannot be read ({reason(error)}). {_way(name)}") from error
    if found.tokenizer.pad_token_id is None:
        raise WeightsError(f"{folder}/tokenizer_config.json names no `pad_token`. {_way(name)}")
    return found


def _way(name: str) -> str:
    return (
        f"On a machine without internet, copy {', '.join(NEEDED)} and, if it is there, special_tokens_map.json from "
        f"https://huggingface.co/{name} into a folder, and name it: --model.backbone.tokenizer DIR."
    )
