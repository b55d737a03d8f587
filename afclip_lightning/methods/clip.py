"""CLIP and CLIP-AC, the baselines of other papers: two prompts, or an ensemble of prompts."""

from typing import ClassVar, Literal, get_args

from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_positive
from afclip_lightning.components.plain_clip import last_patches, prediction_of, state_logits
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.prompts.ensemble import CategoryText, Names, embed_states, name_of
from afclip_lightning.prompts.own import is_file, read_prompts
from afclip_lightning.prompts.templates import (
    CLIP_ABNORMAL,
    CLIP_BARE_TEMPLATES,
    CLIP_NORMAL,
    CLIP_PHOTO_ABNORMAL,
    CLIP_PHOTO_NORMAL,
    CLIP_PHOTO_TEMPLATES,
    IMAGENET_TEMPLATES,
    sentences,
)
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

Prompts = Literal["clip_bare", "clip_photo", "clip_ac"]
PROMPTS = {  # normal states, abnormal states, templates
    "clip_bare": (CLIP_NORMAL, CLIP_ABNORMAL, CLIP_BARE_TEMPLATES),
    "clip_photo": (CLIP_PHOTO_NORMAL, CLIP_PHOTO_ABNORMAL, CLIP_PHOTO_TEMPLATES),
    "clip_ac": (CLIP_NORMAL, CLIP_ABNORMAL, IMAGENET_TEMPLATES),
}


class CLIP(AnomalyMethod):
    """Plain CLIP: class token and last patches, compared with the words "normal" and "anomalous". Nothing is trained.

    Two protocols have this name. The tables of WinCLIP, AnoVL and Dual-Image CLIP use ViT-B-16-plus-240 and bare
    labels. Those of AnomalyCLIP, FAPrompt and KAnoCLIP use ViT-L-14-336 at 518 pixels and "A photo of". CLIP-AC is the
    same with CLIP's ImageNet ensemble of 80 templates. (WinCLIP calls its bare labels CLIP-AC, and the ensemble CLIP-AC
    with prompt ensemble.) No code of either was found. The sentences are those that the papers quote.

    Pixel AUROCs far below 50 % are correct: CLIP's last patches resemble the text of what they do not show.

    Args:
        backbone: The frozen CLIP.
        prompts: `clip_bare` (`normal bottle`), `clip_photo` (`A photo of a normal bottle`) or `clip_ac`
            (`normal bottle` in 80 templates). A YAML file with `normal`, `abnormal` and `templates`
            (`configs/prompts/german.yaml`) gives prompts in any language that the text tower knows.
        names: Name of a category in prompts: `category`, its folder's name as it is (`metal_nut`), or
            `class_name`, its name in prompts from the dataset (`metal nut`).
        temperature: Divisor of the cosine similarities. It does not change the order of scores.

    Raises:
        ValueError: An argument is out of its range.

    Reference: the baselines of WinCLIP, AnomalyCLIP and FAPrompt.
    """

    title = "CLIP, CLIP-AC"
    paper = "radford2021clip"
    parity = "a baseline of the papers, in both of their protocols"
    needs_class_name: ClassVar[bool] = True

    def __init__(
        self,
        backbone: ClipBackbone,
        prompts: Prompts | str = "clip_photo",
        names: Names = "category",
        temperature: float = 0.07,
    ) -> None:
        if (prompts not in get_args(Prompts) and not is_file(prompts)) or names not in get_args(Names):
            raise ValueError(
                f"prompts must be one of {', '.join(get_args(Prompts))} or a YAML file, and names one of "
                f"{', '.join(get_args(Names))}, got {prompts!r} and {names!r}"
            )
        require_positive(temperature=temperature)
        super().__init__(backbone, last_patches(backbone, None), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        own = read_prompts(prompts) if is_file(prompts) else None
        self.prompts = (own.normal, own.abnormal, own.templates) if own else PROMPTS[prompts]
        self.names: Names = names
        self.temperature = temperature
        self.text = CategoryText(self.embed_text)

    def embed_text(self, sample: Sample) -> Tensor:
        """Returns the normal and the abnormal text embedding of a sample's category, `[2, D]`, L2-normalised."""
        name = name_of(sample, self.names)
        normal, abnormal, templates = self.prompts
        return embed_states(
            self.backbone, sentences(normal, templates, name), sentences(abnormal, templates, name), "norm_mean_norm"
        )

    def on_evaluation_end(self) -> None:
        """Drops the texts of the pass."""
        super().on_evaluation_end()
        self.text.reset()

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the probability of the abnormal state: of the image embedding, and of the patches, upsampled."""
        logits = state_logits(self.backbone, features, self.text(batch.samples), self.temperature)
        return prediction_of(logits, features.grid, self.spec.image_size)
