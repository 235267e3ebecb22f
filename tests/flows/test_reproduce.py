from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import rebuild, reproduce
from flows.reproduce import Code, compare
from schemas.data import Collect
from schemas.errors import DataError, Fault, Mistake
from schemas.recipe import Recipe
from tasks import forgotten
from tasks.context import Context
from tasks.home import Home
from tasks.registry import Registered
from tasks.store import Store
from tests.prepared import artifact

pytest_plugins = ("tests.mlflow_home",)

VERSION = Registered(name="tiny", version="3", run_id="r", model_id="m", tags={})


# The code of then.


class Checkout:
    """A repository with hone's rooms, of which the first commit cannot rebuild a model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "-q")
        (root / "README.md").write_text("")
        for room in ("flows", "tasks", "schemas"):
            (root / room).mkdir()
            (root / room / "__init__.py").write_text("")
        self.old = self.commit("no way to rebuild")
        (root / "flows" / "rebuild.py").write_text("then")
        self.then = self.commit("rebuilds")
        (root / "flows" / "rebuild.py").write_text("now")
        self.now = self.commit("rebuilds otherwise")

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        done = subprocess.run(["git", *who, *words], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", ".")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD")

    def change(self) -> None:
        (self.root / "tasks" / "new.py").write_text("")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.setattr(reproduce, "CHECKOUT", root)
    return Checkout(root)


@pytest.fixture
def code_of(checkout: Checkout, tmp_path: Path) -> Callable[..., Code]:
    def act(commit: str | None, *, dirty: bool = False) -> Code:
        known = {"code_commit": commit, "code_dirty": str(dirty).lower()} if commit else {}
        return reproduce._code_of(known, tmp_path / "work")

    return act


def test_the_code_of_then_is_brought_back_without_touching_the_repository(
    checkout: Checkout, code_of: Callable[..., Code], tmp_path: Path
) -> None:
    found = code_of(checkout.then)
    assert found == Code(tmp_path / "work" / "code", checkout.then)
    assert (found.root / "flows" / "rebuild.py").read_text() == "then"
    assert sorted(path.name for path in found.root.iterdir()) == ["flows", "schemas", "tasks"]
    assert checkout.git("worktree", "list").count("\n") == 0
    assert checkout.git("status", "--porcelain") == ""
    assert (checkout.root / "flows" / "rebuild.py").read_text() == "now"


def test_the_present_code_serves_where_it_is_that_of_then(checkout: Checkout, code_of: Callable[..., Code]) -> None:
    assert code_of(checkout.now) == Code(checkout.root, checkout.now)
    (checkout.root / "README.md").write_text("changed, and no part of any room")
    assert code_of(checkout.now) == Code(checkout.root, checkout.now)


def test_a_clean_commit_is_brought_back_where_the_present_code_has_changes(
    checkout: Checkout, code_of: Callable[..., Code]
) -> None:
    checkout.change()
    found = code_of(checkout.now)
    assert (found.commit, found.changed, found.note) == (checkout.now, False, "")
    assert (found.root / "flows" / "rebuild.py").read_text() == "now"
    assert not (found.root / "tasks" / "new.py").exists()


def test_changes_that_were_not_committed_are_sought_in_the_present_ones_and_never_trusted(
    checkout: Checkout, code_of: Callable[..., Code]
) -> None:
    clean = code_of(checkout.then, dirty=True)
    assert clean.commit == checkout.then
    assert clean.note.endswith("with changes that were not committed and cannot be brought back")
    checkout.change()
    present = code_of(checkout.now, dirty=True)
    assert (present.root, present.changed) == (checkout.root, True)
    assert present.note == (
        f"it was made by code at commit {checkout.now[:12]} with changes that were not committed; the present ones may "
        "be others"
    )


@pytest.mark.parametrize("commit", ["0" * 40, "--output=stolen", "main"])
def test_a_commit_that_is_not_there_is_said_and_replaced_by_the_present_code(
    checkout: Checkout, code_of: Callable[..., Code], commit: str
) -> None:
    checkout.git("branch", "-M", "main")
    found = code_of(commit)
    assert (found.root, found.commit) == (checkout.root, checkout.now)
    assert f"which {checkout.root} does not have: rebuilding with the present one" in found.note
    assert not (checkout.root / "stolen").exists()


def test_code_of_before_models_could_be_rebuilt_is_said_and_replaced(
    checkout: Checkout, code_of: Callable[..., Code]
) -> None:
    found = code_of(checkout.old)
    assert (found.root, found.commit) == (checkout.root, checkout.now)
    assert "which cannot rebuild a model: rebuilding with the present one" in found.note


def test_unknown_code_and_code_without_a_repository_are_said(checkout: Checkout, code_of: Callable[..., Code]) -> None:
    assert code_of(None).note == "nobody knows the code that made it: rebuilding with the present one"
    shutil.rmtree(checkout.root / ".git")
    found = code_of(checkout.then)
    assert (found.root, found.commit) == (checkout.root, None)
    assert "does not have" in found.note


# The folder.


def test_the_folder_is_empty_and_gone_afterwards(home: Home) -> None:
    with reproduce._folder(home, VERSION, keep=False) as root:
        assert list(root.iterdir()) == []
        (root / "left").write_text("by a killed process")
        kept = root
    assert not kept.exists()


def test_the_folder_is_kept_where_it_shall_be_until_the_next_time(home: Home) -> None:
    with reproduce._folder(home, VERSION, keep=True) as root:
        (root / "home").mkdir()
    assert (root / "home").exists()
    with reproduce._folder(home, VERSION, keep=False) as again:
        assert (again, list(again.iterdir())) == (root, [])


def test_nothing_is_kept_of_what_failed(home: Home) -> None:
    with pytest.raises(Fault), reproduce._folder(home, VERSION, keep=True) as root:
        raise Fault("died")
    assert not root.exists()


def test_two_at_once_do_not_take_each_other_s_folder(home: Home) -> None:
    with reproduce._folder(home, VERSION, keep=False) as root:
        (root / "work").mkdir()
        with pytest.raises(Mistake, match="version = '3': another process is making it again"):
            reproduce._folder(home, VERSION, keep=False).__enter__()
        assert (root / "work").exists()
        other = Registered(name="tiny", version="4", run_id="r", model_id="m")
        with reproduce._folder(home, other, keep=False) as beside:
            assert beside != root
    assert list(home.work.iterdir()) == []


# The process.


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a checkout whose `flows.rebuild` is a few lines."""

    def make(body: str) -> Path:
        (tmp_path / "stub" / "flows").mkdir(parents=True)
        (tmp_path / "stub" / "flows" / "__init__.py").write_text("")
        (tmp_path / "stub" / "flows" / "rebuild.py").write_text(
            f"import json, os, sys\njob = json.load(open(sys.argv[1]))\n{body}"
        )
        return tmp_path / "stub"

    return make


