"""Prompt tables of the methods: states, sentence templates and words for the domain, each with its source.

A state describes the object (`flawless {}`). A template puts it into a sentence (`a photo of the {}`). Both have `{}`
once. Articles are not adapted to the word that follows: the official codes do not do so, and `a photo of a abnormal
bottle` has another embedding than the correct sentence.

The official codes use the name of a category with its underscores (`metal_nut`), unless a table says otherwise.
"""

import re
from collections.abc import Sequence
from typing import Literal

from open_clip import OPENAI_IMAGENET_TEMPLATES

# --- WinCLIP ----------------------------------------------------------------------------------------------------------
# The compositional prompt ensemble of the paper's appendix, as in zqhang/Accurate-WinCLIP-pytorch (eef4f8c), anomalib
# (b723368) and caoyunkang/WinClip (0818c9d): 7 × 22 and 4 × 22 sentences.

WINCLIP_NORMAL = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
WINCLIP_ABNORMAL = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
WINCLIP_TEMPLATES = (
    "a cropped photo of the {}",
    "a cropped photo of a {}",
    "a close-up photo of a {}",
    "a close-up photo of the {}",
    "a bright photo of a {}",
    "a bright photo of the {}",
    "a dark photo of the {}",
    "a dark photo of a {}",
    "a jpeg corrupted photo of a {}",
    "a jpeg corrupted photo of the {}",
    "a blurry photo of the {}",
    "a blurry photo of a {}",
    "a photo of a {}",
    "a photo of the {}",
    "a photo of a small {}",
    "a photo of the small {}",
    "a photo of a large {}",
    "a photo of the large {}",
    "a photo of the {} for visual inspection",
    "a photo of a {} for visual inspection",
    "a photo of the {} for anomaly detection",
    "a photo of a {} for anomaly detection",
)

# anomalib and Accurate-WinCLIP have 21: a period ends each, `a cropped photo of a {}` is missing and
# `a jpeg corrupted photo of the {}` stands also where `… of a {}` should, so that its weight in the mean is double.
# AdaptCLIP's static prompts are these with the word `object`.
WINCLIP_TEMPLATES_21 = (
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a dark photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "a photo of a {} for anomaly detection.",
)

# --- AnoVL (AnoCLIP), whose prompts Dual-Image CLIP takes over --------------------------------------------------------
# hq-deng/AnoVL (3a70bfd): WinCLIP's 22 templates with each of three domain words for `photo`, see `in_domain`; 462
# sentences per state. Its code asks for `macaroni` in place of VisA's macaroni1 and macaroni2.

