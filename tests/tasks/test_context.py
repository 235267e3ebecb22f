from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.loading import validate_recipe
from tasks.context import Context, Observer
from tasks.home import Home

CALLS: list[str] = []


def write_text(text, out, before=None):
    CALLS.append("write_text")
    (out / "text.txt").write_text(text)
    return {"chars": len(text)}


def double(source, out):
    CALLS.append("double")
    (out / "text.txt").write_text(2 * (source / "text.txt").read_text())
    return {}


def fail_once(work, out):
    CALLS.append("fail_once")
    done = work / "half"
    if not done.exists():
        done.write_text("")
        raise RuntimeError("died half-way")
    (out / "text.txt").write_text("whole")
    return {}


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    CALLS.clear()
    recipe = validate_recipe(
        {"name": "r", "task": {"family": "text-classification"}, "model": {"base": "b"},
         "collect": {"source": {"kind": "csv", "path": "x.csv"}}}
    )  # fmt: skip
    return lambda **options: Context(recipe, Home.open(tmp_path), "run", **options)


def chain(context, text="a"):
    first = context.artifact("collect", write_text, settings={"text": text})
    return first, context.artifact("clean", double, settings={}, inputs={"source": first})


def test_a_second_run_computes_nothing(make):
    chain(make())
    again = chain(make())
    assert CALLS == ["write_text", "double"]
    assert [artifact.cached for artifact in again] == [True, True]


def test_a_changed_setting_reruns_its_stage_and_all_after_and_says_why(make):
    chain(make())
    first, second = chain(make(), "b")
    assert CALLS == ["write_text", "double"] * 2
    assert first.why == 'text "a" → "b"'
    assert second.why == "source changed"


def test_refresh_reruns_the_stage_and_all_after_it_though_nothing_changed(make):
    chain(make())
    first, second = chain(make(refresh="clean"))
    assert CALLS == ["write_text", "double", "double"]
    assert (first.cached, second.cached) == (True, False)
    assert second.why == "refresh: clean"


def test_a_truncated_file_makes_exactly_that_stage_run_again(make):
    context = make()
    first, _ = chain(context)
    (context.path(first) / "text.txt").write_text("")
    first, second = chain(make())
    assert CALLS == ["write_text", "double", "write_text"]
    assert first.why == "damaged: text.txt has 0 bytes, not 1"
    assert second.cached


def test_a_deleted_artifact_makes_exactly_that_stage_run_again(make):
    import shutil

    context = make()
    first, _ = chain(context)
    shutil.rmtree(context.path(first))
    first, second = chain(make())
    assert CALLS == ["write_text", "double", "write_text"]
    assert (first.why, second.cached) == ("gone from the store", True)


def test_other_bytes_of_the_same_size_are_computed_again_when_they_are_read(make):
    context = make()
    first, _ = chain(context)
    (context.path(first) / "text.txt").write_text("X")
    again = make(refresh="clean")
    _, second = chain(again)
    assert sorted(CALLS) == ["double", "double", "write_text", "write_text"]
    assert (again.path(second) / "text.txt").read_text() == "aa"


def test_work_in_progress_outlives_a_failure_and_goes_with_success(make):
    context = make()

    def run():
        return context.artifact("train", fail_once, settings={}, work_settings={})

    with pytest.raises(RuntimeError):
        run()
    assert [p.name.startswith("train-") for p in context.home.work.iterdir()] == [True]
    assert (context.path(run()) / "text.txt").read_text() == "whole"
    assert list(context.home.work.iterdir()) == []


def test_two_runs_at_once_compute_an_artifact_once(make):
    context = make()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(chain, [context] * 8))
    assert CALLS == ["write_text", "double"]


def test_the_observer_hears_of_what_is_computed_and_of_nothing_else(make):
    heard = []

    class Listener(Observer):
        def computing(self, stage):
            heard.append(stage)

    chain(make(observer=Listener()))
    chain(make(observer=Listener()))
    assert heard == ["collect", "clean"]


def test_a_summary_can_be_replaced_under_the_same_key(make):
    context = make()
    first, _ = chain(context)
    context.replace(first, {"chars": 99})
    again, _ = chain(make())
    assert (again.cached, again.summary) == (True, {"chars": 99})


def test_of_many_inputs_it_is_told_how_many_are_new(make):
    def gathered(*texts):
        context = make()
        parts = [
            context.artifact("collect-part", write_text, settings={"text": text}, part_of="collect", part=str(number))
            for number, text in enumerate(texts)
        ]
        return context.artifact("clean", join, settings={}, inputs={"sources": parts}), context

    gathered("a", "b")
    again, _ = gathered("a", "b")
    assert again.cached
    more, context = gathered("a", "b", "c")
    assert (more.cached, more.why) == (False, "1 of 3 sources new")
    assert (context.path(more) / "text.txt").read_text() == "abc"
    assert CALLS == ["write_text", "write_text", "write_text"]


def test_what_the_user_changed_is_told_before_what_the_plan_made_of_it(make):
    settings = {"plan": {"steps": 9, "warmup": 1, "tail": 2, "evals": 3}, "train": {"rate": 1}}
    changed = {"plan": {"steps": 8, "warmup": 2, "tail": 3, "evals": 4}, "train": {"rate": 2}}
    make().artifact("train", ignore, settings=settings)
    assert make().artifact("train", ignore, settings=changed).why.startswith("train.rate 1 → 2; plan.")


def test_of_a_long_list_it_is_told_how_much_is_new(make):
    make().artifact("train", ignore, settings={"plan": 1, "train": {"names": list("abcd"), "few": ["x"]}})
    changed = make().artifact("train", ignore, settings={"plan": 1, "train": {"names": list("abce"), "few": ["y"]}})
    assert changed.why == 'train.few ["x"] → ["y"]; 1 of 4 names new'


def join(*, sources, out):
    (out / "text.txt").write_text("".join((folder / "text.txt").read_text() for folder in sources))
    return {}


def ignore(*, plan, train, out):
    (out / "text.txt").write_text("")
    return {}