def job(tmp_path: Path) -> dict[str, Any]:
    return {"home": str(tmp_path / "anew"), "collect_key": "c"}


ANSWER = "json.dump({}, open(job['out'], 'w'))"


def test_it_is_made_by_the_code_of_then_in_another_home_and_store(
    tmp_path: Path, stub: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_STORE", "s3://elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/own/rows")
    told = "{'found': {'home': os.environ['HONE_HOME'], 'store': os.environ.get('HONE_STORE'), 'path': sys.path[:2]}}"
    code = stub(ANSWER.format(told))
    found = reproduce._rebuilt(tmp_path, job(tmp_path), code)
    assert found == {"home": str(tmp_path / "anew"), "store": None, "path": [str(code), "/own/rows"]}


def test_a_mistake_over_there_is_a_mistake_here(tmp_path: Path, stub: Callable[[str], Path]) -> None:
    problem = {"field": "collect.source", "value": "x.csv", "rule": "is gone", "remedy": "bring it back"}
    code = stub(ANSWER.format({"mistake": {"type": "DataError", "problems": [problem]}}))
    with pytest.raises(DataError, match=r"collect\.source = 'x\.csv': is gone; bring it back"):
        reproduce._rebuilt(tmp_path, job(tmp_path), code)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (ANSWER.format({"fault": "out of memory"}), "^out of memory$"),
        ("sys.exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", "ended with exit code -9"),
        ("", "ended with exit code 0"),
    ],
)
def test_a_process_that_fails_is_a_fault(tmp_path: Path, stub: Callable[[str], Path], body: str, told: str) -> None:
    with pytest.raises(Fault, match=told):
        reproduce._rebuilt(tmp_path, job(tmp_path), stub(body))


