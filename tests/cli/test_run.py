"""The command line as a user sees it: runs, run folders, and mistakes."""

import csv
import json
import re
import shutil
import signal
import time
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from PIL import Image

from afclip_lightning import results
from afclip_lightning.backbones import clip
from afclip_lightning.cli import head as show
from afclip_lightning.engine.app import main
from afclip_lightning.engine.run_folder import RUN_FOLDER_VARIABLE
from afclip_lightning.report.run_files import read_run
from tests.support import REPOSITORY
from tests.support.commands import arguments, subprocess_of, table

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_every_config_parses(config: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, f"--config={config}", "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"].startswith("afclip_lightning.methods.")


@pytest.mark.slow
def test_fit_trains_tests_and_writes_a_run_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments()]) == 0
    output = capsys.readouterr().out
    run = folder / "run"
    rows = table(run / "results.csv")
    assert len(rows) == 12 + 1
    assert rows["visa", "candle"]["normal"] == "1"
    assert rows["visa", "candle"]["anomalous"] == "2"
    assert 0 <= float(rows["visa", "mean"]["pixel_auroc"]) <= 1
    parsed = json.loads((run / "results.json").read_text())
    first, mean = parsed["rows"][0], parsed["rows"][-1]
    assert first["metrics"].keys() == mean["metrics"].keys() == mean["categories"].keys()
    assert "RANDOM weights" in parsed["title"]
    assert parsed["conditions"]["checkpoint"] == "run/head.ckpt"
    assert f"head.ckpt ({parsed['conditions']['checkpoint_fingerprint']})" in parsed["title"]
    heading, _, markdown = (run / "results.md").read_text().strip().partition("\n\n")
    assert "RANDOM weights" in heading
    assert heading in output
    assert "P-PRO@5%" in markdown  # files have columns that a terminal has no room for
    assert results.render(read_run(run).rows) in output
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["image_size"] == 28
    assert config["data"]["init_args"]["train"]["init_args"]["root"] == "data/mvtec"
    assert config["out"] is None
    record = json.loads((run / "run.json").read_text())
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["trainable_parameters"] > 0
    assert record["feature_spec"]["layers"] == [1, 2, 3]
    pictures = sorted((run / "pictures").glob("*.png"))
    assert len(pictures) == 12
    with Image.open(pictures[0]) as sheet:
        assert sheet.size[0] > 3 * 200
    log = (run / "log/metrics.csv").read_text()
    assert "train/map_focal" in log
    assert "test/visa/mean/pixel_auroc" in log
    for name in ("head.ckpt", "checkpoints/last.ckpt"):
        assert torch.load(run / name, weights_only=True)["feature_spec"]["image_size"] == 28
    assert (run / "head.ckpt").stat().st_size < (run / "checkpoints/last.ckpt").stat().st_size
    assert not list(run.rglob("*.tmp"))
    card = torch.load(run / "head.ckpt", weights_only=True)["card"]
    assert (card["title"], card["epochs"], list(card["seeds"])) == (
        "AFCLIP trained on mvtec",
        1,
        [config["seed_everything"]],
    )
    assert card["trained_on"][0]["images"] > 0
    assert show.main(["show", "run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Trained on   mvtec, \d+ categories", said)
    mean = next(row for row in json.loads((run / "results.json").read_text())["rows"] if row["category"] == "mean")
    assert f"{100 * mean['metrics']['pixel_auroc']:.1f}" in said

    # the head again, from its file, zero-shot and few-shot
    head = ["--ckpt_path=run/head.ckpt", "--data.train.root=gone"]
    assert main(["test", *arguments(out="again"), *head]) == 0
    assert table(folder / "again/results.csv") == rows
    assert main(["test", *arguments(out="shot"), *head, "--model.k_shot=1"]) == 0
    assert table(folder / "shot/results.csv") != rows
    capsys.readouterr()
    assert main(["test", *arguments(out="four"), *head, "--model.k_shot=4"]) == 2
    assert "k_shot is 4, but visa/candle" in capsys.readouterr().err
    assert main(["test", *arguments(out="other"), *head, "--model.layers=[1,2]"]) == 2
    assert "layers: [1, 2, 3] in the checkpoint, [1, 2] here" in capsys.readouterr().err
    assert main(["test", *arguments(out="scaled"), *head, "--model.scales=[1]"]) == 2
    assert re.search(r"scales: .1, 3, 5. in the checkpoint, .1,?. here", capsys.readouterr().err)
    assert main(["fit", *arguments(out="head"), *head, "--data.train.root=data/mvtec"]) == 2
    assert "no optimiser state" in capsys.readouterr().err
    assert main(["test", *arguments(), *head]) == 2
    assert "holds an earlier run" in capsys.readouterr().err
    assert main(["test", *arguments(out="random")]) == 0
    assert "UNTRAINED" in capsys.readouterr().out
    assert main(["predict", *arguments(out="predicted"), *head]) == 0
    with (folder / "predicted/predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36
    assert (folder / "predicted" / lines[-1]["map"]).is_file()
    assert main(["validate", *arguments(out="valid"), *head]) == 0
    assert table(folder / "valid/results.csv") == rows
    exact = ["--evaluation.exact=true", "--evaluation.pro_definition=mvtec", "--evaluation.tolerance=1"]
    assert main(["test", *arguments(out="exact"), *head, *exact]) == 0
    for key, row in table(folder / "exact/results.csv").items():
        assert float(row["pixel_auroc"]) == pytest.approx(float(rows[key]["pixel_auroc"]), abs=1e-3)
        assert row["pixel_pro"] != rows[key]["pixel_pro"]


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten_but_can_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--trainer.limit_test_batches=1", "--pictures.count=0"]
    assert main(["fit", *arguments(), *short]) == 0
    assert main(["fit", *arguments(), *short]) == 2
    assert "holds an earlier run" in capsys.readouterr().err
    more = arguments(trainer__max_epochs="2", ckpt_path="run/checkpoints/last.ckpt")
    assert main(["fit", *more, *short]) == 0
    assert len(list((folder / "run").glob("log*/metrics.csv"))) == 2  # the first part's log is kept
    assert torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


@pytest.mark.slow
def test_the_training_set_alone_is_tested_as_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "data/visa")
    with pytest.warns(UserWarning, match="NOT zero-shot"):
        assert main(["fit", *arguments()]) == 0
    rows = table(folder / "run/results.csv")
    assert {dataset for dataset, _ in rows} == {"mvtec_seen"}
    assert len(rows) == 15 + 1


@pytest.mark.slow
def test_run_folders_of_one_config_do_not_collide(folder: Path) -> None:
    args = [a for a in arguments() if not a.startswith("--out")]
    for _ in range(2):
        assert main(["test", *args, "--trainer.limit_test_batches=1"]) == 0
    assert len(list((folder / "runs/afclip_mvtec").iterdir())) == 2


@pytest.mark.slow
def test_a_missing_dataset_stops_before_any_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
    monkeypatch.setattr(clip, "config_of", lambda *_: pytest.fail("built a model"))
    assert main(["fit", f"--config={REPOSITORY / 'configs/afclip_mvtec.yaml'}"]) == 2
    error = capsys.readouterr().err
    assert str(Path("data/mvtec")) in error
    assert "ground_truth" in error
    assert "mvtec.com" in error
    assert "make demo" in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("mistake", "nearest"), [
    ("--model.k_shto=2", "k_shot"),
    ("--model.backbone.imgae_size=2", "backbone.image_size"),
    ("--trainer.max_epocs=2", "trainer.max_epochs"),
    ("--data.skip_mising=true", "skip_missing"),
    ("--uot=x", "out"),
    ("--checkpont=x", "checkpoint"),
    ("--run_dri=x", "out"),
    ("model: {init_args: {learnable_promt: true}}", "learnable_prompt"),
    ("model: {init_args: {backbone: {wieghts: x}}}", "weights"),
    ("trianer: {max_epochs: 2}", "trainer.max_epochs"),
    ("data: {init_args: {train: {class_path: MVTecAD, init_args: {rot: x}}}}", "root"),
])  # fmt: skip
def test_wrong_keys_are_refused_with_the_nearest_name(
    folder: Path, capsys: pytest.CaptureFixture[str], mistake: str, nearest: str
) -> None:
    if not mistake.startswith("--"):
        (folder / "mistake.yaml").write_text(mistake)
        mistake = "--config=mistake.yaml"
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments(), mistake])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"Did you mean '{nearest}'" in error
    assert error.endswith("All options: python -m afclip_lightning fit --help\n")
    assert len(error.splitlines()) < 30


