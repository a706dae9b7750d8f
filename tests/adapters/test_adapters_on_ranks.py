"""Two ranks in the Trainers of others: compared as `attach` compares them, equal to one rank, stopped without a trace.

Real processes over gloo, with DDP and with FSDP2; all of it in one launch.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import differ
from rank_jobs import message
from together import as_launched, gathered, on_cpu, spawn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tombola
from tombola import Masks
from tombola.sharded import is_sharded

MISSING = [name for name in ("accelerate", "transformers", "lightning") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries of others
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: pip install 'tombola[hf,lightning]'"),
]

METHODS: dict[str, Any] = {
    "RigL": tombola.RigL(density=0.2, every=2, until=1.0),
    "CS": tombola.ContinuousSparsification(density=0.3),
}
STEPS, SAVED, BATCH, PARTS = 6, 3, 8, 2
X = torch.randn(STEPS // 2 * PARTS * BATCH, 6, generator=torch.Generator().manual_seed(0)).double()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)).double()


def left(run: tombola.Attachment | None, model: nn.Module, *, sharded: bool) -> dict[str, Any]:
    """What a training has left behind."""
    assert run is not None
    assert run.step == STEPS
    assert all(is_sharded(parameter) is sharded for parameter in model.parameters())
    return {"masks": dict(run.masks), "model": gathered(dict(model.named_parameters()))}


# ---- Hugging Face


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.net(x).squeeze(1) - labels).square().mean()}


def in_trainer(
    folder: Path, method: Any, ranks: int, *, fsdp: bool = False, seed: int = 0, resume: bool = False
) -> dict[str, Any]:
    """Six steps, each of two batches that the ranks share, saved after three; or the last three of them."""
    from transformers import Trainer, TrainingArguments

    from tombola.adapters.huggingface import AttachCallback

    more = {"fsdp": True, "fsdp_config": {"auto_wrap_policy": "NO_WRAP"}} if fsdp else {}
    args = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH // ranks, gradient_accumulation_steps=PARTS,
        max_grad_norm=0.1, save_steps=SAVED, report_to="none", disable_tqdm=True, use_cpu=True, optim="adamw_torch",
        lr_scheduler_type="constant", learning_rate=0.05, weight_decay=0.1, **more,
    )  # fmt: skip
    model, callback = Regression(), AttachCallback(method, seed=seed)
    rows = [{"x": row, "labels": row.sum()} for row in X]
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[callback])
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    return left(callback.run, model, sharded=fsdp and ranks > 1)


def hugging_face(rank: int, ranks: int, folder: Path, *, fsdp: bool) -> dict[str, Any]:
    as_launched(rank, ranks)
    found: dict[str, Any] = {}
    with on_cpu():
        for name, method in METHODS.items():
            place = folder / f"hf {fsdp} {name}"
            found[name] = in_trainer(place, method, ranks, fsdp=fsdp)
            found[f"{name}, resumed"] = in_trainer(place, method, ranks, fsdp=fsdp, resume=True)
        found["seeds"] = message(lambda: in_trainer(folder / "none", METHODS["RigL"], ranks, fsdp=fsdp, seed=rank))
    return found


# ---- Lightning


def in_lightning(
    folder: Path, method: Any, ranks: int, *, rank: int = 0, fsdp: bool = False, seed: int = 0, resume: bool = False
) -> dict[str, Any]:
    """The same in Lightning's Trainer, which would shuffle the data if it dealt them out."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy

    from tombola.adapters.lightning import AttachCallback

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def configure_model(self) -> None:
            if fsdp:
                from torch.distributed.fsdp import fully_shard

                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.03)

    strategy: Any = "auto" if ranks == 1 else "ddp"
    if fsdp:
        strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
    model, callback = Module(), AttachCallback(method, seed=seed)
    keep = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_epochs=1)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, max_epochs=2, accumulate_grad_batches=PARTS,
        gradient_clip_val=0.1, callbacks=[callback, keep], logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    mine = range(rank, len(X), ranks)
    loader = DataLoader(TensorDataset(X, X.sum(1)), batch_size=BATCH // ranks, sampler=mine)
    trainer.fit(model, loader, ckpt_path=folder / f"step={SAVED}.ckpt" if resume else None, weights_only=True)
    return left(callback.run, model, sharded=fsdp)


def lightning_(rank: int, ranks: int, folder: Path, *, fsdp: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        place = folder / f"lightning {fsdp} {name}"
        for resume in (False, True):
            as_launched(rank, ranks)  # Lightning forgets it at its end
            found[name + ", resumed" * resume] = in_lightning(place, method, ranks, rank=rank, fsdp=fsdp, resume=resume)
    as_launched(rank, ranks)
    found["seeds"] = message(
        lambda: in_lightning(folder / "none", METHODS["RigL"], ranks, rank=rank, fsdp=fsdp, seed=rank)
    )
    return found


JOBS = {
    "Hugging Face, DDP": partial(hugging_face, fsdp=False),
    "Hugging Face, FSDP2": partial(hugging_face, fsdp=True),
    "Lightning, DDP": partial(lightning_, fsdp=False),
    "Lightning, FSDP2": partial(lightning_, fsdp=True),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    return spawn(2, tmp_path_factory.mktemp("adapters") / "two", JOBS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_are_one(job: str, method: str, two: list[dict[str, Any]], tmp_path: Path) -> None:
    mine, other = (rank[job][method] for rank in two)
    assert not differ(mine, other)
    assert not differ(mine, two[0][job][f"{method}, resumed"])
    train = in_trainer if job.startswith("Hugging") else in_lightning
    alone = train(tmp_path, METHODS[method], 1)
    assert Masks(alone["masks"]) == Masks(mine["masks"])
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(mine["model"][name], tensor, rtol=1e-9, atol=1e-11)
    density = 0.2 if method == "RigL" else 0.3
    assert Masks(mine["masks"]).kept == round(density * 140)


@pytest.mark.parametrize("job", JOBS)
def test_ranks_that_differ_stop(job: str, two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert "attach: the seed differs between rank 0 and rank 1" in rank[job]["seeds"], rank[job]["seeds"]
