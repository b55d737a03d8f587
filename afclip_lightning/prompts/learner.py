"""Learnable prompt tokens, and the words that they are nearest to."""

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

    They end there if the text tower is causal; if not, they leave room in its context length, and no more.

    Args:
        backbone: Its text tower is used.
        words: The words of a prompt.
        room: Positions to leave for learnable tokens.

    Raises:
        ValueError: The words and the learnable tokens do not fit in the context length, or there are fewer than none.
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
    """A part with learnable tokens that stand where words stand, so that each has words that it is nearest to.

    Attributes:
        word_tokens: Names of its parameters `[prompts, tokens, width]` of that kind.
    """

    word_tokens: ClassVar[tuple[str, ...]]


class StatePrompts(WordTokens):
    """Learnable tokens, shared by all states, in front of each state's words: `[V1] … [Vn] [SOT] words [EOT]`.

    The learnable tokens stand before the start token, as in the official code.

    Args:
        backbone: Its text tower is used and not kept.
        states: The words of each state, e.g. normal and abnormal.
        n_tokens: Learnable tokens.
        init_std: Standard deviation of their initial values.

    Raises:
        ValueError: The states do not fit beside the learnable tokens.

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
        """Returns the states' text embeddings `[K, D]`, not normalised."""
        prefix = self.tokens.expand(len(self.embeddings), -1, -1)
        shared = 1 + self.tokens.shape[1]  # the learnable tokens, and the start token
        embedded: Tensor = backbone.text(torch.cat([prefix, self.embeddings], dim=1), self.end, shared=shared)
        return embedded


