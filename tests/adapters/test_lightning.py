"""Sparse methods in Lightning's Trainer: as in a plain loop, and stopped without a trace."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import differ, hooks_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tombola

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries of others
    pytest.mark.skipif(find_spec("lightning") is None, reason="needs lightning: pip install 'tombola[lightning]'"),
]
lightning: Any
AttachCallback: Any
Classifier: Any
Look: Any

EPOCHS, PARTS = 3, 2
METHODS = {
    "RigL": tombola.RigL(density=0.2, every=2, until=1.0),
    "CS": tombola.ContinuousSparsification(density=0.3),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture(autouse=True, scope="module")
def _lightning() -> None:
    """Imported where it is used: with all that it brings along it takes seconds, in every process that collects."""
    global lightning, AttachCallback, Classifier, Look
    import lightning

    from tombola.adapters.lightning import AttachCallback

    class OfLightning(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, optimizers: int = 1) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2))
            self.optimizers_made = optimizers
            if optimizers > 1:
                self.automatic_optimization = False

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            made = [torch.optim.AdamW(self.parameters(), lr=0.03) for _ in range(self.optimizers_made)]
            return made if len(made) > 1 else made[0]

    class Looks(lightning.Callback):  # type: ignore[misc, name-defined]
        def __init__(self, callback: Any) -> None:
            self.callback, self.batches = callback, 0

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *others: Any) -> None:
            run = self.callback.run
            assert run is not None
            self.batches += 1
            assert run.step == trainer.global_step
            if isinstance(run.method, tombola.RigL):
                assert run.masks.kept == round(0.2 * run.masks.total)
                for name, mask in run.masks.items():
                    assert not pl_module.get_parameter(name)[~mask].any()

    Classifier, Look = OfLightning, Looks


def loader() -> DataLoader[Any]:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4)  # five batches: three steps an epoch


def trainer(callback: Any, *more: Any, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    steps = {"max_epochs": EPOCHS, "accumulate_grad_batches": PARTS, "gradient_clip_val": 0.1}
    return lightning.Trainer(
        **{**quiet, **steps, "enable_checkpointing": False, **settings}, callbacks=[callback, *more]
    )


@every_method
def test_the_trainer_is_a_plain_loop(method: Any) -> None:
    """Accumulation, clipping and the closure that Lightning steps with, bit by bit as in a loop of one's own."""
    one, other, callback = Classifier(), Classifier(), AttachCallback(method, seed=4)
    look = Look(callback)
    it = trainer(callback, look)
    it.fit(one, loader())
    assert callback.run is not None
    assert look.batches == 15
    assert callback.run.step == it.global_step == 9
    assert it.callback_metrics["density"] == pytest.approx(callback.run.density, abs=1e-6)

    optimizer = other.configure_optimizers()
    run = tombola.attach(other, optimizer, method, steps=9, steps_per_epoch=3, seed=4)
    batches = list(loader())
    for _ in range(EPOCHS):
        for start in range(0, len(batches), PARTS):
            optimizer.zero_grad()
            for batch in batches[start : start + PARTS]:
                (other.training_step(batch) / PARTS).backward()
            nn.utils.clip_grad_norm_(other.parameters(), 0.1)
            optimizer.step()
    run.detach()
    assert not differ(one.state_dict(), other.state_dict())
    assert callback.run.masks == run.masks
    assert hooks_of(one, it.optimizers[0]) == []


@every_method
def test_resumed_is_never_stopped(method: Any, tmp_path: Path) -> None:
    """From the end of an epoch; in the middle of one Lightning itself goes on with other batches."""
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    straight, resumed = Classifier(), Classifier()
    first, second = AttachCallback(method), AttachCallback(method)
    trainer(first, checkpoints, enable_checkpointing=True).fit(straight, loader())
    torch.nn.init.zeros_(resumed.net[0].weight)
    trainer(second).fit(resumed, loader(), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert first.run is not None
    assert second.run is not None
    assert second.run.step == first.run.step == 9
    assert second.run.masks == first.run.masks
    assert not differ(resumed.state_dict(), straight.state_dict())
    for name, mask in first.run.masks.items():
        assert not straight.get_parameter(name)[~mask].any()


def test_a_training_that_broke_can_begin_again(tmp_path: Path) -> None:
    class Break(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *others: Any) -> None:
            if trainer.global_step == 5:
                raise ValueError("broken")

    callback, model, straight = AttachCallback(METHODS["CS"]), Classifier(), Classifier()
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{step}")
    it = trainer(callback, Break(), checkpoints, enable_checkpointing=True)
    with pytest.raises(ValueError, match="broken"):
        it.fit(model, loader())
    trainer(callback).fit(model, loader(), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    trainer(AttachCallback(METHODS["CS"])).fit(straight, loader())
    assert not differ(model.state_dict(), straight.state_dict())


def test_mistakes(tmp_path: Path) -> None:
    rigl = METHODS["RigL"]
    with pytest.raises(ValueError, match="there are 2 optimisers"):
        trainer(AttachCallback(rigl), accumulate_grad_batches=1, gradient_clip_val=None).fit(Classifier(2), loader())
    with pytest.raises(ValueError, match="give max_steps or max_epochs"):
        trainer(AttachCallback(rigl), max_epochs=-1).fit(Classifier(), loader())
    without = trainer(lightning.Callback(), max_epochs=1)
    without.fit(Classifier(), loader())
    without.save_checkpoint(tmp_path / "without.ckpt")
    model = Classifier()
    it = trainer(AttachCallback(rigl))
    with pytest.raises(ValueError, match=r"resumes from .*without.ckpt, which was saved without this callback"):
        it.fit(model, loader(), ckpt_path=tmp_path / "without.ckpt")
    assert hooks_of(model, it.optimizers[0]) == []
