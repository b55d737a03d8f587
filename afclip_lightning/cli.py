"""The command line: LightningCLI with a check of the data first, a run folder, and results at the end."""

import argparse
import copy
import difflib
import inspect
import logging
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

import afclip_lightning.data
import afclip_lightning.methods
from afclip_lightning import results, tracking
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store import FeatureCache, FeatureStore
from afclip_lightning.callbacks.data_record import DataRecord
from afclip_lightning.callbacks.evaluation import Evaluation
from afclip_lightning.callbacks.pictures import Pictures
from afclip_lightning.callbacks.predictions import Predictions
from afclip_lightning.callbacks.preemption import Preemption
from afclip_lightning.callbacks.tracking import Tracking
from afclip_lightning.checkpoint import AtomicCheckpointIO, read_checkpoint
from afclip_lightning.classes import descendants, import_submodules
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.loading import Loading
from afclip_lightning.errors import CheckpointError, UserError, message_of
from afclip_lightning.files import write_json, write_text
from afclip_lightning.heads import backbone_key, load_head, restore
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.preemption import STOPPED, StoppedError, requeue, restarted
from afclip_lightning.shared_pass import SharedPass
from afclip_lightning.types import MAIN_HEAD, Batch

PACKAGES = ("afclip_lightning", "torch", "lightning", "open_clip_torch", "timm", "torchmetrics", "albumentations")
EPILOG = """\
Each of these has a --help of its own, python -m afclip_lightning COMMAND --help:
  inspect     score, verdict and map of one's own images     calibrate   a threshold from good images
  serve       a page where an image is judged                export      a head as an ONNX or torch.export graph
  report      one HTML page of a run                         evaluate    score saved maps of any method against masks
  benchmark   methods × datasets × seeds, and their tables   sweep       search for options, here or on a cluster
  datasets    list, check and unpack datasets                features    keep features on disk, look after them
  knowledge   show or build a knowledge base of sentences
"""
RUN_DIR_VARIABLE = "AFCLIP_RUN_DIR"  # tells the processes that Lightning starts which folder the first one chose


class AnomalyArgumentParser(LightningArgumentParser):
    """Says what is wrong in a few lines, with the nearest name, instead of listing every option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and ends with exit code 2."""
        if self.exit_on_error:
            hints = "".join(f"\nDid you mean {close!r} instead of {key!r}?" for key, close in self._nearest(message))
            command = f"{self.prog.split()[-1]} " if " " in self.prog else ""
            print(f"error: {message}{hints}\nAll options: python -m afclip_lightning {command}--help", file=sys.stderr)
            sys.exit(2)
        raise UserError(message) from ex

    def _nearest(self, message: str) -> Iterator[tuple[str, str]]:
        found = re.findall(r"[Oo]ption '([\w.]+)'|arguments: --([\w.]+)|Key '([\w.]+)'", message)
        unknown = {next(filter(None, groups)) for groups in found}
        options = {action.dest for parser in self._with_subcommands() for action in parser._actions}
        names = _argument_names()
        for key in sorted(unknown):
            prefix, dot, _ = key.rpartition(".")
            candidates = (options | {prefix + dot + name for name in names}) - {key}
            close = difflib.get_close_matches(key, candidates, n=1)
            if close:
                yield key, close[0]

    def _with_subcommands(self) -> Iterator[argparse.ArgumentParser]:
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def _argument_names() -> set[str]:
    """Returns the names of all constructor arguments of methods, data modules, the backbone and the trainer."""
    classes: list[type] = [*descendants(AnomalyMethod), *descendants(AnomalyData), ClipBackbone, Trainer]
    names = {name for cls in classes for name in inspect.signature(cls).parameters}
    return names | {"class_path", "init_args"}


