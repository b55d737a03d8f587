"""The record of everything that features depend on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

from afclip_runtime.types import ImageSize
from afclip_runtime.views.frame import Interpolation, Resize

if TYPE_CHECKING:
    from afclip_lightning.types import ClipFeatures

PosEmbedResize = Literal["bilinear", "bicubic", "bicubic_antialias", "bicubic_offset"]


LATER_FIELDS: dict[str, Any] = {"resize": "squash", "interpolation": "bicubic"}  # values of specs that lack them


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of an image depend on: equal specs give equal features and can share one pass.

    Attributes:
        model: Architecture, as open_clip names it.
        weights: Source of the weights: a tag, a file, or `random`.
        weights_hash: Fingerprint of the weights' content. It does not depend on the file.
        activation: `quick_gelu` or `gelu`.
        image_size: Size of the input in pixels: the side of a square, or height and width.
        pos_embed: How the positional embedding was resized to this image size.
        mean: Mean of the channels that images are normalised with.
        std: Standard deviation of the channels that images are normalised with.
        layers: Tapped blocks of the original path, counted from 1 as in the papers.
        vv_layers: Tapped blocks of the V-V path, counted from 1.
        vv_from: First block of the V-V path. `None` if it is not tapped.
        image_embedding: Whether the class token after the last block and the image embedding are included. Without, the
            blocks after the last tap do not run.
        resize: How an image is resized. See `preprocess.Preprocess`.
        interpolation: Filter of resizing.
    """

    model: str
    weights: str = field(compare=False)  # their location; the hash identifies them
    weights_hash: str
    activation: str
    image_size: ImageSize
    pos_embed: PosEmbedResize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layers: tuple[int, ...]
    vv_layers: tuple[int, ...] = ()
    vv_from: int | None = None
    image_embedding: bool = False
    resize: Resize = "squash"
    interpolation: Interpolation = "bicubic"

    @property
    def taps(self) -> tuple[str, ...]:
        """Returns the names of the taps: a block, a block of the V-V path, the embedding."""
        layers = [f"layer-{number:02}" for number in self.layers]
        layers += [f"vv-{number:02}-from-{self.vv_from:02}" for number in self.vv_layers]
        return (*layers, *(["embedding"] if self.image_embedding else []))

    @property
    def untapped(self) -> "FeatureSpec":
        """Returns the spec without its taps, which all specs of a backbone share."""
        return replace(self, layers=(), vv_layers=(), vv_from=None, image_embedding=False)

    def select(self, features: "ClipFeatures", given: "FeatureSpec") -> "ClipFeatures":
        """Returns the features of this spec from those of a wider spec, `given`."""
        return replace(
            features,
            tokens=tuple(features.tokens[given.layers.index(number)] for number in self.layers),
            vv_tokens=tuple(features.vv_tokens[given.vv_layers.index(number)] for number in self.vv_layers),
            class_token=features.class_token if self.image_embedding else None,
            image_embedding=features.image_embedding if self.image_embedding else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as plain values, for checkpoints and run folders.

        A field of `LATER_FIELDS` is included only if it differs from its default, so that older heads and kept features
        are still found.
        """
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key not in LATER_FIELDS or value != LATER_FIELDS[key]}

    def differences(self, other: dict[str, Any], names: tuple[str, str] = ("here", "in the checkpoint")) -> list[str]:
        """Returns the differences from a stored spec, one line per field.

        The content of a weights file counts, not its path.

        Args:
            other: Result of `to_dict`.
            names: Names of this spec and the other in the lines.
        """
        mine, other = LATER_FIELDS | self.to_dict(), LATER_FIELDS | other
        fields = sorted((mine.keys() | other.keys()) - {"weights"})
        return [
            f"{field}: {other.get(field)!r} {names[1]}, {mine.get(field)!r} {names[0]}"
            for field in fields
            if mine.get(field) != other.get(field)
        ]


def union(specs: Sequence[FeatureSpec]) -> FeatureSpec:
    """Returns the spec of one pass that gives the features of all specs.

    Raises:
        ValueError: The specs are of different backbones, or their V-V paths start at different blocks.
    """
    return reduce(_union, specs)


def _union(one: FeatureSpec, other: FeatureSpec) -> FeatureSpec:
    if one.untapped != other.untapped:
        problems = one.untapped.differences(other.untapped.to_dict(), ("one", "the other"))
        raise ValueError("features of different backbones cannot come from one pass:\n  " + "\n  ".join(problems))
    if None not in (one.vv_from, other.vv_from) and one.vv_from != other.vv_from:
        raise ValueError(f"V-V paths from blocks {one.vv_from} and {other.vv_from} cannot come from one pass")
    return replace(
        one,
        layers=tuple(sorted({*one.layers, *other.layers})),
        vv_layers=tuple(sorted({*one.vv_layers, *other.vv_layers})),
        vv_from=one.vv_from if other.vv_from is None else other.vv_from,
        image_embedding=one.image_embedding or other.image_embedding,
    )
