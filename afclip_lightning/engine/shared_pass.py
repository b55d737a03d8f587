"""Several heads in one pass over the images. They share the backbone, which encodes each image once."""

from collections.abc import Mapping

from lightning import LightningModule
from torch.nn import ModuleDict

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.spec import union
from afclip_lightning.components.views import score_all_views
from afclip_lightning.methods.base import AnomalyMethod, features_of
from afclip_lightning.types import MAIN_HEAD, AnomalyPrediction, Batch, ClipFeatures
from afclip_runtime.errors import UserError


class SharedPass(LightningModule):
    """Scores the same images with several methods on one backbone. One pass gives the original and the V-V path.

    Each head gets the features that its own spec names. A method that also needs the images (windows, crops, adapted
    images) still encodes these itself.

    Args:
        heads: The methods by name, including `MAIN_HEAD`.

    Raises:
        UserError: Two heads cannot share a pass.
    """

    def __init__(self, heads: Mapping[str, AnomalyMethod]) -> None:
        super().__init__()
        try:
            self.spec = union([head.spec for head in heads.values()])
        except ValueError as error:
            raise UserError(f"{', '.join(heads)}: {error}. Test them one by one.") from error
        self.main = heads[MAIN_HEAD]
        self.store = None if self.main.store is None else self.main.store.of(self.spec)
        self.heads = dict(heads)
        self.registered = ModuleDict(heads)  # so that they move to the device

    @property
    def preprocess(self) -> Preprocess:
        """Returns the preprocessing of the shared backbone."""
        return self.main.preprocess

    def features_of(self, batch: Batch) -> ClipFeatures:
        """Returns all features of a batch that any head needs."""
        return features_of(batch, self.main.backbone, self.spec, self.store)

    def setup(self, stage: str) -> None:
        """Sets up each head."""
        for head in self.heads.values():
            head.trainer = self.trainer
            head.setup(stage)

    def on_test_epoch_start(self) -> None:
        """Prepares each head for the pass."""
        for head in self.heads.values():
            head.on_evaluation_start()

    def on_test_epoch_end(self) -> None:
        """Ends the pass of each head."""
        for head in self.heads.values():
            head.on_evaluation_end()

    def on_validation_epoch_start(self) -> None:
        """See `on_test_epoch_start`."""
        self.on_test_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """See `on_test_epoch_end`."""
        self.on_test_epoch_end()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Mapping[str, AnomalyPrediction]:
        """Returns the prediction of each head for the evaluation callback."""
        return score_all_views(batch, self.preprocess, self._predictions)

    def _predictions(self, batch: Batch) -> dict[str, AnomalyPrediction]:
        wide = self.features_of(batch)
        return {name: head.predict_from(wide, self.spec, batch) for name, head in self.heads.items()}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Mapping[str, AnomalyPrediction]:
        """See `test_step`."""
        return self.test_step(batch, batch_idx, dataloader_idx)
