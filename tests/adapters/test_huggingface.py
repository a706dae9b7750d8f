"""Sparse methods in Hugging Face's Trainer: as in a plain loop, exact at every step, and stopped without a trace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import differ
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'tombola[hf]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'tombola[hf]'")

import tombola  # noqa: E402
from tombola.adapters.huggingface import FILE, AttachCallback, weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries of others

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
RIGL = tombola.RigL(density=0.2, every=2, until=1.0)
CS = tombola.ContinuousSparsification(density=0.3)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


def bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **SIZES))


def gpt2() -> Any:
    torch.manual_seed(0)
    config = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=32, n_layer=1, n_head=2, **config)
    )


def data(kind: str) -> list[dict[str, Tensor]]:
    tokens = torch.randint(20, (48, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": x, "labels": x if kind == "gpt2" else (x[0] > 9).long()} for x in tokens]


def trainer(model: Any, folder: Path, callback: AttachCallback, *more: Any, **settings: Any) -> Any:
    """Of 12 steps, each of two batches of four with the gradients clipped, and a checkpoint in the middle."""
    defaults = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_steps": 5,
        "logging_steps": 3, "learning_rate": 1e-2, "max_grad_norm": 0.5, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "seed": 3,
    }  # fmt: skip
    args = transformers.TrainingArguments(str(folder), **{**defaults, **settings})
    examples = data(model.config.model_type)
    return transformers.Trainer(model, args, train_dataset=examples, eval_dataset=examples, callbacks=[callback, *more])


class Look(transformers.TrainerCallback):
    """Counts and compares after every step."""

    def __init__(self, callback: AttachCallback) -> None:
        self.callback, self.steps, self.masks = callback, 0, list[tombola.Masks]()

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        run = self.callback.run
        assert run is not None
        self.steps += 1
        assert run.step == state.global_step == self.steps
        assert run.masks.kept == round(0.2 * run.masks.total)
        for name, mask in run.masks.items():
            assert not model.get_parameter(name)[~mask].any()
        self.masks.append(run.masks)


def test_rigl_keeps_its_density_at_every_step_and_the_model_is_a_plain_one(tmp_path: Path) -> None:
    model, callback = bert(), AttachCallback(RIGL)
    look = Look(callback)
    it = trainer(model, tmp_path, callback, look, save_strategy="no")
    it.train()
    assert look.steps == it.state.global_step == it.state.max_steps == 12
    assert look.masks[0] != look.masks[-1]
    assert callback.run is not None
    assert [log["density"] for log in it.state.log_history if "loss" in log] == [callback.run.density] * 4

    model.save_pretrained(tmp_path / "sparse")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "sparse")
    assert not differ(again.state_dict(), model.state_dict())
    batch = {"input_ids": torch.arange(16).view(2, 8)}
    assert torch.equal(again.eval()(**batch).logits, model.eval()(**batch).logits)
    assert all(not again.get_parameter(name)[~mask].any() for name, mask in callback.run.masks.items())


def test_gpt2_pruned_by_cs_is_saved_loaded_and_trained_on(tmp_path: Path) -> None:
    """Conv1D, whose weights are (inputs, outputs), and an output layer that is tied to the embedding."""
    model, callback = gpt2(), AttachCallback(CS)
    trainer(model, tmp_path, callback, save_strategy="no").train()
    assert callback.run is not None
    masks = callback.run.masks
    assert masks.kept == round(0.3 * masks.total)
    assert masks["transformer.h.0.mlp.c_fc.weight"].shape == (32, 128)  # a Linear's would be (128, 32)

    model.save_pretrained(tmp_path / "ticket")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ticket")
    assert again.lm_head.weight is again.transformer.wte.weight
    assert bool(again.lm_head.weight.all())  # none of it is masked
    assert not differ(again.state_dict(), model.state_dict())
    tokens = torch.arange(16).view(2, 8)
    assert torch.equal(again.eval()(tokens).logits, model.eval()(tokens).logits)
    before = again.transformer.h[0].mlp.c_fc.weight.detach().clone()

    trainer(again, tmp_path, AttachCallback(tombola.Fixed(masks)), save_strategy="no").train()
    assert not torch.equal(again.transformer.h[0].mlp.c_fc.weight, before)
    assert all(not again.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert again.lm_head.weight is again.transformer.wte.weight


@pytest.mark.parametrize(("make", "method"), [(bert, RIGL), (gpt2, CS)], ids=["BERT, RigL", "GPT-2, CS"])
def test_resumed_is_never_stopped(make: Any, method: Any, tmp_path: Path) -> None:
    callbacks = [AttachCallback(method) for _ in range(2)]
    straight, resumed = make(), make()
    trainer(straight, tmp_path, callbacks[0]).train()
    assert (tmp_path / "checkpoint-5" / FILE).is_file()
    for leftover in ("checkpoint-10", "checkpoint-12"):
        (tmp_path / leftover).rename(tmp_path / f"old-{leftover}")
    it = trainer(resumed, tmp_path, callbacks[1])
    it.train(resume_from_checkpoint=True)
    assert it.state.global_step == 12
    runs = [callback.run for callback in callbacks]
    assert runs[0] is not None
    assert runs[1] is not None
    assert runs[0].step == runs[1].step == 12
    assert runs[0].masks == runs[1].masks
    assert not differ(resumed.state_dict(), straight.state_dict())
    density = 0.2 if method is RIGL else 0.3
    assert runs[0].masks.kept == round(density * runs[0].masks.total)
    for name, mask in runs[0].masks.items():  # hard when it ends, also for the soft method
        assert not straight.get_parameter(name)[~mask].any()


class Regression(nn.Module):
    """Any model, not of transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.net(x).squeeze(1) - labels).square().mean()}


