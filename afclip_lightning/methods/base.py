"""The contract of a method: frozen features in, a score and a map out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar, Literal

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.components.loss_watch import LossWatch
from afclip_lightning.components.memory import Key, MemoryBank
from afclip_lightning.components.provenance import Provenance
from afclip_lightning.components.views import score_views
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.references import Pairing
from afclip_lightning.data.whole_test_set import WholeTestSet
from afclip_lightning.distributed import gathered
from afclip_lightning.prompts.ensemble import CategoryText
from afclip_lightning.types import UNKNOWN, AnomalyPrediction, Batch, ClipFeatures, Sample
from afclip_runtime.errors import CheckpointError

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]
UsesTestSet = Literal["never", "with few-shot images", "without few-shot images", "with image_score: scaled", "always"]


def adam(parameters: Iterable[Tensor]) -> Adam:
    """Returns the optimiser of the codes of AnomalyCLIP, FAPrompt and APRIL-GAN. Run folders record it by name."""
    return Adam(parameters, lr=1e-3, betas=(0.5, 0.999))


def sgd(parameters: Iterable[Tensor]) -> SGD:
    """Returns the optimiser of the codes of CoOp and CoCoOp. Run folders record it by name."""
    return SGD(parameters, lr=2e-3, momentum=0.9, weight_decay=5e-4)


def features_of(batch: Batch, backbone: ClipBackbone, spec: FeatureSpec, store: FeatureStore | None) -> ClipFeatures:
    """Returns the features of a batch: those read with it, or computed ones, which go into the store.

    With a store, computed features are rounded as the store does. The result therefore does not depend on its content.
    """
    if batch.features is not None:
        return batch.features.map(Tensor.float)
    features = backbone.encode_image(batch.image, spec)
    if store is None or batch.digests is None:
        return features
    store.save(batch.digests, features)
    return store.rounded(features)


class AnomalyMethod(Provenance, LightningModule, ABC):
    """A head on a frozen backbone. A subclass builds its parts, names its features and implements `score`.

    A trained method also implements `loss`. Checkpoints hold the trained state (trainable parameters and persistent
    buffers), plain hyperparameters and the feature spec. They never hold the backbone. Class attributes declare what a
    method needs in addition to features:

    - With `takes_few_shot` it has the arguments `k_shot` and `shot_seed` and a `memory`. It implements `fit_memory`
      unless the memory holds just the tapped patches.
    - With `needs_references` it has a `pairing`.
    - With `uses_test_set` it implements `observe` and `take_observed`.

    Args:
        backbone: The frozen CLIP.
        spec: The features that the head needs.
        optimizer: Function that builds the optimiser of the trainable parameters. `None` if nothing trains.

    Attributes, beside those of `Provenance`:
        fixed_by_training: Constructor arguments that a trained head depends on, other than its features.
        rows_from_training: Persistent buffers whose number of rows is set by training.
        takes_few_shot: Whether images are compared with `k_shot` normal images of their category.
        holds_head: Whether a zero-shot method (`head`, `head_arguments`) can be combined with its memory.
        trains_beside_normal: Whether training also reads the normal images of the `train` split.
        needs_references: Whether each image is compared with reference images, which the data module assigns.
        uses_test_set: Whether the score of an image depends on all test images of its category.
        needs_pixels: Whether the images are used in addition to their features. Features are then not kept on disk.
        changes_blocks: Whether trained parts lie between the blocks of the backbone. Features then change with every
            step and are not kept on disk. The method runs the blocks itself.
        needs_class_name: Whether its prompts have the name of the category.
        k_shot: Few-shot images per category. 0 for a method without few-shot images.
        shot_seed: Seed of their random selection.
        memory: The memory bank of few-shot images, or `None`.
        pairing: Rule that assigns references to images, or `None`.
        head: The zero-shot method that is combined with the memory, or `None`.
        store: The feature store, or `None`. The command line sets it.
        config: The `model` section of a config that builds the method, for self-contained checkpoints. `None` if the
            method was built in Python.
        card: Facts on the training for checkpoints, as plain values of `heads.card.Card`, or `None`.
    """

    fixed_by_training: ClassVar[tuple[str, ...]] = ()
    rows_from_training: ClassVar[tuple[str, ...]] = ()
    takes_few_shot: ClassVar[bool] = False
    holds_head: ClassVar[bool] = False
    trains_beside_normal: ClassVar[bool] = False
    needs_references: ClassVar[bool] = False
    uses_test_set: ClassVar[UsesTestSet] = "never"
    needs_pixels: ClassVar[bool] = False
    changes_blocks: ClassVar[bool] = False
    needs_class_name: ClassVar[bool] = False
    k_shot: int = 0
    shot_seed: int = 0
    memory: MemoryBank | None = None
    pairing: Pairing | None = None
    store: FeatureStore | None = None
    config: dict[str, Any] | None = None
    card: dict[str, Any] | None = None

    def __init__(self, backbone: ClipBackbone, spec: FeatureSpec, optimizer: OptimizerFactory | None) -> None:
        super().__init__()
        if self.needs_class_name:
            _ = backbone.text  # raises now for a tower without text, not at the first prompt
        self.backbone = backbone
        self.spec = spec
        self.optimizer = optimizer
        self.head: AnomalyMethod | None = None  # a class attribute would hide the module
        self.watch = LossWatch()
        self.strict_loading = False  # the backbone is absent from checkpoints; on_load_checkpoint checks the rest
        # every process has the same backbone: DDP neither sends it to the others at the start nor its buffers each step
        frozen = [name for name, _ in (*self.named_parameters(), *self.named_buffers())]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, frozen)

    @abstractmethod
    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns scores and maps, float32. They are deterministic and do not depend on other images of the batch."""

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms by name. `total` is minimised."""
        raise TypeError(f"{type(self).__name__} trains nothing: use the test command")

    @property
    def needs_test_set(self) -> bool:
        """Returns whether scores need all test images with these arguments. See `uses_test_set`.

        A method overrides this if only some arguments need them.
        """
        few_shot = "with few-shot images" if self.k_shot > 0 else "without few-shot images"
        return self.uses_test_set in ("always", few_shot)

    @classmethod
    def judges_with_few_shot(cls) -> bool:
        """Returns whether an image and few-shot images suffice for a score."""
        return cls.takes_few_shot and cls.uses_test_set in ("never", "without few-shot images")

    @property
    def adapts(self) -> bool:
        """Returns whether the method trains something on each test image."""
        return False

    def fit_memory(self, key: Key, image: Tensor) -> None:
        """Fits the memory bank of a `(dataset, category)` on the tapped patches of normal images `[S, 3, H, W]`."""
        if self.memory is None:
            raise TypeError(f"{type(self).__name__} takes no few-shot images")
        self.memory.fit(key, self.backbone.encode_image(image.to(self.device), self.spec).tokens)

    def observe(self, test_set: WholeTestSet) -> Any:
        """Returns the results that this process's share of the test images gives, in a form that can be pickled.

        It runs once before each pass of validate, test or predict.
        """
        raise TypeError(f"{type(self).__name__} does not compare test images with each other")

    def take_observed(self, observed: Sequence[Any]) -> None:
        """Stores the results of `observe` of all processes, for `score`."""
        raise TypeError(f"{type(self).__name__} does not compare test images with each other")

    @property
    def data(self) -> AnomalyData | None:
        """Returns the data module of the run. `None` if the trainer was given loaders."""
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, AnomalyData) else None

    def training_batches(self) -> Iterable[Batch]:
        """Returns the training sets of the run as batches, once and in order.

        Without a data module, it returns the trainer's loader.
        """
        if self.data is None:
            loader: Iterable[Batch] | None = self.trainer.train_dataloader
            assert loader is not None  # training has a loader
            return loader
        sets = self.data.training_sets
        return chain.from_iterable(part.ordered_loader(part.train_split, training=True) for part in sets)

    @property
    def preprocess(self) -> Preprocess:
        """Returns the preprocessing of this method's backbone, which the data module must use."""
        return self.backbone.preprocess

    def extract(self, batch: Batch) -> ClipFeatures:
        """Returns the backbone's features of a batch, the input of `score` and `loss`."""
        return self.features_of(batch)

    def predict_from(self, wide: ClipFeatures, given: FeatureSpec, batch: Batch) -> AnomalyPrediction:
        """Returns the prediction from features of a wider spec, `given`, which several heads share."""
        own = replace(batch, features=self.spec.select(wide, given))
        return self.score(self.extract(own), own)

    def features_of(self, batch: Batch) -> ClipFeatures:
        """Returns the backbone's features of a batch. See the function `features_of`."""
        return features_of(batch, self.backbone, self.spec, self.store)

    def setup(self, stage: str) -> None:
        """Requests few-shot images and references from the data module, before any image is read.

        Raises:
            DatasetError: A category has too few images.
        """
        if self.data is None:
            return
        if self.memory is not None:
            self.memory.select(self.data, self.k_shot, self.shot_seed)
        if self.pairing is not None:
            self.data.pair(self.pairing)

    def on_evaluation_start(self) -> None:
        """Prepares a pass of validate, test or predict. Methods that need the test set observe it here.

        Raises:
            TypeError: There is no data module that could give the test images.
        """
        if not self.needs_test_set:
            return
        if self.data is None:
            few_shot = self.uses_test_set == "with few-shot images"
            name = "k_shot" if few_shot else type(self).__name__
            raise TypeError(f"{name} needs all test images at once: give the trainer a datamodule, not loaders")
        self.take_observed(gathered(self.observe(WholeTestSet(self.data, self.preprocess, self.store))))

    def on_evaluation_end(self) -> None:
        """Releases what `on_evaluation_start` prepared, and the memory bank of few-shot images."""
        if self.memory is not None:
            self.memory.reset()

    def on_validation_epoch_start(self) -> None:
        """See `on_evaluation_start`."""
        self.on_evaluation_start()

    def on_validation_epoch_end(self) -> None:
        """See `on_evaluation_end`."""
        self.on_evaluation_end()

    def on_test_epoch_start(self) -> None:
        """See `on_evaluation_start`."""
        self.on_evaluation_start()

    def on_test_epoch_end(self) -> None:
        """See `on_evaluation_end`."""
        self.on_evaluation_end()

    def on_predict_epoch_start(self) -> None:
        """See `on_evaluation_start`."""
        self.on_evaluation_start()

    def on_predict_epoch_end(self) -> None:
        """See `on_evaluation_end`."""
        self.on_evaluation_end()

    def trainable_names(self) -> set[str]:
        """Returns the names of the parameters that train."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def learnt_names(self) -> set[str]:
        """Returns the names of the trained state: trainable parameters and persistent buffers of the head."""
        frozen = {id(buffer) for buffer in self.backbone.buffers()}
        buffers = {name for name, buffer in self.named_buffers() if id(buffer) not in frozen}
        return self.trainable_names() | (buffers & super().state_dict().keys())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the total loss and logs each term. The progress bar shows the loss of the previous step.

        Raises:
            TrainingError: The loss of the previous step is not finite.
        """
        if any(not sample.mask_known and sample.label != UNKNOWN for sample in batch.samples):
            rank_zero_warn("Training images without a mask take part in the image terms of the loss only.")  # once
        losses = self.loss(self.extract(batch), batch)
        size, last = len(batch.samples), self.watch.check()
        self.watch.note(losses, self.current_epoch, batch_idx, batch.samples)
        if last is not None:
            self.log("loss", last, prog_bar=True, logger=False, batch_size=size)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=size, sync_dist=True)
        return losses["total"]

    def on_train_epoch_end(self) -> None:
        """Checks the loss of the last step.

        Raises:
            TrainingError: The loss is not finite.
        """
        self.watch.check()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        """Returns the prediction; the evaluation callback scores it."""
        return score_views(batch, self.preprocess, lambda part: self.score(self.extract(part), part))

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        """Returns the prediction; the evaluation callback scores it."""
        return score_views(batch, self.preprocess, lambda part: self.score(self.extract(part), part))

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        """Returns the prediction."""
        return self.score(self.extract(batch), batch)

    def configure_optimizers(self) -> Optimizer | None:
        """Returns the optimiser of the trainable parameters, or `None` if nothing trains."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return self.optimizer(parameters) if self.optimizer and parameters else None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the trained state, without the backbone."""
        state = super().state_dict(*args, **kwargs)
        learnt = self.learnt_names()
        return {name: tensor for name, tensor in state.items() if name in learnt}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds feature spec and configuration of the method, and keeps hyperparameters out of Lightning's own key.

        Hyperparameters under Lightning's key would silently override options of the command line with `--ckpt_path`.

        Raises:
            TrainingError: The loss of the last step is not finite, so the weights are not finite either.
        """
        self.watch.check()
        checkpoint["method"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["method_hyperparameters"] = checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        checkpoint["feature_spec"] = self.spec.to_dict()
        checkpoint["model"] = self.config
        if self.card is not None:
            checkpoint["card"] = self.card

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rejects a checkpoint of another method, of other features or with other tensors.

        Buffers of `rows_from_training` are resized to the rows of the checkpoint. Their values are loaded afterwards.

        Raises:
            CheckpointError: The checkpoint does not fit. The message names every difference.
        """
        method = f"{type(self).__module__}.{type(self).__qualname__}"
        if checkpoint["method"] != method:
            raise CheckpointError(f"The checkpoint is of {checkpoint['method']}, the model is {method}.")
        problems = self.spec.differences(checkpoint["feature_spec"])
        if problems:
            raise CheckpointError("The checkpoint was trained on other backbone features:\n  " + "\n  ".join(problems))
        trained, here = checkpoint["method_hyperparameters"], self.hparams
        problems = [
            f"{name}: {trained.get(name)!r} in the checkpoint, {here.get(name)!r} here"
            for name in self.fixed_by_training
            if _plain(trained.get(name)) != _plain(here.get(name))
        ]
        if problems:
            raise CheckpointError("The checkpoint was trained with other arguments:\n  " + "\n  ".join(problems))
        self._make_room(checkpoint["state_dict"])
        stored = {name: _form(tensor) for name, tensor in checkpoint["state_dict"].items()}
        wanted = {name: _form(tensor) for name, tensor in self.state_dict().items()}
        if stored != wanted:
            lines = [
                f"{name}: {stored.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} here"
                for name in sorted(stored.keys() | wanted.keys())
                if stored.get(name) != wanted.get(name)
            ]
            raise CheckpointError("The checkpoint does not fit the model:\n  " + "\n  ".join(lines))

    def _make_room(self, state: Mapping[str, Tensor]) -> None:
        for prefix, module in self.named_modules():  # the head of `HeadWithMemory` is a method, too
            for name in module.rows_from_training if isinstance(module, AnomalyMethod) else ():
                stored, own = state.get(f"{prefix}.{name}".lstrip(".")), getattr(module, name)
                if stored is not None and stored.ndim == own.ndim:
                    setattr(module, name, own.new_zeros(len(stored), *own.shape[1:]))


