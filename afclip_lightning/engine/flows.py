"""The steps of `fit`, `validate`, `test` and `predict`, once everything is built."""

from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy

from afclip_lightning import results
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.training import names_of
from afclip_lightning.engine.callbacks.evaluation import Evaluation, Pass
from afclip_lightning.engine.callbacks.pictures import Pictures
from afclip_lightning.engine.checkpoint import HEAD_FILE, read_checkpoint
from afclip_lightning.engine.factory import checkpoint_of, note_assumed, read_any, restore, restore_released
from afclip_lightning.engine.resume import LAST, check_optimizer
from afclip_lightning.engine.run_folder import is_repeated
from afclip_lightning.engine.run_parts import trained_on
from afclip_lightning.engine.shared_pass import SharedPass
from afclip_lightning.engine.training_card import training_card
from afclip_lightning.heads.foreign import Released
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import MAIN_HEAD
from afclip_runtime.errors import CheckpointError, TrainingError, UserError
from afclip_runtime.files import is_there, shown

UNTRAINED = "an UNTRAINED head (no --checkpoint)"


@dataclass
class Run:
    """The parts of a run.

    Attributes:
        command: `fit`, `validate`, `test` or `predict`.
        config: Options of the command. Groups of options are objects.
        folder: The run folder.
        heads: The run's own method, `MAIN_HEAD`, and the other heads that are tested with it, by name.
        tested: The module that is tested: the method, or all heads in one pass.
        data: The data.
        trainer: The trainer, with the evaluation and the pictures among its callbacks.
    """

    command: str
    config: Namespace
    folder: Path
    heads: dict[str, AnomalyMethod]
    tested: AnomalyMethod | SharedPass
    data: AnomalyData
    trainer: Trainer

    @property
    def method(self) -> AnomalyMethod:
        """Returns the run's own method."""
        return self.heads[MAIN_HEAD]

    @property
    def evaluation(self) -> Evaluation:
        """Returns the callback that scores the passes."""
        evaluation: Evaluation = self.config.evaluation
        return evaluation

    @property
    def pictures(self) -> Pictures:
        """Returns the callback that draws the pictures of tests."""
        pictures: Pictures = self.config.pictures
        return pictures

    def read_for(self, reader: AnomalyMethod | SharedPass) -> None:
        """Connects the data to the method or heads of the next pass. Each pass begins with this."""
        self.data.connect(self.method.preprocess, self.config.loading, reader.store, self.config.few_shot_dir)


def fit(run: Run) -> None:
    """Trains and tests. A method with nothing to train is only tested.

    Raises:
        UserError: The method would be trained and tested on the same images.
    """
    _check_transfer(run)
    last = run.folder / LAST
    path = last if is_repeated(run.folder) and is_there(last) else run.config.ckpt_path
    if run.config.test_before_fit and not path:  # the resumed run has done so
        _test(run, "Test before training", trained=False, name="results_untrained", pictures=False)
    name = type(run.method).__name__
    if path and not run.method.trainable_names():
        raise UserError(f"{name} has nothing to train: leave --checkpoint out, or use test.")
    if run.method.learnt_names():
        _train(run, path)
    else:
        print(f"{name} has nothing to train with these settings.")
    if run.config.test_after_fit:
        _test(run, "After training")


def test(run: Run) -> None:
    """Tests."""
    _test(run, "Test", trained=_load_head(run))


def validate(run: Run) -> None:
    """Tests without pictures."""
    trained = _load_head(run)
    _begin(run, "Validation", trained)
    run.trainer.validate(run.tested, datamodule=run.data, verbose=False)
    _report(run)


def predict(run: Run) -> None:
    """Writes each map as soon as it is computed, and the table of scores at the end."""
    heading = "Predictions" if _load_head(run) else f"Predictions of {UNTRAINED}"
    if run.trainer.is_global_zero:
        print(heading)
    run.read_for(run.method)
    run.trainer.predict(run.method, datamodule=run.data, return_predictions=False)
    if run.trainer.is_global_zero:
        print("\n".join(f"Table: {path}" for path in sorted(run.folder.glob("predictions*.csv"))))


def _check_transfer(run: Run) -> None:
    """Checks that the training data exists and is not the test data."""
    trained = trained_on(run.method, run.data)  # missing data is an error before the untrained method is tested
    tested = [(dataset, "test") for dataset in run.data.test_sets] if run.config.test_after_fit else []
    if trained and trained[:1] == tested and run.data.training_sets == [run.data]:
        raise UserError(
            f"{names_of(run.data.training_sets)} would be trained on and tested on with the same images, which is not "
            "zero-shot. Train on one dataset and test on others with CrossDataset; or train on it alone with "
            "--test_after_fit false; or, to see whether the head learns at all, use CrossDataset with seen_if_alone."
        )


