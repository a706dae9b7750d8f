"""LeNet-300-100 ten times as wide with 99 % of it missing, beside the ordinary one, on handwritten digits.

The wide net is sparse from its first step to its last: weights, gradients and momentum are those of its 32,020
connections, which RigL moves, and the 3,202,000 weights of its layers are never there. The ordinary one has 50,200.

    python examples/wide_lenet.py        (a minute; needs scikit-learn for the images)
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tombola
from tombola.sparse import SparseLinear

WIDTH, DENSITY, EPOCHS, BATCH = 10, 0.01, 30, 64


def ordinary() -> nn.Sequential:
    """LeNet-300-100 for images of 8×8."""
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def wide() -> nn.Sequential:
    """The same ten times as wide, of sparse layers."""
    first, second = 300 * WIDTH, 100 * WIDTH
    shapes = {"fc1": torch.Size((first, 64)), "fc2": torch.Size((second, first)), "fc3": torch.Size((10, second))}
    counts = tombola.erk(shapes, DENSITY)  # small layers are denser
    layers = [SparseLinear(s[1], s[0], density=counts[name] / s.numel()) for name, s in shapes.items()]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def train(model: nn.Module, x: Tensor, y: Tensor, *, sparse: bool) -> None:
    """Train a net; RigL moves the connections of sparse layers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    steps = EPOCHS * -(-len(x) // BATCH)
    run = tombola.attach(model, optimizer, tombola.RigL(density=DENSITY, every=30), steps=steps) if sparse else None
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    if run is not None:
        run.detach()


def main() -> None:
    """Train both and say how good they are."""
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits))
    x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 8 - 1, torch.tensor(digits)[order]
    (train_x, test_x), (train_y, test_y) = x.split([1397, 400]), y.split([1397, 400])
    for name, model in (("ordinary", ordinary()), ("ten times as wide, 1 % of it there", wide())):
        train(model, train_x, train_y, sparse=name != "ordinary")
        with torch.no_grad():
            right = (model(test_x).argmax(1) == test_y).float().mean()
        kept = sum(layer.kept for layer in tombola.flops.count(model, test_x[:1]).layers.values())
        print(f"{name}: {kept:,} weights, test accuracy {100 * right:.1f} %")


if __name__ == "__main__":
    main()
