"""Invalid values of options: one error each, before any data is read or model is built."""

import re
from pathlib import Path

import pytest
import yaml

from afclip_lightning.backbones import clip
from afclip_lightning.engine import app
from afclip_lightning.engine.arguments import with_sections, without_leftovers
from tests.support.small_run import run, write_small_run

WRONG = {
    "--trainer.devices=0": "--trainer: .*devices",
    "--trainer.accelerator=cuda --trainer.devices=[97]": "--trainer: ",
    "--trainer.accelerator=abacus": "invalid accelerator name",
    "--trainer.strategy=none": "invalid strategy name",
    "--trainer.profiler=none": "profiler",
    "--trainer.max_time=soon": "not a valid duration",
    "--trainer.precision=64-true": "use 32-true, 16-mixed or bf16-mixed",
    "--trainer.barebones=true": "barebones",
    "--trainer.default_root_dir=here": "use --out for the run folder",
    "--trainer.model_registry=here": "checkpoints stay in the run folder",
    "--trainer.limit_train_batches=.nan": "limit_train_batches must be a finite number, got nan",
    "--trainer.limit_test_batches=.inf": "limit_test_batches must be a finite number, got inf",
    "--trainer.limit_test_batches=-1": "--trainer: ",
    "--trainer.limit_train_batches=0": "trains nothing",
    "--trainer.max_epochs=0": "trains nothing",
    "--trainer.limit_test_batches=0": "use --test_after_fit false",
    "--trainer.val_check_interval=0": "0 means never: use --trainer.limit_val_batches 0 for that",
    "--model.map_sigma=-1": "map_sigma must be at least 0, got -1",
    "--trainer.max_steps=0": "trains nothing",
    "--trainer.max_epochs=-2": "--trainer: ",
    "--trainer.accumulate_grad_batches=0": "must be at least 1, got 0",
    "--trainer.gradient_clip_val=-1": "must be at least 0, got -1",
    "--seed_everything=-1": "seed_everything must be from 0 to 4294967295, got -1",
    "--seed_everything=4294967296": "seed_everything must be from 0 to 4294967295",
    "--model.optimizer.lr=.nan": "optimizer.init_args.lr must be a finite number, got nan",
    "--model.optimizer.weight_decay=-.inf": "weight_decay must be a finite number",
    "--model.optimizer.lr=-1": "Invalid learning rate",
    "--model.optimizer.betas=[2,3]": "Invalid beta",
    "--model.temperature=.nan": "temperature must be a finite number",
    "--data.train.num_workers=100000": "num_workers must be at most 1024, got 100000",
    "--data.train.batch_size=0": "batch_size must be at least 1, got 0",
    "--data.train.batch_size=1000000000000000000000000000000": "batch_size must be at most",
    "--pictures.count=-1": "must be at least 0, got -1",
    "--loading.cache_mb=-1": "cache_mb must not be negative",
    "--evaluation.tolerance=-1": "must be at least 0",
    "--few_shot_dir=absent": "absent is not a folder",
    "--heads={a: absent.ckpt}": "absent.ckpt does not exist",
    "--heads={main: absent.ckpt}": "'main' is the name of the run's own head",
    "--heads={a/b: absent.ckpt}": "'a/b' is not a valid name for a head. Use letters, digits",
    # types
    "--trainer.max_epochs=many": "trainer.max_epochs: expected a whole number or null, got many.",
    "--trainer.max_epochs=1.5": "trainer.max_epochs: expected a whole number or null, got 1.5.",
    "--model.layers=all": "model.layers: expected a list, got all.",
    "--model.backbone.image_size=large": "image_size: expected a whole number or tuple or null, got large.",
    "--loading.on_error=1": "loading.on_error: expected one of 'raise', 'skip', got 1.",
    "--data.train.train_split=dev": "data.train.train_split: expected one of 'train', 'test', got dev.",
    "--model.layers=null": "model.layers: null is not a valid value; leave it out for .6, 12, 18, 24",
    "--model.backbone.model=null": "model.backbone.model: null is not a valid value; leave it out for 'ViT-L-14-336'.",
    "--data.train.batch_size=~": "data.train.batch_size: null is not a valid value; leave it out for 8.",
    # names
    "--model=AFCLIPP": "model: there is no class 'AFCLIPP' that fits here; did you mean 'AFCLIP'",
    "--data=MVTecLayuot": "data: there is no class 'MVTecLayuot' that fits here; did you mean 'MVTecLayout'",
    "--model.optimizer=Adamm": "model.optimizer: there is no class 'Adamm' that fits here",
    "--model=my_method.Mine": "model: my_method.Mine cannot be imported: No module named 'my_method'. .*PYTHONPATH=.",
    "--model=torch.Nothing": "model: torch.Nothing cannot be imported: module 'torch' has no attribute 'Nothing'.$",
    "--data.train=mine.Set": "data.train: mine.Set cannot be imported: No module named 'mine'. .*PYTHONPATH=.",
    "--model.optimizer=torch.optim.Adm": "model.optimizer: torch.optim.Adm cannot be imported: module 'torch.optim' ",
    "--model.lr=0.1": "'lr' is not accepted. Name the optimiser, too: --model.optimizer torch.optim.Adam --model",
    "--trainer.callbacks=Unknown": "trainer.callbacks: there is no class 'Unknown' that fits here",
    # names that YAML reads as something else
    "--data.train.categories=[01]": "quote",
    "--data.train.categories=[no]": "quote",
    "--data.train.class_names={01: plug}": "quote",
    "--data.train.class_names={plug: 1}": "quote",
    # brackets
    "--model.layers=[1,2": "Close each bracket and quote",
    "--model={class_path: AFCLIP": "Close each bracket and quote",
    "--data.train.class_names={a: 'b}": "Close each bracket and quote",
    "--trainer={max_epochs: 2": "Close each bracket and quote",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_small_run(folder)
    return folder


@pytest.fixture
def folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(small)
    return small


@pytest.mark.slow
@pytest.mark.parametrize("options", WRONG)
def test_wrong_values(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    monkeypatch.setattr(clip, "config_of", lambda *_: pytest.fail("built a model"))
    args = [f"--{part}" for part in options.removeprefix("--").split(" --")]
    assert run("fit", *args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(WRONG[options].replace("[", r"\["), errors[0])
    assert len(lines) <= 3
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("given", "read"), [("1", "1"), ("0.5", "0.5"), ("1.0", "1.0")])
def test_a_limit_of_one_is_one_batch(folder: Path, capsys: pytest.CaptureFixture[str], given: str, read: str) -> None:
    with pytest.raises(SystemExit):
        app.main(["test", "--config=base.yaml", f"--trainer.limit_test_batches={given}", "--print_config"])
    assert f"limit_test_batches: {read}\n" in capsys.readouterr().out


NULLS = {  # options of an option, which the parser by itself reads twice, and how each is given
    "model.backbone.vision_weights": "timm:vit_tiny_patch16_224.augreg_in21k",
    "model.backbone.tokenizer": "folder",
    "model.backbone.cache_dir": "folder",
    "model.backbone.mean": "[0.5,0.5,0.5]",
    "data.train.root": "elsewhere",
    "data.train.categories": "[cable]",
    "data.train.class_names": "{cable: wire}",
    "out": "here",
}


def test_null_is_null_at_any_depth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--{name}={value}" for name, value in NULLS.items()]
    for options in (given, [*given, *(part for name in NULLS for part in (f"--{name}", "null"))]):
        with pytest.raises(SystemExit):
            app.main(["fit", "--config=base.yaml", *options, "--print_config"])
        config = yaml.safe_load(capsys.readouterr().out)
        for name, value in NULLS.items():
            place = config
            for part in name.split("."):
                place = place[part] if part in place else place["init_args"][part]
            assert place == (yaml.safe_load(value) if options is given else None), name
        assert config["model"]["init_args"]["backbone"]["model"] == "small.json"  # beside it: as it was


@pytest.mark.parametrize(("arg", "section"), [
    ("--model.backbone.vision_weights=null", "--model={backbone: {vision_weights: null}}"),
    ("--model.init_args.backbone.init_args.vision_weights=null", "--model={backbone: {vision_weights: null}}"),
    ("--data.train.categories=[a, null]", "--data={train: {categories: [a, null]}}"),
    ("--data.train.categories=['a\\b']", "--data={train: {categories: ['a\\b']}}"),
    ("--trainer.logger.settings.entity=null", "--trainer.logger={settings: {entity: null}}"),
])  # fmt: skip
def test_what_would_be_spoilt_stands_in_a_section(arg: str, section: str) -> None:
    assert with_sections(["fit", arg, "--out", "x"]) == ["fit", section.replace("['a\\b']", "[a\\b]"), "--out", "x"]


@pytest.mark.parametrize(
    "value", ["None", "", "'null'", "010", "1e3", "true", "[1, 2]", "{a: b}", "[1", "2026-01-02", "a: b"]
)
def test_what_comes_through_stays(value: str) -> None:
    args = [f"--model.backbone.weights={value}", "--model.backbone.weights", value, "--model.k_shot=null"]
    assert with_sections(args) == args


@pytest.mark.slow
def test_unused_few_shot_images_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--few_shot_dir=.") == 2
    assert "but k_shot is 0: give --model.k_shot, or leave the folder out" in capsys.readouterr().err
    assert run("fit", "--few_shot_dir=.", "--model=PatchRarity", "--model.layers=[1]") == 2
    assert "but PatchRarity takes none, or leave the folder out" in capsys.readouterr().err


@pytest.mark.slow
def test_an_old_name_is_answered_with_the_new_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.yaml").write_text("data: {class_path: MVTecAD, init_args: {root: x, words: {bottle: flask}}}\n")
    for options in ("--data.train.words={a: plug}", "--data=old.yaml", "--data.train.words.a=plug"):
        assert run("fit", options) == 2
        assert "Did you mean 'class_names' instead of 'words'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("content", "message"), [
    (b"", "expected a mapping"),
    (b"- a\n", "expected a mapping"),
    (b"model: [\n", "line 2: cannot be read as YAML"),
    (b"model: \xff\n", "is not UTF-8 text"),
    (b"\x00\x01", "is not UTF-8 text"),
    (b"a: &a [*a]\n", "contains itself"),
    (b"a: " + b"[" * 100_000, "nested more than 64 deep"),
    (b"out: a\nout: b\n", "'out' occurs twice"),
    (b"out: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
])  # fmt: skip
def test_files_that_are_not_configs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    assert run("fit", f"--config={path}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {path}")
    assert message in line


def test_a_pipe_is_not_a_config(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    assert run("fit", "--config", str(tmp_path / "pipe.yaml")) == 2
    assert "is a named pipe, not a file" in capsys.readouterr().err


@pytest.mark.slow
def test_what_belongs_to_another_set_is_left_out_at_any_depth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "{class_path: MVTecLayout, init_args: {root: tested, name: own, categories: [cable], batch_size: 3}}"
    kept = "{class_path: VisA, init_args: {root: here, categories: [pcb1]}}"
    (folder / "old.yaml").write_text(
        f"data: {{class_path: CrossDataset, init_args: {{train: {own}, test: [{own}, {kept}]}}}}"
    )
    (folder / "new.yaml").write_text(
        "data: {class_path: CrossDataset, init_args: {train: {class_path: MVTecAD}, "
        "test: [{class_path: BTAD}, {class_path: VisA}]}}"
    )
    with pytest.raises(SystemExit):
        app.main(["test", "--config=base.yaml", "--config=old.yaml", "--config=new.yaml", "--print_config"])
    arguments = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    for section in (arguments["train"], arguments["test"][0]):
        names = ("root", "name", "categories", "batch_size")
        assert [section["init_args"][name] for name in names] == [None, None, None, 3]
    assert arguments["test"][1]["init_args"]["root"] == "here"  # the same set: it stays
    _, notes = without_leftovers(["--config=old.yaml", "--config=new.yaml"])
    assert notes == [
        f"Left out: root, name and categories of MVTecLayout, which mean nothing to {name}."
        for name in ("MVTecAD", "BTAD")
    ]
    args = ["--config=old.yaml", "--data.root=mine", "--data=Folder", "--print_config"]
    (folder / "old.yaml").write_text("data: {class_path: MVTecAD, init_args: {root: gone}}")
    with pytest.raises(SystemExit):
        app.main(["test", "--config=base.yaml", *args])
    assert "root: mine" in capsys.readouterr().out


@pytest.mark.slow
def test_what_belongs_to_another_set_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.yaml").write_text(
        "data: {class_path: MVTecAD, init_args: {root: gone, categories: [bottle], class_names: {bottle: flask}}}\n"
    )
    (folder / "new.yaml").write_text("data: {class_path: MVTecLayout, init_args: {root: tested}}\n")
    args = ["--config=old.yaml", "--out=x", "--trainer.limit_test_batches=1"]
    for new in (["--data=MVTecLayout", "--data.root=tested"], ["--data", "MVTecLayout", "--data.root=tested"],
                ["--config=new.yaml"], ["--config", "new.yaml"]):  # fmt: skip
        with pytest.raises(SystemExit):
            app.main(["test", "--config=base.yaml", *args, *new, "--print_config"])
        output = capsys.readouterr()
        assert "categories: null" in output.out
        assert "class_names: null" in output.out
    assert run("test", *args, "--data=MVTecLayout", "--data.root=tested", "--data.categories=[cable]") == 0
    error = capsys.readouterr().err
    assert "Left out: root, categories and class_names of MVTecAD, which mean nothing to MVTecLayout." in error
    assert run("test", *args[:2], "--data=MVTecAD", "--data.root=tested") == 2  # the same set: they stay
    assert "Left out" not in capsys.readouterr().err
