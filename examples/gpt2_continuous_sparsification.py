"""A language model pruned by Continuous Sparsification to the density that is asked for, by Hugging Face's own Trainer.

$ python examples/gpt2_continuous_sparsification.py        (needs transformers and accelerate; nothing is downloaded)
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import tombola
from tombola.adapters.huggingface import AttachCallback

torch.manual_seed(0)
starts = torch.randint(0, 40, (256, 1))
tokens = (starts + 3 * torch.arange(12)) % 40  # counting in threes
data = [{"input_ids": x, "labels": x} for x in tokens]

model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=32, n_layer=2, n_head=2, pad_token_id=0))
args = TrainingArguments(
    "gpt2", num_train_epochs=6, per_device_train_batch_size=32, learning_rate=5e-3, weight_decay=0.01,
    save_strategy="no", logging_steps=8, report_to="none", disable_tqdm=True, use_cpu=True,
)  # fmt: skip
# what is masked by default: the Conv1D layers of GPT-2, not its output layer, which is tied to the embedding
callback = AttachCallback(tombola.ContinuousSparsification(density=0.2))
trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, callbacks=[callback])
trainer.train()  # with soft masks; then the model is the ticket
print(f"density {callback.run.density:.4f}, loss of the ticket {trainer.evaluate()['eval_loss']:.3f}")
tombola.Ticket(callback.run.masks, dict(model.named_parameters())).save("gpt2-ticket.safetensors")
