"""The command line: LightningCLI with an early check of the data, a run folder, and results at the end."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import afclip_lightning.datasets
import afclip_lightning.methods
from afclip_lightning.backbones.store import FeatureCache
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.dataloader import killed_loader
from afclip_lightning.datasets import catalogue
from afclip_lightning.discovery import import_submodules
from afclip_lightning.discovery.sections import instantiate_subclass, refusals
from afclip_lightning.engine import flows, loggers
from afclip_lightning.engine.checkpoint import LAST, AtomicCheckpointIO, read_checkpoint
from afclip_lightning.engine.factory import load_heads, read_any
from afclip_lightning.engine.flows import Run
from afclip_lightning.engine.options import check_options
from afclip_lightning.engine.parser import GROUPS, AnomalyArgumentParser, add_run_arguments, parse
from afclip_lightning.engine.processes import limit_waiting, lost_process_told
from afclip_lightning.engine.quiet import quiet_libraries
from afclip_lightning.engine.resume import check_resumable, find_checkpoint
from afclip_lightning.engine.roots import fill_in_roots
from afclip_lightning.engine.run_folder import (
    RUN_FOLDER_VARIABLE,
    RunRecord,
    choose_run_folder,
    full_disk_named,
    is_first_process,
)
from afclip_lightning.engine.run_parts import (
    as_list,
    check_few_shot,
    check_space,
    display_callbacks,
    keep_features,
    run_callbacks,
    run_loggers,
    trained_on,
)
from afclip_lightning.engine.shared_pass import SharedPass
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import PROGRAM, UserError, message_of
from afclip_runtime.files import only_writer
from afclip_runtime.launch.signals import STOPPED, StoppedError, requeue


class AnomalyCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any method and any dataset.

    `fit` trains and then tests, so that one command gives a results table. The data is checked before a model is
    built. A run writes all its files into one folder.
    """

    checks_space: ClassVar[bool] = True  # whether the space for kept features is checked at the start

    def __init__(self, args: list[str] | None = None) -> None:
        import_submodules(afclip_lightning.methods)
        import_submodules(afclip_lightning.datasets)
        with ExitStack() as self._running:  # resources of the command, released when it ends
            super().__init__(
                AnomalyMethod,
                AnomalyData,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=RunRecord,
                save_config_kwargs={"save_to_log_dir": False},
                parser_class=AnomalyArgumentParser,
                parser_kwargs={"prog": PROGRAM, "parser_mode": "omegaconf+"},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=args,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run to those of trainer, model and data."""
        add_run_arguments(parser)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the commands. Each has the arguments of the trainer's method that are not options, or that we set."""
        return {name: {*skipped, "ckpt_path"} for name, skipped in LightningCLI.subcommands().items()}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments and checks the values that need neither data nor model."""
        self.config, notes = parse(parser, sys.argv[1:] if args is None else args)
        if is_first_process():
            print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
        check_options(self.config[self.config.subcommand].as_dict(), self.config.subcommand)

    def _parse_ckpt_path(self) -> None:
        """Reads the checkpoint before anything is built. Its hyperparameters never override the user's options."""
        command = self.config.subcommand
        config = self.config[command]
        if config.ckpt_path is None:
            return
        path = find_checkpoint(config.ckpt_path, command)
        config.ckpt_path = str(path)
        if command == "fit":
            check_resumable(path, read_checkpoint(path), config.trainer)
        else:
            read_any(path)

    def before_instantiate_classes(self) -> None:
        """Checks the data and chooses the run folder, before any model is built."""
        config = self.config[self.subcommand]
        fill_in_roots(config.data)
        data = instantiate_subclass(AnomalyData, config.data)
        with refusals():
            for name, cls in GROUPS.items():
                cls(**vars(config[name]))
        catalogue.check(data, str(self.subcommand))
        self.folder = self.choose_folder(config)
        config.out = config.trainer.default_root_dir = str(self.folder)
        if self.subcommand == "fit" and config.trainer.limit_val_batches is None:
            # the protocol has no validation: choosing an epoch by test data would be cheating
            config.trainer.limit_val_batches = 0

    def choose_folder(self, config: Namespace) -> Path:
        """Returns the run folder. The first process locks it until the command ends."""
        resumed = Path(config.ckpt_path) if self.subcommand == "fit" and config.ckpt_path else None
        folder = choose_run_folder(config, resumed)
        self._running.callback(os.environ.pop, RUN_FOLDER_VARIABLE, None)  # the next command chooses its own
        if is_first_process():
            self._running.enter_context(only_writer(folder))
        return folder

    def instantiate_classes(self) -> None:
        """Builds data, method, trainer and the other heads."""
        with refusals():
            super().instantiate_classes()
        command, method, data = str(self.subcommand), self.model, self.datamodule
        parser, config = self._parser(command), self.config_init[command]
        method.config = yaml.safe_load(parser.dump(self.config[command], skip_none=False))["model"]
        heads = load_heads(method, config.heads)
        check_few_shot(heads, config.few_shot_dir)
        if (cache := self._feature_folder(config.features)) is not None:
            keep_features(heads, replace(config.features, cache=cache), config.loading, str(self.trainer.precision))
        tested = SharedPass(heads) if len(heads) > 1 else method
        if tested.store is not None and self.trainer.is_global_zero and self.checks_space:
            training = trained_on(method, data) if command == "fit" else []
            check_space(tested.store, method.backbone.vision.width, data, training, config.features.limit_gb)
        self.run = Run(command, config, self.folder, heads, tested, data, self.trainer)

    def _feature_folder(self, features: FeatureCache) -> Path | None:
        """Returns the folder of the feature store. A temporary folder is removed when the command ends."""
        if features.cache is not None or not features.temporary or self.subcommand != "fit":
            return features.cache
        folder = self.folder / "features"
        if is_first_process():
            self._running.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the project's callbacks, atomic checkpoints, and loggers in the run folder."""
        config = self.config_init[self.subcommand]
        trainer = config.trainer
        tags = [type(self.model).__name__, *dict.fromkeys(part.name for part in self.datamodule.parts)]
        chosen = run_loggers(trainer.logger, self.folder, str(self.subcommand), tags)
        keep = trainer.enable_checkpointing is not False
        own = run_callbacks(config.evaluation, config.pictures, self.folder, keep)
        chosen_callbacks = as_list(trainer.callbacks)
        wanted = (trainer.enable_progress_bar is not False, trainer.enable_model_summary is not False)
        trainer.callbacks = [*chosen_callbacks, *own, *display_callbacks(chosen_callbacks, *wanted)]
        trainer.plugins = [*as_list(trainer.plugins), AtomicCheckpointIO()]
        strategy = trainer.strategy
        built = super().instantiate_trainer(logger=chosen, **kwargs)
        limit_waiting(built, strategy)
        return built

    def carry_out(self, flow: Callable[[Run], None]) -> None:
        """Carries out a command. If a process of the run is lost meanwhile, the error says so."""
        with lost_process_told(self.folder / LAST if self.subcommand == "fit" else None), full_disk_named(self.folder):
            flow(self.run)

    def fit(self, **_: Any) -> None:
        """Trains and tests."""
        self.carry_out(flows.fit)

    def validate(self, **_: Any) -> None:
        """Tests without pictures."""
        self.carry_out(flows.validate)

    def test(self, **_: Any) -> None:
        """Tests."""
        self.carry_out(flows.test)

    def predict(self, **_: Any) -> None:
        """Writes maps and a table of scores."""
        self.carry_out(flows.predict)


def main(args: list[str] | None = None, command: Callable[[list[str] | None], object] = AnomalyCLI) -> int:
    """Runs a command and returns its exit code: 0 done, 2 an error that the message explains, 75 stopped.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    quiet_libraries()
    try:
        with loggers.ending():
            command(args)
    except (StoppedError, SIGTERMException) as stop:  # Lightning raises its own at the end of an epoch, which is saved
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
    """Returns a message that says what to do about an error; empty if the error is unexpected."""
    if isinstance(error, UserError):
        return message_of(error)
    if isinstance(error, MisconfigurationException):  # options that only Lightning can check
        return " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU has too little memory for this batch_size: {error}"
    if message := killed_loader(error):
        return message
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return str(error)  # a full disk or a folder without write permission, outside our own writers
    return ""
