"""Runs over several processes and nodes give the results of one process: training, tests, files."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.cli import features
from afclip_lightning.components.losses import patch_alignment_loss
from afclip_lightning.engine.app import main
from afclip_lightning.methods.afclip import AFCLIP
from tests.support import REPOSITORY, free_port
from tests.support.cases import IN_RUNS, TRAINED
from tests.support.clips import small_config
from tests.support.processes import assert_alike, assert_same_features, assert_same_training, rows
from tests.support.table_runs import options, write_set

pytestmark = pytest.mark.slow


def run_all(rank: int, folder: Path, port: str) -> None:
    """The work of one of three processes: the last works alone, the first two together."""
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv[1:] = []  # those of the tests
    alone = rank == 2
    place, processes, extra = "one", 1, {}
    if not alone:
        place, processes, extra = "two", 2, {"strategy": "ddp", "devices": 2}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    for method in IN_RUNS:
        if not alone and method == "KAnoCLIP":  # two nodes of one process, from here on
            os.environ |= {"LOCAL_RANK": "0", "NODE_RANK": str(rank)}
            extra = {"strategy": "ddp", "devices": 1, "num_nodes": 2}
        assert main(["fit", *options(method, processes, **extra), f"--out={place}/{method}"]) == 0
    store = [f"--features.cache={place}/store", "--features.dtype=float32"]
    assert features.main(["build", *options("AFCLIP", processes, **extra), *store]) == 0
    if not alone:
        torch.save(of_parts(rank), folder / f"parts-{rank}.pt")
        distributed.destroy_process_group()


def tokens_of(images: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns patch tokens and targets of some of 5 images. Only the first has anomalous patches."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(5, 6, 8, generator=generator) + 1, dim=-1)
    tokens[0] = tokens[0, 0]  # alike, whatever their kind
    target = torch.zeros(5, 6)
    target[0, 3:] = 1
    return tokens[images].requires_grad_(), target[images]


PARTS = {"unequal": (slice(0, 2), slice(2, 5)), "nothing for one": (slice(0, 5), slice(5, 5))}


def of_parts(rank: int) -> dict[str, Any]:
    """Returns a process's shares of the alignment loss, their gradients, and what DDP sees of a method."""
    found: dict[str, Any] = {}
    for name, parts in PARTS.items():
        tokens, target = tokens_of(parts[rank])
        loss = patch_alignment_loss(tokens, target)
        loss.backward()
        found[name] = (loss.detach(), tokens.grad)
    model = AFCLIP(ClipBackbone("small.json", "random", image_size=None), layers=(1, 3))
    bias = model.backbone.vision.visual.ln_post.bias
    bias.data.fill_(rank)
    ddp = DistributedDataParallel(model)
    facts = ddp._get_ddp_logging_data()
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    found["ddp"] = {
        "reduced": facts["total_parameter_size_bytes"],
        "trainable": sum(4 * p.numel() for p in model.parameters() if p.requires_grad),
        "sent each step": [names[id(buffer)] for buffer in ddp.modules_buffers],
        "backbone": bias[0].item(),
    }
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of one process under `one`, those of two under `two`."""
    folder = tmp_path_factory.mktemp("distributed")
    small_config(folder)
    write_set(folder / "train", 0, {("a", 0): 3, ("a", 1): 3, ("b", 0): 1, ("b", 1): 2})  # 9: one filler
    write_set(folder / "test", 1, {("a", 0): 3, ("a", 1): 4, ("b", 0): 2, ("b", 1): 2})
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all three
    torch.multiprocessing.start_processes(run_all, (folder, free_port()), nprocs=3, start_method="forkserver")
    return folder


@pytest.mark.parametrize("method", TRAINED)
def test_a_fit_over_processes_is_that_of_one(folder: Path, method: str) -> None:
    one, two = (folder / place / method for place in ("one", "two"))
    assert_same_training(two, one)
    assert torch.load(one / "head.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("method", IN_RUNS)
def test_a_test_over_processes_gives_one_table(folder: Path, method: str) -> None:
    one, two = (folder / place / method for place in ("one", "two"))
    assert_alike(rows(two / "results.csv"), rows(one / "results.csv"))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())


def test_features_of_processes_are_those_of_one(folder: Path) -> None:
    assert_same_features(folder / "two/store", folder / "one/store")
    assert len({path.name for path in feature_files(folder / "one/store")}) == 9 + 11
    assert store_files.verify(folder / "two/store") == []


@pytest.mark.parametrize("name", PARTS)
def test_shares_of_the_alignment_loss_average_to_that_of_all_patches(folder: Path, name: str) -> None:
    tokens, target = tokens_of(slice(0, 5))
    whole = patch_alignment_loss(tokens, target)
    whole.backward()
    assert whole > 0
    shares = [torch.load(folder / f"parts-{rank}.pt", weights_only=True)[name] for rank in (0, 1)]
    torch.testing.assert_close(torch.stack([loss for loss, _ in shares]).mean(), whole.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in shares]) / 2, tokens.grad)


def test_the_frozen_backbone_is_neither_reduced_nor_sent(folder: Path) -> None:
    for rank in (0, 1):
        seen = torch.load(folder / f"parts-{rank}.pt", weights_only=True)["ddp"]
        assert seen["reduced"] == seen["trainable"] > 0
        assert not [name for name in seen["sent each step"] if name.startswith("backbone.")]
        assert seen["backbone"] == rank  # it was changed here, and nothing made it equal


def test_two_nodes_write_one_run_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment of torchrun, which gives the rendezvous address and the job's name."""
    monkeypatch.chdir(folder)
    given = options("AFCLIP", 2, strategy="ddp", devices=1, num_nodes=2)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "job7"}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    place |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "afclip_lightning", "fit", *given]
    started = []
    for rank in ("0", "1"):
        environment = {**os.environ, **place, "RANK": rank, "GROUP_RANK": rank}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=folder, env=environment, **pipe))
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    run, *others = (folder / "runs").rglob("config.yaml")
    assert not others
    assert run.parent.name == "job7"
    assert_alike(rows(run.parent / "results.csv"), rows(folder / "one/AFCLIP/results.csv"))
