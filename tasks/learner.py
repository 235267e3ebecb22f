"""Learning, in the child process: transformers' Trainer around hone's batches, loss, checkpoints and best model.

Every optimiser step sums the loss over its micro-batches and divides by the whole step's count, so accumulated
gradients equal those of one large batch. Batch order follows from seed and epoch; a checkpoint carries all that the
remaining steps depend on; saving draws no random numbers: an interrupted run ends with the weights of an
uninterrupted one.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import SAFE_WEIGHTS_NAME

from schemas.base import TaskSection, load_family
from schemas.recipe import Adapters, Model, Train
from schemas.records import Plan
from tasks import merging, methods, packing, stopping
from tasks.batches import ALL, EpochBatches, Ints, TokenTable, micro_batches
from tasks.digests import file_sha256, write_atomically
from tasks.divergence import Step, diverged, keep_step
from tasks.families import REFERENCE, Family, Meta
from tasks.layers import bare
from tasks.machine import release_free_memory
from tasks.optimisers import optimizer_of, schedule_of
from tasks.predict import loss_of, outputs_of, predictions_of

Emit = Callable[..., None]

PROGRESS_SECONDS = 0.5
"""Least time between two progress events."""
LOG_POINTS = 200
"""About how many points a training curve gets."""
RELEASE_STEPS = 50
"""Steps between two returns of freed memory to the system, where batches live in main memory."""
WHOLE = "whole.json"
"""Written last into a checkpoint: the size of every file in it."""
LOCK_SECONDS = 60
"""How long a new child waits for the last one on the same key to be gone."""

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Job:
    """The parts of a recipe that learning needs, as they cross the border of the process.

    Args:
        task: The recipe's section of the same name; likewise `model` and `train`.
        base: Local folder of the base model, or its name on the hub.
        tokens: Folder of the tokenize artifact.
        metric: The metric that picks the best checkpoint.
    """

    def __init__(
        self, *, task: dict[str, Any], model: dict[str, Any], train: dict[str, Any], base: str, tokens: str, metric: str
    ) -> None:
        self.family: Family = load_family(task["family"])
        self.task: TaskSection = self.family.section.model_validate(task)
        self.model = Model.model_validate(model)
        self.train = Train.model_validate(train)
        self.base = base
        self.metric = metric
        self.meta: Meta = json.loads((Path(tokens) / "meta.json").read_text())
        pad = self.meta["pad_token_id"]
        self.training_rows = TokenTable(Path(tokens) / "train.arrow", pad)
        self.validation_rows = TokenTable(Path(tokens) / "validation.arrow", pad)
        if self.family.refers:  # until `refer` knows better
            for table in (self.training_rows, self.validation_rows):
                table.add(REFERENCE, np.zeros((len(table), 2), np.float32))

    def load(self, attention: str) -> PreTrainedModel:
        """The base model with the task's head and the recipe's method; seeded: a new head is always the same."""
        set_seed(self.train.seed)
        model = self.family.load_model(
            self.base,
            self.meta,
            attn_implementation=attention,
            revision=self.model.revision,
            trust_remote_code=self.model.trust_remote_code,
        )
        if self.model.dropout is not None:
            _set_dropout(model, self.model.dropout)
        return methods.apply(self.train.method, model, self.family.head_modules(model))

    def ready(self, model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
        """The loaded model, to be taught by the plan."""
        if plan.activation_checkpointing:
            inner: Any = bare(model)
            inner.activation_checkpointing_enable()
            inner.disable_input_require_grads()  # only checkpoints of the old kind needed them
        return model

    def refer(self, model: PreTrainedModel, plan: Plan, work: Path) -> None:
        """Have the untaught model say of every row what the family's loss refers to; kept in `work`."""
        if not self.family.refers:
            return
        model.eval()
        for name, table in (("train", self.training_rows), ("validation", self.validation_rows)):
            file = work / f"{REFERENCE}-{name}.npy"
            if not file.exists():
                with autocast(plan), fused_attention(model, plan):
                    outputs, _ = outputs_of(model, self.family, table, plan)
                draft = file.with_suffix(".draft")
                with draft.open("wb") as writing:
                    np.save(writing, self.family.reference(np.asarray(outputs.part(ALL))).astype(np.float32))
                draft.replace(file)
            table.add(REFERENCE, np.load(file))

    def as_taught(self, batch: Mapping[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
        """A batch on the plan's device, packed where the plan says so."""
        given = {name: tensor.to(plan.device, non_blocking=True) for name, tensor in batch.items()}
        return packing.packed(given) if plan.packs else given

    def optimizer(self, model: PreTrainedModel, plan: Plan) -> torch.optim.Optimizer:
        """The recipe's, for what of the model learns."""
        decay, shares = self.train.layer_decay, dict[str, float]()
        if decay < 1:
            shares = methods.rate_shares(model, self.family.head_modules(model), decay)
        rate = plan.learning_rate or self.train.learning_rate
        return optimizer_of(model, self.family, self.train.model_copy(update={"learning_rate": rate}), shares)


def train(
    *, emit: Emit, plan: dict[str, Any], work: str, out: str, save_minutes: float, keeps: bool = True, **spec: Any
) -> dict[str, Any]:  # fmt: skip
    """Train by the plan, from the last whole checkpoint in `work` if there is one, and write the model to `out`.

    Args:
        emit: Sends an event to the parent.
        plan: How, on this machine.
        work: Folder for checkpoints.
        out: Where to write.
        save_minutes: Minutes between two checkpoints.
        keeps: Write the model; else what it was worth is all that is left of it.
        spec: `save_steps`, and what `Job` takes.

    Returns:
        The record of the training: steps, tokens, seconds, validation metrics, digest of the weights.
    """
    save_steps = spec.pop("save_steps", None)
    frozen = Plan.model_validate(plan)
    with FileLock(Path(work) / "child.lock", timeout=LOCK_SECONDS):
        job = Job(**spec)
        prepare(frozen)
        learner = Learner(job, frozen, work=Path(work), emit=emit, save_steps=save_steps, save_minutes=save_minutes)
        return learner.learn(Path(out), keeps=keeps)


def prepare(plan: Plan) -> None:
    """Set what the plan says of this process: threads, and determinism."""
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Only uninitialised memory that is read would matter, and filling it costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def autocast(plan: Plan) -> torch.autocast:
    """bfloat16 arithmetic where the plan says so; weights, gradients and the loss stay float32."""
    return torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.precision == "bf16")


@contextmanager
def fused_attention(model: PreTrainedModel, plan: Plan) -> Iterator[None]:
    """Fused attention for a while: without a backward pass it is the faster one everywhere (1.3x on a CPU)."""
    if plan.attention == "sdpa" or not bare(model)._supports_sdpa:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(plan.attention)


def step_losses(model: torch.nn.Module, job: Job, plan: Plan, rows: Ints) -> tuple[list[Ints], torch.Tensor]:
    """Rows of each micro-batch of one optimiser step, and what it adds to the step's loss, `[micro_batches]`.

    Their gradients are added to the model's. The loss is the sum over the step's rows by their count, so it and its
    gradient are the same however the rows are cut.
    """
    how, table = loss_of(plan, plan.device), job.training_rows
    cuts = micro_batches(rows, table.lengths, plan.micro_batch_tokens, packed=plan.packs)
    count = job.family.loss_count(torch.from_numpy(np.array(table.labels_of(rows))).to(plan.device), how)
    losses = []
    with autocast(plan):  # one context per step: each weight is cast once, whatever the number of micro-batches
        for cut in cuts:
            loss = job.family.loss_sum(model, job.as_taught(table.batch(cut), plan), how) / count
            torch.autograd.backward(loss)
            losses.append(loss.detach())
    return cuts, torch.stack(losses)


class Learner(Trainer):  # type: ignore[misc]  # transformers is not typed
    """transformers' Trainer with hone's step, evaluation and checkpoints.

    Args:
        job: What to learn.
        plan: How, on this machine.
        work: Folder for checkpoints.
        emit: Sends an event to the parent.
        save_steps: Steps between two checkpoints, or none.
        save_minutes: Minutes between two checkpoints.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self, job: Job, plan: Plan, *, work: Path, emit: Emit, save_steps: int | None, save_minutes: float
    ) -> None:
        self.job = job
        self.plan = plan
        self.work = work
        self.progress = Progress(job, plan, work=work, emit=emit, save_steps=save_steps, save_minutes=save_minutes)
        self.gradient_norm: float | None = None
        self.batches = EpochBatches(
            job.training_rows.lengths,
            plan.global_batch_size,
            job.train.seed,
            balance=job.training_rows.labels_of() if job.train.sampling == "balanced" else None,
        )
        arguments = TrainingArguments(
            output_dir=str(work),
            max_steps=plan.steps,
            per_device_train_batch_size=plan.global_batch_size,
            max_grad_norm=job.train.max_grad_norm or 0.0,
            neftune_noise_alpha=job.train.neftune_alpha,
            seed=job.train.seed,
            use_cpu=plan.device == "cpu",
            eval_strategy="no",  # `Progress` decides when to evaluate, save and stop
            save_strategy="no",
            logging_strategy="no",
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
        )
        super().__init__(model=job.ready(job.load(plan.attention), plan), args=arguments, callbacks=[self.progress])
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self.progress.learner = self

    def learn(self, out: Path, *, keeps: bool = True) -> dict[str, Any]:
        """Train to the end and write `model/` (and `adapter/`), `history.json` and the record to `out`.

        Args:
            out: Where to write.
            keeps: Write the model, too.

        Raises:
            Stopped: It was asked for meanwhile; what was learnt is saved.
            GivenUp: Nobody wants the rest any more.
            Fault: The adapters, merged, do not predict what they predicted.
        """
        self.job.refer(self.model, self.plan, self.work)
        checkpoint = last_whole_checkpoint(self.work)
        began = time.monotonic()
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - began
        if stopping.asked.is_set():
            raise stopping.Stopped(self.progress.saved_step)
        if stopping.given_up.is_set():
            raise stopping.GivenUp
        record = self.progress.record(seconds)
        write_atomically(out / "history.json", json.dumps(self.progress.history))
        if not keeps:
            return record
        self.progress.restore_best()
        with fused_attention(self.model, self.plan):
            merged = save_model(self.model, self.job, out)
        weights_sha256 = file_sha256(out / "model" / "model.safetensors")
        return record | merged | {"weights_sha256": weights_sha256}

    def get_train_dataloader(self) -> DataLoader[list[int]]:
        """Row numbers, one optimiser step at a time; a generator of its own keeps the loader off the global seed."""
        return DataLoader(
            range(len(self.job.training_rows)),  # type: ignore[arg-type]  # a range is a map-style dataset
            batch_sampler=self.batches,
            collate_fn=lambda rows: {"rows": np.asarray(rows)},
            generator=torch.Generator().manual_seed(self.job.train.seed),
        )

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's; see `tasks.optimisers`."""
        if self.optimizer is None:
            self.optimizer = self.job.optimizer(model or self.model, self.plan)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Warm-up, then the recipe's course."""
        del num_training_steps  # the plan's
        optimizer = optimizer or self.optimizer
        assert optimizer is not None, "made before its schedule"
        self.lr_scheduler = schedule_of(self.job.train, self.plan, optimizer)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any) -> torch.Tensor:
        """Forward and backward of one whole optimiser step."""
        model.train()
        cuts, losses = step_losses(model, self.job, self.plan, inputs["rows"])
        self._step = Step(self.state.global_step + 1, self.learning_rate, cuts, losses, self.gradient_norm)
        loss = losses.sum()
        value = loss.item()
        self._stop_unless_finite("loss", value)
        self.progress.step_done(value, inputs["rows"])
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Asked once in every step, between clipping and the optimiser: the last moment to save the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.gradient_norm = float(norm)
        self._stop_unless_finite("gradient norm", self.gradient_norm)
        return norm

    def _stop_unless_finite(self, what: Literal["loss", "gradient norm"], value: float) -> None:
        if math.isfinite(value):
            return
        file = keep_step(self._step, self.job.training_rows, value if what == "gradient norm" else None, self.work)
        self.progress.emit("kept", file=str(file))
        raise diverged(what, value, self._step, self.job.train, file)

    @property
    def learning_rate(self) -> float:
        """Of the next step, where no factor lowers it."""
        return float(max(self.lr_scheduler.get_last_lr()))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Every metric of the family on the validation rows, in the plan's precision."""
        began = time.monotonic()
        self.model.eval()
        with autocast(self.plan), fused_attention(self.model, self.plan):
            predictions, loss = predictions_of(
                self.model, self.job.family, self.job.validation_rows, self.job.meta, self.plan
            )
        release_free_memory()
        family, meta = self.job.family, self.job.meta
        scores = family.score(family.decided(predictions, meta), meta)
        metrics = {f"validation/{name}": value for name, value in scores.items()} | {"validation/loss": loss}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.progress.evaluation_seconds += time.monotonic() - began
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Into a checkpoint goes what learns, whatever the method; the rest is in the base model."""
        folder = Path(output_dir or self.work)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(methods.learnt(self.model, state_dict), folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted here: the record states them by the usual formula."""
        del inputs
        return 0