@pytest.mark.parametrize("method", [RIGL, CS], ids=["RigL", "CS"])
def test_the_trainer_is_a_plain_loop(method: Any, tmp_path: Path) -> None:
    """The same batches in a loop of one's own give the same bits: accumulation, clipping and all."""
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    rows = [{"x": row, "labels": row.sum()} for row in x]
    seen: list[dict[str, Tensor]] = []

    def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        seen.append({key: torch.stack([example[key] for example in examples]) for key in ("x", "labels")})
        return seen[-1]

    args = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=4, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        max_grad_norm=0.1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        lr_scheduler_type="constant", learning_rate=0.05, weight_decay=0.1, optim="adamw_torch",
    )  # fmt: skip
    one, other = Regression(), Regression()
    callback = AttachCallback(method, seed=4)
    it = transformers.Trainer(one, args, data_collator=collate, train_dataset=rows, callbacks=[callback])
    it.train()

    seen = seen[-24:]
    decays = [[p for n, p in other.named_parameters() if ("bias" in n) is bias] for bias in (False, True)]
    groups = [{"params": decays[0], "weight_decay": 0.1}, {"params": decays[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05)
    run = tombola.attach(other, optimizer, method, steps=12, steps_per_epoch=3, seed=4)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        optimizer.zero_grad()
        for batch in (first, second):
            (other(**batch)["loss"] / 2).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
    run.detach()
    assert not differ(one.state_dict(), other.state_dict())
    assert callback.run is not None
    assert callback.run.masks == run.masks


def test_the_best_checkpoint_becomes_its_own_ticket(tmp_path: Path) -> None:
    """With load_best_model_at_end the model is the ticket of the checkpoint that was best, not of the last step."""
    model, callback = gpt2(), AttachCallback(CS)
    settings = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True}
    it = trainer(model, tmp_path, callback, **settings, metric_for_best_model="density_", learning_rate=0.02)
    it.compute_metrics = lambda prediction: {"density_": -float(it.state.global_step)}  # the earliest is best
    it.train()
    assert Path(it.state.best_model_checkpoint).name == "checkpoint-4"
    assert callback.run is not None
    assert callback.run.step == 4
    saved = torch.load(tmp_path / "checkpoint-4" / FILE, weights_only=True)
    for name, score in saved["soft"]["scores"].items():
        assert torch.equal(callback.run.masks[name], score > 0)
        assert torch.equal(model.get_parameter(name), saved["soft"]["weights"][name] * (score > 0))


def test_what_is_masked_in_a_transformer() -> None:
    assert weights(bert())[:2] == [
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.attention.self.key.weight",
    ]
    assert not any("embedding" in name or "bias" in name or "Norm" in name for name in weights(bert()))
    masked = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, **SIZES))
    assert "cls.predictions.transform.dense.weight" in weights(masked)  # but not the decoder, tied to the embedding
    assert all("decoder" not in name for name in weights(masked))
    layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert weights(gpt2()) == [f"transformer.h.0.{layer}.weight" for layer in layers]
    with pytest.raises(ValueError, match="nothing to mask in LayerNorm"):
        weights(nn.LayerNorm(3))


def test_a_pattern_is_refused_where_it_would_run_the_wrong_way(tmp_path: Path) -> None:
    method = tombola.Static(density=0.5, budget=tombola.uniform, pattern=tombola.patterns.NM(2, 4))
    with pytest.raises(ValueError, match=r"c_attn.weight is \(inputs, outputs\)"):
        trainer(gpt2(), tmp_path, AttachCallback(method)).train()
    model = bert()
    callback = AttachCallback(method, select=lambda name, p: name.startswith("bert."))
    trainer(model, tmp_path, callback, save_strategy="no", max_steps=1).train()
    assert callback.run is not None
    assert int((model.bert.pooler.dense.weight.view(-1, 4) != 0).sum(1).max()) == 2


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    trainer(bert(), folder, AttachCallback(RIGL), max_steps=5).train()
    return folder


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda file: file.unlink(), "training resumes, but there is no"),
        (lambda file: file.write_bytes(b"no zip"), "cannot be read"),
        (lambda file: torch.save([1], file), "holds list"),
        (lambda file: torch.save(foreign(file), file), "is not of the weights that the Trainer has loaded"),
    ],
    ids=["missing", "damaged", "other content", "other masks"],
)
def test_resuming_without_the_state_is_refused(harm: Any, says: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    harm(tmp_path / "checkpoint-5" / FILE)
    model = bert()
    it = trainer(model, tmp_path, AttachCallback(RIGL), max_steps=5)
    with pytest.raises(ValueError, match=says):
        it.train(resume_from_checkpoint=True)
    saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-5")
    assert not differ(model.state_dict(), saved.state_dict())


def foreign(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, weights_only=True)
    state["hard"]["masks"] = {name: bits.flip(0) for name, bits in state["hard"]["masks"].items()}
    return state


def test_a_training_that_broke_can_begin_again(tmp_path: Path) -> None:
    """As with KeyboardInterrupt in a notebook: the weights stay as they were, and nothing is attached twice."""

    class Break(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 7 and not broken:
                broken.append(7)
                raise KeyboardInterrupt

    broken: list[int] = []
    model, callback = gpt2(), AttachCallback(CS)
    it = trainer(model, tmp_path, callback, Break())
    with pytest.raises(KeyboardInterrupt):
        it.train()
    it.train(resume_from_checkpoint=True)
    straight = gpt2()
    trainer(straight, tmp_path / "straight", AttachCallback(CS)).train()
    assert not differ(model.state_dict(), straight.state_dict())
