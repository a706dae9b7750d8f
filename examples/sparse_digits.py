"""Handwritten digits with really sparse layers, whose connections RigL moves: weights, gradients and the optimiser's
state are those of the non-zeros alone, from the first step on.

    python examples/sparse_digits.py        (a few seconds; needs scikit-learn for the images)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import tombola
from tombola.sparse import SparseLinear

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
order = torch.randperm(len(digits))
x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 8 - 1, torch.tensor(digits)[order]
(train_x, test_x), (train_y, test_y) = x.split([1397, 400]), y.split([1397, 400])

model = nn.Sequential(
    SparseLinear(64, 512, density=0.2), nn.ReLU(), SparseLinear(512, 512, density=0.02), nn.ReLU(), nn.Linear(512, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
steps = 600
# sparse layers have as many connections as they were made with; the density would be that of masked dense ones
run = tombola.attach(model, optimizer, tombola.RigL(density=0.05, every=50), steps=steps)
start = run.masks
for step in range(steps):
    batch = torch.randint(len(train_x), (64,))
    optimizer.zero_grad()
    loss = cross_entropy(model(train_x[batch]), train_y[batch])
    loss.backward()
    optimizer.step()
    if step % 100 == 99:
        with torch.no_grad():
            right = (model(test_x).argmax(1) == test_y).float().mean()
        print(f"step {step + 1}: loss {loss.item():.3f}, test accuracy {100 * right:.1f} %")
kept = int(sum((mask & run.masks[name]).sum() for name, mask in start.items())) / start.kept
print(f"{run.density:.1%} of the weights are there, {kept:.0%} of them where they began")
run.detach()
