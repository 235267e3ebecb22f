from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from schemas.errors import Fault, Mistake
from schemas.records import Plan
from tasks import learner, probe, stopping
from tasks.batches import EpochBatches, TokenTable
from tests.learning import OPTIMIZERS, job_spec, tiny_encoder, token_files


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return tiny_encoder(folder / "base"), token_files(folder / "tokens", {"train": 230, "validation": 80, "test": 60})


@pytest.fixture(scope="module")
def with_dropout(parts, tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("dropout"), dropout=0.1), parts[1]


def planned(spec, **changes):
    plan = probe.plan_training(emit=lambda *a, **k: None, **spec)
    return plan | changes


def trained(spec, folder, plan=None, **options):
    events = []
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    record = learner.train(
        emit=lambda event, **values: events.append((event, values)),
        plan=plan or planned(spec), work=str(work), out=str(out), **{"save_minutes": 1e9, **options}, **spec,
    )  # fmt: skip
    return record, events


def test_a_tiny_model_learns_what_there_is_to_learn(parts, tmp_path):
    record, _ = trained(job_spec(*parts, epochs=6, early_stopping_patience=None), tmp_path)
    assert record["validation"]["accuracy"] > 0.95
    assert record["steps"] == 6 * 15


def test_real_tokens_are_counted_and_padding_is_not(parts, tmp_path):
    record, _ = trained(job_spec(*parts), tmp_path)
    lengths = TokenTable(parts[1] / "train.arrow", 0).lengths
    assert record["tokens"] == 2 * int(lengths.sum())


