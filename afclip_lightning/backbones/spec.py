"""The record of everything that backbone features depend on."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PosEmbedResize = Literal["bilinear", "bicubic", "bicubic_antialias"]


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of an image depend on: equal specs give equal features and can share one pass.

    Attributes:
        model: Architecture, as open_clip names it.
        weights: Where the weights came from: a tag, a file, or `random`.
        weights_hash: Fingerprint of the weights' content; the same weights in another file have the same.
        activation: `quick_gelu` or `gelu`.
        image_size: Side of the square input, in pixels.
        pos_embed: How the positional embedding was resized to this image size.
        mean: Mean of the channels that images are normalised with.
        std: Standard deviation, likewise.
        layers: Tapped blocks of the original path, counted from 1 as the papers do.
        vv_layers: Tapped blocks of the V-V path, likewise.
        vv_from: First block of the V-V path; `None` where it is not tapped.
        image_embedding: Whether the class token after the last block and the image embedding are asked for; if not,
            the blocks after the last tap are not run.
    """

    model: str
    weights: str = field(compare=False)  # where they lie; the hash says what they are
    weights_hash: str
    activation: str
    image_size: int
    pos_embed: PosEmbedResize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layers: tuple[int, ...]
    vv_layers: tuple[int, ...] = ()
    vv_from: int | None = None
    image_embedding: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as plain values, for checkpoints and run folders."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Returns what differs from a stored spec, a line a field; a file's path does not matter, its content does."""
        mine = self.to_dict()
        fields = sorted((mine.keys() | other.keys()) - {"weights"})
        return [
            f"{field}: {other.get(field)!r} in the checkpoint, {mine.get(field)!r} here"
            for field in fields
            if mine.get(field) != other.get(field)
        ]
