"""Text embeddings of the two states, from a text tower with residual adapters and its own trained projection."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.adapters import ResidualAdapter, unbiased_projection
from afclip_lightning.prompts.ensemble import average_states
from afclip_lightning.prompts.learner import SentenceIds


class TextAnchors(nn.Module):
    """Residual adapters after the first blocks of a text tower, and a trained projection with a leaky ReLU.

    Args:
        backbone: The backbone whose text tower is used. It is not stored.
        states: Function from the name of a category to its normal and its abnormal sentences.
        adapters: Number of blocks with an adapter.
        weight: Weight of an adapted token, from 0 to 1.
        trained: Whether adapters and projection exist. Without, the embeddings are those of the frozen tower.

    Reference: AA-CLIP (Ma et al., 2025, arXiv 2503.06661). The leaky ReLU is in the official code.
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
        """Returns the text embeddings of M categories, `[M, 2, D]`, normal and abnormal, L2-normalised, in one pass.

        Args:
            backbone: The backbone that this was built for.
            names: Names of the M categories.

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