class RunRecord(SaveConfigCallback):
    """Writes what a run was into its folder: the resolved config, versions, git revision, command and backbone."""

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes `config.yaml` and `run.json`."""
        folder = Path(trainer.default_root_dir)
        method = pl_module.main if isinstance(pl_module, SharedPass) else pl_module
        config = self.config.clone()  # to be run again as it is, into another folder
        config.run_dir = config.trainer.default_root_dir = None
        write_text(folder / "config.yaml", self.parser.dump(config, skip_none=False))
        facts = {
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "git_revision": git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: _version(name) for name in PACKAGES},
            "method": type(method).__name__,
            "trainable_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
            "backbone": method.backbone.description,
            "feature_spec": method.spec.to_dict(),
        }
        write_json(folder / "run.json", facts)
        tracking.record(trainer, (folder / "config.yaml").read_text(encoding="utf-8"), facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Returns the source tree's revision, with `-dirty` where files were changed; `None` for an installed package."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _job_name() -> str | None:
    """Returns a name that all processes of a cluster job share without talking to each other, or `None` outside one."""
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm-{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_STEP_ID', '0')}"
    return os.environ.get("TORCHELASTIC_RUN_ID")  # "none" unless torchrun was given one


class AnomalyCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any method and any dataset.

    `fit` trains and then tests, so that one command gives a results table. The data is checked before a model is
    built. Everything a run writes lies in one folder.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        import_submodules(afclip_lightning.methods)
        import_submodules(afclip_lightning.data)
        super().__init__(
            AnomalyMethod,
            AnomalyData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunRecord,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=AnomalyArgumentParser,
            parser_kwargs={"parser_mode": "omegaconf", "epilog": EPILOG},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run beside those of trainer, model and data."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="Run folder; runs/<config>/<time> by default."
        )
        parser.add_argument("--test_before_fit", type=bool, default=False, help="Test the untrained method first.")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Test when training has ended.")
        parser.add_argument(
            "--few_shot_dir",
            type=Path | None,
            default=None,
            help="Few-shot images chosen by hand, instead of a draw: DIR/[<dataset>/]<category>/*.",
        )
        parser.add_argument(
            "--heads",
            type=dict[str, Path],
            default={},
            help="Other heads of the same backbone to test in the same pass, by name: runs, checkpoints or configs.",
        )
        parser.add_class_arguments(Loading, "loading")
        parser.add_class_arguments(FeatureCache, "features")
        parser.add_class_arguments(Pictures, "pictures")
        parser.add_class_arguments(Evaluation, "evaluation")

    def _parse_ckpt_path(self) -> None:
        """Reads the checkpoint before anything is built; its hyperparameters never override what the user gives."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and path not in ("best", "last", "hpc", "registry"):
            checkpoint = read_checkpoint(path)
            if self.config.subcommand == "fit" and "optimizer_states" not in checkpoint:
                raise CheckpointError(
                    f"{path} has no optimiser state to go on from: use checkpoints/last.ckpt of its run."
                )

    def before_instantiate_classes(self) -> None:
        """Checks the data and chooses the run folder, before any model is built."""
        config = self.config[self.subcommand]
        probe = ArgumentParser(exit_on_error=False)
        probe.add_subclass_arguments(AnomalyData, "data")
        with _argument_errors():
            data = probe.instantiate_classes(Namespace(data=config.data)).data
        data.check(self.subcommand)
        if str(config.trainer.precision) in ("16-true", "bf16-true", "64-true", "64"):
            raise UserError(
                f"precision {config.trainer.precision} is not supported: use 32-true, 16-mixed or bf16-mixed."
            )
        self.run_dir = self._choose_run_dir(config)
        self.last_checkpoint = self.run_dir / "checkpoints" / "last.ckpt"
        config.run_dir = config.trainer.default_root_dir = str(self.run_dir)
        if self.subcommand == "fit" and config.trainer.limit_val_batches is None:
            # the protocol has no validation: choosing an epoch by test data would be cheating
            config.trainer.limit_val_batches = 0

    def _choose_run_dir(self, config: Namespace) -> Path:
        chosen = os.environ.get(RUN_DIR_VARIABLE)
        if chosen and "LOCAL_RANK" in os.environ:
            return Path(chosen)
        if config.run_dir:
            run_dir = Path(config.run_dir)
            resumes = self.subcommand == "fit" and run_dir in Path(config.get("ckpt_path") or "").parents
            if (run_dir / "config.yaml").exists() and not resumes and not restarted():
                raise UserError(
                    f"{run_dir} holds an earlier run. Give another --run_dir, or continue that run: fit with "
                    f"--ckpt_path {run_dir / 'checkpoints' / 'last.ckpt'}."
                )
        else:
            stem = Path(str(config.config[-1])).stem if config.get("config") else "run"
            job = _job_name()
            if job == "none" or (job is None and int(config.trainer.num_nodes) > 1):
                raise UserError("The processes cannot agree on a run folder: give --run_dir, or torchrun a --rdzv-id.")
            name = job or time.strftime("%Y%m%d-%H%M%S")
            run_dir = Path("runs") / stem / name
            number = 1
            while not job and run_dir.exists():
                number += 1
                run_dir = run_dir.with_name(f"{name}-{number}")
        os.environ[RUN_DIR_VARIABLE] = str(run_dir)
        return run_dir

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer, and tells the data how to read images and for which backbone."""
        with _argument_errors():
            super().instantiate_classes()
        parser = self._parser(self.subcommand)
        self.model.config = yaml.safe_load(parser.dump(self.config[self.subcommand], skip_none=False))["model"]
        config = self.config_init[self.subcommand]
        self.heads = self._load_heads(config.heads)
        self.datamodule.preprocess = self.model.preprocess
        for part in self.datamodule.parts:
            part.loading, part.few_shot_dir = config.loading, config.few_shot_dir
        if config.features.cache is not None:
            self._use_store(config.features, config.loading)
        self.tested = SharedPass(self.heads) if len(self.heads) > 1 else self.model
        if self.tested.store is not None:
            self._check_space(self.tested.store, config.features.limit_gb)

    def _load_heads(self, others: dict[str, Path]) -> dict[str, AnomalyMethod]:
        """Returns the run's own method and the others to be tested with it, by name.

        Raises:
            UserError: A name is not allowed, or there is nothing to test with this command.
        """
        if others and self.subcommand == "predict":
            raise UserError("--heads are for test, validate and fit: predict writes the maps of one method.")
        backbones = {backbone_key(self.model.config["init_args"]["backbone"]): self.model.backbone}
        heads = {MAIN_HEAD: self.model}
        for name, path in others.items():
            if name == MAIN_HEAD or not re.fullmatch(r"[\w-]+", name):
                raise UserError(f"--heads: {name!r} is no name for a head; letters, digits, _ and - make one.")
            heads[name] = load_head(path, backbones=backbones)
        return heads

    def _use_store(self, features: FeatureCache, loading: Loading) -> None:
        """Lets the model keep features and the data read them.

        Raises:
            UserError: A method or the loading does not allow it.
        """
        assert features.cache is not None
        for method in self.heads.values():
            if method.needs_pixels:
                name = type(method).__name__
                raise UserError(f"{name} uses the images beside their features: run it without --features.cache.")
        if loading.draft:
            raise UserError("--loading.draft changes the pixels: use it or --features.cache, not both.")
        compute = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}.get(str(self.trainer.precision), "float32")
        backbone = self.model.backbone
        channels = backbone.vision.width, backbone.embed_dim
        store = FeatureStore(features.cache, self.model.spec, backbone.grid, compute, features.dtype, channels)
        store.check_spec()
        for method in self.heads.values():
            method.store = store.of(method.spec)
        self._read_from(store)

    def _read_from(self, store: FeatureStore | None) -> None:
        for part in self.datamodule.parts:
            part.store = store

    def _check_space(self, store: FeatureStore, limit_gb: float | None) -> None:
        """Checks that the features of all images of the command fit.

        Raises:
            UserError: They do not.
        """
        data = self.datamodule
        if not self.trainer.is_global_zero:
            return  # one process looks after the space, and first makes what a dataset makes on disk
        data.prepare_data()
        read = [sample.image_path for dataset in data.test_sets for sample in dataset.samples("test")]
        if self.subcommand == "fit":
            read += [sample.image_path for sample in data.training_set.samples(data.training_set.train_split)]
        store.check_space(len(set(read)), self.model.backbone.vision.width, limit_gb)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the project's callbacks, atomic checkpoints, and loggers in the run folder."""
        config = self.config_init[self.subcommand].trainer
        loggers = [logger for logger in _as_list(config.logger) if logger not in (True, False)]
        for logger in loggers:
            names = dict.fromkeys(part.name for part in self.datamodule.parts)
            tracking.prepare(logger, self.run_dir, str(self.subcommand), [type(self.model).__name__, *names])
        if config.logger is not False:
            logs = len(list(self.run_dir.glob("log*")))  # those of the run that this one continues
            loggers.append(CSVLogger(str(self.run_dir), name="", version=f"log-{logs + 1}" if logs else "log"))
        self.evaluation = self.config_init[self.subcommand].evaluation
        self.pictures = self.config_init[self.subcommand].pictures
        last = ModelCheckpoint(self.last_checkpoint.parent, filename="last", enable_version_counter=False)
        tracked = Tracking(self.evaluation, self.pictures)
        callbacks = [self.evaluation, self.pictures, Predictions(), DataRecord(), tracked]
        keep = config.enable_checkpointing is not False
        callbacks += [Preemption(self.last_checkpoint if keep else None), *([last] if keep else [])]
        config.callbacks = [*_as_list(config.callbacks), *callbacks]
        config.plugins = [*_as_list(config.plugins), AtomicCheckpointIO()]
        return super().instantiate_trainer(logger=loggers, **kwargs)

    def fit(self, **kwargs: Any) -> None:
        """Trains and tests; a method with nothing to train is only tested.

        Raises:
            UserError: It would be trained and tested on the same images.
        """
        data, tests = self.datamodule, self.config_init["fit"].test_after_fit
        if self.model.trainable_names() and tests and data.test_sets == [data] and data.train_split == "test":
            raise UserError(
                f"{data.name} would be trained on and tested on with the same images, which is not zero-shot. Train on "
                "one dataset and test on others with CrossDataset; or train on it alone with --test_after_fit false; "
                "or, to see whether the head learns at all, use CrossDataset with seen_if_alone."
            )
        if self.config_init["fit"].test_before_fit:
            self.evaluation.name = "results_untrained"
            count, self.pictures.count = self.pictures.count, 0  # the pictures are of the trained method
            self._evaluate(self.trainer.test, "Before training", model=self.model, datamodule=self.datamodule)
            self.pictures.count = count
            self.evaluation.name = "results"
        if self.model.trainable_names():
            if restarted() and self.last_checkpoint.exists():  # the cluster repeats the command as it was
                kwargs["ckpt_path"] = self.last_checkpoint
            self.trainer.fit(**kwargs)
            head = self.run_dir / "head.ckpt"
            self.trainer.save_checkpoint(head, weights_only=True)
            if self.trainer.is_global_zero:
                print(f"Trained head: {head}")
        else:
            print(f"{type(self.model).__name__} has nothing to train with these settings.")
        if tests:
            self._evaluate(self.trainer.test, "After training", model=self.model, datamodule=self.datamodule)

    def test(self, **kwargs: Any) -> None:
        """Tests."""
        trained = kwargs.get("ckpt_path") or not self.model.trainable_names()
        self._evaluate(self.trainer.test, "Test" if trained else "Test of an UNTRAINED head (no --ckpt_path)", **kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Tests without pictures."""
        self._evaluate(self.trainer.validate, "Validation", **kwargs)

    def _evaluate(self, run: Callable[..., Any], title: str, **kwargs: Any) -> None:
        evaluations = {MAIN_HEAD: self.evaluation}
        self.evaluation.title = f"{title} · {type(self.model).__name__} on {self.model.backbone.description}"
        with self._sharing(evaluations, kwargs):
            run(**{**kwargs, "verbose": False})
        if not self.trainer.is_global_zero:
            return
        for evaluation in evaluations.values():
            print(f"\n{evaluation.title}")
            print(results.render(evaluation.rows, evaluation.tolerance))
            print(f"Table: {self.run_dir / evaluation.name}.csv")
        if self.pictures.paths:
            print("Pictures:\n" + "\n".join(f"  {path}" for path in self.pictures.paths))

    @contextmanager
    def _sharing(self, evaluations: dict[str, Evaluation], arguments: dict[str, Any]) -> Iterator[None]:
        """Has all heads tested in one pass, where there are several, and nothing of it left when it is over.

        Args:
            evaluations: Those of the heads by name; the others' are added to the main one's.
            arguments: The trainer's; they are changed.
        """
        if len(self.heads) == 1:
            yield
            return
        if checkpoint := arguments.pop("ckpt_path", None):
            restore(self.model, read_checkpoint(checkpoint))
        arguments["model"] = self.tested
        self._read_from(self.tested.store)
        for name, method in self.heads.items():
            if name != MAIN_HEAD:
                own = evaluations[name] = copy.copy(self.evaluation)
                own.head, own.name = name, f"{self.evaluation.name}_{name}"
                own.title = f"{name}, in the same pass · {type(method).__name__} on {method.backbone.description}"
        before = self.trainer.callbacks  # type: ignore[attr-defined]
        added = [own for name, own in evaluations.items() if name != MAIN_HEAD]
        self.trainer.callbacks = [*before, *added]  # type: ignore[attr-defined]
        yield
        self.trainer.callbacks = before  # type: ignore[attr-defined]
        self._read_from(self.model.store)

    def predict(self, **kwargs: Any) -> None:
        """Writes maps as they come and keeps none in memory; the table of scores comes at the end."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})
        if self.trainer.is_global_zero:
            print("Predictions:\n" + "\n".join(f"  {path}" for path in sorted(self.run_dir.glob("predictions*.csv"))))


class FeatureBuilder(LightningModule):
    """Computes the features of batches and keeps them.

    Args:
        method: Whose features: a method's, or of all the heads of a shared pass; it has a store.
    """

    def __init__(self, method: AnomalyMethod | SharedPass) -> None:
        super().__init__()
        self.method = method

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Keeps the features of a batch, and returns of how many images."""
        self.method.features_of(batch)
        return len(batch.samples)


class FeatureBuildCLI(AnomalyCLI):
    """Computes the features that `fit` with the same options would read, and nothing else."""

    def _choose_run_dir(self, config: Namespace) -> Path:
        return Path("runs")  # nothing is written there, and several nodes need not agree on a folder

    def fit(self, **kwargs: Any) -> None:
        """Walks the images of the tests, for all heads, and those of training."""
        data = self.datamodule
        data.prepare_data()
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [callback for callback in callbacks if isinstance(callback, ProgressBar)]  # nothing to record
        self.trainer.loggers = []
        tests = [(dataset, "test") for dataset in data.test_sets]
        training = data.training_set, data.training_set.train_split
        walks = [(self.tested, tests), *([] if training in tests else [(self.model, [training])])]
        for method, splits in walks:
            self._read_from(method.store)
            loaders = [dataset.walk(split) for dataset, split in splits]
            self.trainer.predict(FeatureBuilder(method), loaders, return_predictions=False)
        if self.trainer.is_global_zero:
            print(f"Features: {self.model.store.folder}")


@contextmanager
def _argument_errors() -> Iterator[None]:
    """Turns what a constructor refused into one message; the parser wraps it in its own errors."""
    try:
        yield
    except ValueError as error:
        cause: BaseException = error
        while cause.__cause__ and not isinstance(cause, UserError):
            cause = cause.__cause__
        raise UserError(message_of(cause)) from error


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _quiet_lightning() -> None:
    """Leaves out what Lightning says of itself: the frozen backbone is in eval mode on purpose."""
    for message in (".*does not have many workers.*", ".*in eval mode at the start of training.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )


def main(args: list[str] | None = None, command: Callable[[list[str] | None], AnomalyCLI] = AnomalyCLI) -> int:
    """Runs a command and returns its exit code: 0 done, 2 a mistake that the message explains, 75 stopped."""
    _quiet_lightning()
    try:
        with tracking.ending():
            command(args)
    except UserError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
    except (StoppedError, SIGTERMException) as stop:  # Lightning's own comes at the end of an epoch, which is kept
        print(f"Stopped. {stop}", file=sys.stderr)
        requeue()
        return STOPPED
    except OSError as error:  # a full disk or a folder that may not be written, outside our own writers
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
