"""A LightningModule trained by Lightning's own Trainer with RigL.

$ python examples/lightning_trainer.py        (needs lightning)
"""

import lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tombola
from tombola.adapters.lightning import AttachCallback


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


lightning.seed_everything(0, verbose=False)
x = torch.randn(512, 20)
loader = DataLoader(TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), batch_size=32, shuffle=True)
model, callback = Classifier(), AttachCallback(tombola.RigL(density=0.2, every=10))
trainer = lightning.Trainer(
    max_epochs=5, accumulate_grad_batches=2, gradient_clip_val=1.0, callbacks=[callback], accelerator="cpu",
    logger=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, loader)  # fit(…, ckpt_path=…) goes on from the end of an epoch bit by bit
print(f"{callback.run.masks.kept:,} of {callback.run.masks.total:,} weights are left after {callback.run.step} steps")
