"""The bases of the project, and errors for invalid files."""

from pathlib import Path

import open_clip
import pytest

from afclip_lightning.datasets.mvtec import MVTecAD
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.datasets.visa import VisA
from afclip_lightning.knowledge.base import (
    MAX_TOKENS,
    bases,
    count_tokens,
    image_sentence,
    knowledge_digest,
    load_image_sentences,
    load_knowledge,
    load_provenance,
    render_base,
)
from afclip_runtime.errors import UserError

DATASETS = {"mvtec": MVTecAD, "synthetic": Synthetic, "visa": VisA}


def write(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", DATASETS)
def test_a_base_of_the_project_has_five_sentences_for_every_category_of_its_dataset(name: str) -> None:
    knowledge = load_knowledge(name)
    dataset = DATASETS[name]()
    assert sorted(knowledge) == sorted(dataset.find_categories())
    for category, sentences in knowledge.items():
        assert len({sentence.lower() for sentence in sentences}) == 5
        for sentence in sentences:
            assert dataset.class_name_of(category).removesuffix("s") in sentence  # of several capsules one is abnormal
            assert sentence[0].isupper()
            assert sentence.endswith(".")
            assert sentence.isascii()
    assert {"generator", "date", "version", "licence"} == load_provenance(name).keys()
    assert load_image_sentences(name) == {}


def test_there_are_no_other_bases() -> None:
    assert bases() == sorted(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_no_sentence_is_cut_by_the_tokenizer_that_clip_uses(name: str) -> None:
    sentences = [sentence for lines in load_knowledge(name).values() for sentence in lines]
    uncut = open_clip.get_tokenizer("ViT-L-14-336")(sentences, context_length=200)
    lengths = (uncut > 0).sum(dim=1)
    assert lengths.max() <= MAX_TOKENS + 2
    assert lengths.tolist() == [count_tokens(sentence) + 2 for sentence in sentences]


def test_only_the_categories_that_are_asked_for_are_returned() -> None:
    knowledge = load_knowledge("mvtec", ["screw", "bottle"])
    assert list(knowledge) == ["screw", "bottle"]
    assert knowledge["screw"] == load_knowledge("mvtec")["screw"]


def test_a_category_that_is_not_asked_for_may_be_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, "sentences: {nut: [A nut.], bolt: []}")
    assert load_knowledge(path, ["nut"]) == {"nut": ["A nut."]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentences: {nut: [A nut.]}\nsentence: 1", "'sentence', which is not a key of a base"),
        ("nut: [A nut.]", "'nut', which is not a key of a base. Categories stand under"),
        ("provenance: {}", "has no `sentences`"),
        ("sentences: [A nut.]", "has no `sentences`"),
        ("- A nut.", "got a list"),
        ("", "got nothing"),
        ("sentences: {nut: [A nut.]", "cannot be read as YAML"),
        ("sentences:\n  nut: [A nut.]\n  nut: [Another.]", "line 3: .*'nut' occurs twice"),
        ("sentences: {nut: A nut.}", "nut: must be a list of sentences"),
        ("sentences: {nut: []}", "nut: must be a list of sentences"),
        ("sentences: {nut: [A nut., ' ']}", "nut, sentence 2: must be text"),
        ("sentences: {nut: [a crack: black]}", "nut, sentence 1: must be text.*in quotes if it holds a colon"),
        (f"sentences: {{nut: [{'crack ' * 76}]}}", "nut, sentence 1: has 76 tokens, and CLIP takes 75. Shorten it"),
    ],
)
def test_a_file_that_is_not_as_it_must_be(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=rf"(?s)own\.yaml.*{message}"):
        load_knowledge(path)


def test_a_sentence_of_just_as_many_tokens_as_clip_takes(tmp_path: Path) -> None:
    path = write(tmp_path, f"sentences: {{nut: [{'crack ' * 75}]}}")
    assert count_tokens(load_knowledge(path)["nut"][0]) == 75


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no knowledge base 'bottles'\. There are: mvtec, synthetic, visa"):
        load_knowledge("bottles")
    with pytest.raises(UserError, match=r"absent\.yaml: cannot be read"):
        load_knowledge(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"visa\.yaml: has no sentences for the category 'bottle'.*candle"):
        load_knowledge("visa", ["candle", "bottle"])


def test_the_digest_is_of_the_content_and_not_of_its_order() -> None:
    first, second = load_knowledge("mvtec", ["screw", "tile"]), load_knowledge("mvtec", ["tile", "screw"])
    assert knowledge_digest(first) == knowledge_digest(second)
    changed = {**first, "tile": first["tile"][::-1]}
    assert len({knowledge_digest(each) for each in (first, changed, load_knowledge("mvtec", ["tile"]))}) == 3


def test_a_rendered_base_reads_back(tmp_path: Path) -> None:
    sentences = {"nut": ['A "nut": bent, # here', "Ein Riß – ${x}"], "no": ["yes"], "1": ["2"]}
    images = {"nut/test/bent/000.png": "The nut is bent: twice."}
    path = write(tmp_path, render_base(sentences, images, {"generator": "test", "date": "2026-11-24"}))
    assert load_knowledge(path) == sentences
    assert load_image_sentences(path) == images
    assert load_provenance(path) == {"generator": "test", "date": "2026-11-24"}


def test_images_that_are_not_as_they_must_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own\.yaml: `images` must hold one sentence per image path, got list"):
        load_image_sentences(write(tmp_path, "images: [A nut.]"))
    with pytest.raises(UserError, match=r"own\.yaml: nut/0\.png: must be text"):
        load_image_sentences(write(tmp_path, "images: {nut/0.png: }"))


def test_an_image_is_found_by_the_end_of_its_path() -> None:
    sentences = {"nut/test/bent/000.png": "The nut is bent.", "000.png": "Which one?"}
    assert image_sentence(sentences, Path("/data/sets/nut/test/bent/000.png")) == "The nut is bent."
    assert image_sentence(sentences, Path("nut/test/bent/000.png")) == "The nut is bent."
    assert image_sentence({"nut/test/bent/000.png": "The nut is bent."}, Path("/walnut/test/bent/000.png")) is None
