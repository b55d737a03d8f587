"""Learnable prompt tokens, and the nearest words of the vocabulary."""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from afclip_lightning.backbones.clip import ClipBackbone


def embed_words(backbone: ClipBackbone, words: str, room: int) -> tuple[Tensor, int]:
    """Returns token embeddings `[T, width]` of `[SOT] words [EOT]`, without gradient, and the position of `[EOT]`.

    With a causal text tower, the sequence ends at `[EOT]`. Otherwise it is padded to the context length minus `room`.

    Args:
        backbone: The backbone whose text tower is used.
        words: The words of a prompt.
        room: Number of positions to leave for learnable tokens.

    Raises:
        ValueError: Words and learnable tokens do not fit in the context length, or `room` is negative.
    """
    if room < 0:
        raise ValueError(f"learnable tokens must not be negative, got {room}")
    ids = backbone.tokenize([words])[0]
    end = int(backbone.ends(ids[None]))
    if room + end >= backbone.text.context_length:
        raise ValueError(
            f"{words!r} and {room} learnable tokens must fit in the context length {backbone.text.context_length}, "
            f"got {room + end + 1} positions"
        )
    length = end + 1 if backbone.text.is_causal else backbone.text.context_length - room
    embeddings: Tensor = backbone.text.token_embedding(ids[:length]).detach()
    return embeddings, end


class WordTokens(nn.Module):
    """A module with learnable tokens at positions of words, which can be compared with the vocabulary.

    Attributes:
        word_tokens: Names of the parameters with such tokens, `[prompts, tokens, width]`.
    """

    word_tokens: ClassVar[tuple[str, ...]]


class StatePrompts(WordTokens):
    """Learnable tokens, shared by all states, before the words of each state: `[V1] … [Vn] [SOT] words [EOT]`.

    The learnable tokens precede the start token, as in the official code.

    Args:
        backbone: The backbone whose text tower is used. It is not stored.
        states: The words of each state, for example normal and abnormal.
        n_tokens: Number of learnable tokens.
        init_std: Standard deviation of the tokens' initial values.

    Raises:
        ValueError: Words and learnable tokens do not fit in the context length.

    Reference: AF-CLIP, Eq. (8).
    """

    word_tokens = ("tokens",)
    embeddings: Tensor
    end: Tensor

    def __init__(self, backbone: ClipBackbone, states: Sequence[str], n_tokens: int, init_std: float) -> None:
        super().__init__()
        words = [embed_words(backbone, state, n_tokens) for state in states]
        embeddings = pad_sequence([embedded for embedded, _ in words], batch_first=True)  # [K, T, width]
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.register_buffer("end", n_tokens + torch.tensor([end for _, end in words]), persistent=False)
        self.tokens = nn.Parameter(init_std * torch.randn(1, n_tokens, backbone.text.width))

    def forward(self, backbone: ClipBackbone) -> Tensor:
        """Returns the text embeddings of the states, `[K, D]`, not normalised."""
        prefix = self.tokens.expand(len(self.embeddings), -1, -1)
        shared = 1 + self.tokens.shape[1]  # the learnable tokens, and the start token
        embedded: Tensor = backbone.text(torch.cat([prefix, self.embeddings], dim=1), self.end, shared=shared)
        return embedded


