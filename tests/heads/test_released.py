"""Trained heads of other projects: their scores here equal those of their own code; errors for wrong files."""

import inspect
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.cli import head
from afclip_lightning.engine.app import main
from afclip_lightning.engine.factory import Backbones, backbone_key, load_head, method_class
from afclip_lightning.heads.card import Card, TrainedOn
from afclip_lightning.heads.file import read_head_file
from afclip_lightning.heads.foreign import TAPS, find_released, formats, read_released
from afclip_lightning.heads.importing import import_head
from afclip_lightning.heads.pack import read_head
from afclip_lightning.heads.released import afclip
from afclip_lightning.types import Batch, Sample
from afclip_runtime.errors import CheckpointError, UserError
from afclip_runtime.files import read_yaml
from tests.support import REPOSITORY
from tests.support.commands import arguments, table
from tests.support.golden_case import KEY
from tests.support.recipe import REFERENCE_NOISE, REFERENCE_PATTERN, images, write_clip
from tests.support.recipe_baselines import Network, image, make_backbone
from tests.support.recipe_baselines import write_clip as write_baseline
from tests.support.released import MODULE, RELEASED, SHARED, changed, load, named, write_afclip
from tests.support.rounding import Check, compare

FILES = {
    "AnomalyCLIP": "anomalyclip.pth",
    "FAPrompt": "faprompt.pth",
    "APRILGAN": "aprilgan.pth",
    "AdaCLIP": "adaclip.pth",
    "AACLIP": "aaclip_image_adapter_20.pth",
}
ANOMALYCLIP, FAPROMPT, APRILGAN, ADACLIP, AACLIP = (RELEASED / name for name in FILES.values())


def batch_of(pixels: Tensor, category: str = KEY[1], dataset: str = KEY[0]) -> Batch:
    count, size = len(pixels), pixels.shape[-1]
    return Batch(
        image=pixels,
        mask=torch.zeros(count, size, size),
        label=torch.zeros(count, dtype=torch.long),
        mask_known=torch.zeros(count, dtype=torch.bool),
        samples=[Sample(dataset, category, "test", Path("golden.png"), 0)] * count,
    )