def test_what_the_process_says_is_no_part_of_the_answer(
    tmp_path: Path, stub: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    code = stub("print('chatter', flush=True)\n" + ANSWER.format({"found": {"rows": 1}}))
    assert reproduce._rebuilt(tmp_path, job(tmp_path), code) == {"rows": 1}
    assert capfd.readouterr() == ("", "chatter\n")


WAIT = """
import sys, threading, time, os
def end():
    sys.stdin.read()
    os._exit(1)
threading.Thread(target=end, daemon=True).start()
print("waits", os.getpid(), file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_process_never_outlives_who_started_it(how: signal.Signals) -> None:
    code = f"""
import sys
from flows.reproduce import _run
from flows.run import heed_signals
heed_signals()
_run([sys.executable, "-c", {WAIT!r}], {{}})
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    child = psutil.Process(int(parent.stderr.readline().split()[1]))
    began = time.monotonic()
    parent.send_signal(how)
    assert psutil.wait_procs([child], timeout=20)[1] == []
    parent.communicate(timeout=20)
    assert time.monotonic() - began < 20


def test_a_process_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "END_S", 0.2)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            reproduce._run([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [p for p in psutil.Process().children() if "time.sleep(60)" in " ".join(p.cmdline())] == []


# The comparison.


FOUND = {
    "weights_sha256": "w", "metrics": {"accuracy": 0.75, "f1/good": 0.5}, "rows": 9, "rows_from": "source",
    "seconds": 4.0, "plan": {"threads": 2, "class_weights": None, "reasons": {"threads": "every core"}},
}  # fmt: skip
PLAN = {"threads": "2", "class_weights": "None", "reasons": "other words"}


def test_equal_are_equal_weights_and_metrics() -> None:
    found = compare(VERSION, {"weights_sha256": "w"}, FOUND, {"accuracy": 0.75 + 1e-12}, PLAN)
    assert (found["equal"], found["metrics_compared"], found["metrics_differing"]) == (True, 1, {})
    assert (found["plan"], found["environment"]) == ({}, {})


@pytest.mark.parametrize(
    ("weights", "metrics", "differing"),
    [
        ("v", {"accuracy": 0.75}, []),
        ("w", {"accuracy": 0.76, "f1/good": 0.5}, ["accuracy"]),
        ("w", {"accuracy": 0.75, "mcc": 0.1}, ["mcc"]),
    ],
)
def test_one_difference_is_enough(weights: str, metrics: dict[str, float], differing: list[str]) -> None:
    found = compare(VERSION, {"weights_sha256": weights}, FOUND, metrics, PLAN)
    assert (found["equal"], list(found["metrics_differing"])) == (False, differing)


def test_what_may_explain_a_difference_is_told() -> None:
    known = {"weights_sha256": "w", "python": "2.7", "torch": reproduce.lineage_of(Path())["torch"], "train_key": "t"}
    found = compare(VERSION, known, FOUND, {}, PLAN | {"threads": "64"})
    assert found["plan"] == {"threads": {"recorded": "64", "rebuilt": "2"}}
    assert found["environment"] == {"python": {"recorded": "2.7", "rebuilt": sys.version.split()[0]}}


def test_the_answer_for_people_leads_with_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"weights_sha256": "0123456789abcdef0123"}
    found = compare(VERSION, known, FOUND, {"accuracy": 0.5}, PLAN | {"threads": "64"})
    reproduce._print(found | {"code": {"rebuilt": "c" * 40, "changed": True}, "home": None})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny version 3, made again in 4 s: DIFFERENT"
    assert "  weights      DIFFERENT: 0123456789abcdef… recorded, w… rebuilt" in lines
    assert "  metrics      0 of 1 equal" in lines
    assert "      accuracy: 0.5 recorded, 0.75 rebuilt" in lines
    assert "  code         commit cccccccccccc and what is not committed" in lines
    assert "  plan         threads 64 then, 2 now" in lines
    assert "  environment  the same" in lines


def test_a_version_without_lineage_cannot_be_made_again() -> None:
    with pytest.raises(Mistake, match="'3': was registered without weights_sha256 and collect_key; name a version"):
        reproduce._lineage(VERSION)


# The rows of then.


@pytest.fixture
def project(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Context]]:
    """Makes contexts of empty homes whose source has three rows."""
    source = tmp_path / "rows.csv"
    source.write_text("id,text,label\na,one good,good\nb,two bad,bad\nc,three good,good\n")
    collect = Collect.model_validate({"source": {"kind": "csv", "path": str(source)}, "id_column": "id"})

    def make(name: str) -> Context:
        monkeypatch.setenv("HONE_HOME", str(tmp_path / name))
        return Context(recipe.model_copy(update={"collect": collect}), Home.open(tmp_path), run_id="r")

    return make