@pytest.mark.slow
def test_bad_values_are_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments(model__backbone__image_size="30")]) == 2
    option = (
        "It is --model.backbone.image_size, 518 by default; with null it is the size that the model was trained at."
    )
    said = f"multiple of the patch size 14, got 30; nearest: 28 and 42. {option}"
    assert capsys.readouterr().err.strip().endswith(said)
    assert main(["fit", *arguments(model__backbone__weights="absent.pt")]) == 2
    assert "absent.pt do not exist" in capsys.readouterr().err
    assert main(["test", *arguments(), "--ckpt_path=absent.ckpt"]) == 2
    assert "absent.ckpt" in capsys.readouterr().err
    (folder / "bad.ckpt").write_bytes(b"not a checkpoint")
    assert main(["test", *arguments(), "--ckpt_path=bad.ckpt"]) == 2
    assert "bad.ckpt" in capsys.readouterr().err
    torch.save({"weight": torch.zeros(1)}, "foreign.ckpt")
    assert main(["test", *arguments(), "--ckpt_path=foreign.ckpt"]) == 2
    assert "foreign.ckpt has no feature spec" in capsys.readouterr().err
    (folder / "damaged.pt").write_bytes(b"not weights")
    assert main(["fit", *arguments(model__backbone__weights="damaged.pt")]) == 2
    assert "error: damaged.pt: not usable as weights" in capsys.readouterr().err
    assert main(["fit", *arguments(data__train__batch_size="0")]) == 2
    assert capsys.readouterr().err.strip() == "error: batch_size must be at least 1, got 0"
    assert main(["fit", *arguments(), "--data.test=[{class_path: MVTecAD, init_args: {root: data/mvtec}}]"]) == 2
    assert "trained on and tested on: mvtec/bottle" in capsys.readouterr().err
    assert main(["fit", *arguments(trainer__precision="bf16-true")]) == 2
    assert "use 32-true, 16-mixed or bf16-mixed" in capsys.readouterr().err
    assert main(["test", *arguments(evaluation__pro_definition="mvtec")]) == 2
    assert capsys.readouterr().err.strip().startswith("error: pro_definition 'mvtec' needs exact=True")