class DeepTokens(nn.Module):
    """Learnable tokens that stand after the start token of every prompt, other ones before each block from the second.

    They overwrite what lies in these positions; nothing of the sequence moves.

    Args:
        backbone: Its text tower is used and not kept.
        depth: Blocks with learnable input, 2 at least: the first has the prompt's own tokens.
        n_tokens: Tokens a block.
        init_std: Standard deviation of their initial values.
        half: Round the tokens to 16-bit floats before they are used, as AnomalyCLIP's and FAPrompt's official codes do,
            and so, in training, what each prompt adds to their gradient.

    Raises:
        ValueError: `depth` is less than 2 or more than the text tower's.

    Reference: AnomalyCLIP, Sec. 3.2; the official codes overwrite, where the paper speaks of attaching.
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
        """Returns the tokens for so many blocks with learnable input, `None` for one: the prompt's own tokens do."""
        return None if depth == 1 else cls(backbone, depth, n_tokens, init_std, half)

    def forward(self, prompts: int) -> tuple[Tensor, ...]:
        """Returns the tokens of each block, `[n, width]`, or `[K, n, width]` where each prompt needs its own copy.

        The official codes copy the tokens for each prompt and then round: backwards, each prompt's gradient is rounded
        before they are added up. One rounding of the sum differs by up to 5e-4 of it.

        Args:
            prompts: K.
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
        backbone: Its text tower is used and not kept.
        normal_words: What stands after the tokens of the normal prompt.
        abnormal_words: What stands after the tokens of the abnormal prompts.
        n_normal_tokens: Learnable tokens V.
        n_abnormal_tokens: Learnable tokens A of each abnormal prompt.
        n_abnormal_prompts: K.
        compound: Whether abnormal prompts begin with the normal one's tokens.
        deep: Deep tokens that all the prompts share.
        init_std: Standard deviation of the tokens' initial values.

    Raises:
        ValueError: A number below 1, or more tokens than the text tower takes.

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
        """Returns the text embeddings `[1 + K, D]`, the normal one first, not normalised: one pass."""
        return embed_together(backbone, [self])[0]

    def prompts(self) -> Tensor:
        """Returns the prompts `[1 + K, T, width]`, the normal one first."""
        normal = fill_gap(self.normal_words, self.normal_tokens)
        abnormal = self._abnormal(self.abnormal_tokens)
        length = max(normal.shape[1], abnormal.shape[1])
        return torch.cat([F.pad(prompts, (0, 0, 0, length - prompts.shape[1])) for prompts in (normal, abnormal)])

    def normal(self, backbone: ClipBackbone, copies: int) -> Tensor:
        """Returns the normal prompt's embedding `[copies, 1, D]`, each embedded by itself: one pass.

        In training with rounded deep tokens, each copy's part of their gradient is rounded.
        """
        prompts = fill_gap(self.normal_words, self.normal_tokens).expand(copies, -1, -1)
        return self.embed(backbone, prompts, self.end[:1].expand(copies))[:, None]

    def adapted(self, backbone: ClipBackbone, prior: Tensor) -> Tensor:
        """Returns the abnormal prompts' embeddings `[B, K, D]` with a prior added to every abnormal token: one pass.

        Args:
            backbone: The one that the prompts were built for.
            prior: `[B, width]`, one per image.

        Reference: FAPrompt, Eq. (4).
        """
        tokens = (self.abnormal_tokens + prior[:, None, None]).flatten(0, 1)  # [B * K, m, width]
        embedded = self.embed(backbone, self._abnormal(tokens), self.end[1:].repeat(prior.shape[0]))
        return embedded.unflatten(0, (-1, self.abnormal_tokens.shape[0]))

    def embed(self, backbone: ClipBackbone, prompts: Tensor, end: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Returns the embeddings `[M, D]` of prompts `[M, T, width]` with these deep tokens, not normalised: one pass.

        Args:
            backbone: The one that the prompts were built for.
            prompts: With or without what is learnt.
            end: `[M]`, where each ends.
            sizes: How many, one after the other, begin with the same tokens; `None` is all.
        """
        deep = () if self.deep is None else self.deep(prompts.shape[0])
        shared = 1 + (self.normal_tokens.shape[1] if self.compound else 0)  # the start token, and V
        if any(tokens.dim() == 3 for tokens in deep):
            shared = 0
        embedded: Tensor = backbone.text(prompts, end, deep, shared, sizes)
        return embedded

    def _abnormal(self, tokens: Tensor) -> Tensor:
        """Returns prompts `[M, T, width]` of abnormal tokens `[M, m, width]`."""
        if self.compound:
            tokens = torch.cat([self.normal_tokens.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return fill_gap(self.abnormal_words, tokens)


def embed_together(backbone: ClipBackbone, sets: Sequence[ObjectPrompts]) -> Tensor:
    """Returns the text embeddings of S sets of prompts, `[S, 1 + K, D]`, the normal one first: one pass.

    Args:
        backbone: The one that the prompts were built for.
        sets: Of the same words and numbers of tokens; they share their deep tokens.
    """
    prompts = torch.stack([one.prompts() for one in sets])  # [S, 1 + K, T, width]
    count, size = prompts.shape[:2]
    ends = torch.cat([one.end for one in sets])
    return sets[0].embed(backbone, prompts.flatten(0, 1), ends, [size] * count).unflatten(0, (count, size))


class SentenceIds:
    """The token ids of each category's sentences.

    They are kept: reading a length off the device at each step would make the host wait for it.

    Args:
        sentences: From what a category is called to its sentences, as many for each.
        n_tokens: Learnable tokens that come in front of them, for which there must be room.
        overwritten: Positions after the start token whose words others take the place of: a sentence must be longer.
    """

    def __init__(self, sentences: Callable[[str], Sequence[str]], n_tokens: int = 0, overwritten: int = 0) -> None:
        self.sentences = sentences
        self.n_tokens = n_tokens
        self.overwritten = overwritten
        self.kept: dict[tuple[str, torch.device], tuple[Tensor, Tensor, int]] = {}

    def __call__(self, backbone: ClipBackbone, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns ids `[M, K, T]` of M categories, and where each sentence ends behind the learnable tokens, `[M, K]`.

        Ids end with the last end-of-text token if the text tower is causal; if not, they leave room for the learnable
        tokens in its context, and no more.

        Args:
            backbone: The one that the prompts were built for.
            class_names: What the M categories are called.

        Raises:
            ValueError: A sentence does not fit into the text tower's context, or is too short.
        """
        ids, ends, longest = zip(*(self._of(backbone, class_name) for class_name in class_names), strict=True)
        length = max(longest) + 1 if backbone.text.is_causal else backbone.text.context_length
        return torch.stack(ids)[..., : length - self.n_tokens], torch.stack(ends)

    def _of(self, backbone: ClipBackbone, class_name: str) -> tuple[Tensor, Tensor, int]:
        """Returns the token ids of a category's sentences, their ends behind the learnable tokens, and the last one."""
        key = class_name, backbone.text.token_embedding.weight.device
        if key not in self.kept:
            texts = self.sentences(class_name)
            with torch.inference_mode(False):  # a kept tensor must serve training as well
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
    """Returns `[M, n + T, width]`: tokens `[M, n, width]` between the start token and the rest of `[T, width]`."""
    words = words.expand(tokens.shape[0], -1, -1)
    return torch.cat([words[:, :1], tokens, words[:, 1:]], dim=1)


class NearestWord(NamedTuple):
    """A word near a learnable token.

    Attributes:
        parameter: Name of the token's parameter in the method.
        prompt: Which prompt of the parameter, from 0.
        token: Which token of the prompt, from 0.
        rank: 1 for the nearest.
        word: A word of the tokenizer's vocabulary, or a piece of one.
        cosine: Cosine similarity, in [-1, 1], to four digits.
    """

    parameter: str
    prompt: int
    token: int
    rank: int
    word: str
    cosine: float


@torch.no_grad()
def nearest_words(backbone: ClipBackbone, module: nn.Module, count: int = 3) -> list[NearestWord]:
    """Returns the nearest words of each learnable token in a module, best first.

    Near by cosine and not, as in CoOp's code, by distance: learnable tokens are of other lengths than words, and the
    shortest words would be nearest to all of them. Words without an embedding of their own are left out.

    Args:
        backbone: Whose words are looked through.
        module: A method, or any part of one.
        count: Words per token.
    """
    vocabulary = backbone.text.token_embedding.weight.float()  # [V, width]
    _, group, sizes = vocabulary.unique(dim=0, return_inverse=True, return_counts=True)
    shared = sizes[group] > 1  # such as all the words that a small vocabulary does not know
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
