from __future__ import annotations

import contextvars
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from schemas.errors import ChildDied, Mistake, OutOfMemory
from tasks import child as child_module
from tasks.child import Child, Children, environment
from tasks.learner import last_whole_checkpoint
from tasks.machine import main_memory, slot, slots
from tasks.stopping import GivenUp, Stopped
from tests.learning import job_spec, tiny_encoder, token_files


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    tokens = token_files(folder / "tokens", {"train": 200, "validation": 40, "test": 40})
    return job_spec(tiny_encoder(folder / "base"), tokens)


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    child = Child(tmp_path_factory.mktemp("child") / "child.log")
    yield child
    child.stop()


def test_a_job_runs_and_the_child_stays_warm_for_the_next(child, spec):
    first = child.run("plan", spec)
    began = time.monotonic()
    assert child.run("plan", spec) == first
    assert time.monotonic() - began < 2


def test_a_users_mistake_crosses_the_border_whole(child, spec):
    wrong = spec | {"train": spec["train"] | {"method": {"kind": "lora", "target_modules": ["no_such"]}}}
    with pytest.raises(Mistake) as caught:
        child.run("plan", wrong)
    (problem,) = caught.value.problems
    assert problem.field == "train.method.target_modules"
    assert "choose among" in problem.remedy
    assert child.alive


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "passive"}, None), ({"GOMP_SPINCOUNT": "5"}, "5")],
)
def test_threads_that_wait_leave_the_processor_to_others_unless_told_otherwise(given, found, tmp_path, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    started = Child(tmp_path / "child.log")
    try:
        deadline = time.monotonic() + 10
        while not (environment := psutil.Process(started.pid).environ()) and time.monotonic() < deadline:
            time.sleep(0.01)  # the kernel shows it a moment after the program has begun
        assert environment["PATH"]
        assert environment.get("GOMP_SPINCOUNT") == found
    finally:
        started.stop()


def test_freed_memory_is_kept_unless_told_otherwise(monkeypatch):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    assert environment()["MALLOC_MMAP_MAX_"] == "0"
    assert int(environment()["MALLOC_TRIM_THRESHOLD_"]) > main_memory()  # never by itself
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    assert environment()["MALLOC_MMAP_MAX_"] == "65536"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory as it likes")
def test_a_large_tensor_is_kept_when_it_is_freed_and_goes_back_when_asked():
    code = """
import gc, psutil, torch
from tasks.machine import release_free_memory
held = lambda: psutil.Process().memory_info().rss >> 20
before = held()
several = [torch.ones(64 << 18) for _ in range(4)]
del several
gc.collect()
kept = held() - before
release_free_memory()
print(kept, held() - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    kept, left = map(int, found.stdout.split())
    assert kept > 200
    assert left < 60


def test_a_failure_is_a_fault_that_shows_the_childs_last_words(child, spec):
    with pytest.raises(ChildDied, match="FileNotFoundError"):
        child.run("plan", spec | {"tokens": "/no/such/folder"})


def test_running_out_of_memory_is_told_from_other_deaths(child, spec, monkeypatch):
    dying = Child(child.log_file.with_name("dying.log"))
    dying.run("plan", spec)
    os.kill(dying.pid, signal.SIGKILL)
    with pytest.raises(ChildDied, match="SIGKILL") as caught:
        dying.run("plan", spec)
    assert not isinstance(caught.value, OutOfMemory)
    dying.stop()

    kills = iter([0, 1])
    monkeypatch.setattr(child_module, "_kernel_oom_kills", lambda: next(kills))
    starved = Child(child.log_file.with_name("starved.log"))
    os.kill(starved.pid, signal.SIGKILL)
    with pytest.raises(OutOfMemory):
        starved.run("plan", spec)
    starved.stop()


def test_a_dead_child_is_replaced(tmp_path, spec):
    children = Children()
    first = children.warm(tmp_path).pid
    os.kill(first, signal.SIGKILL)
    psutil.Process(first).wait(10)
    assert children.run(tmp_path, "plan", spec)["steps"] == 26
    assert children.warm(tmp_path).pid != first
    children.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_its_parent_however_that_dies(tmp_path, spec, how):
    long = spec | {"train": spec["train"] | {"epochs": 1000, "early_stopping_patience": None}}
    script = f"""
import json, os, sys
from pathlib import Path
from tasks.child import Child
child = Child(Path({str(tmp_path)!r}) / "log")
spec = json.loads({json.dumps(json.dumps(long))})
plan = child.run("plan", spec)
print(child.pid, flush=True)
started = lambda event: print("training", flush=True) if "steps" in event else None
spec |= {{"plan": plan, "work": {str(tmp_path)!r}, "out": {str(tmp_path)!r}, "save_minutes": 9}}
child.run("train", spec, started)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "training\n"
    orphan = psutil.Process(pid)
    parent.send_signal(how)
    parent.wait()
    gone, alive = psutil.wait_procs([orphan], timeout=5)
    assert [p.pid for p in gone] == [pid]
    assert alive == []


class Interruptions:
    """Listens to a training and is interrupted at some of its events, each time as Ctrl-C interrupts it."""

    def __init__(self, *at):
        self.at = list(at)
        self.steps = []

    def __call__(self, event):
        self.steps.append(event.get("step"))
        if self.at and self.at[0](event):
            self.at.pop(0)
            raise KeyboardInterrupt


def has_learnt(event):
    return "values" in event and event["step"] >= 20


@pytest.fixture
def training(spec, child, tmp_path):
    """A long training, and the folder its checkpoints go to."""
    (tmp_path / "work").mkdir()
    long = spec | {"train": spec["train"] | {"epochs": 1000, "early_stopping_patience": None}}
    places = {"work": str(tmp_path / "work"), "out": str(tmp_path / "out"), "save_minutes": 9}
    return long | {"plan": child.run("plan", long)} | places, tmp_path / "work"


def test_an_interrupted_training_saves_itself_after_the_step_and_its_process_ends(training, tmp_path, caplog):
    spec, work = training
    children, heard = Children(), Interruptions(has_learnt)
    process = psutil.Process(children.warm(tmp_path).pid)
    with pytest.raises(KeyboardInterrupt):
        children.run(tmp_path, "train", spec, heard)
    assert not process.is_running()
    saved = max(step for step in heard.steps if step is not None)
    assert last_whole_checkpoint(work).name == f"checkpoint-{saved}"
    assert f"train: stopped after step {saved}, which is saved; the next try goes on from there" in caplog.messages


def test_a_second_interruption_ends_the_training_at_once(training, tmp_path):
    spec, _ = training
    children = Children()
    process = psutil.Process(children.warm(tmp_path).pid)
    with pytest.raises(KeyboardInterrupt):
        children.run(tmp_path, "train", spec, Interruptions(has_learnt, lambda event: True))
    assert not process.is_running()


def test_a_training_that_does_not_save_itself_in_time_is_ended_and_leaves_nothing_half_written(
    training, tmp_path, monkeypatch, caplog
):
    spec, work = training
    monkeypatch.setattr(child_module, "SAVE_S", 0.0)
    children = Children()
    process = psutil.Process(children.warm(tmp_path).pid)
    with pytest.raises(KeyboardInterrupt):
        children.run(tmp_path, "train", spec, Interruptions(has_learnt))
    assert not process.is_running()
    assert last_whole_checkpoint(work) is None
    assert list(work.glob("checkpoint-*")) == []
    assert "train: stopped; the next try goes on from the last checkpoint" in caplog.messages


def test_a_users_own_modules_do_not_shadow_ours(tmp_path, spec, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise RuntimeError('the wrong tasks')")
    monkeypatch.chdir(tmp_path)
    child = Child(tmp_path / "log")
    assert child.run("plan", spec)["steps"] == 26
    child.stop()


def test_a_job_that_is_given_up_ends_without_a_result_and_its_process_takes_the_next(training, tmp_path):
    spec, work = training

    def enough(event):
        if has_learnt(event):
            raise GivenUp

    children = Children()
    try:
        process = children.warm(tmp_path).pid
        with pytest.raises(GivenUp):
            children.run(tmp_path, "train", spec, enough)
        assert last_whole_checkpoint(work) is None
        assert children.run(tmp_path, "plan", spec_of_plan(spec))["steps"] == spec["plan"]["steps"]
        assert children.warm(tmp_path).pid == process
    finally:
        children.stop()


def spec_of_plan(spec):
    return {name: spec[name] for name in ("task", "model", "train", "base", "tokens", "metric")}


def test_a_job_in_another_thread_can_be_asked_to_save_itself(training, tmp_path):
    spec, work = training
    children, learns, ended = Children(), threading.Event(), []

    def learn():
        try:
            children.run(tmp_path, "train", spec, lambda event: has_learnt(event) and learns.set())
        except Stopped as stopped:
            ended.append(stopped.step)

    thread = threading.Thread(target=learn)
    thread.start()
    assert learns.wait(60)
    children.ask_to_save()
    thread.join(30)
    assert ended == [int(last_whole_checkpoint(work).name.partition("-")[2])]
    children.stop()


def test_a_child_of_a_part_of_the_machine_keeps_to_it(tmp_path, spec):
    children = Children()
    first, *_ = slots(len(os.sched_getaffinity(0)))

    def planned():
        slot.set(first)
        found = children.run(tmp_path, "plan", spec)
        return found, psutil.Process(children.warm(tmp_path).pid).cpu_affinity()

    plan, cores = contextvars.copy_context().run(planned)
    assert cores == list(first.cores)
    assert plan["threads"] == len(first.cores)
    children.stop()
