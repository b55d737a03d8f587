"""Private names of other packages in use: they exist, and each use is listed.

A release of another package may drop such a name without a word. The test that then fails says what used it and why.
"""

import argparse
import ast
import importlib
import io
import itertools
import pkgutil
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import open_clip
import optuna
import pytest
import timm
import torch
import torchmetrics
import uvicorn.protocols.http.h11_impl
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

import afclip_lightning
import afclip_runtime
from tests.support import REPOSITORY
from tests.support.clips import SMALL, TIMM

PACKAGES = ("afclip_lightning", "afclip_runtime")
OF_METACLASSES = {
    "_abc_impl",
    "_backward_cls",
    "_is_protocol",
}  # of abstract classes, protocols, torch.autograd.Function
NAMEDTUPLE = {"_asdict", "_fields", "_replace"}  # documented, with an underscore so that they are no field's name


class Private(NamedTuple):
    """A private name of another package, or several of one kind."""

    owner: Callable[[], Any]  # returns what has the names
    names: str
    file: str  # of ours, that uses them; see `place_of`
    why: str


def place_of(path: Path) -> str:
    """Returns the name of a file in the table: its path in afclip_lightning, or in afclip_runtime as `runtime/…`."""
    return path.relative_to(REPOSITORY).as_posix().removeprefix("afclip_lightning/").removeprefix("afclip_")