@pytest.fixture(scope="module")
def width64(golden_backbones: dict[int, ClipBackbone], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments that name the network of width 64."""
    config, weights = write_clip(tmp_path_factory.mktemp("clip"), 64)
    return {"backbone.model": str(config), "backbone.weights": str(weights), "backbone.image_size": 70}


@pytest.fixture(scope="module")
def built(golden_backbones: dict[int, ClipBackbone]) -> Callable[[Path, dict[str, Any]], Backbones]:
    """Returns a function that loads a head file on the network of width 64, also in float64."""

    def backbones_for(path: Path, options: dict[str, Any], backbone: ClipBackbone | None = None) -> Backbones:
        inner = {name.removeprefix("backbone."): value for name, value in options.items()}
        known = {**dict(read_released(path).format.backbone), **inner}
        return {backbone_key(known): backbone or golden_backbones[64]}

    return backbones_for


def imported(path: Path, out: Path, options: dict[str, Any], backbones: Backbones) -> Path:
    return import_head(path, out / "head.safetensors", None, options, None, backbones).out


def scores_of(path: Path, given: dict[str, Any]) -> Callable[[ClipBackbone, Check], None]:
    """Returns a function that compares the scores and maps of a head file with the recorded ones."""

    def body(backbone: ClipBackbone, check: Check) -> None:
        model = read_head_file(path).model
        method = load_head(path, given, {backbone_key(model["init_args"]["backbone"]): backbone})
        batch = batch_of(images())
        with torch.inference_mode():
            if given:
                method.fit_memory(KEY, images("input.reference", REFERENCE_NOISE, REFERENCE_PATTERN))
            prediction = method.score(method.extract(batch), batch)
        prefix, channel = ("fewshot." if given else "", type(method).__name__ == "AFCLIP")
        check(prediction.pred_score, f"{prefix}image_score")
        check(prediction.anomaly_map[:, None] if channel else prediction.anomaly_map, f"{prefix}map_final")

    return body


@pytest.mark.parametrize("path", [ANOMALYCLIP, FAPROMPT], ids=lambda path: path.stem)
def test_scores_are_those_of_the_official_code(
    path: Path, tmp_path: Path, width64: dict[str, Any], built: Any, golden_backbones: dict[int, ClipBackbone]
) -> None:
    out = imported(path, tmp_path, width64, built(path, width64))
    compare(scores_of(out, {}), golden_backbones[64], f"{path.stem}.npz", [""])


@pytest.mark.parametrize("k_shot", [0, 2])
@pytest.mark.parametrize("named", ["recipe_prompt.pt", "recipe_adaptor.pt"])
def test_scores_of_a_pickled_module_are_those_of_the_official_code(
    k_shot: int,
    named: str,
    tmp_path: Path,
    width64: dict[str, Any],
    built: Any,
    golden_backbones: dict[int, ClipBackbone],
) -> None:
    write_afclip(tmp_path)
    path = tmp_path / named
    out = imported(path, tmp_path, width64, built(path, width64))
    compare(scores_of(out, {"k_shot": k_shot} if k_shot else {}), golden_backbones[64], "afclip.npz", [""])


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the files that AF-CLIP's own classes wrote are not beside the checkout"
)
def test_what_afclips_own_classes_wrote_is_what_is_written_here(tmp_path: Path) -> None:
    """Its licence does not allow to share such a file; the stand-in of these tests has the same tensors."""
    write_afclip(tmp_path)
    theirs = read_released(SHARED / "afclip_adaptor.pt").converted
    ours = read_released(tmp_path / "recipe_adaptor.pt").converted
    assert theirs.arguments == ours.arguments == {"prompt_tokens": 12, "adapter_heads": 8}
    assert theirs.tensors.keys() == ours.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert torch.equal(tensor, ours.tensors[name]), name


@pytest.mark.parametrize(
    ("path", "network", "given", "score", "anomaly_map"),
    [
        (APRILGAN, "L14", {}, "zs_image_score", "zs_anomaly_map"),
        (ADACLIP, "L14-A", {"fusion": "none"}, "nohsf_image_score", "map_sigma4"),
        (ADACLIP, "L14-A", {"clusters": 1}, "hsf1_image_score", "map_sigma4"),  # one group, which no seed changes
    ],
)
def test_scores_of_baselines_are_those_of_the_official_code(
    path: Path, network: Network, given: dict[str, Any], score: str, anomaly_map: str, tmp_path: Path
) -> None:
    config, weights = write_baseline(tmp_path, network)
    inner = {"model": str(config), "weights": str(weights), "image_size": 70}
    known = {**read_released(path).format.backbone, **inner}
    backbone = make_backbone(tmp_path, network, known["pos_embed"])
    options = {**given, **{f"backbone.{name}": value for name, value in inner.items()}}
    out = imported(path, tmp_path, options, {backbone_key(known): backbone})

    @torch.no_grad()
    def body(backbone: ClipBackbone, check: Check) -> None:
        method = load_head(out, backbones={backbone_key(known): backbone})
        batch = batch_of(torch.stack([image(i, 70) for i in range(3)]), "metal_nut")
        prediction = method.score(method.extract(batch), batch)
        check(prediction.pred_score, score)
        check(prediction.anomaly_map[:, ::2, ::2], anomaly_map)

    compare(body, backbone, f"{path.stem}.npz")


def test_scores_of_aaclip_are_those_of_the_official_code(tmp_path: Path) -> None:
    config, weights = write_baseline(tmp_path, "L14")
    inner = {"model": str(config), "weights": str(weights), "image_size": 70}
    known = {**formats()["AACLIP"].backbone, **inner}
    backbone = make_backbone(tmp_path, "L14")
    options = {"image_score": "scaled", **{f"backbone.{name}": value for name, value in inner.items()}}
    out = imported(AACLIP, tmp_path, options, {backbone_key(known): backbone})
    assert read_head_file(out).card.epochs == 25

    @torch.no_grad()
    def body(backbone: ClipBackbone, check: Check) -> None:
        method: Any = load_head(out, backbones={backbone_key(known): backbone})
        batch = batch_of(torch.stack([image(i, 70) for i in range(3)]), "metal_nut", "mvtec")
        check(method.measured(batch)[0][:, ::2, ::2], "test_map")
        method.take_observed([method.measure([batch])])
        check(method.score(method.extract(batch), batch).pred_score, "test_image_score_industrial")

    compare(body, backbone, "aaclip.npz")


def test_the_stages_of_aaclip_belong_together(tmp_path: Path) -> None:
    text, visual = tmp_path / "text_adapter.pth", tmp_path / "image_adapter.pth"
    visual.write_bytes(AACLIP.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"image_adapter\.pth: is one of two files, and .*text_adapter\.pth is missing"
    ):
        read_released(visual)
    text.write_bytes(AACLIP.with_name("aaclip_text_adapter.pth").read_bytes())
    assert read_released(visual).converted.arguments["text_adapters"] == 3
    with pytest.raises(CheckpointError, match=r"text_adapter\.pth: is one of two files: name image_adapter\.pth, or"):
        read_released(text)
    text.write_bytes(visual.read_bytes())
    with pytest.raises(CheckpointError, match="has no text_adapter where the files of both stages should be"):
        read_released(visual)


def test_a_rectifier_behind_aaclips_projections_is_seen_by_their_names(tmp_path: Path) -> None:
    content = load(AACLIP.name)
    content["image_adapter"] = {
        name.replace(".fc.weight", ".fc.0.weight"): tensor for name, tensor in content["image_adapter"].items()
    }
    torch.save(content, tmp_path / "image_adapter_20.pth")
    (tmp_path / "text_adapter.pth").write_bytes(AACLIP.with_name("aaclip_text_adapter.pth").read_bytes())
    assert read_released(tmp_path / "image_adapter_20.pth").converted.arguments["projection_relu"] is True
    content["more"] = 1
    torch.save(content, tmp_path / "image_adapter_20.pth")
    with pytest.raises(CheckpointError, match="holds an entry that is not known here: more"):
        read_released(tmp_path / "image_adapter_20.pth")


@pytest.mark.parametrize("path", [ANOMALYCLIP, FAPROMPT], ids=lambda path: path.stem)
def test_a_file_is_taken_directly_too_whatever_it_is_called(
    path: Path, tmp_path: Path, width64: dict[str, Any], built: Any
) -> None:
    renamed = tmp_path / "weights.bin"
    renamed.write_bytes(path.read_bytes())
    backbones = built(path, width64)
    direct = load_head(renamed, width64, backbones)
    stored = read_head_file(imported(path, tmp_path, width64, backbones))
    assert direct.state_dict().keys() == stored.tensors.keys()
    assert all(torch.equal(tensor, stored.tensors[name]) for name, tensor in direct.state_dict().items())


def test_every_format_says_all_that_a_trained_head_depends_on() -> None:
    """A value left to our default would follow the paper instead of the code."""
    for name, one in formats().items():
        method = method_class(name)
        (path, *_) = [RELEASED / FILES[name]] if name in FILES else [None]
        said = set(one.arguments) | (set(read_released(path).converted.arguments) if path else {"learnable_prompt"})
        assert set(method.fixed_by_training) <= said, name
        assert one.licence
        assert one.weights
        assert {"model", "weights", "image_size", "pos_embed", "activation"} <= one.backbone.keys()


def test_configs_see_images_as_the_code_of_each_head_does() -> None:
    """So that a released file is tested with them: `test` refuses one that differs."""
    for name, one in formats().items():
        files = [f"configs/{name.lower()}_visa.yaml", f"configs/official/{name.lower()}.yaml"]
        paths = [REPOSITORY / file for file in files if (REPOSITORY / file).exists()]
        given: dict[str, Any] = {}
        for path in paths:
            given |= read_yaml(path, dict[str, Any], remedy="")["model"]["init_args"]
        method = method_class(name)
        defaults = {key: value.default for key, value in inspect.signature(method).parameters.items()}
        here = {"activation": "quick_gelu", **given["backbone"]}
        assert {key: here[key] for key in one.backbone if key != "weights"} == {
            key: value for key, value in one.backbone.items() if key != "weights"
        }
        for key in {*method.fixed_by_training, *TAPS} & one.arguments.keys():
            value = given.get(key, defaults[key])
            assert (list(value) if isinstance(value, tuple) else value) == one.arguments[key], (name, key)


def test_the_guide_says_of_each_project_where_its_weights_are_and_under_which_licence() -> None:
    guide = (REPOSITORY / "docs/heads.md").read_text(encoding="utf-8")
    for one in formats().values():
        (row,) = [line for line in guide.splitlines() if line.startswith(f"| `{one.method}`")]
        assert one.project in row


def test_deep_tokens_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    tokens = {f"compound_prompts_text.{i}": torch.full((4, 64), float(i)) for i in range(11)}
    path = changed("anomalyclip.pth", tmp_path / "deep.pth", tokens)
    found = read_released(path).converted
    assert found.arguments["prompt_depth"] == 12
    assert found.tensors["members.0.deep.tokens"][:, 0, 0].tolist() == list(range(11))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("anomalyclip.pth", {"ctx_new": torch.ones(2)}, "holds a tensor that is not known here: ctx_new"),
        ("anomalyclip.pth", {"ctx_neg": None}, "has no ctx_neg"),
        ("anomalyclip.pth", {"ctx_neg": torch.ones(1, 1, 12, 63)}, r"ctx_neg is of shape \[1, 1, 12, 63\], not \[1, …"),
        (
            "anomalyclip.pth",
            {"ctx_pos": torch.full((1, 1, 12, 64), torch.nan)},
            "ctx_pos holds other values than finite",
        ),
        ("anomalyclip.pth", {"ctx_pos": torch.ones(1, 1, 12, 64).long()}, "ctx_pos holds other values than finite"),
        (
            "anomalyclip.pth",
            {"tokenized_prompts_pos": torch.ones(1, 1, 77)},
            "tokenized_prompts_pos does not hold whole num",
        ),
        ("anomalyclip.pth", {"compound_prompts_text.1": None}, "has no compound_prompts_text.1"),
        (
            "faprompt.pth",
            {"compound_prompts_text.1": torch.ones(3, 64)},
            "has different numbers of deep tokens in its blocks",
        ),
        (
            "anomalyclip.pth",
            {"ctx_pos": torch.ones(1).expand(1, 1, 10**6, 64)},
            "names more values than the file holds",
        ),
        ("faprompt.pth", {"patch_meta_net.linear2.bias": None}, "has no patch_meta_net.linear2.bias"),
        ("faprompt.pth", {"patch_meta_net.linear3.bias": torch.ones(3)}, "not known here: patch_meta_net.linear3.bias"),
        ("aprilgan.pth", {"fc.4.weight": torch.ones(48, 64)}, "has 5 weights and 4 biases"),
        ("adaclip.pth", {"clip_model.visual_prompter.static_prompts.3": None}, "has 4 × 5 prompts in the text tower"),
        ("adaclip.pth", {"clip_model.cls_token_layer.head.1.weight": torch.ones(48, 48)}, "has no .*head.1.bias"),
        ("adaclip.pth", {"clip_model.dynamic_text_prompt_generator.head.4.weight": None}, "has 5 static and 4 dynamic"),
        ("adaclip.pth", {"clip_model.logit_scale": torch.ones(1)}, "not known here: clip_model.logit_scale"),
        ("aprilgan.pth", {"fc.0.gain": torch.ones(48)}, "not known here: fc.0.gain"),
    ],
)
def test_other_tensors_than_a_head_has_are_one_message(
    name: str, changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    path = changed(name, tmp_path / "bad.pth", changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_released(path)
    assert caught.match(r"^.*bad\.pth: .*Name another file\.$")
    with pytest.raises(CheckpointError, match=message):
        load_head(path)


def test_another_entry_beside_the_tensors_is_one_message(tmp_path: Path) -> None:
    for path in (ANOMALYCLIP, FAPROMPT, APRILGAN):
        torch.save({**load(path.name), "more": torch.ones(2)}, tmp_path / "bad.pth")
        with pytest.raises(CheckpointError, match=r"bad\.pth: holds an entry that is not known here: more\."):
            read_released(tmp_path / "bad.pth")


def test_a_file_of_another_method_or_of_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"faprompt\.pth: is a head of FAPrompt .*not of AnomalyCLIP.*--method FAP"
    ):
        read_released(FAPROMPT, "AnomalyCLIP")
    with pytest.raises(
        CheckpointError, match=r"There is no format of heads for WinCLIP\. Known formats: .*AnomalyCLIP"
    ):
        read_released(FAPROMPT, "WinCLIP")
    assert read_released(FAPROMPT, "fa-prompt").format.method == "FAPrompt"
    torch.save({"textual_learner": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: is not a trained head of a project .*\n.*github\.com"):
        read_released(tmp_path / "other.pth")
    assert find_released(tmp_path / "other.pth") is None
    with pytest.raises(CheckpointError, match=r"other\.pth has no feature spec.*`afclip head import` reads"):
        load_head(tmp_path / "other.pth")


@pytest.mark.parametrize("path", [ANOMALYCLIP, FAPROMPT, APRILGAN, ADACLIP], ids=lambda path: path.stem)
def test_a_truncated_or_damaged_file_is_one_message(path: Path, tmp_path: Path) -> None:
    content = bytearray(path.read_bytes())
    bad = tmp_path / "bad.pth"
    for damaged in (content[: len(content) // 2], b"", content[:5000] + b"\0" * 64 + content[5064:]):
        bad.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"bad\.pth: is .*Restore the file, or name another\.$"):
            read_released(bad)
    with pytest.raises(CheckpointError, match=r"absent\.pth does not exist"):
        read_released(tmp_path / "absent.pth")


def test_another_backbone_is_recognised_by_shapes_and_words_in_the_file(
    golden_backbones: dict[int, ClipBackbone],
) -> None:
    for path in (ANOMALYCLIP, FAPROMPT):
        released = read_released(path)
        cls = method_class(released.format.method)
        for key in (128, 64):
            backbone = golden_backbones[key]
            if key == 64:  # of the same widths: only the embeddings of its words are others
                backbone = deepcopy(backbone)
                backbone.text.token_embedding.weight.data.mul_(1.1)
            with pytest.raises(CheckpointError, match=r"(?s)it is not a head for golden-.*Name the backbone") as caught:
                released.checkpoint(cls(backbone, **released.arguments))
            assert caught.match(
                "embeddings of its words are those of another CLIP" if key == 64 else "tensors do not fit"
            )


def test_other_words_than_the_codes_are_said(tmp_path: Path, golden_backbones: dict[int, ClipBackbone]) -> None:
    ids = load("anomalyclip.pth")["prompt_learner"]["tokenized_prompts_neg"].clone()
    ids[0, 0, 13] = 320
    released = read_released(changed("anomalyclip.pth", tmp_path / "words.pth", {"tokenized_prompts_neg": ids}))
    method = method_class("AnomalyCLIP")(golden_backbones[64], **released.arguments)
    with pytest.raises(CheckpointError, match=r"a prompt in it has other words than 'damaged object\.'"):
        released.checkpoint(method)


def test_what_training_fixed_cannot_be_given_otherwise(width64: dict[str, Any], built: Any) -> None:
    with pytest.raises(CheckpointError, match=r"faprompt\.pth: .*\n.*prior_patches: 'first_k' .*'topk' here"):
        load_head(FAPROMPT, {**width64, "prior_patches": "topk"}, built(FAPROMPT, width64))
    with pytest.raises(CheckpointError, match=r"faprompt\.pth: FAPrompt: .*prior_patchez"):
        load_head(FAPROMPT, {**width64, "prior_patchez": "topk"}, built(FAPROMPT, width64))


def test_what_is_given_on_import_goes_before_what_the_code_fixes(
    tmp_path: Path, width64: dict[str, Any], built: Any
) -> None:
    """As in a head that was trained by changed code."""
    given = {**width64, "prior_patches": "topk"}
    done = import_head(FAPROMPT, tmp_path / "a.safetensors", None, given, None, built(FAPROMPT, width64))
    assert "prior_patches 'topk'" in done.says["given"]
    assert ", prior_patches" not in done.says["assumed, as its code has it"]
    stored = read_head_file(done.out)
    assert stored.hyperparameters["prior_patches"] == stored.model["init_args"]["prior_patches"] == "topk"


def test_of_two_files_one_is_not_enough(tmp_path: Path) -> None:
    prompt, adapter = write_afclip(tmp_path)
    kept = adapter.read_bytes()
    adapter.unlink()
    with pytest.raises(
        CheckpointError, match=r"recipe_prompt\.pt: is one of two files, and .*recipe_adaptor\.pt is missing"
    ):
        read_released(prompt)
    (tmp_path / "adapter.pt").write_bytes(kept)
    with pytest.raises(CheckpointError, match=r"adapter\.pt: is one of two files\. Name them SET_prompt\.pt"):
        read_released(tmp_path / "adapter.pt")
    adapter.write_bytes(prompt.read_bytes())
    with pytest.raises(CheckpointError, match="its two files do not hold a tensor and a module"):
        read_released(prompt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": torch.ones(2)}, "holds a tensor that is not known here: extra"),
        ({"inner": 96}, "has 96 rows, not a multiple of 64 per head"),
    ],
)
def test_another_module_than_the_adapter_is_one_message(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    prompt, _ = write_afclip(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_released(prompt)


def rewritten(path: Path, content: bytes) -> None:
    """Puts another pickle into a torch archive."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, content if name.endswith("data.pkl") else record)


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("touch ran",)


class Evaluates:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, ("open('ran', 'w')",)


@pytest.mark.parametrize(("thing", "refused"), [(Runs(), "(posix|nt).system"), (Evaluates(), "__builtin__.eval")])
@pytest.mark.parametrize("which", ["prompt", "adaptor"])
def test_nothing_in_a_file_is_run(
    thing: object, refused: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_afclip(tmp_path)
    path = tmp_path / f"recipe_{which}.pt"
    rewritten(path, pickle.dumps({"hook": thing}, protocol=2))
    said = rf"recipe_{which}\.pt: holds {refused}, which reading would run: only tensors"
    with pytest.raises(CheckpointError, match=said):
        read_released(path)
    with pytest.raises(CheckpointError):
        load_head(path)
    with pytest.raises(CheckpointError):
        read_head(path)
    assert not (tmp_path / "ran").exists()


def test_a_class_that_is_not_on_the_list_is_refused_by_name(tmp_path: Path) -> None:
    """Also if it is in torch itself, or has the name of a listed class."""
    write_afclip(tmp_path)
    path = tmp_path / "recipe_adaptor.pt"
    torch.save(nn.Conv2d(1, 1, 1), path)
    with pytest.raises(CheckpointError, match=r"holds torch\.nn\.modules\.conv\.Conv2d, which reading would run"):
        read_released(path)

    class Sampler(nn.Module):
        pass

    with named(MODULE, Sampler):
        torch.save(Sampler(), path)
    with pytest.raises(CheckpointError, match=r"holds clip\.adaptor\.Sampler, which reading would run"):
        read_released(path)


def test_a_pickle_cannot_ask_for_more_memory_than_it_is_long(tmp_path: Path) -> None:
    write_afclip(tmp_path)
    path = tmp_path / "recipe_adaptor.pt"
    rewritten(path, b"\x80\x02K\x01r\xff\xff\xff\x7f.")  # keeps the number 1 in place 2,147,483,647
    with pytest.raises(CheckpointError, match=r"its data\.pkl is damaged"):
        read_released(path)


def test_modules_that_hold_each_other_come_to_an_end(tmp_path: Path) -> None:
    prompt, adapter = write_afclip(tmp_path)

    class Adaptor(nn.Module):
        pass

    chain: nn.Module = Adaptor()
    for _ in range(40):
        above = Adaptor()
        above.one = above.other = chain
        chain = above
    with named(MODULE, Adaptor):
        buffer = io.BytesIO()
        torch.save(chain, buffer)
    adapter.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="or are more than 100,000"):
        read_released(prompt)


def test_the_command_says_what_it_read_and_what_it_assumed(
    tmp_path: Path, width64: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.yaml").write_text("trained_on: [{dataset: visa}]\nepochs: 15\n")
    options = [arg for name, value in width64.items() for arg in (f"--model.{name}", str(value))]
    args = ["import", str(ANOMALYCLIP), "--method", "AnomalyCLIP", "--card", "card.yaml", *options]
    assert head.main(args) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "github.com/zqhang/AnomalyCLIP",
        "prompt_tokens 12, n_abnormal_prompts 1, prompt_depth 9, deep_tokens 4",
        "assumed, as its code has it layers [24], vv_from 6, normal_words 'object.'",
        "70 px, bilinear",
        "16 tensors that nothing uses, such as compound_prompt_projections.0.weight",
        "anomalyclip.safetensors: 0.0",
    ):
        assert part in said
    card = read_head_file(tmp_path / "anomalyclip.safetensors").card
    assert card.trained_on == (TrainedOn("visa"),)
    assert card.epochs == 15
    assert "MIT" in card.licence
    assert card.sources == ("github.com/zqhang/AnomalyCLIP",)
    assert head.main(["show", "anomalyclip.safetensors"]) == 0
    assert "imported from anomalyclip.pth" in capsys.readouterr().out
    assert head.main(args) == 2
    assert capsys.readouterr().err == "error: anomalyclip.safetensors already exists. Name the head file: --out FILE.\n"
    assert head.main(["show", "real", "--model.layers", "[1]"]) == 2
    assert "--model.layers is only an option of head import and head fuse" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["show"], ["pack", "--out", "head.safetensors"]])