ANOVL_NORMAL = (
    "normal {}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOVL_ABNORMAL = (
    "damaged {}",
    "abnormal {}",
    "imperfect {}",
    "blemished {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)
ANOVL_OBJECT_DOMAIN = ("industrial photo", "industrial image", "manufacturing image")
ANOVL_TEXTURE_DOMAIN = ("industrial photo", "textural photo", "surface picture")
ANOVL_TEXTURES = ("carpet", "leather", "grid", "tile", "wood")  # of MVTec AD; all other categories are objects

# --- APRIL-GAN, AdaCLIP, AA-CLIP --------------------------------------------------------------------------------------
# ByChelsea/VAND-APRIL-GAN (f13b8a6): WinCLIP's normal states, 245 and 175 sentences.

APRILGAN_NORMAL = WINCLIP_NORMAL
APRILGAN_ABNORMAL = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
APRILGAN_TEMPLATES = (
    "a bad photo of a {}.",
    "a low resolution photo of the {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a photo of my {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a photo of one {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "a low resolution photo of a {}.",
    "a photo of a large {}.",
    "a blurry photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "a dark photo of a {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)

# caoyunkang/AdaCLIP (e27ee32): APRIL-GAN's states and the first four of its templates. Dashes of a name become spaces.
ADACLIP_NORMAL = APRILGAN_NORMAL
ADACLIP_ABNORMAL = APRILGAN_ABNORMAL
ADACLIP_TEMPLATES = APRILGAN_TEMPLATES[:4]

# Mwxinnn/AA-CLIP (53db195). It calls a category by a description, by dataset and folder.
AACLIP_NORMAL = ("{}", "a {}", "the {}")
AACLIP_ABNORMAL = ("a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect", "a {} with damage")
AACLIP_TEMPLATES = ("{}.", "a photo of {}.")
AACLIP_NAMES = {
    "mvtec": {
        "bottle": "dark bottle",
        "cable": "top view of three cables",
        "capsule": "black and orange capsule",
        "carpet": "gray carpet",
        "grid": "metal or plastic mesh",
        "hazelnut": "single brown hazelnut",
        "leather": "brown leather",
        "metal_nut": "metal nut which has four notched edges",
        "pill": "oval white pill with small red speckles and the letters 'FF' engraved",
        "screw": "screw",
        "tile": "speckled tile surface",
        "transistor": "a three-legged transistor placed vertically",
        "toothbrush": "toothbrush head",
        "wood": "wood surface",
        "zipper": "a black zipper",
    },
    "visa": {
        "candle": "candle",
        "capsules": "capsules",
        "cashew": "cashew nut",
        "chewinggum": "chewing gum",
        "fryum": "wheel-shaped fryum snack",
        "macaroni1": "orange macaroni",
        "macaroni2": "scattered yellow macaroni",
        "pcb1": "dual ultrasonic distance sensor pcb module",
        "pcb2": "integrated circuits board",
        "pcb3": "infrared sensor pcb module",
        "pcb4": "battery charging pcb module",
        "pipe_fryum": "pipe-shaped fryum",
    },
}

# --- CLIP and CLIP-AC, the baselines ----------------------------------------------------------------------------------
# Two protocols under the same names. `CLIP_BARE_TEMPLATES` belongs to the tables of ViT-B-16-plus-240 (WinCLIP, AnoVL,
# Dual-Image CLIP): `normal bottle`. `CLIP_PHOTO_TEMPLATES` belongs to those of ViT-L-14-336 (AnomalyCLIP, FAPrompt,
# KAnoCLIP): `A photo of a normal bottle`. No code of either was found; the sentences follow quotations of the papers.
# CLIP-AC puts the two bare states into the 80 templates of CLIP's ImageNet ensemble in both protocols.

CLIP_NORMAL = ("normal {}",)
CLIP_ABNORMAL = ("anomalous {}",)
CLIP_BARE_TEMPLATES = ("{}",)
CLIP_PHOTO_NORMAL = ("a normal {}",)
CLIP_PHOTO_ABNORMAL = ("an anomalous {}",)
CLIP_PHOTO_TEMPLATES = ("A photo of {}",)
IMAGENET_TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def sentences(
    states: Sequence[str], templates: Sequence[str], class_name: str, outer: Literal["state", "template"] = "state"
) -> list[str]:
    """Returns every state of `class_name` in every template.

    Args:
        states: States, each with one `{}` for the class name.
        templates: Templates, each with one `{}` for the state.
        class_name: Name of the category, for example `bottle`.
        outer: The index that changes slowest, `state` or `template`. Only AnoVL uses `template`. The order matters
            if each sentence has its own row.

    Raises:
        ValueError: `outer` is neither `state` nor `template`.
    """
    phrases = [state.format(class_name) for state in states]
    if outer == "state":
        return [template.format(phrase) for phrase in phrases for template in templates]
    if outer == "template":
        return [template.format(phrase) for template in templates for phrase in phrases]
    raise ValueError(f"outer must be state or template, got {outer!r}")


def in_domain(templates: Sequence[str], domain: Sequence[str]) -> tuple[str, ...]:
    """Returns the templates with each of the domain's words in place of `photo`. The templates of a word are adjacent.

    Where the word follows its article directly, the article is adapted: `an industrial photo of a {}`.

    Args:
        templates: Templates with the word `photo`.
        domain: Words in place of it, for example `ANOVL_OBJECT_DOMAIN`.
    """
    return tuple(_with_medium(template, medium) for medium in domain for template in templates)


def domain_aware(class_name: str, texture: bool) -> tuple[list[str], list[str]]:
    """Returns AnoVL's normal and abnormal sentences, 462 each, templates outermost.

    Args:
        class_name: Name of the category.
        texture: Whether the category is a texture rather than an object.
    """
    templates = in_domain(WINCLIP_TEMPLATES, ANOVL_TEXTURE_DOMAIN if texture else ANOVL_OBJECT_DOMAIN)
    normal, abnormal = (
        sentences(states, templates, class_name, "template") for states in (ANOVL_NORMAL, ANOVL_ABNORMAL)
    )
    return normal, abnormal


def _with_medium(template: str, medium: str) -> str:
    article = "an" if medium[0] in "aeiou" else "a"
    return re.sub(r"\b(a )?photo\b", lambda found: f"{article} {medium}" if found[1] else medium, template)
