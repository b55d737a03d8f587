"""L2-normalised tokens in the joint space.

Where it is cheaper, their cosines and sums are computed without forming them.

A head needs only the cosines of the tokens with a few text embeddings, and sums of tokens. Neither needs the tokens
where they come from a narrower input `a`: after a linear layer, the final normalisation and the projection, a token is
`(J a + j) / s + n`, L2-normalised. The standard deviation `s` and the norm are quadratic forms of `a`, and their
gradient needs no further matrix product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from afclip_lightning.backbones.normed_projection import NormedProjection

BLOCKS = 4  # number of row blocks of a symmetric gradient; each is computed from its diagonal on
SHORTEST = 1e-12  # shorter tokens are divided by this, as in `torch.nn.functional.normalize`


class FormedTokens:
    """L2-normalised tokens that are stored.

    Args:
        tokens: `[B, T, D]`, L2-normalised.
        text: `[K, D]`, L2-normalised.

    Attributes:
        cosines: Cosines with the texts, `[B, T, K]`, float32.
    """

    def __init__(self, tokens: Tensor, text: Tensor) -> None:
        with torch.autocast(tokens.device.type, enabled=False):
            self.tokens = tokens.float()
            self.cosines = self.tokens @ text.float().mT

    def sums(self, weights: Tensor) -> Tensor:
        """Returns sums over the tokens, `[B, S, D]`, float32, with weights `[B, S, T]`."""
        with torch.autocast(self.tokens.device.type, enabled=False):
            return weights @ self.tokens


class JoinedEnding:
    """A linear layer, the final normalisation, the projection and the product with the texts, merged for many tokens.

    Args:
        linear: The linear layer, `[C, W]`, with a bias.
        projection: The final normalisation and projection of the tower, as in its `project`.
        text: `[K, D]`, L2-normalised.
    """

    def __init__(self, linear: nn.Linear, projection: NormedProjection, text: Tensor) -> None:
        matrix, self.shift = projection.folded()
        affine = torch.cat([linear.weight, linear.bias[:, None]], dim=1)  # [C, W + 1], of `a` and 1
        centred = affine - affine.mean(0, keepdim=True)
        self.joint = matrix @ centred  # [D, W + 1]
        variance, length = centred.T @ centred / len(centred), self.joint.T @ self.joint
        by_shift, by_text = self.joint.T @ self.shift, self.joint.T @ text.T
        self.forms = torch.cat([variance[:-1, :-1], length[:-1, :-1]], dim=1)
        self.vectors = torch.cat(
            [2 * variance[:-1, -1:], 2 * length[:-1, -1:], 2 * by_shift[:-1, None], by_text[:-1]], 1
        )
        self.constants = torch.cat([variance[-1, -1:], length[-1, -1:], 2 * by_shift[-1:], by_text[-1]])
        self.of_shift = self.shift @ self.shift
        self.text_of_shift = text @ self.shift
        self.eps = projection.eps

    def __call__(self, inner: Tensor) -> "JoinedTokens":
        """Returns the tokens that result from the layer's input `[B, T, W]`."""
        return JoinedTokens(inner, self)

    @staticmethod
    def pays(linear: nn.Linear, projection: NormedProjection) -> bool:
        """Returns whether a training step needs fewer multiplications than with formed tokens, counted per token."""
        width, channels, dim = linear.in_features, linear.out_features, len(projection.matrix)
        return 4 * width**2 < 3 * width * channels + 2 * channels * dim


class JoinedTokens:
    """L2-normalised tokens that are given by their input, as `JoinedEnding` returns them.

    Interface as of `FormedTokens`.
    """

    def __init__(self, inner: Tensor, ending: JoinedEnding) -> None:
        self.inner, self.ending = inner, ending
        squares = QuadraticForms.apply(inner, ending.forms)
        linear = inner @ ending.vectors + ending.constants
        inverse = (squares[..., :1] + linear[..., :1] + ending.eps).rsqrt()  # inverse standard deviation
        square = (squares[..., 1:] + linear[..., 1:2]) * inverse**2 + linear[..., 2:3] * inverse + ending.of_shift
        self.shift_weight = square.clamp(min=SHORTEST**2).rsqrt()  # [B, T, 1]
        self.inner_weight = inverse * self.shift_weight
        self.cosines = self.inner_weight * linear[..., 3:] + self.shift_weight * ending.text_of_shift

    def sums(self, weights: Tensor) -> Tensor:
        """See `FormedTokens`."""
        joint, shift = self.ending.joint, self.ending.shift
        own = weights * self.inner_weight.mT
        total, total_shift = own.sum(-1, keepdim=True), (weights * self.shift_weight.mT).sum(-1, keepdim=True)
        return (own @ self.inner) @ joint[:, :-1].T + total * joint[:, -1] + total_shift * shift


class QuadraticForms(torch.autograd.Function):
    """`x^T F x` for several symmetric F, with one matrix product in the forward and one in the backward pass.

    Half of the gradient of `x` is `F x`, which the forward pass has computed. The gradient of F is symmetric as well.
    Its part below the diagonal is not computed: the part above is doubled, which gives the parameters of a symmetric F
    the same gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, forms: Tensor) -> Tensor:
        """Returns the values `[B, T, n]`, of `x` `[B, T, W]` and n forms side by side, `[W, n * W]`."""
        product = x @ forms
        ctx.save_for_backward(x, product)
        return torch.stack([(part * x).sum(-1) for part in product.split(x.shape[-1], dim=-1)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradients of `x` and of the forms."""
        x, product = ctx.saved_tensors
        width = x.shape[-1]
        flat, block = x.flatten(0, -2), -(-width // BLOCKS)
        by_x, by_forms = torch.zeros_like(x), x.new_zeros(width, product.shape[-1])
        for i, weight in enumerate(gradient.unbind(-1)):
            of_form = slice(i * width, (i + 1) * width)
            by_x.addcmul_(product[..., of_form], 2 * weight[..., None])
            weighted, by_form = (x * weight[..., None]).flatten(0, -2), by_forms[:, of_form]
            for start in range(0, width, block):
                end = min(start + block, width)
                by_form[start:end, start:] = flat[:, start:end].T @ weighted[:, start:]
                by_form[start:end, end:] *= 2
        return by_x, by_forms


UnitTokens = FormedTokens | JoinedTokens