class DeepTokens(nn.Module):
    """Deep text tokens: learnable tokens after the start token of every prompt, new ones per block from the second.

    They overwrite the tokens at these positions. The sequence keeps its length.

    Args:
        backbone: The backbone whose text tower is used. It is not stored.
        depth: Number of blocks with learnable input, at least 2. The first block has the prompt's own tokens.
        n_tokens: Tokens per block.
        init_std: Standard deviation of the tokens' initial values.
        half: Whether tokens are rounded to 16-bit floats, as in the official codes of AnomalyCLIP and FAPrompt. In
            training, the gradient that each prompt contributes is rounded as well.

    Raises:
        ValueError: `depth` is less than 2, or larger than the depth of the text tower.

    Reference: AnomalyCLIP, Sec. 3.2. The official codes overwrite tokens, where the paper speaks of attaching.
    """

    def __init__(
        self, backbone: ClipBackbone, depth: int = 9, n_tokens: int = 4, init_std: float = 0.02, half: bool = False
    ) -> None:
        super().__init__()
        if not 2 <= depth <= backbone.text.depth:
            raise ValueError(
                f"deep text tokens need a depth within 2 to {backbone.text.depth}, or 1 for none of them, got {depth}"
            )
        self.rounded = half
        self.tokens = nn.Parameter(init_std * torch.randn(depth - 1, n_tokens, backbone.text.width))

    @classmethod
    def of_depth(
        cls, backbone: ClipBackbone, depth: int, n_tokens: int, init_std: float, half: bool
    ) -> "DeepTokens | None":
        """Returns deep tokens for this number of blocks with learnable input.

        `None` for one block, which needs none.
        """
        return None if depth == 1 else cls(backbone, depth, n_tokens, init_std, half)

    def forward(self, prompts: int) -> tuple[Tensor, ...]:
        """Returns the tokens per block, `[n, width]`, or `[K, n, width]` where each prompt needs its own copy.

        The official codes copy the tokens for each prompt and then round. In the backward pass, the gradient of each
        prompt is rounded before the sum. Rounding the sum once instead differs by up to 0.05 % of it.

        Args:
            prompts: K, number of prompts.
        """
        if not self.rounded:
            return self.tokens.unbind()
        tokens: Tensor = self.tokens
        if torch.is_grad_enabled():
            tokens = tokens[:, None].expand(-1, prompts, -1, -1)
        return tokens.half().to(tokens).unbind()


