"""A plain loop with torch.compile, which compiles once although RigL moves the masks; stopped and gone on with.

$ python examples/compiled_loop.py        (needs a C++ compiler, as torch.compile does)
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tombola

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()


def train(steps: range) -> tombola.Attachment:
    """Train from where checkpoint.pt is, if there is one, and write it."""
    model = torch.compile(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = tombola.attach(model, optimizer, tombola.RigL(density=0.2, every=10), steps=80)
    parts = {"model": model, "optimizer": optimizer, "run": run}
    if steps.start:
        saved = torch.load("checkpoint.pt", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for step in steps:
        batch = torch.arange(64 * step, 64 * step + 64) % len(x)
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    torch.save({name: part.state_dict() for name, part in parts.items()}, "checkpoint.pt")
    return run


train(range(40)).detach()
run = train(range(40, 80))
print(f"{run.masks.kept:,} of {run.masks.total:,} weights are left after {run.step} steps")
