"""The prompt tables give exactly the sentences that the official codes encoded.

The hashes are SHA-256 of the sentences joined by newlines, recorded while the public codes ran: Accurate-WinCLIP
(eef4f8c) and anomalib (b723368), which are equal, AnoVL (3a70bfd), VAND-APRIL-GAN (f13b8a6), AdaCLIP (e27ee32) and
AA-CLIP (53db195).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import pytest

from afclip_lightning.prompts import templates as t
from afclip_lightning.prompts.templates import in_domain, sentences

ANOVL_OBJECT = in_domain(t.WINCLIP_TEMPLATES, t.ANOVL_OBJECT_DOMAIN)
ANOVL_TEXTURE = in_domain(t.WINCLIP_TEMPLATES, t.ANOVL_TEXTURE_DOMAIN)
NOTCHED = "metal nut which has four notched edges"  # AA-CLIP's class name of metal_nut


def digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


@pytest.mark.parametrize(("states", "templates", "class_name", "outer", "count", "sha256"), [
    (t.WINCLIP_NORMAL, t.WINCLIP_TEMPLATES_21, "metal_nut", "state", 147,
     "968a120232467cde2b0f4a7135171a698e1b0831ae6e5021b1236a6afa3bfaaa"),
    (t.WINCLIP_ABNORMAL, t.WINCLIP_TEMPLATES_21, "metal_nut", "state", 84,
     "df33ed29e85077da9d4aa009ab52d3b83b41dd1f3bd8c893c8d97168a0692e3c"),
    (t.ANOVL_NORMAL, ANOVL_OBJECT, "metal_nut", "template", 462,
     "c02b7b9208b8635e392e4d59b1991389d338d69a4a82f0d29a8c882408a83a5a"),
    (t.ANOVL_ABNORMAL, ANOVL_OBJECT, "metal_nut", "template", 462,
     "09af7674813fac15e1d65a3e952eee9eec0f11353878d47d0f99f28299e146e1"),
    (t.ANOVL_NORMAL, ANOVL_TEXTURE, "carpet", "template", 462,
     "d18f18c500e278789bbe96541e5c0a03d419db9c8feed40746b7a1d170fc1b73"),
    (t.ANOVL_ABNORMAL, ANOVL_TEXTURE, "carpet", "template", 462,
     "8a4832140214d7257c436124e3e97e00ea8891fc99519b218fa4bb92251faa10"),
    (t.APRILGAN_NORMAL, t.APRILGAN_TEMPLATES, "metal_nut", "state", 245,
     "c6f43eb8527ef1320129d67986aecbdf9497a61db185bca60c96b9b70175d241"),
    (t.APRILGAN_ABNORMAL, t.APRILGAN_TEMPLATES, "metal_nut", "state", 175,
     "0a32437cd22bd08de411f626e3c7be569bb7272cb186cb23bc929dd30c09e8d3"),
    (t.ADACLIP_NORMAL, t.ADACLIP_TEMPLATES, "metal_nut", "state", 28,
     "57f3282b708dc0487b98da650791b1568d42997747ab5a8265fb5694d3b9e82a"),
    (t.ADACLIP_ABNORMAL, t.ADACLIP_TEMPLATES, "metal_nut", "state", 20,
     "96592cb670db8d490ebb4a36a8624bd62a3f3ce8dbf01ca9ff6075644529e4ad"),
    (t.AACLIP_NORMAL, t.AACLIP_TEMPLATES, NOTCHED, "state", 6,
     "c2df815b047bb1e552c40505b1c3b4f873338849dba9818c3ebdfe3d6c47a012"),
    (t.AACLIP_ABNORMAL, t.AACLIP_TEMPLATES, NOTCHED, "state", 10,
     "6c625b875ae8b60300f904f84483cf0370cb7ff65b1a07233a69b2c163ac6138"),
    (t.AACLIP_NORMAL, t.AACLIP_TEMPLATES, "dark bottle", "state", 6,
     "50895196ceab672ba52960310f6e2ee4a6862271790275f7baaf759f0d003f85"),
    (t.AACLIP_ABNORMAL, t.AACLIP_TEMPLATES, "dark bottle", "state", 10,
     "754217741d6b11ff202e7a697016985a851de2f7cb24c0cc95db0140c36a2457"),
])  # fmt: skip
def test_sentences_are_those_of_the_official_code(
    states: Sequence[str], templates: Sequence[str], class_name: str, outer: str, count: int, sha256: str
) -> None:
    prompts = sentences(states, templates, class_name, outer)  # type: ignore[arg-type]
    assert len(prompts) == count
    assert digest(prompts) == sha256


def test_the_faithful_winclip_table_has_22_templates() -> None:
    assert len(sentences(t.WINCLIP_NORMAL, t.WINCLIP_TEMPLATES, "bottle")) == 154
    assert len(sentences(t.WINCLIP_ABNORMAL, t.WINCLIP_TEMPLATES, "bottle")) == 88
    assert set(t.WINCLIP_TEMPLATES) - {template.rstrip(".") for template in t.WINCLIP_TEMPLATES_21} == {
        "a cropped photo of a {}",
        "a jpeg corrupted photo of a {}",
    }


@pytest.mark.parametrize(("normal", "abnormal", "templates"), [
    (t.WINCLIP_NORMAL, t.WINCLIP_ABNORMAL, t.WINCLIP_TEMPLATES),
    (t.ANOVL_NORMAL, t.ANOVL_ABNORMAL, ANOVL_OBJECT),
    (t.ANOVL_NORMAL, t.ANOVL_ABNORMAL, ANOVL_TEXTURE),
    (t.APRILGAN_NORMAL, t.APRILGAN_ABNORMAL, t.APRILGAN_TEMPLATES),
    (t.ADACLIP_NORMAL, t.ADACLIP_ABNORMAL, t.ADACLIP_TEMPLATES),
    (t.AACLIP_NORMAL, t.AACLIP_ABNORMAL, t.AACLIP_TEMPLATES),
    (t.CLIP_NORMAL, t.CLIP_ABNORMAL, t.CLIP_BARE_TEMPLATES),
    (t.CLIP_NORMAL, t.CLIP_ABNORMAL, t.IMAGENET_TEMPLATES),
    (t.CLIP_PHOTO_NORMAL, t.CLIP_PHOTO_ABNORMAL, t.CLIP_PHOTO_TEMPLATES),
])  # fmt: skip
def test_no_sentence_stands_twice_or_for_both_states(
    normal: Sequence[str], abnormal: Sequence[str], templates: Sequence[str]
) -> None:
    prompts = sentences(normal, templates, "metal nut") + sentences(abnormal, templates, "metal nut")
    assert len(set(prompts)) == len(prompts) == (len(normal) + len(abnormal)) * len(templates)
    assert all(prompt.count("metal nut") == 1 and "{" not in prompt for prompt in prompts)


def test_only_the_21_templates_double_one_as_the_official_codes_do() -> None:
    assert Counter(t.WINCLIP_TEMPLATES_21).most_common(2) == [
        ("a jpeg corrupted photo of the {}.", 2),
        ("a cropped photo of the {}.", 1),
    ]


def test_sentences_of_the_baselines() -> None:
    assert sentences(t.CLIP_ABNORMAL, t.CLIP_BARE_TEMPLATES, "cashew") == ["anomalous cashew"]
    assert sentences(t.CLIP_PHOTO_NORMAL, t.CLIP_PHOTO_TEMPLATES, "cashew") == ["A photo of a normal cashew"]
    assert sentences(t.CLIP_PHOTO_ABNORMAL, t.CLIP_PHOTO_TEMPLATES, "cashew") == ["A photo of an anomalous cashew"]
    ensemble = sentences(t.CLIP_NORMAL, t.IMAGENET_TEMPLATES, "cashew")
    assert len(ensemble) == 80
    assert "a photo of many normal cashew." in ensemble


def test_domain_words_take_their_article_along() -> None:
    table = ("a photo of a {}", "a cropped photo of the {}")
    assert in_domain(table, ("industrial photo", "surface picture")) == (
        "an industrial photo of a {}",
        "a cropped industrial photo of the {}",
        "a surface picture of a {}",
        "a cropped surface picture of the {}",
    )
    assert len(ANOVL_OBJECT) == len(ANOVL_TEXTURE) == 66


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="outer must be state or template, got 'word'"):
        sentences(t.CLIP_NORMAL, t.CLIP_BARE_TEMPLATES, "nut", "word")  # type: ignore[arg-type]