def kept_of(context: Context) -> tuple[str, dict[str, Any]]:
    """Key of the rows that the source gives now, and where a store has them."""
    raw = rebuild.collect(context)
    kept = reproduce._kept(context.home, raw.key)
    assert kept is not None
    return raw.key, kept


def test_rows_come_from_the_source_while_it_still_gives_them(project: Callable[[str], Context]) -> None:
    key, kept = kept_of(project("then"))
    raw, from_source = rebuild.rows_of_then(project("anew"), key, kept)
    assert (raw.key, raw.summary["rows"], from_source) == (key, 3, True)


@pytest.mark.parametrize("what", ["changed", "gone"])
def test_rows_come_from_the_store_once_the_source_is_another(
    project: Callable[[str], Context], tmp_path: Path, what: str
) -> None:
    key, kept = kept_of(project("then"))
    if what == "gone":
        (tmp_path / "rows.csv").unlink()
    else:
        (tmp_path / "rows.csv").write_text("id,text,label\nz,something else,good\n")
    context = project("anew")
    raw, from_source = rebuild.rows_of_then(context, key, kept)
    assert (raw.key, raw.summary["rows"], from_source) == (key, 3, False)
    assert {file.name for file in (context.path(raw) / "rows").iterdir()} == {
        file.name for file in (Path(kept["folder"]) / "rows").iterdir()
    }


def test_rows_that_nobody_has_any_more_are_a_mistake_that_says_why(
    project: Callable[[str], Context], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"rows\.csv': no longer gives the rows of then, and the store does not have"):
        rebuild.rows_of_then(project("anew"), "another key", None)
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(DataError, match=r"rows\.csv': is not there, and the store does not have them"):
        rebuild.rows_of_then(project("again"), "another key", None)


def test_damaged_rows_of_the_store_are_not_believed(
    project: Callable[[str], Context], capsys: pytest.CaptureFixture[str]
) -> None:
    context = project("then")
    key, kept = kept_of(context)
    victim = next(path for path in Path(kept["folder"]).rglob("*.parquet"))
    victim.write_bytes(b"x" * victim.stat().st_size)
    assert reproduce._kept(context.home, key) is None
    assert "damaged in the store" in capsys.readouterr().err
    assert reproduce._kept(context.home, "unknown") is None