class Progress(TrainerCallback):  # type: ignore[misc]
    """Decides when to evaluate, save and stop; keeps the best weights; tells the parent how far it is.

    What the remaining steps depend on goes into every checkpoint as `progress.json` and comes back from it.
    """

    STATE = "progress.json"

    def __init__(
        self, job: Job, plan: Plan, *, work: Path, emit: Emit, save_steps: int | None, save_minutes: float
    ) -> None:
        self.learner: Learner
        self.job, self.plan, self.work, self.emit = job, plan, work, emit
        self.save_steps, self.save_seconds = save_steps, save_minutes * 60
        self.log_every = max(1, plan.steps // LOG_POINTS)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"step": None, "value": -math.inf}
        self.waited = 0
        self.tokens = self.padded_tokens = 0
        self.seconds_before = 0.0
        self.first_step = 0
        self.saved_step: int | None = None
        self.tokens_before = 0
        self.evaluation_seconds = 0.0
        self._losses: list[float] = []
        self._began = self._last_save = self._last_event = time.monotonic()

    def step_done(self, loss: float, rows: np.ndarray[Any, Any]) -> None:
        """Count one step's loss and real tokens."""
        self._losses.append(loss)
        self.tokens += int(self.job.training_rows.lengths[rows].sum())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up where the checkpoint left off."""
        del args, control
        checkpoint = self.work / f"checkpoint-{state.global_step}"
        if state.global_step:
            kept = json.loads((checkpoint / self.STATE).read_text())
            self.history, self.best, self.waited = kept["history"], kept["best"], kept["waited"]
            self.tokens, self.seconds_before = kept["tokens"], kept["seconds"]
            self.evaluation_seconds = kept["evaluation_seconds"]
            self._losses = kept["losses"]
        self.first_step, self.tokens_before = state.global_step, self.tokens
        self._began = self._last_save = time.monotonic()
        self.emit("started", step=state.global_step, steps=self.plan.steps)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Deal the epoch's batches."""
        del args, control
        self.learner.batches.set_epoch(state.global_step // self.plan.steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log, report, and decide what follows this step."""
        del args
        step, now = state.global_step, time.monotonic()
        last = step >= self.plan.steps
        if step % self.log_every == 0 or last:
            norm = self.learner.gradient_norm
            assert norm is not None
            loss = float(np.mean(self._losses))
            self._log(step, {"loss": loss, "learning_rate": self.learner.learning_rate, "gradient_norm": norm})
            self._losses = []
        if now - self._last_event >= PROGRESS_SECONDS or last:
            self._last_event = now
            done = self.tokens - self.tokens_before
            self.emit("progress", step=step, steps=self.plan.steps, tokens_per_second=done / (now - self._began))
        if self.plan.device == "cpu" and step % RELEASE_STEPS == 0:
            release_free_memory()
        control.should_evaluate = step % self.plan.eval_steps == 0 or last
        by_step = self.save_steps is not None and step % self.save_steps == 0
        stop = stopping.asked.is_set()
        control.should_save = not last and (stop or by_step or now - self._last_save >= self.save_seconds)
        control.should_training_stop |= stop or stopping.given_up.is_set()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Keep the best weights; stop when they have been the best for too long."""
        del args
        step = state.global_step
        self._log(step, metrics)
        value = metrics[f"validation/{self.job.metric}"]
        if value > self.best["value"]:
            self.best = {"step": step, "value": value, "metrics": metrics}
            self.waited = 0
            self._save_best()
        else:
            self.waited += 1
        patience = self.job.train.early_stopping_patience
        if patience is not None and self.waited >= patience:
            control.should_training_stop = True
            control.should_save = False  # whoever resumed after the end would learn on

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the checkpoint: our state, then the mark that says it is whole."""
        del args, control
        folder = self.work / f"checkpoint-{state.global_step}"
        kept = {
            "history": self.history,
            "best": self.best,
            "waited": self.waited,
            "losses": self._losses,
            "tokens": self.tokens,
            "seconds": self.seconds_before + time.monotonic() - self._began,
            "evaluation_seconds": self.evaluation_seconds,
        }
        (folder / self.STATE).write_text(json.dumps(kept))
        sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        write_atomically(folder / WHOLE, json.dumps(sizes))
        self._last_save = time.monotonic()
        self.saved_step = state.global_step
        for best in self.work.glob("best-*"):
            if best.name != f"best-{self.best['step']}":
                shutil.rmtree(best)
        self.emit("checkpoint", step=state.global_step)

    def restore_best(self) -> None:
        """Give the model the best weights it had on validation."""
        if self.best["step"] != self.learner.state.global_step:
            self.learner.model.load_state_dict(load_file(self._best / "weights.safetensors"), strict=False)

    def record(self, seconds: float) -> dict[str, Any]:
        """What the run reports of its training."""
        model, steps = self.learner.model, self.learner.state.global_step
        tokens_here = self.tokens - self.tokens_before
        rate = tokens_here / seconds if seconds else 0.0
        flops_per_token = methods.training_flops_per_token(model)
        return {
            "steps": steps,
            "steps_run_here": steps - self.first_step,
            "resumed_from_step": self.first_step or None,
            "tokens": self.tokens,
            "tokens_run_here": tokens_here,
            "tokens_per_step": self.tokens / max(1, steps),
            "tokens_per_second": rate,
            "seconds": self.seconds_before + seconds,
            "seconds_here": seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "model_tflops": flops_per_token * rate / 1e12,
            **methods.census(model),
            "checkpoint_bytes": self._checkpoint_bytes(),
            "best_step": self.best["step"],
            "validation": {name.removeprefix("validation/"): v for name, v in self.best["metrics"].items()},
            "peak_memory_bytes": peak_memory(self.plan.device),
        }

    def _log(self, step: int, values: dict[str, float]) -> None:
        self.history.append({"step": step, **values})
        self.emit("log", step=step, values=values)

    @property
    def _best(self) -> Path:
        return self.work / f"best-{self.best['step']}"

    def _save_best(self) -> None:
        """Only what learns is kept, and only as safetensors."""
        self._best.mkdir(parents=True, exist_ok=True)
        save_file(methods.learnt(self.learner.model), self._best / "weights.safetensors")

    def _checkpoint_bytes(self) -> int:
        """Size of the last checkpoint, optimiser and all; of the best weights where training was too short for one."""
        folder = last_whole_checkpoint(self.work) or self._best
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint whose every file has the size its mark says; younger, half-written ones are removed."""
    found = [
        (int(match[1]), p) for p in work.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", p.name))
    ]
    for _, folder in sorted(found, reverse=True):
        mark = folder / WHOLE
        if mark.exists():
            sizes = json.loads(mark.read_text())
            if all((folder / n).exists() and (folder / n).stat().st_size == size for n, size in sizes.items()):
                return folder
        shutil.rmtree(folder)
    return None


def save_model(model: PreTrainedModel, job: Job, out: Path) -> dict[str, Any]:
    """Write `out/model`, ready to serve: config, safetensors, tokenizer, and what serving must know.

    Adapters are merged into the weights; the adapter alone, with the head, is kept in `out/adapter`.

    Returns:
        `merge_difference`, the largest between a prediction of the adapters and of what was saved, none where nothing
        was merged; for models that write, `merged_texts` and how many of them are `merged_texts_alike`.

    Raises:
        Fault: Merging changed what is predicted.
    """
    folder, family, rows = out / "model", job.family, job.validation_rows
    _save_tokenizer(model, job, folder)
    if not isinstance(job.train.method, Adapters):
        model.save_pretrained(folder)
        return {"merge_difference": None}
    adapted = merging.sample_outputs(model, family, rows)
    texts = merging.sample_texts(model, family, rows, folder, job.meta) if family.writes else None
    model.save_pretrained(out / "adapter", save_embedding_layers=False)
    whole = merging.merged(model)
    whole.save_pretrained(folder)
    saved = family.load_model(str(folder), job.meta).to(whole.device)
    found: dict[str, Any] = {
        "merge_difference": merging.difference(adapted, merging.sample_outputs(saved, family, rows))
    }
    if texts is not None:
        again = merging.sample_texts(saved, family, rows, folder, job.meta)
        alike = merging.same_texts(texts, again, family, job.meta)
        found |= {"merged_texts": len(texts["prediction"]), "merged_texts_alike": alike}
    return found


def _save_tokenizer(model: PreTrainedModel, job: Job, folder: Path) -> None:
    """The tokenizer, and what serving must know."""
    tokenizer = AutoTokenizer.from_pretrained(
        job.base, revision=job.model.revision, trust_remote_code=job.model.trust_remote_code
    )
    if tokenizer.pad_token_id is None:  # whoever serves without hone must pad as training did
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(job.meta["pad_token_id"])
    job.family.finish(model, tokenizer, job.meta)
    tokenizer.save_pretrained(folder)
    write_atomically(folder / "hone.json", json.dumps(dict(job.meta), ensure_ascii=False))


def _set_dropout(model: PreTrainedModel, rate: float) -> None:
    """Every dropout of the model; attention implementations read theirs from the modules, too."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = rate
        elif isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = rate


def peak_memory(device: str) -> int:
    """Most memory training ever had, in bytes: allocated on a GPU, else resident in this process."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
