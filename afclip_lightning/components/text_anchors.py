"""The texts of two states, from a text tower with residual adapters and a projection of its own."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.adapters import ResidualAdapter, unbiased_projection
from afclip_lightning.prompts.ensemble import average_states
from afclip_lightning.prompts.learner import SentenceIds


class TextAnchors(nn.Module):
    """Adapters after the first blocks of a text tower, and a projection with a leaky rectifier in place of its own.

    Args:
        backbone: Its text tower is used and not kept.
        states: From what a category is called to its normal and its abnormal sentences.
        adapters: Blocks with an adapter.
        weight: Share of an adapted token.
        trained: Whether there is anything of this; if not, the texts are the tower's own.

    Reference: AA-CLIP (Ma et al., 2025, arXiv 2503.06661); the official code for the rectifier.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        states: Callable[[str], tuple[list[str], list[str]]],
        adapters: int,
        weight: float,
        trained: bool = True,
    ) -> None:
        super().__init__()
        width = backbone.text.width
        self.adapters = nn.ModuleList(ResidualAdapter(width, weight) for _ in range(adapters if trained else 0))
        self.projection = unbiased_projection(width, backbone.embed_dim) if trained else None
        self.n_normal = len(states("")[0])
        self.ids = SentenceIds(lambda name: [text for state in states(name) for text in state])

    def forward(self, backbone: ClipBackbone, names: Sequence[str]) -> Tensor:
        """Returns the texts of M categories, `[M, 2, D]`, normal and abnormal, at unit length: one pass.

        Args:
            backbone: The one that this was built for.
            names: What the M categories are called.

        Raises:
            ValueError: A sentence does not fit into the text tower's context.
        """
        ids, ends = self.ids(backbone, names)
        words = backbone.text.token_embedding(ids).flatten(0, 1)
        projection = None if self.projection is None else self._project
        embedded = backbone.text(words, ends.flatten(), adapters=list(self.adapters), projection=projection)
        of_category = embedded.float().unflatten(0, (len(names), -1))
        with torch.autocast(embedded.device.type, enabled=False):
            return average_states(of_category[:, : self.n_normal], of_category[:, self.n_normal :], "norm_mean_norm")

    def _project(self, tokens: Tensor) -> Tensor:
        assert self.projection is not None
        return F.leaky_relu(self.projection(tokens))