def test_rows_that_were_forgotten_stay_out_of_the_home_it_is_made_in(
    project: Callable[[str], Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    then = project("then")
    forgotten.remember(then.home, ["b"], [])
    key, _ = kept_of(then)
    monkeypatch.setattr(reproduce, "recorded_values", lambda home, version: then.recipe.model_dump(mode="json"))
    monkeypatch.setattr(reproduce, "recorded_plan", lambda home, version: {})
    version = Registered("tiny", "3", "r", "m", {"hone.weights_sha256": "w", "hone.collect_key": key})
    told = reproduce._job(then.home, version, tmp_path / "work")
    assert json.loads(json.dumps(told))["told"] == "tiny version 3"
    assert told["plan"] is None
    anew = Context(then.recipe, Home(Path(told["home"])), run_id="")
    for folder in (anew.home.locks, anew.home.digests):
        folder.mkdir(parents=True)
    raw, from_source = rebuild.rows_of_then(anew, told["collect_key"], None)
    assert (raw.key, raw.summary["rows"], from_source) == (key, 2, True)
    assert Store(anew.home.store, anew.home.materialised).find("collect", key) is not None


# The plan of then.


HERE = {
    "device": "cpu", "precision": "bf16", "attention": "sdpa", "threads": 8, "global_batch_size": 16,
    "micro_batch_tokens": 4_096, "steps": 40, "steps_per_epoch": 20, "warmup_steps": 3, "decay_steps": 0,
    "eval_steps": 10, "class_weights": None, "optimizer": "adamw",
    "label_smoothing": 0.0, "focal_gamma": 0.0, "preference_beta": 0.1, "activation_checkpointing": False,
    "memory_bytes": 0, "learning_rate": None, "reasons": {"threads": "every core"},
}  # fmt: skip


def followed(context: Context, monkeypatch: pytest.MonkeyPatch, **then: object) -> dict[str, Any]:
    """The plan that training finds once a plan of then was to be followed, which MLflow tells in words."""
    here = artifact(context, "plan", lambda out: None, **HERE)
    monkeypatch.setattr(rebuild, "plan_artifact", lambda *args: here)
    told = {name: str(value) for name, value in (HERE | then).items()}
    rebuild.follow(context, here, {name: reproduce._value(text) for name, text in told.items()})
    manifest = context.store.find("plan", here.key)
    assert manifest is not None
    return manifest.summary


def test_training_follows_the_plan_of_then_whatever_cores_there_are_now(
    project: Callable[[str], Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    then = {"threads": 2, "precision": "fp32", "class_weights": [0.1 + 0.2, 1.7], "micro_batch_tokens": 512}
    assert followed(project("anew"), monkeypatch, **then) == HERE | then


@pytest.mark.parametrize("then", [{"device": "cuda"}, {"precision": "fp4"}, {"flux": 3}])
def test_a_plan_that_cannot_be_followed_here_is_made_anew(
    project: Callable[[str], Context], monkeypatch: pytest.MonkeyPatch, then: dict[str, object]
) -> None:
    assert followed(project("anew"), monkeypatch, **then) == HERE


# A version that started from another one.


def test_what_a_version_started_from_is_handed_over(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(reproduce, "find", lambda home, name, version: asked.append((name, version)))
    monkeypatch.setattr(reproduce, "files_of", lambda home, before: tmp_path / "model")
    monkeypatch.setattr(reproduce, "hashes_file", lambda home, before: tmp_path / "hashes")
    found = reproduce._beginning(home, VERSION, "models:/tiny/2")
    assert found == reproduce.Beginning(tmp_path / "model", tmp_path / "hashes")
    assert asked == [("tiny", "2")]
    assert reproduce._beginning(home, VERSION, "package://somewhere/model") is None


def test_a_version_whose_beginning_is_gone_is_not_made_again(home: Home) -> None:
    with pytest.raises(Mistake, match="it started from models:/tiny/2, of which not all is there any more"):
        reproduce._beginning(home, VERSION, "models:/tiny/2")
