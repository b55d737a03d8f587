"""The command line: LightningCLI with a check of the data first, a run folder, and results at the end."""

import copy
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import afclip_lightning.datasets
import afclip_lightning.methods
from afclip_lightning import results
from afclip_lightning.backbones.store import FeatureCache, FeatureStore
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.loader import killed_loader
from afclip_lightning.data.loading import Loading
from afclip_lightning.datasets import catalogue
from afclip_lightning.discovery import import_submodules
from afclip_lightning.engine import loggers
from afclip_lightning.engine.arguments import check_files, without_leftovers
from afclip_lightning.engine.callbacks.data_record import DataRecord
from afclip_lightning.engine.callbacks.evaluation import Evaluation
from afclip_lightning.engine.callbacks.pictures import Pictures
from afclip_lightning.engine.callbacks.predictions import Predictions
from afclip_lightning.engine.callbacks.preemption import Preemption
from afclip_lightning.engine.callbacks.tracking import Tracking
from afclip_lightning.engine.checkpoint import AtomicCheckpointIO, read_checkpoint
from afclip_lightning.engine.factory import HEAD_FILE, backbone_key, checkpoint_of, load_head, restore
from afclip_lightning.engine.options import check_options
from afclip_lightning.engine.parser import AnomalyArgumentParser
from afclip_lightning.engine.resume import LAST, check_optimizer, check_resumable, find_checkpoint
from afclip_lightning.engine.roots import fill_in_roots
from afclip_lightning.engine.run_folder import RunRecord, choose_run_dir, is_first_process
from afclip_lightning.engine.sections import instantiate_subclass, refusals
from afclip_lightning.engine.shared_pass import SharedPass
from afclip_lightning.engine.signals import STOPPED, StoppedError, requeue, restarted
from afclip_lightning.errors import TrainingError, UserError, message_of
from afclip_lightning.files import only_writer, shown
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import MAIN_HEAD, Split

EPILOG = """\
Each of these has a --help of its own, python -m afclip_lightning COMMAND --help:
  inspect     score, verdict and map of one's own images     calibrate   a threshold from normal images
  serve       a page where an image is judged                export      a head as an ONNX or torch.export graph
  report      one HTML page of a run                         evaluate    score saved maps of any method against masks
  benchmark   methods × datasets × seeds, and their tables   sweep       search for options, here or on a cluster
  datasets    list, check and unpack datasets                features    keep features on disk, look after them
  knowledge   show or build a knowledge base of sentences

--version prints the version. Exit codes: 0 done, 2 a mistake that the message explains, 75 stopped by a signal and able
to go on, 130 Ctrl-C, 70 a fault of the program; 1 is what a command's own --help says: images left out, a cell failed.
"""

GROUPS: dict[str, type] = {"loading": Loading, "features": FeatureCache, "pictures": Pictures, "evaluation": Evaluation}
UNTRAINED = "an UNTRAINED head (no --checkpoint)"


class AnomalyCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any method and any dataset.

    `fit` trains and then tests, so that one command gives a results table. The data is checked before a model is
    built. Everything a run writes lies in one folder.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        import_submodules(afclip_lightning.methods)
        import_submodules(afclip_lightning.datasets)
        with ExitStack() as self._running:  # what is held until the command ends
            super().__init__(
                AnomalyMethod,
                AnomalyData,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=RunRecord,
                save_config_kwargs={"save_to_log_dir": False},
                parser_class=AnomalyArgumentParser,
                parser_kwargs={"parser_mode": "omegaconf+", "epilog": EPILOG},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=args,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run beside those of trainer, model and data."""
        parser.add_argument(
            "--out", "--run_dir", type=str | None, default=None, help="Run folder; runs/<config>/<time> by default."
        )
        parser.add_argument(
            "--ckpt_path",
            "--checkpoint",
            type=str | None,
            default=None,
            help="Trained head: a checkpoint or the folder of a run. With fit, what training goes on from.",
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
        for name, cls in GROUPS.items():
            parser.add_class_arguments(cls, name)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the commands, each with the arguments of the trainer's method that are no options or our own."""
        return {name: {*skipped, "ckpt_path"} for name, skipped in LightningCLI.subcommands().items()}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments and checks the values that need neither data nor model."""
        args = sys.argv[1:] if args is None else args
        check_files(args)
        args, notes = without_leftovers(args)
        self.config = parser.parse_args(args)
        if is_first_process():
            print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
        check_options(self.config[self.config.subcommand].as_dict(), self.config.subcommand)

    def _parse_ckpt_path(self) -> None:
        """Reads the checkpoint before anything is built; its hyperparameters never override what the user gives."""
        command = self.config.subcommand
        config = self.config[command]
        if config.ckpt_path is None:
            return
        path = find_checkpoint(config.ckpt_path, command)
        config.ckpt_path = str(path)
        checkpoint = read_checkpoint(path)
        if command == "fit":
            check_resumable(path, checkpoint, config.trainer)

    def before_instantiate_classes(self) -> None:
        """Checks the data and chooses the run folder, before any model is built."""
        config = self.config[self.subcommand]
        with refusals():
            fill_in_roots(config.data)
        data = instantiate_subclass(AnomalyData, config.data)
        with refusals():
            for name, cls in GROUPS.items():
                cls(**vars(config[name]))
        catalogue.check(data, str(self.subcommand))
        self.run_dir = self._choose_run_dir(config)
        self.last_checkpoint = self.run_dir / LAST
        config.out = config.trainer.default_root_dir = str(self.run_dir)
        if self.subcommand == "fit" and config.trainer.limit_val_batches is None:
            # the protocol has no validation: choosing an epoch by test data would be cheating
            config.trainer.limit_val_batches = 0

    def _choose_run_dir(self, config: Namespace) -> Path:
        """Returns the run folder, held by the first process until the command ends."""
        resumed = Path(config.ckpt_path) if self.subcommand == "fit" and config.ckpt_path else None
        run_dir = choose_run_dir(config, resumed)
        if is_first_process():
            self._running.enter_context(only_writer(run_dir))
        return run_dir

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer, and tells the data how to read images and for which backbone."""
        with refusals():
            super().instantiate_classes()
        parser = self._parser(self.subcommand)
        self.model.config = yaml.safe_load(parser.dump(self.config[self.subcommand], skip_none=False))["model"]
        config = self.config_init[self.subcommand]
        self.heads = self._load_heads(config.heads)
        self._read_from(None)
        if config.features.cache is not None:
            self._use_store(config.features, config.loading)
        self.tested = SharedPass(self.heads) if len(self.heads) > 1 else self.model
        if self.tested.store is not None:
            self._check_space(self.tested.store, config.features.limit_gb)

    def _load_heads(self, others: dict[str, Path]) -> dict[str, AnomalyMethod]:
        """Returns the run's own method and the others to be tested with it, by name."""
        backbones = {backbone_key(self.model.config["init_args"]["backbone"]): self.model.backbone}
        heads = {MAIN_HEAD: self.model}
        for name, path in others.items():
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
        config = self.config_init[self.subcommand]
        self.datamodule.connect(self.model.preprocess, config.loading, store, config.few_shot_dir)

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
            read += [sample.image_path for dataset, split in self._trained_on() for sample in dataset.samples(split)]
        store.check_space(len(set(read)), self.model.backbone.vision.width, limit_gb)

    def _trained_on(self) -> list[tuple[AnomalyDataModule, Split]]:
        """Returns the dataset and the split that training reads; nothing for a method that trains nothing.

        Raises:
            DatasetError: The method trains, and no dataset is there for it.
        """
        if not self.model.trainable_names():
            return []
        dataset = self.datamodule.training_set
        return [(dataset, dataset.train_split)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the project's callbacks, atomic checkpoints, and loggers in the run folder."""
        config = self.config_init[self.subcommand].trainer
        chosen = [logger for logger in _as_list(config.logger) if logger not in (True, False)]
        for logger in chosen:
            names = dict.fromkeys(part.name for part in self.datamodule.parts)
            loggers.prepare(logger, self.run_dir, str(self.subcommand), [type(self.model).__name__, *names])
        if config.logger is not False:
            logs = len(list(self.run_dir.glob("log*")))  # those of the run that this one continues
            chosen.append(CSVLogger(str(self.run_dir), name="", version=f"log-{logs + 1}" if logs else "log"))
        self.evaluation = self.config_init[self.subcommand].evaluation
        self.pictures = self.config_init[self.subcommand].pictures
        last = ModelCheckpoint(self.last_checkpoint.parent, filename="last", enable_version_counter=False)
        tracked = Tracking(self.evaluation, self.pictures)
        callbacks = [self.evaluation, self.pictures, Predictions(), DataRecord(), tracked]
        keep = config.enable_checkpointing is not False
        callbacks += [Preemption(self.last_checkpoint if keep else None), *([last] if keep else [])]
        config.callbacks = [*_as_list(config.callbacks), *callbacks]
        config.plugins = [*_as_list(config.plugins), AtomicCheckpointIO()]
        return super().instantiate_trainer(logger=chosen, **kwargs)

    def fit(self, **kwargs: Any) -> None:
        """Trains and tests; a method with nothing to train is only tested.

        Raises:
            UserError: It would be trained and tested on the same images.
        """
        data, tests = self.datamodule, self.config_init["fit"].test_after_fit
        self._trained_on()  # what is not there is said before a test of the untrained method
        if self.model.trainable_names() and tests and data.test_sets == [data] and data.train_split == "test":
            raise UserError(
                f"{data.name} would be trained on and tested on with the same images, which is not zero-shot. Train on "
                "one dataset and test on others with CrossDataset; or train on it alone with --test_after_fit false; "
                "or, to see whether the head learns at all, use CrossDataset with seen_if_alone."
            )
        path = self.config_init["fit"].ckpt_path
        if restarted() and self.last_checkpoint.exists():  # the cluster repeats the command as it was
            path = self.last_checkpoint
        if self.config_init["fit"].test_before_fit and not path:  # the run that it goes on with did so
            self.evaluation.name = "results_untrained"
            count, self.pictures.count = self.pictures.count, 0  # the pictures are of the trained method
            title = "Test before training"
            self._evaluate(self.trainer.test, title, False, model=self.model, datamodule=self.datamodule)
            self.pictures.count = count
            self.evaluation.name = "results"
        if self.model.trainable_names():
            self._train(path, kwargs)
        elif path:
            raise UserError(f"{type(self.model).__name__} has nothing to train: leave --checkpoint out, or use test.")
        else:
            print(f"{type(self.model).__name__} has nothing to train with these settings.")
        if tests:
            self._evaluate(self.trainer.test, "After training", True, model=self.model, datamodule=self.datamodule)

    def _train(self, path: str | Path | None, arguments: dict[str, Any]) -> None:
        if path:
            check_optimizer(Path(path), read_checkpoint(path)["optimizer_states"], self.model)
            if self.trainer.is_global_zero:
                print(f"Training goes on from {path}.")
        self.trainer.fit(**arguments, ckpt_path=path)
        if self.trainer.global_step == 0:
            raise TrainingError("Nothing was trained: not one step was made. See --trainer.limit_train_batches.")
        head = self.run_dir / HEAD_FILE
        self.trainer.save_checkpoint(head, weights_only=True)
        if self.trainer.is_global_zero:
            print(f"Trained head: {head}")

    def test(self, **kwargs: Any) -> None:
        """Tests."""
        self._evaluate(self.trainer.test, "Test", self._load_head(), **kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Tests without pictures."""
        self._evaluate(self.trainer.validate, "Validation", self._load_head(), **kwargs)

    def _load_head(self) -> bool:
        """Gives the method the head of `--checkpoint`, and returns whether it needs none or has one.

        The trainer is told of no checkpoint: it would only warn where it finds none, and test what is there.
        """
        if path := self.config_init[self.subcommand].ckpt_path:
            restore(self.model, read_checkpoint(path))
            self.evaluation.checkpoint = str(path)
            return True
        return not self.model.trainable_names()

    def _evaluate(self, run: Callable[..., Any], title: str, trained: bool, **kwargs: Any) -> None:
        evaluations = {MAIN_HEAD: self.evaluation}
        title = title if trained or not self.model.trainable_names() else f"{title} of {UNTRAINED}"
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
            print("Pictures:\n" + "\n".join(f"  {shown(path)}" for path in self.pictures.paths))

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
        arguments["model"] = self.tested
        self._read_from(self.tested.store)
        for name, method in self.heads.items():
            if name != MAIN_HEAD:
                own = evaluations[name] = copy.copy(self.evaluation)
                own.head, own.name = name, f"{self.evaluation.name}_{name}"
                own.checkpoint = checkpoint_of(self.config_init[self.subcommand].heads[name])
                own.title = f"{name}, in the same pass · {type(method).__name__} on {method.backbone.description}"
        before = self.trainer.callbacks  # type: ignore[attr-defined]
        added = [own for name, own in evaluations.items() if name != MAIN_HEAD]
        self.trainer.callbacks = [*before, *added]  # type: ignore[attr-defined]
        yield
        self.trainer.callbacks = before  # type: ignore[attr-defined]
        self._read_from(self.model.store)

    def predict(self, **kwargs: Any) -> None:
        """Writes maps as they come and keeps none in memory; the table of scores comes at the end."""
        heading = "Predictions" if self._load_head() else f"Predictions of {UNTRAINED}"
        if self.trainer.is_global_zero:
            print(heading)
        self.trainer.predict(**{**kwargs, "return_predictions": False})
        if self.trainer.is_global_zero:
            print(f"{heading}:\n" + "\n".join(f"  {path}" for path in sorted(self.run_dir.glob("predictions*.csv"))))


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
    """Runs a command and returns its exit code: 0 done, 2 a mistake that the message explains, 75 stopped.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    _quiet_lightning()
    try:
        with loggers.ending():
            command(args)
    except (StoppedError, SIGTERMException) as stop:  # Lightning's own comes at the end of an epoch, which is kept
        print(f"Stopped. {stop}", file=sys.stderr)
        requeue()
        return STOPPED
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning ends the process with 1 after Ctrl-C
            raise KeyboardInterrupt from stop
        raise
    except Exception as error:
        message = _explained(error)
        if not message:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


def _explained(error: Exception) -> str:
    """Returns what a user can do about an error; an empty text where nothing is known of it."""
    if isinstance(error, UserError):
        return message_of(error)
    if isinstance(error, MisconfigurationException):  # what only Lightning knows of its options
        return " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU has too little memory for this batch_size: {error}"
    if message := killed_loader(error):
        return message
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return str(error)  # a full disk or a folder that may not be written, outside our own writers
    return ""
