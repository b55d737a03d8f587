"""Your own prompts: files in other languages, from the file to a table of results."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine import app
from afclip_lightning.engine.factory import load_head
from afclip_lightning.knowledge.base import load_knowledge
from afclip_lightning.methods.clip import CLIP
from afclip_lightning.methods.winclip import WinCLIP
from afclip_lightning.prompts.own import read_prompts
from afclip_lightning.prompts.templates import sentences
from afclip_lightning.types import Sample
from afclip_runtime.errors import UserError
from tests.support import REPOSITORY
from tests.support.clips import small_config
from tests.support.layouts.mvtec import write_mvtec
from tests.support.tokenizers import SIZE, tokenizer_folder

PROMPTS = REPOSITORY / "configs" / "prompts"
TOWERS: dict[str, dict[str, Any]] = {
    "metaclip2": {"pool_type": "eos", "eos_id": 2},
    "siglip2": {"pool_type": "last", "no_causal_mask": True, "tokenizer_kwargs": {"clean": "canonicalize"}},
}
LANGUAGES = {"german": "Flasche", "chinese": "瓶子"}


def backbone_arguments(folder: Path, tower: str) -> dict[str, Any]:
    text = {"context_length": 64, "vocab_size": SIZE, "width": 16, "heads": 2, "layers": 2, "hf_tokenizer_name": "a/b"}
    model = small_config(folder, f"languages-{tower}", text_cfg=text | TOWERS[tower])
    return {
        "model": model,
        "weights": "random",
        "image_size": 28,
        "tokenizer": str(tokenizer_folder(folder / "tokenizer")),
    }


@pytest.mark.parametrize(("language", "name"), LANGUAGES.items())
def test_the_files_of_the_project_have_no_word_of_english(language: str, name: str) -> None:
    prompts = read_prompts(PROMPTS / f"{language}.yaml")
    for states in (prompts.normal, prompts.abnormal):
        for sentence in sentences(states, prompts.templates, name):
            assert sentence.count(name) == 1
            assert not {"a", "an", "the", "of", "photo"} & set(sentence.split())


@pytest.mark.parametrize("tower", TOWERS)
def test_prompts_in_other_languages_reach_the_score(tmp_path: Path, tower: str) -> None:
    backbone = ClipBackbone(**backbone_arguments(tmp_path, tower))
    embedded = []
    for language, name in LANGUAGES.items():
        path = PROMPTS / f"{language}.yaml"
        sample = Sample(
            image_path=Path("x.png"),
            label=0,
            mask_path=None,
            category="bottle",
            dataset="mvtec",
            split="test",
            class_name=name,
        )
        prompts = read_prompts(path)
        expected = torch.stack(
            [
                torch.nn.functional.normalize(
                    backbone.encode_text(sentences(states, prompts.templates, name)), dim=-1
                ).mean(0)
                for states in (prompts.normal, prompts.abnormal)
            ]
        )
        text = CLIP(backbone, str(path), "class_name").embed_text(sample)
        torch.testing.assert_close(text, torch.nn.functional.normalize(expected, dim=-1))
        assert not torch.allclose(text[0], text[1])
        assert WinCLIP(backbone, (2,), str(path), "class_name").embed_text(sample).shape == text.shape
        embedded.append(text)
    assert not torch.allclose(*embedded)


@pytest.mark.slow
@pytest.mark.parametrize(("language", "name"), LANGUAGES.items())
def test_a_run_in_another_language_ends_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(tmp_path / "data", ["bottle"])
    arguments = {
        "backbone": backbone_arguments(tmp_path, "metaclip2"),
        "prompts": str(PROMPTS / f"{language}.yaml"),
        "names": "class_name",
    }
    data = {"root": "data", "num_workers": 0, "class_names": {"bottle": name}}
    config = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        "model": {"class_path": "CLIP", "init_args": arguments},
        "data": {"class_path": "MVTecLayout", "init_args": data},
        "pictures": {"count": 0},
    }
    Path("base.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    assert app.main(["test", "--config", "base.yaml", "--out", "run"]) == 0
    assert "bottle" in Path("run/results.csv").read_text()
    assert load_head("base.yaml").spec.model == "languages-metaclip2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normal": []}, "`normal` is empty"),
        ({"abnormal": ["Fehler"]}, "abnormal: 'Fehler' must hold {} once"),
        ({"templates": ["{} und {}"]}, "templates: '{} und {}' must hold {} once"),
        ({"templates": ["{name}"]}, "must hold {} once"),
        ({"normal": None}, "normal"),
    ],
)
def test_a_file_that_is_none_of_prompts_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"normal": ["{}"], "abnormal": ["{}"], "templates": ["{}"]} | change))
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_table_that_is_none_is_refused_and_named(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    with pytest.raises(ValueError, match="clip_ac or a YAML file"):
        CLIP(backbone, "clip_foto")
    with pytest.raises(UserError, match=r"none\.yaml"):
        CLIP(backbone, str(tmp_path / "none.yaml"))


def test_sentences_in_another_alphabet_are_not_counted_by_clips_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    sentence = "瓶口边缘有一个小缺口，打断了原本光滑的圆形轮廓，在灯光下反射出明亮的光点，看起来像是碰撞造成的破损。"
    path.write_text(yaml.safe_dump({"sentences": {"bottle": [sentence]}}, allow_unicode=True), encoding="utf-8")
    assert load_knowledge(path) == {"bottle": [sentence]}