def test_commands_on_our_heads_say_what_to_do_with_others(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, adapter = write_afclip(tmp_path)
    assert head.main([command[0], str(adapter), *command[1:]]) == 2
    said = capsys.readouterr().err
    assert "is a head of github.com/Faustinaqq/AF-CLIP: convert it first" in said
    assert f"`afclip head import {adapter}`" in said


def test_a_card_says_what_is_not_known(tmp_path: Path, width64: dict[str, Any], built: Any) -> None:
    out = imported(FAPROMPT, tmp_path, width64, built(FAPROMPT, width64))
    card = read_head_file(out).card
    assert msgspec.structs.replace(card, version="", date="") == Card(
        title="FAPrompt, imported from faprompt.pth",
        limits=card.limits,
        licence=formats()["FAPrompt"].licence,
        sources=("github.com/mala-lab/FAPrompt",),
    )
    assert "do not test it on the set that it was trained on" in card.limits[0]


def test_a_config_that_resizes_images_differently_is_reported(golden_backbones: dict[int, ClipBackbone]) -> None:
    released = read_released(ANOMALYCLIP)
    method = method_class("AnomalyCLIP")(golden_backbones[64], **{**released.arguments, "layers": [6, 24]})
    assert released.differences(method) == [
        "backbone.image_size: 518 in its code, 70 here",
        "layers: [24] in its code, [6, 24] here",
    ]
    as_here = replace(released.format, backbone={**released.format.backbone, "image_size": 70})
    method = method_class("AnomalyCLIP")(golden_backbones[64], **released.arguments)
    assert replace(released, format=as_here).differences(method) == []


def test_a_head_of_another_method_than_the_configs_is_refused(golden_backbones: dict[int, ClipBackbone]) -> None:
    method = method_class("AFCLIP")(golden_backbones[64])
    with pytest.raises(UserError, match=r"it is a head of AnomalyCLIP \(.*\), the model is AFCLIP"):
        read_released(ANOMALYCLIP).checkpoint(method)


@pytest.mark.slow
def test_a_run_tests_a_released_head_where_its_config_sees_images_as_that_code_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, _ = write_afclip(folder, text_width=16)
    command = ["test", *arguments(), f"--checkpoint={prompt}"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "is a head of github.com/Faustinaqq/AF-CLIP, and the config differs" in said
    assert "layers: [6, 12, 18, 24] in its code, [1, 2, 3] here" in said
    here = {"image_size": 28, "pos_embed": "bilinear", "activation": "gelu"}
    as_here = replace(afclip.FORMAT, backbone=here, arguments={**afclip.FORMAT.arguments, "layers": [1, 2, 3]})
    monkeypatch.setattr(afclip, "FORMAT", as_here)
    assert main(command) == 0
    assert table(folder / "run/results.csv")["visa", "mean"]["pixel_auroc"]
    assert f"{prompt.name} (" in (folder / "run/results.md").read_text()