def test_windows_are_examples_to_learn_from_but_their_text_is_measured_once(parts, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    shutil.copyfile(parts[1] / "meta.json", tokens / "meta.json")
    for side in ("train", "validation"):
        rows = pa.ipc.open_stream(parts[1] / f"{side}.arrow").read_all()
        rows = rows.set_column(0, "id", pa.array([f"{side}-{window // 2}" for window in range(len(rows))]))
        with pa.ipc.new_stream(tokens / f"{side}.arrow", rows.schema) as stream:
            stream.write_table(rows)
    spec = job_spec(parts[0], tokens, epochs=1)
    record, _ = trained(spec, tmp_path)
    assert record["steps"] == 15  # 230 windows, 16 a step
    assert record["validation"]["support/negative"] + record["validation"]["support/positive"] == 80 / 2


@pytest.mark.parametrize("changes", [{"dropout": None}, {"method": {"kind": "lora", "r": 4}}])
def test_same_seed_same_weights(with_dropout, tmp_path, changes):
    spec = job_spec(*with_dropout, **changes)
    first, _ = trained(spec, tmp_path / "a")
    second, _ = trained(spec, tmp_path / "b")
    other, _ = trained(spec | {"train": spec["train"] | {"seed": 1}}, tmp_path / "c")
    assert first["weights_sha256"] == second["weights_sha256"] != other["weights_sha256"]


class KilledError(Exception):
    pass


def kill(spec, folder, plan, *, at, save_steps):
    """Train below `folder` until the first checkpoint from step `at` on, as a process that is killed there."""

    def kill_after(event, **values):
        if event == "checkpoint" and values["step"] >= at:
            raise KilledError

    work = folder / "work"
    work.mkdir(parents=True)
    with pytest.raises(KilledError):
        learner.train(
            emit=kill_after, plan=plan, work=str(work), out=str(folder.parent), save_minutes=1e9,
            save_steps=save_steps, **spec,
        )  # fmt: skip


LORA = {"kind": "lora", "r": 4, "dropout": 0.1}
METHODS = {
    "full": "full", "lora": LORA, "rslora": LORA | {"kind": "rslora"}, "dora": LORA | {"kind": "dora"}, "ia3": "ia3",
    "freeze": {"kind": "freeze", "layers": 1}, "bitfit": "bitfit",
}  # fmt: skip
KILLED = {"mid-epoch": 8, "epoch-end": 15, "second-epoch": 22}
CUTS = [(name, when) for name in METHODS for when in KILLED if name in {"full", "lora"} or when == "epoch-end"]


@pytest.mark.parametrize(
    ("method", "killed_at"), [(METHODS[name], KILLED[when]) for name, when in CUTS], ids=map("-".join, CUTS)
)
def test_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(with_dropout, tmp_path, method, killed_at):
    spec = job_spec(*with_dropout, method=method, eval_steps=5)
    plan = planned(spec)
    whole, _ = trained(spec, tmp_path / "whole", plan)

    kill(spec, tmp_path / "cut", plan, at=killed_at // 2 * 2, save_steps=2)
    resumed, events = trained(spec, tmp_path / "cut", plan)

    assert events[0] == ("started", {"step": resumed["resumed_from_step"], "steps": 30})
    assert 0 < resumed["steps_run_here"] < 30
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["tokens"] == whole["tokens"]
    assert resumed["best_step"] == whole["best_step"]


def test_noise_on_embeddings_is_the_same_after_a_resume_and_none_when_measured(parts, tmp_path):
    spec = job_spec(*parts, neftune_alpha=5.0, eval_steps=5)
    plan = planned(spec)
    whole, _ = trained(spec, tmp_path / "whole", plan)
    kill(spec, tmp_path / "cut", plan, at=8, save_steps=2)
    resumed, _ = trained(spec, tmp_path / "cut", plan)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    plain, _ = trained(job_spec(*parts, eval_steps=5), tmp_path / "plain", plan)
    assert plain["weights_sha256"] != whole["weights_sha256"]
    histories = [json.loads((tmp_path / name / "out" / "history.json").read_text()) for name in ("whole", "cut")]
    assert histories[0] == histories[1]  # validation among them: measured with noise it would differ


@pytest.fixture
def asked_to_stop():
    yield stopping.asked
    stopping.asked.clear()


@pytest.mark.parametrize("method", ["full", {"kind": "lora", "r": 4, "dropout": 0.1}], ids=["full", "lora"])
@pytest.mark.parametrize("stopped_at", [1, 15, 20], ids=["first-step", "epoch-end", "evaluation"])
def test_training_asked_to_stop_saves_itself_after_the_step_and_goes_on_as_if_nothing_had_been(
    with_dropout, tmp_path, asked_to_stop, method, stopped_at
):
    spec = job_spec(*with_dropout, method=method, eval_steps=5)
    plan = planned(spec)
    whole, _ = trained(spec, tmp_path / "whole", plan)

    def stop_at(event, **values):
        if event == "log" and values["step"] == stopped_at:
            asked_to_stop.set()

    work = tmp_path / "cut" / "work"
    work.mkdir(parents=True)
    with pytest.raises(stopping.Stopped) as stopped:
        learner.train(emit=stop_at, plan=plan, work=str(work), out=str(tmp_path), save_minutes=1e9, **spec)
    assert stopped.value.step == stopped_at
    asked_to_stop.clear()
    resumed, _ = trained(spec, tmp_path / "cut", plan)

    assert (resumed["resumed_from_step"], resumed["steps_run_here"]) == (stopped_at, whole["steps"] - stopped_at)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    histories = [json.loads((tmp_path / name / "out" / "history.json").read_text()) for name in ("whole", "cut")]
    assert histories[0] == histories[1]


def test_a_training_that_ended_early_and_is_resumed_ends_there_again(with_dropout, tmp_path):
    spec = job_spec(*with_dropout, epochs=40, eval_steps=5, early_stopping_patience=2)
    plan = planned(spec)
    first, _ = trained(spec, tmp_path, plan, save_steps=5)
    again, _ = trained(spec, tmp_path, plan, save_steps=5)
    assert again["resumed_from_step"] == first["steps"] - 5
    assert (again["steps"], again["weights_sha256"]) == (first["steps"], first["weights_sha256"])


def test_a_half_written_checkpoint_is_passed_over(parts, tmp_path):
    spec = job_spec(*parts)
    plan = planned(spec)
    trained(spec, tmp_path, plan, save_steps=10)
    last, earlier = tmp_path / "work" / "checkpoint-20", tmp_path / "work" / "checkpoint-10"
    assert learner.last_whole_checkpoint(tmp_path / "work") == last
    with (last / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    assert learner.last_whole_checkpoint(tmp_path / "work") == earlier
    assert not last.exists()


def test_saving_more_often_changes_nothing_that_is_learnt(with_dropout, tmp_path):
    spec = job_spec(*with_dropout)
    plan = planned(spec)
    rarely, _ = trained(spec, tmp_path / "a", plan)
    often, _ = trained(spec, tmp_path / "b", plan, save_steps=3)
    assert rarely["weights_sha256"] == often["weights_sha256"]


@pytest.mark.parametrize("weights", [None, (0.7, 1.4)], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(
    "loss",
    [{}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}],
    ids=["cross-entropy", "smoothed", "focal"],
)
def test_loss_and_gradients_of_micro_batches_equal_those_of_the_large_batch(parts, weights, loss):
    spec = job_spec(*parts, **loss)
    job = learner.Job(**spec)
    assert len(set(job.training_rows.lengths[:16].tolist())) > 5
    found = []
    for budget in (100_000, 64):
        plan = Plan.model_validate(planned(spec, micro_batch_tokens=budget, class_weights=weights))
        model = job.load("eager")
        cuts, losses = learner.step_losses(model, job, plan, np.arange(16))
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((len(cuts), losses.sum(), gradients))
    (one, whole, large), (several, summed, accumulated) = found
    assert one == 1 < several
    assert summed.item() == pytest.approx(whole.item(), rel=1e-6)
    assert torch.allclose(accumulated, large, rtol=1e-4, atol=1e-7)


def test_the_step_loss_is_the_weighted_mean_over_the_whole_step(parts):
    spec = job_spec(*parts)
    job = learner.Job(**spec)
    plan = Plan.model_validate(planned(spec, micro_batch_tokens=64, class_weights=(0.7, 1.4)))
    model = job.load("eager").eval()
    batch = job.training_rows.batch(np.arange(16))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], weight=torch.tensor([0.7, 1.4]))
    _, losses = learner.step_losses(model, job, plan, np.arange(16))
    assert losses.sum().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("warm_up", [{"warmup_ratio": 0.2}, {"warmup_steps": 2}], ids=["share", "steps"])
def test_the_learning_rate_warms_up_and_decays_as_the_recipe_says(parts, tmp_path, warm_up):
    spec = job_spec(*parts, schedule="warmup-stable-decay", max_steps=10, decay_ratio=0.4, **warm_up)
    _, events = trained(spec, tmp_path)
    rates = [v["values"]["learning_rate"] for name, v in events if name == "log" and "learning_rate" in v["values"]]
    assert np.array(rates) / 3e-3 == pytest.approx([0.5, *[1.0] * 5, 0.75, 0.5, 0.25, 0.0], abs=1e-9)


class Norms(TrainerCallback):
    """Notes the norm of the gradient that each step is made with."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())


@pytest.mark.parametrize("bound", [0.05, None], ids=["bounded", "empty"])
def test_gradients_are_scaled_down_to_the_norm_that_the_recipe_bounds(parts, tmp_path, bound):
    spec = job_spec(*parts, max_steps=5, max_grad_norm=bound)
    events = []
    plan = Plan.model_validate(planned(spec))
    made = learner.Learner(
        learner.Job(**spec), plan, work=tmp_path, emit=lambda event, **values: events.append((event, values)),
        save_steps=None, save_minutes=1e9,
    )  # fmt: skip
    norms = Norms()
    made.add_callback(norms)
    made.train()
    before = [v["values"]["gradient_norm"] for name, v in events if name == "log" and "loss" in v["values"]]
    assert min(before) > 0.05
    assert norms.seen == pytest.approx([0.05] * 5 if bound else before, rel=1e-3)


def test_balanced_sampling_shows_each_class_equally_often_without_weights(parts, tmp_path):
    spec = job_spec(*parts, sampling="balanced", epochs=1)
    plan = planned(spec)
    assert plan["class_weights"] is None
    record, _ = trained(spec, tmp_path, plan)
    assert record["steps"] == 15


def test_training_stops_when_validation_no_longer_gets_better(parts, tmp_path):
    record, _ = trained(job_spec(*parts, epochs=40, eval_steps=5, early_stopping_patience=2), tmp_path)
    assert record["steps"] < 40 * 15
    assert record["best_step"] == record["steps"] - 2 * 5


def test_the_model_left_behind_is_the_best_one_not_the_last(parts, tmp_path):
    record, events = trained(
        job_spec(*parts, epochs=4, eval_steps=5, learning_rate=0.02, early_stopping_patience=None), tmp_path
    )
    values = [
        v["values"]["validation/macro_f1"]
        for name, v in events
        if name == "log" and "validation/macro_f1" in v["values"]
    ]
    assert record["validation"]["macro_f1"] == max(values)
    from tasks.predict import predict

    predict(emit=None, family="text-classification", model=str(tmp_path / "out" / "model"),
            tokens={str(parts[1] / "validation.arrow"): str(tmp_path / "p.parquet")})  # fmt: skip
    import polars as pl

    from tasks.classification import score

    found = score(pl.read_parquet(tmp_path / "p.parquet"), ["negative", "positive"])
    assert found["macro_f1"] == pytest.approx(max(values), abs=1e-9)


def test_merged_adapters_predict_what_the_adapted_model_predicted_and_the_head_is_kept(parts, tmp_path):
    spec = job_spec(*parts, method={"kind": "lora", "r": 8}, epochs=6)
    record, _ = trained(spec, tmp_path)
    assert record["trainable_parameters"] < record["parameters"] / 2
    assert record["validation"]["accuracy"] > 0.9
    import polars as pl

    from tasks.predict import predict

    predict(emit=None, family="text-classification", model=str(tmp_path / "out" / "model"),
            tokens={str(parts[1] / "validation.arrow"): str(tmp_path / "p.parquet")})  # fmt: skip
    rows = pl.read_parquet(tmp_path / "p.parquet")
    assert (rows["truth"] == rows["prediction"]).mean() == pytest.approx(record["validation"]["accuracy"])
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_what_is_saved_predicts_what_was_learnt(parts, tmp_path, method):
    import polars as pl

    from tasks.predict import predict

    rate = 3e-3 if method == "rslora" else 0.02
    spec = job_spec(*parts, method=METHODS[method], epochs=6, eval_steps=30, learning_rate=rate, attention="sdpa")
    record, _ = trained(spec, tmp_path, save_steps=50)
    # Scales and biases cannot make much of a body that is random.
    assert record["validation"]["accuracy"] > (0.4 if method in {"ia3", "bitfit"} else 0.85)
    predict(emit=None, family="text-classification", model=str(tmp_path / "out" / "model"),
            tokens={str(parts[1] / "validation.arrow"): str(tmp_path / "p.parquet")})  # fmt: skip
    rows = pl.read_parquet(tmp_path / "p.parquet")
    assert (rows["truth"] == rows["prediction"]).mean() == pytest.approx(record["validation"]["accuracy"])

    whole = tmp_path / "work" / "checkpoint-50"
    saved = load_file(whole / "model.safetensors")
    best = load_file(tmp_path / "work" / f"best-{record['best_step']}" / "weights.safetensors")
    for kept in (saved, best):
        assert sum(tensor.numel() for tensor in kept.values()) == record["trainable_parameters"]
    assert record["checkpoint_bytes"] == sum(file.stat().st_size for file in whole.iterdir())
    adapted = (tmp_path / "out" / "adapter").exists()
    assert (record["merge_difference"] is not None) == adapted
    assert not adapted or record["merge_difference"] < 1e-5
    plain = sum(tensor.numel() for tensor in load_file(tmp_path / "out" / "model" / "model.safetensors").values())
    beside = record["trainable_parameters"] - 2 * 32 - 2 if adapted else 0  # all but the head
    assert record["parameters"] == plain + beside


def test_adapters_that_merging_changes_are_a_fault_and_no_model(parts, tmp_path, monkeypatch):
    from peft.tuners.lora import Linear

    monkeypatch.setattr(Linear, "merge", lambda *_, **__: None)
    with pytest.raises(Fault, match=r"merging the adapters changed a prediction by 0\.\d+, more than 0\.001"):
        trained(job_spec(*parts, method="lora", epochs=4), tmp_path)


def test_the_adapter_alone_brings_the_head_to_another_copy_of_the_base_model(parts, tmp_path):
    from peft import PeftModel

    from tasks.merging import difference, sample_outputs

    spec = job_spec(*parts, method="dora", epochs=2)
    trained(spec, tmp_path)
    job = learner.Job(**spec)
    torch.manual_seed(99)
    base = job.family.load_model(job.base, job.meta)
    alone = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    saved = job.family.load_model(str(tmp_path / "out" / "model"), job.meta)
    said = [sample_outputs(model, job.family, job.validation_rows) for model in (alone, saved)]
    assert difference(*said) < 1e-5


def test_lower_layers_learn_more_slowly_where_the_recipe_says_so(parts, tmp_path):
    spec = job_spec(*parts, layer_decay=0.5)
    plan = Plan.model_validate(planned(spec))
    made = learner.Learner(
        learner.Job(**spec), plan, work=tmp_path, emit=lambda *a, **k: None, save_steps=None, save_minutes=1e9
    )
    rates = {id(p): group["lr"] for group in made.create_optimizer().param_groups for p in group["params"]}
    found = {name: rates[id(p)] / 3e-3 for name, p in made.model.named_parameters()}
    assert found["classifier.weight"] == found["bert.pooler.dense.bias"] == 1
    assert found["bert.encoder.layer.1.output.dense.weight"] == 1
    assert found["bert.encoder.layer.0.output.LayerNorm.bias"] == 0.5
    assert found["bert.embeddings.word_embeddings.weight"] == 0.25
    _, events = trained(spec | {"train": spec["train"] | {"warmup_ratio": 0.1}}, tmp_path)
    logged = [v["values"]["learning_rate"] for name, v in events if name == "log" and "learning_rate" in v["values"]]
    assert max(logged) == pytest.approx(3e-3)


def with_weights(base, folder, **factors):
    """A copy of a base model with some weights multiplied."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    for name, factor in factors.items():
        weights[name] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def stopped(spec, folder, plan):
    """The mistake that training ends with, and the file that it says is kept."""
    events = []
    (folder / "work").mkdir()
    with pytest.raises(Mistake) as mistake:
        learner.train(
            emit=lambda event, **values: events.append((event, values)), plan=plan, work=str(folder / "work"),
            out=str(folder), save_minutes=1e9, **spec,
        )  # fmt: skip
    file = dict(events)["kept"]["file"]
    assert file in str(mistake.value)
    return str(mistake.value), json.loads(Path(file).read_text())


def test_a_loss_that_overflows_stops_the_run_and_keeps_its_batch(parts, tmp_path):
    base = with_weights(parts[0], tmp_path / "base", **{"encoder.layer.1.intermediate.dense.weight": 1e38})
    spec = job_spec(base, parts[1], micro_batch_tokens=64)
    mistake, kept = stopped(spec, tmp_path, planned(job_spec(*parts), micro_batch_tokens=64))
    assert mistake.startswith("model.base: the loss became nan at step 1; its batch is kept in ")
    assert (kept["step"], kept["loss"], kept["gradient_norm"]) == (1, "nan", None)
    assert {micro_batch["loss"] for micro_batch in kept["micro_batches"]} == {"nan"}


@pytest.fixture
def one_bad_row(parts, tmp_path):
    """A base model whose unknown word is out of all bounds, and tokens in which only `train-100` has it."""
    base = with_weights(parts[0], tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][1] = 1e38
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    tokens = shutil.copytree(parts[1], tmp_path / "tokens")
    rows = pa.ipc.open_stream(parts[1] / "train.arrow").read_all()
    ids = rows.column("input_ids").to_pylist()
    ids[100][1] = 1
    rows = rows.set_column(1, "input_ids", pa.array(ids, pa.list_(pa.int32())))
    with pa.ipc.new_stream(tokens / "train.arrow", rows.schema) as stream:
        stream.write_table(rows)
    return base, tokens


def test_what_is_kept_names_the_rows_of_the_step_and_what_the_model_was_given_of_them(parts, one_bad_row, tmp_path):
    spec = job_spec(*one_bad_row, micro_batch_tokens=64)
    batches = list(EpochBatches(learner.Job(**spec).training_rows.lengths, 16, seed=0))
    step = next(number for number, rows in enumerate(batches, 1) if 100 in rows)
    assert step > 1
    mistake, kept = stopped(spec, tmp_path, planned(job_spec(*parts), micro_batch_tokens=64))
    assert mistake.startswith(f"train.learning_rate = 0.003: the loss became nan at step {step}; its batch is kept in ")
    assert mistake.endswith("; lower it, or warm up for longer")
    assert (kept["step"], kept["loss"]) == (step, "nan")
    assert 0 < kept["learning_rate"] <= 3e-3
    assert kept["gradient_norm_of_last_step"] > 0
    parts_of_it = kept["micro_batches"]
    assert sorted(name for each in parts_of_it for name in each["ids"]) == sorted(
        f"train-{i}" for i in batches[step - 1]
    )
    (culprit,) = [each for each in parts_of_it if each["loss"] == "nan"]
    place = culprit["ids"].index("train-100")
    table = learner.Job(**spec).training_rows
    assert culprit["input_ids"][place][: table.lengths[100]] == table.row(100).tolist()
    assert culprit["labels"][place] == table.labels_of()[100]


def test_a_gradient_that_overflows_under_a_finite_loss_stops_the_run_before_the_weights_are_spoilt(parts, tmp_path):
    # The factors cancel in what is predicted, but not in the gradient of the smaller weights.
    huge = {f"encoder.layer.1.output.LayerNorm.{name}": 1e30 for name in ("weight", "bias")}
    base = with_weights(parts[0], tmp_path / "base", **huge, **{"pooler.dense.weight": 1e-30})
    spec = job_spec(base, parts[1])
    mistake, kept = stopped(spec, tmp_path, planned(job_spec(*parts)))
    assert mistake.startswith("model.base: the gradient norm became inf at step 1; its batch is kept in ")
    assert kept["gradient_norm"] == "inf"
    assert kept["loss"] == pytest.approx(np.log(2), rel=0.2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_under_every_optimiser_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    with_dropout, tmp_path, optimizer
):
    spec = job_spec(*with_dropout, optimizer=optimizer, sampling="balanced", schedule="polynomial")
    plan = planned(spec)
    whole, _ = trained(spec, tmp_path / "whole", plan)

    kill(spec, tmp_path / "cut", plan, at=18, save_steps=6)
    resumed, _ = trained(spec, tmp_path / "cut", plan)
    assert (resumed["resumed_from_step"], resumed["steps"]) == (18, 30)
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_dropout_from_the_recipe_replaces_the_models_own(with_dropout):
    job = learner.Job(**job_spec(*with_dropout, dropout=0.0))
    rates = {m.p for m in job.load("eager").modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.0}


def test_everything_in_the_model_folder_is_safetensors_and_json(parts, tmp_path):
    trained(job_spec(*parts), tmp_path)
    suffixes = {p.suffix for p in (tmp_path / "out" / "model").iterdir()}
    assert suffixes <= {".safetensors", ".json", ".txt"}
    assert json.loads((tmp_path / "out" / "model" / "hone.json").read_text())["labels"] == ["negative", "positive"]
