"""RigL on two workers of Ray Train, each with a part of the data (needs ray[train]; starts a small cluster here)."""

import tempfile
from pathlib import Path

import ray.train.torch as ray_torch
import torch
from ray import train
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tombola


def work(config: dict[str, float]) -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
    loader = ray_torch.prepare_data_loader(DataLoader(data, batch_size=32, shuffle=True))
    model = ray_torch.prepare_model(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    run = tombola.attach(model, optimizer, tombola.RigL(density=0.2, every=10), steps=5 * len(loader), seed=0)
    for _ in range(5):
        for inputs, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": run.state_dict()}
        with tempfile.TemporaryDirectory() as folder:
            torch.save(parts, f"{folder}/state.pt")
            train.report({"density": run.density}, checkpoint=train.Checkpoint.from_directory(folder))


storage, workers = train.RunConfig(storage_path=str(Path("ray").resolve())), train.ScalingConfig(num_workers=2)
result = ray_torch.TorchTrainer(work, train_loop_config={"lr": 1e-2}, scaling_config=workers, run_config=storage).fit()
print(f"density {result.metrics['density']:.3f}, checkpoint in {result.checkpoint.path}")