FILES = {place_of(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}


def _tiff() -> Image.Image:
    file = io.BytesIO()
    Image.new("L", (2, 2)).save(file, "TIFF")
    return Image.open(file)


def _vision(config: dict[str, Any]) -> torch.nn.Module:
    kind = open_clip.model.CustomTextCLIP if "timm_model_name" in config["vision_cfg"] else open_clip.model.CLIP
    return kind(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).visual


def _block() -> torch.nn.Module:
    return _vision(SMALL).transformer.resblocks[0]


def _trunk() -> torch.nn.Module:
    return _vision(TIMM).trunk


def _protocol() -> Any:
    """Returns the names of a connection; its constructor sets most of them."""
    return uvicorn.protocols.http.h11_impl.H11Protocol.__init__.__code__


UNDERSCORED = [
    Private(
        lambda: argparse,
        "_ArgumentGroup",
        "runtime/cli/parser.py",
        "the type of what add_argument_group returns",
    ),
    Private(
        lambda: argparse,
        "_SubParsersAction",
        "engine/parser.py",
        "tells the action that holds the subcommands",
    ),
    Private(
        argparse.ArgumentParser,
        "_actions",
        "engine/parser.py",
        "the names to suggest for a mistyped option",
    ),
    Private(
        lambda: argparse,
        "_SubParsersAction",
        "runtime/cli/parser.py",
        "tells the action that holds the subcommands",
    ),
    Private(
        argparse.ArgumentParser,
        "_actions",
        "runtime/cli/parser.py",
        "the names to suggest for a mistyped option",
    ),
    Private(
        lambda: jsonargparse.ArgumentParser().add_argument("--x", type=int | None),
        "_typehint",
        "engine/parser.py",
        "a limit of 1 is one batch: Lightning annotates `float | int`, of which the first takes it as 1.0, all",
    ),
    Private(
        jsonargparse.ArgumentParser,
        "_apply_actions _subcommands_action _parse_common",
        "engine/parser.py",
        "references are filled in once all files and options are merged; the library does it one level higher",
    ),
    Private(
        lambda: TensorBoardLogger("."),
        "_root_dir _name _version",
        "engine/loggers.py",
        "the logger is built before the run folder is known",
    ),
    Private(
        lambda: WandbLogger(offline=True),
        "_id _offline _save_dir _wandb_init",
        "engine/loggers.py",
        "the logger is built before the run folder is known",
    ),
    Private(
        lambda: LightningCLI,
        "_parse_ckpt_path",
        "engine/app.py",
        "hyperparameters never override the user's",
    ),
    Private(
        lambda: LightningCLI,
        "_parser",
        "engine/app.py",
        "the config of a command as its parser writes it",
    ),
    Private(
        lambda: DDPStrategy(),
        "_timeout",
        "engine/processes.py",
        "how long a lost process is waited for, whichever of Lightning's words names the strategy",
    ),
    Private(
        lambda: DistributedDataParallel,
        "_set_params_and_buffers_to_ignore_for_model",
        "methods/base.py",
        "no process sends the frozen backbone to another",
    ),
    Private(
        lambda: torchmetrics.Metric,
        "_reduce_states _sync_dist",
        "metrics/anomaly_metrics.py",
        "histograms of different ranges are brought to the same bins before they are added",
    ),
    Private(
        _tiff,
        "_fp",
        "runtime/images/reader.py",
        "where Pillow keeps the open file of an image of several frames",
    ),
    Private(
        lambda: _vision(SMALL),
        "_pool",
        "backbones/towers.py",
        "an image embedding of tokens that were changed",
    ),
    Private(_trunk, "_pos_embed", "backbones/towers.py", "what the first block of a tower of timm takes"),
    Private(
        lambda: optuna.trial.create_trial(value=0.0),
        "_trial_id",
        "sweep/study.py",
        "a trial whose process died goes on under its number",
    ),
]
UNDOCUMENTED = [  # without an underscore, but in no reference manual either
    Private(
        lambda: _vision(SMALL),
        "attn_pool proj transformer.resblocks transformer.width patch_size positional_embedding grid_size image_size "
        "conv1 class_embedding ln_pre ln_post",
        "backbones/towers.py",
        "a vision tower of open_clip, taken apart",
    ),
    Private(
        _block,
        "ln_1 ln_2 ls_1 ls_2 mlp attn.in_proj_weight attn.in_proj_bias attn.num_heads attn.out_proj",
        "backbones/attention.py",
        "a block of open_clip, taken apart for the V-V path",
    ),
    Private(
        lambda: _vision(TIMM),
        "trunk head set_input_size",
        "backbones/towers.py",
        "a vision tower of timm within open_clip",
    ),
    Private(
        _trunk,
        "blocks embed_dim num_prefix_tokens cls_token patch_embed.grid_size pos_embed norm_pre "
        "norm fc_norm attn_pool head forward_head",
        "backbones/towers.py",
        "a vision tower of timm, taken apart",
    ),
    Private(
        lambda: _trunk().blocks[0],
        "norm1 norm2 ls1 ls2 mlp attn.qkv attn.num_heads attn.proj attn.q_norm attn.k_norm attn.norm attn.gate",
        "backbones/attention.py",
        "a block of timm, taken apart for the V-V path",
    ),
    Private(
        lambda: timm,
        "layers.Attention layers.AttentionRope layers.apply_rot_embed_cat models.vision_transformer.Block "
        "models.eva.EvaAttention models.eva.EvaBlock models.eva.EvaBlockPostNorm",
        "backbones/attention.py",
        "their classes, and how queries and keys are rotated",
    ),
    Private(
        lambda: timm.create_model("eva02_tiny_patch14_224", depth=1).blocks[0],
        "norm1 norm2 gamma_1 gamma_2 mlp attn.qkv attn.q_proj attn.k_proj attn.v_proj attn.q_bias attn.q_norm "
        "attn.k_norm attn.norm attn.gate attn.proj attn.head_dim attn.num_heads attn.rotate_half",
        "backbones/attention.py",
        "a block of timm's EVA family, taken apart for the V-V path",
    ),
    Private(
        lambda: _trunk().patch_embed,
        "feat_ratio",
        "backbones/towers.py",
        "the stride of a stem, whatever it is made of",
    ),
    Private(
        lambda: timm,
        "models.eva.Eva models.vision_transformer.VisionTransformer",
        "backbones/towers.py",
        "the towers whose blocks are known",
    ),
    Private(
        lambda: open_clip.model.CLIP(SMALL["embed_dim"], SMALL["vision_cfg"], SMALL["text_cfg"]),
        "token_embedding positional_embedding transformer ln_final text_projection attn_mask text_pool_type",
        "backbones/text_tower.py",
        "a text tower of open_clip, fed with learned prompts",
    ),
    Private(
        lambda: open_clip,
        "factory.load_checkpoint factory.load_state_dict",
        "backbones/weights.py",
        "weights of every kind of file that open_clip reads",
    ),
    Private(
        lambda: open_clip,
        "tokenizer.HFTokenizer",
        "backbones/tokenizers.py",
        "a tokenizer from a folder: get_tokenizer looks at the hub alone",
    ),
    Private(
        lambda: open_clip,
        "tokenizer.SimpleTokenizer",
        "knowledge/base.py",
        "how long a sentence is in tokens",
    ),
    Private(
        lambda: optuna.storages.RDBStorage("sqlite://"),
        "engine",
        "sweep/study.py",
        "each transaction checks that the SQLite file is still the same",
    ),
    Private(
        lambda: importlib.import_module("lightning.pytorch.overrides.distributed"),
        "UnrepeatedDistributedSampler",
        "data/sampling.py",
        "no process tests an image twice",
    ),
    Private(
        lambda: importlib.import_module("lightning.pytorch.utilities.exceptions"),
        "SIGTERMException MisconfigurationException",
        "engine/app.py",
        "what Lightning raises where it is asked to stop, and where an option is wrong",
    ),
    Private(
        lambda: uvicorn.protocols.http.h11_impl.H11Protocol,
        "connection_made data_received connection_lost",
        "runtime/serving/connections.py",
        "connections that stay silent are closed",
    ),
]


@pytest.mark.parametrize("used", UNDERSCORED + UNDOCUMENTED, ids=lambda used: f"{used.file}: {used.names[:40]}")
def test_a_private_name_still_exists(used: Private) -> None:
    owner = used.owner()
    for name in used.names.split():
        try:
            attrgetter(name)(owner)
        except AttributeError:
            pytest.fail(f"{name} of {owner!r} is gone. {used.file} uses it: {used.why}.")
    text = FILES[used.file].read_text(encoding="utf-8")
    missing = [name for name in used.names.split() if name.rpartition(".")[2] not in text]
    assert not missing, f"{used.file} uses {missing} no more: take them out of the table"


@pytest.mark.parametrize("name", ["connections", "conn", "cycle", "loop", "transport"])
def test_a_connection_of_uvicorn_keeps_its_state(name: str) -> None:
    """`serving/connections.py` reads them. The constructor, which needs a running server, sets them."""
    assert name in _protocol().co_names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_" and name not in NAMEDTUPLE


def own_names(tree: ast.AST) -> set[str]:
    """Returns the private names that a file gives to functions, classes, variables and the attributes of `self`."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if is_private(name)}


def uses(tree: ast.AST, ours: set[str], inherited: set[str]) -> Iterator[tuple[str, int]]:
    """Yields the private names, and their lines, that are neither `ours` nor, on `self`, `inherited` from ours."""
    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                names = [name] if name not in ours | inherited else []
            case (
                ast.Attribute(attr=name)
                | ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(str(name)), *_])
            ):
                names = [name] if name not in ours else []
            case ast.Import(names=aliases):
                names = [part for alias in aliases for part in alias.name.split(".")]
            case ast.ImportFrom(module=str(module), names=aliases) if not module.startswith(PACKAGES):
                names = [*module.split("."), *(alias.name for alias in aliases)]
        yield from ((name, node.lineno) for name in names if is_private(name))


def imported(tree: ast.AST) -> Iterator[Path]:
    """Yields our files that a file imports from."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.startswith(PACKAGES):
                yield REPOSITORY.joinpath(*module.split(".")).with_suffix(".py")


def overrides() -> Iterator[tuple[str, str]]:
    """Yields private methods of other packages' classes that our classes override, with our file."""
    ours = (
        pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        for package in (afclip_lightning, afclip_runtime)
    )
    for module in itertools.chain.from_iterable(ours):
        if module.name.endswith("__main__"):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if not isinstance(cls, type) or cls.__module__ != module.name:
                continue
            others = [base for base in cls.__mro__ if not base.__module__.startswith(PACKAGES)]
            for name in vars(cls):
                if is_private(name) and name not in OF_METACLASSES and any(name in vars(other) for other in others):
                    yield name, place_of(REPOSITORY.joinpath(*module.name.split(".")).with_suffix(".py"))


@pytest.mark.slow
def test_every_private_name_in_use_is_in_the_table() -> None:
    known = {(name, used.file) for used in UNDERSCORED for name in used.names.split()}
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES.values()}
    own = {path: own_names(tree) for path, tree in trees.items()}
    replaced = set(overrides())
    found, unknown = set(replaced), [f"{file} replaces {name}" for name, file in replaced - known]
    for path, tree in trees.items():
        file, inherited = place_of(path), set[str]()
        for other in imported(tree):
            inherited |= own.get(other, set())
        for name, line in uses(tree, own[path], inherited):
            found.add((name, file))
            if (name, file) not in known:
                unknown.append(f"{file}:{line} uses {name}")
    assert not unknown, "names of other packages, or of a file of ours, that are private: put them into the table"
    assert not known - found, "no longer used: take them out of the table"