class ObjectPrompts(WordTokens):
    """One normal and K abnormal prompts that name no product: `[SOT] [V1] … [Vn] words [EOT]`.

    The abnormal ones are `[SOT] [A1] … [Am] words [EOT]` or, compound, `[SOT] [V1] … [Vn] [A1] … [Am] words [EOT]` with
    the tokens V of the normal one.

    Args:
        backbone: The backbone whose text tower is used. It is not stored.
        normal_words: Words after the tokens of the normal prompt.
        abnormal_words: Words after the tokens of the abnormal prompts.
        n_normal_tokens: Number of learnable tokens V.
        n_abnormal_tokens: Number of learnable tokens A per abnormal prompt.
        n_abnormal_prompts: K, number of abnormal prompts.
        compound: Whether abnormal prompts start with the tokens of the normal prompt.
        deep: Deep tokens that all prompts share.
        init_std: Standard deviation of the tokens' initial values.

    Raises:
        ValueError: A number is below 1, or the prompts do not fit in the context length.

    Reference: FAPrompt, Eq. (1).
    """

    word_tokens = ("normal_tokens", "abnormal_tokens")
    normal_words: Tensor
    abnormal_words: Tensor
    end: Tensor

    def __init__(
        self,
        backbone: ClipBackbone,
        normal_words: str,
        abnormal_words: str,
        n_normal_tokens: int,
        n_abnormal_tokens: int,
        n_abnormal_prompts: int = 1,
        compound: bool = True,
        deep: DeepTokens | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if min(n_normal_tokens, n_abnormal_tokens, n_abnormal_prompts) < 1:
            raise ValueError(
                f"numbers of tokens and prompts must be at least 1, got {n_normal_tokens} normal and "
                f"{n_abnormal_tokens} abnormal tokens, {n_abnormal_prompts} abnormal prompts"
            )
        self.compound = compound
        abnormal_room = n_abnormal_tokens + (n_normal_tokens if compound else 0)
        normal, normal_end = embed_words(backbone, normal_words, n_normal_tokens)
        abnormal, abnormal_end = embed_words(backbone, abnormal_words, abnormal_room)
        ends = [n_normal_tokens + normal_end] + [abnormal_room + abnormal_end] * n_abnormal_prompts
        self.register_buffer("normal_words", normal, persistent=False)  # [T, width]
        self.register_buffer("abnormal_words", abnormal, persistent=False)
        self.register_buffer("end", torch.tensor(ends), persistent=False)  # [1 + K]
        width = backbone.text.width
        self.normal_tokens = nn.Parameter(init_std * torch.randn(1, n_normal_tokens, width))
        self.abnormal_tokens = nn.Parameter(init_std * torch.randn(n_abnormal_prompts, n_abnormal_tokens, width))
        self.deep = deep

    def forward(self, backbone: ClipBackbone) -> Tensor:
        """Returns the text embeddings `[1 + K, D]`, the normal one first, not normalised, in one pass."""
        return embed_together(backbone, [self])[0]

    def prompts(self) -> Tensor:
        """Returns the prompts `[1 + K, T, width]`, the normal one first."""
        normal = fill_gap(self.normal_words, self.normal_tokens)
        abnormal = self._abnormal(self.abnormal_tokens)
        length = max(normal.shape[1], abnormal.shape[1])
        return torch.cat([F.pad(prompts, (0, 0, 0, length - prompts.shape[1])) for prompts in (normal, abnormal)])

    def normal(self, backbone: ClipBackbone, copies: int) -> Tensor:
        """Returns copies of the embedding of the normal prompt, `[copies, 1, D]`, in one pass.

        Each copy is embedded by itself: in training with rounded deep tokens, the gradient of each copy is rounded.
        """
        prompts = fill_gap(self.normal_words, self.normal_tokens).expand(copies, -1, -1)
        return self.embed(backbone, prompts, self.end[:1].expand(copies))[:, None]

    def adapted(self, backbone: ClipBackbone, prior: Tensor) -> Tensor:
        """Returns the embeddings of the abnormal prompts, `[B, K, D]`, with a prior added to every abnormal token.

        It takes one pass.

        Args:
            backbone: The backbone that the prompts were built for.
            prior: `[B, width]`, one per image.

        Reference: FAPrompt, Eq. (4).
        """
        tokens = (self.abnormal_tokens + prior[:, None, None]).flatten(0, 1)  # [B * K, m, width]
        embedded = self.embed(backbone, self._abnormal(tokens), self.end[1:].repeat(prior.shape[0]))
        return embedded.unflatten(0, (-1, self.abnormal_tokens.shape[0]))

    def embed(self, backbone: ClipBackbone, prompts: Tensor, end: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Returns the embeddings `[M, D]` of prompts `[M, T, width]` with these deep tokens, not normalised.

        Args:
            backbone: The backbone that the prompts were built for.
            prompts: Token embeddings, with or without learnable tokens.
            end: `[M]`, position of the end of each prompt.
            sizes: Numbers of consecutive prompts that start with the same tokens. `None` means all prompts.
        """
        deep = () if self.deep is None else self.deep(prompts.shape[0])
        shared = 1 + (self.normal_tokens.shape[1] if self.compound else 0)  # the start token and V
        if any(tokens.dim() == 3 for tokens in deep):
            shared = 0
        embedded: Tensor = backbone.text(prompts, end, deep, shared, sizes)
        return embedded

    def _abnormal(self, tokens: Tensor) -> Tensor:
        """Returns prompts `[M, T, width]` with abnormal tokens `[M, m, width]`."""
        if self.compound:
            tokens = torch.cat([self.normal_tokens.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return fill_gap(self.abnormal_words, tokens)


def embed_together(backbone: ClipBackbone, sets: Sequence[ObjectPrompts]) -> Tensor:
    """Returns the text embeddings of S sets of prompts, `[S, 1 + K, D]`, the normal one first, in one pass.

    Args:
        backbone: The backbone that the prompts were built for.
        sets: Sets of prompts with the same words and numbers of tokens. They share their deep tokens.
    """
    prompts = torch.stack([one.prompts() for one in sets])  # [S, 1 + K, T, width]
    count, size = prompts.shape[:2]
    ends = torch.cat([one.end for one in sets])
    return sets[0].embed(backbone, prompts.flatten(0, 1), ends, [size] * count).unflatten(0, (count, size))


class SentenceIds:
    """The token ids of the sentences per category.

    They are cached, because reading a length from the device in each step would synchronise host and device.

    Args:
        sentences: Function from the name of a category to its sentences. The number is the same for all categories.
        n_tokens: Number of learnable tokens before them, for which there must be room.
        overwritten: Number of positions after the start token that are overwritten. A sentence must be longer.
    """

    def __init__(self, sentences: Callable[[str], Sequence[str]], n_tokens: int = 0, overwritten: int = 0) -> None:
        self.sentences = sentences
        self.n_tokens = n_tokens
        self.overwritten = overwritten
        self.kept: dict[tuple[str, torch.device], tuple[Tensor, Tensor, int]] = {}

    def __call__(self, backbone: ClipBackbone, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns ids `[M, K, T]` of M categories, and the end of each sentence after the learnable tokens, `[M, K]`.

        With a causal text tower, ids end with the last end-of-text token. Otherwise they are padded to the context
        length minus the number of learnable tokens.

        Args:
            backbone: The backbone that the prompts were built for.
            class_names: Names of the M categories.

        Raises:
            ValueError: A sentence does not fit in the context length, or is too short.
        """
        ids, ends, longest = zip(*(self._of(backbone, class_name) for class_name in class_names), strict=True)
        length = max(longest) + 1 if backbone.text.is_causal else backbone.text.context_length
        return torch.stack(ids)[..., : length - self.n_tokens], torch.stack(ends)

    def _of(self, backbone: ClipBackbone, class_name: str) -> tuple[Tensor, Tensor, int]:
        """Returns the token ids of a category's sentences, their ends after the learnable tokens, and the last end."""
        key = class_name, backbone.text.token_embedding.weight.device
        if key not in self.kept:
            texts = self.sentences(class_name)
            with torch.inference_mode(False):  # a cached tensor is also used in training
                ids = backbone.tokenize(texts)
                end = self.n_tokens + backbone.ends(ids)
            longest, limit = int(end.max()), backbone.text.context_length
            if longest >= limit:
                raise ValueError(
                    f"a prompt must fit in the context length {limit}, got {longest + 1} positions for "
                    f"{texts[int(end.argmax())]!r}"
                )
            if int(end.min()) <= self.overwritten:
                raise ValueError(
                    f"{self.overwritten} prompt tokens must leave the end of {texts[int(end.argmin())]!r}, which has "
                    f"{int(end.min()) - 1} words and word pieces"
                )
            self.kept[key] = ids, end, longest
        return self.kept[key]


def fill_gap(words: Tensor, tokens: Tensor) -> Tensor:
    """Returns `[M, n + T, width]`: tokens `[M, n, width]`, inserted after the start token of `[T, width]`."""
    words = words.expand(tokens.shape[0], -1, -1)
    return torch.cat([words[:, :1], tokens, words[:, 1:]], dim=1)


class NearestWord(NamedTuple):
    """A word near a learnable token.

    Attributes:
        parameter: Name of the token's parameter in the method.
        prompt: Index of the prompt in the parameter, from 0.
        token: Index of the token in the prompt, from 0.
        rank: Rank of the word, 1 for the nearest.
        word: A word of the tokenizer's vocabulary, or a part of one.
        cosine: Cosine similarity, in [-1, 1], rounded to four digits.
    """

    parameter: str
    prompt: int
    token: int
    rank: int
    word: str
    cosine: float


@torch.no_grad()
def nearest_words(backbone: ClipBackbone, module: nn.Module, count: int = 3) -> list[NearestWord]:
    """Returns the nearest words of each learnable token in a module, nearest first.

    Words are compared by cosine, not by distance as in CoOp's code. Learnable tokens have other norms than words, and
    by distance the shortest words would be nearest to all of them. Words without an embedding of their own are left
    out.

    Args:
        backbone: The backbone with the vocabulary.
        module: A method, or a part of one.
        count: Number of words per token.
    """
    vocabulary = backbone.text.token_embedding.weight.float()  # [V, width]
    _, group, sizes = vocabulary.unique(dim=0, return_inverse=True, return_counts=True)
    shared = sizes[group] > 1  # such as all words that are not in a small vocabulary
    found = []
    for name, part in module.named_modules():
        for parameter in part.word_tokens if isinstance(part, WordTokens) else ():
            tokens = getattr(part, parameter).float()  # [prompts, tokens, width]
            cosine = F.normalize(tokens, dim=-1) @ F.normalize(vocabulary, dim=-1).T
            values, ids = (x.cpu().numpy() for x in cosine.masked_fill(shared, -torch.inf).topk(count))
            found += [
                NearestWord(
                    parameter=f"{name}.{parameter}".lstrip("."),
                    prompt=prompt,
                    token=token,
                    rank=rank + 1,
                    word=backbone.word(int(word)),
                    cosine=round(float(values[prompt, token, rank]), 4),
                )
                for (prompt, token, rank), word in np.ndenumerate(ids)
            ]
    return found
