"""Text towers other than CLIP's: ends of prompts, tokenizers from a folder, messages without a tokenizer."""

import importlib.util
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.tokenizers import NEEDED, Tokenizer, load_tokenizer
from afclip_lightning.prompts.category import CategoryPrompts
from afclip_lightning.prompts.learner import DeepTokens, ObjectPrompts, StatePrompts, nearest_words
from afclip_runtime.errors import UserError, WeightsError
from tests.support.clips import small_config
from tests.support.tokenizers import SIZE, tokenizer_folder

TEXT = {"context_length": 24, "vocab_size": SIZE, "width": 16, "heads": 2, "layers": 3, "hf_tokenizer_name": "a/b"}
METACLIP2 = {**TEXT, "pool_type": "eos", "eos_id": 2}
SIGLIP2 = {**TEXT, "pool_type": "last", "no_causal_mask": True, "tokenizer_kwargs": {"clean": "canonicalize"}}
PROMPTS = ["ein Foto von Schraube ohne Fehler", "一张损坏的瓶子的照片", "Flasche"]
FAMILIES = {"metaclip2": (METACLIP2, True, False), "siglip2": (SIGLIP2, False, False), "siglip": (SIGLIP2, False, True)}


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> ClipBackbone:
    text, adds_start, pad_is_end = FAMILIES[request.param]
    folder = tokenizer_folder(tmp_path / "tokenizer", adds_start, pad_is_end)
    model = small_config(tmp_path, f"small-{request.param}", text_cfg=text)
    return ClipBackbone(model, "random", image_size=None, tokenizer=str(folder))


def own(backbone: ClipBackbone) -> Any:
    """open_clip's own model with the same random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.create_model(backbone.model, pretrained=None).eval()


def test_prompts_of_other_languages_are_embedded_as_open_clip_does(backbone: ClipBackbone) -> None:
    ids = backbone.tokenize(PROMPTS)
    assert ids.shape == (3, 24)
    assert all(int(ids[row, end]) == 2 for row, end in enumerate(backbone.ends(ids)))  # the end-of-text token
    torch.testing.assert_close(backbone.encode_text(PROMPTS), own(backbone).encode_text(ids))
    torch.testing.assert_close(backbone.encode_text(PROMPTS[:1]), backbone.encode_text(PROMPTS)[:1])
    assert "foto" in {backbone.word(int(token)).lower() for token in ids[0]}


def test_a_prompt_that_does_not_fit_is_refused_and_one_that_just_does_is_not(backbone: ClipBackbone) -> None:
    start = int(backbone.ends(backbone.tokenize(["foto"]))[0]) - 1  # tokens that are no words
    full = ["foto"] * (23 - start)
    assert backbone.ends(backbone.tokenize([" ".join(full)])).tolist() == [23]  # the whole context is used
    with pytest.raises(UserError, match="takes 24 tokens, and this prompt has more: 'foto foto"):
        backbone.tokenize(["foto", " ".join([*full, "foto"])])


def test_learned_tokens_move_the_end(backbone: ClipBackbone) -> None:
    """The reference is open_clip's tower, fed with the same embeddings and pooled at the same place."""
    states = StatePrompts(backbone, ["ohne Fehler", "有缺陷的螺丝"], 3, 0.02)
    tower, ids = own(backbone), backbone.tokenize(["ohne Fehler", "有缺陷的螺丝"])
    text = getattr(tower, "text", tower)
    words = torch.cat([states.tokens.expand(2, -1, -1), text.token_embedding(ids)], dim=1)[:, :24]
    x = words + text.positional_embedding
    for block in text.transformer.resblocks:
        x = block(x, attn_mask=text.attn_mask)
    ends = torch.full((2,), 23) if backbone.text.pooling == "last" else 3 + (ids == 2).int().argmax(1)
    expected = text.ln_final(x[torch.arange(2), ends]) @ text.text_projection
    torch.testing.assert_close(states(backbone), expected)