class PromptMethod(AnomalyMethod):
    """A method whose text embeddings do not depend on the image. They are computed once per step or per pass.

    A subclass implements `embed_text` and asks for `text_embeddings`.
    """

    pass_text: Tensor | None = None

    @abstractmethod
    def embed_text(self) -> Tensor:
        """Returns the text embeddings for the current parameters."""

    def text_embeddings(self) -> Tensor:
        """Returns the text embeddings. In validate, test and predict they are computed once per pass."""
        return self.embed_text() if self.pass_text is None else self.pass_text

    def on_evaluation_start(self) -> None:
        """Computes the text embeddings once for the pass."""
        super().on_evaluation_start()
        self.pass_text = self.embed_text()

    def on_evaluation_end(self) -> None:
        """Releases the text embeddings of the pass."""
        super().on_evaluation_end()
        self.pass_text = None


class CategoryPromptMethod(AnomalyMethod):
    """A method with text embeddings per category. They are computed once per step, or once per category and pass.

    A subclass implements `embed_text` and asks for `text_embeddings`.
    """

    needs_class_name: ClassVar[bool] = True
    pass_text: CategoryText | None = None

    @abstractmethod
    def embed_text(self, samples: Sequence[Sample]) -> Tensor:
        """Returns the text embeddings of the category of each sample for the current parameters, `[B, 2, D]`.

        They are L2-normalised. Row 0 is normal and row 1 abnormal.
        """

    def text_embeddings(self, samples: Sequence[Sample]) -> Tensor:
        """Returns the text embeddings `[B, 2, D]`.

        In validate, test and predict they are computed once per category and pass.
        """
        return self.embed_text(samples) if self.pass_text is None else self.pass_text(samples)

    def on_evaluation_start(self) -> None:
        """Starts a pass in which the text of each category is embedded once."""
        super().on_evaluation_start()
        self.pass_text = CategoryText(lambda sample: self.embed_text([sample])[0])

    def on_evaluation_end(self) -> None:
        """Releases the text embeddings of the pass."""
        super().on_evaluation_end()
        self.pass_text = None


def _form(tensor: Tensor) -> str:
    """Returns the shape of a tensor, and its type unless it is floating point (those are converted to each other)."""
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")


def _plain(value: Any) -> Any:
    """Returns tuples as lists: a config gives lists, a default tuples."""
    return list(value) if isinstance(value, (list, tuple)) else value