def _train(run: Run, path: str | Path | None) -> None:
    """Trains, resuming from a checkpoint if one is given, and writes the trained head."""
    if path:
        check_optimizer(Path(path), read_checkpoint(path)["optimizer_states"], run.method)
        if run.trainer.is_global_zero:
            print(f"Training goes on from {path}.")
    run.read_for(run.method)
    if isinstance(run.trainer.strategy, DDPStrategy) and not run.method.trainable_names():
        # Such a method is built from the data without gradients. DDP reduces gradients and would refuse it.
        run.trainer.strategy.configure_ddp = _nothing  # type: ignore[method-assign]
    run.trainer.fit(run.method, datamodule=run.data, ckpt_path=path, weights_only=run.config.weights_only)
    if run.method.trainable_names() and run.trainer.global_step == 0:
        raise TrainingError("Nothing was trained: not one step was made. See --trainer.limit_train_batches.")
    head = run.folder / HEAD_FILE
    run.method.card = training_card(run.method, run.data, run.trainer.current_epoch).to_dict()
    run.trainer.save_checkpoint(head, weights_only=True)
    if run.trainer.is_global_zero:
        print(f"Trained head: {head}")


def _nothing() -> None:
    pass


def _load_head(run: Run) -> bool:
    """Loads the head of `--checkpoint` into the method. Returns whether the method is ready for a test.

    The trainer gets no checkpoint: if it found none, it would only warn and test the untrained head.
    """
    if run.config.ckpt_path:
        checkpoint = read_any(run.config.ckpt_path)
        if isinstance(checkpoint, Released):
            _check_assumed(run, checkpoint)
            restore_released(run.method, checkpoint)
            note_assumed(run.method, checkpoint)
        else:
            restore(run.method, checkpoint)
        return True
    return not run.method.learnt_names()


def _check_assumed(run: Run, released: Released) -> None:
    """Compares a config with the settings that another project's code fixes and its file does not contain.

    Raises:
        CheckpointError: They differ: the results would be those of neither.
    """
    if not (problems := released.differences(run.method)):
        return
    raise CheckpointError(
        f"{shown(released.path)} is a head of {released.format.project}, and the config differs:\n  "
        + "\n  ".join(problems)
        + "\nChange the config. If the head was trained with these settings, test the output of head import FILE "
        "--model.KEY VALUE instead."
    )


def _test(run: Run, title: str, trained: bool = True, name: str = "results", pictures: bool = True) -> None:
    """Tests all heads.

    Args:
        run: The run.
        title: Title of the test.
        trained: Whether the method is trained or needs no training.
        name: Stem of the tables' file names.
        pictures: Whether pictures are drawn.
    """
    run.pictures.wanted = pictures
    _begin(run, title, trained, name)
    run.trainer.test(run.tested, datamodule=run.data, verbose=False)
    _report(run)


def _begin(run: Run, title: str, trained: bool, name: str = "results") -> None:
    """Prepares the evaluation and the data for the next pass."""
    if not trained and run.method.learnt_names():
        title = f"{title} of {UNTRAINED}"
    titles, checkpoints = {}, {}
    for head, method in run.heads.items():
        said = title if head == MAIN_HEAD else f"{head}, in the same pass"
        titles[head] = f"{said} · {type(method).__name__} on {method.backbone.description}"
        checkpoints[head] = None if head == MAIN_HEAD else checkpoint_of(run.config.heads[head])
    if run.command != "fit":  # there, training resumes from it
        checkpoints[MAIN_HEAD] = run.config.ckpt_path
    run.evaluation.about = Pass(name, titles, checkpoints)
    run.read_for(run.tested)


def _report(run: Run) -> None:
    """Prints the results of the last pass."""
    if not run.trainer.is_global_zero:
        return
    for head in run.evaluation.heads.values():
        print(f"\n{head.title}")
        print(results.render(head.rows, run.evaluation.tolerance, results.shown_columns(head.rows)))
        if head.type_rows:
            print("\n".join(results.render_types(head.type_rows, results.shown_columns(head.type_rows))))
        print(f"Table: {run.folder / head.name}.csv")
    if run.pictures.paths:
        print("Pictures:\n" + "\n".join(f"  {shown(path)}" for path in run.pictures.paths))
