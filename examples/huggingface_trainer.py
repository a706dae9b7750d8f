"""A transformer trained by Hugging Face's own Trainer with RigL: nine tenths of its weights are missing throughout.

$ python examples/huggingface_trainer.py        (needs transformers and accelerate; nothing is downloaded)
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import tombola
from tombola.adapters.huggingface import AttachCallback

torch.manual_seed(0)
tokens = torch.randint(1, 50, (256, 12))
labels = (tokens[:, 0] > 25).long()
data = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
args = TrainingArguments(
    "bert", num_train_epochs=4, per_device_train_batch_size=16, gradient_accumulation_steps=2, learning_rate=2e-3,
    save_steps=16, report_to="none", disable_tqdm=True, use_cpu=True,
)  # fmt: skip
callback = AttachCallback(tombola.RigL(density=0.1, every=5))
trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
trainer.train()  # train(resume_from_checkpoint=True) goes on bit by bit
model.save_pretrained("bert/sparse")

again = BertForSequenceClassification.from_pretrained("bert/sparse")
batch = {"input_ids": tokens[:4]}
assert torch.equal(again.eval()(**batch).logits, model.eval()(**batch).logits)
kept = sum(int(again.get_parameter(name).count_nonzero()) for name in callback.run.masks)
print(f"{kept:,} of {callback.run.masks.total:,} weights are left in bert/sparse/model.safetensors")