@pytest.mark.slow
def test_weights_that_cannot_be_downloaded_name_the_local_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network") from OSError("socket")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    tag = {"model__backbone__model": "ViT-B-32", "model__backbone__weights": "openai"}
    assert main(["fit", *arguments(model__backbone__image_size="224", **tag)]) == 2
    error = capsys.readouterr().err
    assert "give its path as `weights`, on the command line --model.backbone.weights FILE (" in error
    assert "Weights 'openai' of ViT-B-32: from the cache, else from the network" in error
    assert "socket" not in error


@pytest.mark.slow
def test_too_few_normal_images_and_lost_masks_stop_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments("afclip_plus_mvtec", model__k_shot="400")]) == 2
    assert "k_shot is 400" in capsys.readouterr().err
    (folder / "data/visa/pcb4/Data/Masks/Anomaly/000.png").unlink()
    assert main(["fit", *arguments(out="lost")]) == 2
    assert "pcb4" in capsys.readouterr().err
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_in_the_middle_is_named(folder: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    path = folder / "data/mvtec/pill/test/crack/001.png"
    path.write_bytes(path.read_bytes()[:60])
    assert main(["fit", *arguments(data__train__num_workers=workers)]) == 2
    error = capsys.readouterr().err
    assert error.count("pill/test/crack/001.png") == 1
    assert "Traceback" not in error
    assert not list((folder / "run").rglob("*.ckpt"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"trainer__max_epochs": "3", "model__temperature": "1e-30", "model__optimizer__init_args__lr": "1e30"}
    assert main(["fit", *arguments(**extra)]) == 2
    error = capsys.readouterr().err
    assert "not finite" in error
    assert "data/mvtec" in error


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_written_file(folder: Path) -> None:
    """A limit of the file size simulates a full disk: the checkpoint exceeds it, the tables do not."""
    import resource

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead of a kill, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = subprocess_of(["fit", *arguments()], preexec_fn=limit)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "last.ckpt: cannot be written" in output
    assert "Traceback" not in output
    assert not [p for p in (folder / "run").rglob("*") if p.suffix in (".ckpt", ".tmp")]


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_complete_checkpoint(folder: Path) -> None:
    process = subprocess_of(["fit", *arguments(trainer__max_epochs="100000")])
    last = folder / "run/checkpoints/last.ckpt"
    deadline = time.time() + 90
    while not last.exists() and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, 2), output
    assert torch.load(last, weights_only=True)["epoch"] >= 0
    assert not list((folder / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(folder: Path) -> None:
    assert main(["fit", *arguments(), "--test_after_fit=false"]) == 0
    head = ["--ckpt_path=run/head.ckpt", "--model.k_shot=1", "--pictures.count=1"]
    assert main(["test", *arguments(out="one"), *head]) == 0
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    process = subprocess_of(["test", *arguments(out="two"), *head, *two])
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    one, other = table(folder / "one/results.csv"), table(folder / "two/results.csv")
    assert one.keys() == other.keys()
    for key, row in one.items():
        for column, value in row.items():
            if value and column.startswith(("image_", "pixel_")):
                assert float(other[key][column]) == pytest.approx(float(value), abs=1e-5), (key, column)
            else:
                assert other[key][column] == value
    names = [sorted(p.name for p in (folder / run / "pictures").iterdir()) for run in ("one", "two")]
    assert names[0] == names[1]
    scores = [list(csv.DictReader((folder / run / "scores.csv").read_text().splitlines())) for run in ("one", "two")]
    assert [line["image"] for line in scores[0]] == [line["image"] for line in scores[1]]  # each once, in one order


@pytest.mark.slow
def test_training_on_two_processes(folder: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.limit_test_batches=1"]
    process = subprocess_of(["fit", *arguments(), *two])
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert torch.load(folder / "run/head.ckpt", weights_only=True)["global_step"] == 4  # 60 images, 2 × 8 a step


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TORCHELASTIC_RUN_ID": "none"}, {}])
def test_processes_that_cannot_agree_on_a_folder_give_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str]
) -> None:
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", RUN_FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = [option for option in arguments() if not option.startswith("--out")]
    assert main(["fit", *given, f"--trainer.num_nodes={1 if environment else 2}"]) == 2
    assert "give --out, or torchrun a --rdzv-id" in capsys.readouterr().err
    assert not (folder / "runs").exists()
