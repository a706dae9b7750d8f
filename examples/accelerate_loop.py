"""A loop under Hugging Face's Accelerate with RigL: gradient accumulation, clipping, checkpoints.

$ python examples/accelerate_loop.py        (needs accelerate)
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tombola

torch.manual_seed(0)
x = torch.randn(512, 20)
data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=32, shuffle=True))
# after prepare(), which moves the model to its device; a step that Accelerate's optimiser skips changes nothing
run = tombola.attach(model, optimizer, tombola.RigL(density=0.2, every=10), steps=5 * len(loader) // 2)
accelerator.register_for_checkpointing(run)  # save_state() and load_state() have its state with them
for epoch in range(5):
    for inputs, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(inputs), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state(f"accelerate/epoch-{epoch + 1}")
print(f"{run.masks.kept:,} of {run.masks.total:,} weights are left after {run.step} steps")
run.detach()
accelerator.save_model(model, "accelerate/sparse")