def test_every_kind_of_learned_prompt_runs(backbone: ClipBackbone) -> None:
    prompts = ObjectPrompts(backbone, "瓶子.", "Fehler.", 3, 2, 2, deep=DeepTokens(backbone, 2, 2))
    assert prompts(backbone).shape == (3, 16)
    category = CategoryPrompts(backbone, ["gute", "heile"], ["beschädigte"], 3, 0.02)
    embedded = category(backbone, ["Flasche", "螺丝"])
    assert embedded.shape == (2, 2, 16)
    embedded.sum().backward()
    assert category.tokens.grad is not None
    assert len(nearest_words(backbone, category, count=1)) == 6
    with pytest.raises(ValueError, match="must fit in the context length 24"):
        StatePrompts(backbone, ["ohne Fehler"], 22, 0.02)


def test_ends_of_clips_own_tokenizer() -> None:
    tokenizer = Tokenizer(load_tokenizer("ViT-B-32", None, None), "argmax", 0)
    ids = tokenizer(["a photo", "a photo of a small screw"])
    assert ids.gather(1, tokenizer.ends(ids)[:, None]).unique().tolist() == [49407]
    last = Tokenizer(tokenizer.encode, "last", 0)
    assert last.ends(ids).tolist() == tokenizer.ends(ids).tolist()


@pytest.fixture
def hub_model(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path, "small-hub", text_cfg=METACLIP2), "random", image_size=None)


def test_without_the_package_one_message_names_the_extra(
    hub_model: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "afclip_lightning.backbones.tokenizers.find_spec",
        lambda name: None if name == "transformers" else find(name),
    )
    load_tokenizer.cache_clear()
    with pytest.raises(UserError, match=r"small-hub: its tokenizer \(a/b\) .*pip install 'afclip_lightning\[hub\]'"):
        hub_model.encode_text(["Flasche"])


def test_without_the_hub_one_message_names_the_files(
    hub_model: ClipBackbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="the extra `hub` is not installed")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr("afclip_lightning.backbones.tokenizers.HFTokenizer", unreachable)
    load_tokenizer.cache_clear()
    with pytest.raises(WeightsError) as caught:
        hub_model.encode_text(["Flasche"])
    for part in ("small-hub", "a/b", *NEEDED, "https://huggingface.co/a/b", "--model.backbone.tokenizer DIR"):
        assert part in str(caught.value)


def test_a_folder_that_lacks_a_file_or_holds_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "tokenizer")
    model = small_config(tmp_path, "small-folder", text_cfg=METACLIP2)
    (folder / "tokenizer_config.json").rename(tmp_path / "kept")
    backbone = ClipBackbone(model, "random", image_size=None, tokenizer=str(folder))
    with pytest.raises(WeightsError, match=r"has no tokenizer_config.json. .*https://huggingface.co/a/b"):
        backbone.encode_text(["Flasche"])
    (folder / "tokenizer_config.json").write_text("{}")
    load_tokenizer.cache_clear()
    with pytest.raises(WeightsError, match="names no `pad_token`"):
        backbone.encode_text(["Flasche"])
    (tmp_path / "kept").rename(folder / "tokenizer_config.json")
    (folder / "tokenizer.json").write_text("{broken")
    load_tokenizer.cache_clear()
    with pytest.raises(WeightsError, match="its tokenizer cannot be read"):
        backbone.encode_text(["Flasche"])


def test_a_folder_for_clips_own_tokenizer_is_refused(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None, tokenizer=str(tmp_path))
    with pytest.raises(ValueError, match="small has CLIP's own tokenizer"):
        backbone.encode_text(["Flasche"])


@pytest.mark.parametrize(
    "model",
    [name for name in open_clip.list_models() if open_clip.get_model_config(name)["text_cfg"].get("hf_model_name")],
)
def test_a_text_tower_of_the_hub_is_refused_before_anything_is_built(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(WeightsError, match=f"{model}: its text tower .* is one of the hub's"):
        ClipBackbone(model, "random", image_size=None)
