from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from schemas.errors import Fault, Mistake
from tasks import outbox, registry
from tasks.home import Home
from tasks.promotion_journal import Move, history
from tasks.registry import promote, promote_by_hand, reconcile, rollback, rollback_by_hand

pytest_plugins = ("tests.mlflow_home",)

NAME = "tiny"
ME: dict[str, str] = {"by": "me", "reason": "better"}


class Died(BaseException):
    """As if the process were killed."""


@pytest.fixture
def mlflow(home: Home) -> MlflowClient:
    """Five versions that passed the gate; none serves."""
    client = MlflowClient(home.mlflow_uri)
    client.create_registered_model(NAME)
    for _ in range(5):
        client.create_model_version(NAME, "s3://nowhere", tags={"hone.gate": "promote"})
    return client


@pytest.fixture
def other(home: Home, mlflow: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Another home on the same MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home.mlflow_uri)
    second = Home(tmp_path / "other")
    for folder in (second.locks, second.journal):
        folder.mkdir(parents=True)
    return second


def serving(mlflow: MlflowClient) -> str | None:
    return registry.aliases_of(mlflow, NAME).get("champion")


def tags(mlflow: MlflowClient, number: str) -> dict[str, str]:
    return mlflow.get_model_version(NAME, number).tags


def moves(home: Home) -> list[tuple[str, str | None, str | None]]:
    return [(line["event"], line["before"], line["to"]) for line in history(home)]


def serve_in_turn(home: Home, *numbers: str) -> None:
    for number in numbers:
        promote_by_hand(home, NAME, number, override=True, **ME)


def dying(patch: pytest.MonkeyPatch, name: str) -> None:
    def die(*args: Any, **named: Any) -> None:
        raise Died

    patch.setattr(registry, name, die)


def test_an_environment_takes_no_models_but_copies(home: Home, mlflow: MlflowClient) -> None:
    registry.refuse_environment(home, NAME)
    registry.refuse_environment(home, "new")
    mlflow.set_registered_model_tag(NAME, registry.ENVIRONMENT_OF, "small")
    with pytest.raises(Mistake, match=r"registry\.name = 'tiny': is an environment of small; name another model"):
        registry.refuse_environment(home, NAME)


# What a person asks for.


def test_the_challenger_is_promoted_when_no_version_is_named(home: Home, mlflow: MlflowClient) -> None:
    mlflow.set_registered_model_alias(NAME, "challenger", "3")
    change = promote_by_hand(home, NAME, by="ada", reason="fewer complaints")
    assert (change.to, change.champion, change.before) == ("3", "3", None)
    assert registry.aliases_of(mlflow, NAME) == {"champion": "3"}
    assert tags(mlflow, "3")["hone.promoted"].endswith(", by ada: fewer complaints")
    assert [(line["event"], line["by"], line["reason"]) for line in history(home)] == [
        ("intent", "ada", "fewer complaints"),
        ("confirmed", "ada", "fewer complaints"),
    ]


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        ("reject", "it failed the gate"),
        ("failed", "it failed the gate"),
        ("challenger", "the gate did not find it better than the champion"),
        ("undecidable", "the gate had too few test rows to decide"),
        (None, "no gate has judged it"),
    ],
)
def test_a_version_that_the_gate_did_not_let_through_needs_an_override(
    home: Home, mlflow: MlflowClient, gate: str | None, why: str
) -> None:
    mlflow.delete_model_version_tag(NAME, "2", "hone.gate")
    if gate:
        mlflow.set_model_version_tag(NAME, "2", "hone.gate", gate)
    with pytest.raises(Mistake) as refusal:
        promote_by_hand(home, NAME, "2", **ME)
    assert str(refusal.value) == (
        f"version = '2': {why}; to let it serve all the same, promote it with --override and --reason"
    )
    assert serving(mlflow) is None
    assert promote_by_hand(home, NAME, "2", override=True, **ME).champion == "2"


def test_what_older_versions_call_passed_is_promoted(home: Home, mlflow: MlflowClient) -> None:
    mlflow.set_model_version_tag(NAME, "2", "hone.gate", "passed")
    assert promote_by_hand(home, NAME, "2", **ME).champion == "2"


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("tinny", "1", "model = 'tinny': nothing of that name is registered; did you mean tiny?"),
        (
            "else",
            None,
            "model = 'else': nothing of that name is registered; run a recipe first, which registers its model",
        ),
        ("tiny", "9", "version = '9': tiny has no such version; name a version; the latest are 5, 4, 3, 2, 1"),
        ("tiny", "best", "version = 'best': tiny has no such version; name a version; the latest are 5, 4, 3, 2, 1"),
        ("tiny", None, "version: no version of tiny waits as challenger, and none serves; name a version"),
    ],
)
def test_what_is_not_there_is_named_with_a_remedy(
    home: Home, mlflow: MlflowClient, name: str, version: str | None, said: str
) -> None:
    with pytest.raises(Mistake) as refusal:
        promote_by_hand(home, name, version, **ME)
    assert str(refusal.value) == said
    assert history(home) == []


def test_promoting_the_champion_does_nothing_whatever_the_gate_says_by_now(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1")
    mlflow.set_model_version_tag(NAME, "1", "hone.gate", "reject")
    change = promote_by_hand(home, NAME, "01", **ME)
    assert (change.to, change.champion, change.before) == ("1", "1", "1")
    assert len(history(home)) == 2


def test_a_decision_against_a_champion_that_was_replaced_meanwhile_is_refused(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    existing = registry._existing

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(registry, "_existing", existing)
        serve_in_turn(home, "2")
        return existing(*args)

    monkeypatch.setattr(registry, "_existing", meanwhile)
    with pytest.raises(Mistake, match="measured against champion 1"):
        promote_by_hand(home, NAME, "3", **ME)
    assert serving(mlflow) == "2"


def test_a_rollback_takes_back_what_served_when_it_was_asked_for_or_nothing(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1", "2", "3")
    with pytest.raises(Mistake, match=r"champion = '3': version 2 of tiny was to be rolled back"):
        rollback(home, NAME, expected_champion="2", **ME)
    assert serving(mlflow) == "3"


def test_a_version_may_be_named_by_an_alias(home: Home, mlflow: MlflowClient) -> None:
    mlflow.set_registered_model_alias(NAME, "challenger", "3")
    mlflow.set_registered_model_alias(NAME, "candidate", "4")
    assert registry.wanted(home, NAME, "candidate").version == "4"
    assert registry.wanted(home, NAME, "2").version == "2"
    with pytest.raises(Mistake, match="tiny has no such version"):
        registry.wanted(home, NAME, "champion")
    assert promote_by_hand(home, NAME, "candidate", **ME).champion == "4"


# Where a rollback goes.


def test_rollbacks_go_back_champion_by_champion(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1", "2", "3")
    assert [rollback_by_hand(home, NAME, **ME).champion for _ in range(3)] == ["2", "1", None]
    assert {number for number in "12345" if "hone.rolled_back" in tags(mlflow, number)} == {"1", "2", "3"}


def test_a_rollback_passes_over_versions_that_were_rolled_back_or_deleted(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1", "2", "3")
    rollback_by_hand(home, NAME, **ME)  # 3 is bad; 2 serves
    serve_in_turn(home, "4", "5")
    mlflow.delete_model_version(NAME, "4")
    assert rollback_by_hand(home, NAME, **ME).champion == "2"
    serve_in_turn(home, "3")  # by override
    mlflow.delete_model_version(NAME, "2")
    assert rollback_by_hand(home, NAME, **ME).champion == "1"


def test_two_versions_that_took_turns_are_not_rolled_back_for_ever(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1", "2", "1")
    assert rollback_by_hand(home, NAME, **ME).champion == "2"
    assert rollback_by_hand(home, NAME, **ME).champion is None


def test_a_promotion_by_override_lifts_the_mark_of_a_rollback(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1", "2")
    rollback_by_hand(home, NAME, **ME)
    with pytest.raises(Mistake, match=r"version = '2': was rolled back: until .*, by me: better; to let it return"):
        promote_by_hand(home, NAME, "2", **ME)
    serve_in_turn(home, "2", "3")
    assert rollback_by_hand(home, NAME, **ME).champion == "2"


def test_a_champion_of_unknown_origin_is_not_rolled_back_to_nothing(home: Home, mlflow: MlflowClient) -> None:
    mlflow.set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(Mistake, match="champion = '2': nobody knows which version of tiny served before"):
        rollback_by_hand(home, NAME, **ME)
    assert serving(mlflow) == "2"
    serve_in_turn(home, "3")
    assert rollback_by_hand(home, NAME, **ME).champion == "2"


# What a crash leaves.

STEPS = (
    "get_registered_model", "get_model_version", "set_registered_model_alias", "delete_registered_model_alias",
    "set_registered_model_tag", "set_model_version_tag", "delete_model_version_tag", "note",
)  # fmt: skip


def die_at(patch: pytest.MonkeyPatch, point: int, *, after: bool) -> list[str]:
    """Let the process end before or after its n-th request or line of the journal; returns what it got to."""
    passed: list[str] = []

    def stepping(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            passed.append(name)
            if len(passed) == point and not after:
                raise Died
            result = call(*args, **named)
            if len(passed) == point:
                raise Died
            return result

        return step

    for name in STEPS:
        owner = Move if name == "note" else MlflowClient
        patch.setattr(owner, name, stepping(name, getattr(owner, name)))
    return passed


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_wherever_a_command_dies_the_next_one_makes_the_move_or_leaves_no_trace(
    home: Home, mlflow: MlflowClient, verb: str, after: bool
) -> None:
    serve_in_turn(home, "1", "2")
    mlflow.set_registered_model_alias(NAME, "challenger", "3")
    ends = set()
    for point in range(1, 40):
        before, lines = serving(mlflow), len(history(home))
        with pytest.MonkeyPatch.context() as patch:
            passed = die_at(patch, point, after=after)
            try:
                if verb == "promote":
                    promote_by_hand(home, NAME, "4" if before == "3" else "3", override=True, **ME)
                else:
                    rollback_by_hand(home, NAME, **ME)
            except Died:
                pass
        died = len(passed) == point
        reconcile(home)
        assert reconcile(home) == []
        new = [line["event"] for line in history(home)[lines:]]
        assert new in ([], ["intent", "confirmed"])
        assert (serving(mlflow) != before) == bool(new)
        if new:
            last = history(home)[-1]
            assert (last["before"], last["to"]) == (before, serving(mlflow))
            word = "hone.rolled_back" if verb == "rollback" else "hone.was_champion"
            assert "by me: better" in tags(mlflow, last["before"])[word]
            assert registry.last_move(mlflow.get_registered_model(NAME))["id"] == last["id"]
            assert verb == "rollback" or tags(mlflow, last["to"])["hone.champion_before"] == before
            assert registry.aliases_of(mlflow, NAME).get("challenger") != last["to"]
        ends.add((died, bool(new)))
        if verb == "rollback" and new:
            serve_in_turn(home, before)
        if not died:
            break
    assert ends == {(True, False), (True, True), (False, True)}


def test_a_rollback_that_is_asked_for_again_after_a_crash_takes_back_one_version(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1", "2", "3")
    for cut_short in ("_set_champion", "_finish"):
        before = serving(mlflow)
        with monkeypatch.context() as patch, pytest.raises(Died):
            dying(patch, cut_short)
            rollback_by_hand(home, NAME, **ME)
        rollback_by_hand(home, NAME, **ME)
        assert serving(mlflow) == str(int(before or "") - 1)


def test_a_version_that_was_deleted_meanwhile_is_undone_and_blocks_nobody(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    with monkeypatch.context() as patch, pytest.raises(Died):
        dying(patch, "_set_champion")
        promote_by_hand(home, NAME, "2", **ME)
    mlflow.delete_model_version(NAME, "2")
    (undone,) = reconcile(home)
    assert (undone["event"], undone["to"]) == ("undone", "2")
    assert "not found" in undone["why"]
    assert promote_by_hand(home, NAME, "3", **ME).champion == "3"


def test_a_version_that_is_deleted_under_way_is_a_mistake(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    make = registry._set_champion

    def deleted(*args: Any) -> None:
        mlflow.delete_model_version(NAME, "2")
        make(*args)

    monkeypatch.setattr(registry, "_set_champion", deleted)
    with pytest.raises(Mistake, match=r"version = '2': MLflow does not let it serve: .*not found"):
        promote_by_hand(home, NAME, "2", **ME)
    assert moves(home)[-2:] == [("intent", "1", "2"), ("undone", "1", "2")]
    assert reconcile(home) == []


def test_a_whole_model_that_was_deleted_meanwhile_blocks_nobody(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    with monkeypatch.context() as patch, pytest.raises(Died):
        dying(patch, "_set_champion")
        promote_by_hand(home, NAME, "2", **ME)
    mlflow.delete_registered_model(NAME)
    assert [line["event"] for line in reconcile(home)] == ["undone", "by hand"]
    assert reconcile(home) == []


def test_a_promotion_that_a_person_took_back_after_the_crash_is_not_made_again(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    with monkeypatch.context() as patch, pytest.raises(Died):
        without_last_word(patch, "confirmed")
        promote_by_hand(home, NAME, "2", **ME)
    mlflow.set_registered_model_alias(NAME, "champion", "1")
    assert [(line["event"], line["to"]) for line in reconcile(home)] == [("confirmed", "2"), ("by hand", "1")]
    assert serving(mlflow) == "1"


def without_last_word(patch: pytest.MonkeyPatch, word: str) -> None:
    whole = Move.note

    def note(move: Move, home: Home, event: str, **more: Any) -> Any:
        if event == word:
            raise Died
        return whole(move, home, event, **more)

    patch.setattr(Move, "note", note)


# The journal.


@pytest.mark.parametrize("cut", [1, 2, 3, 30, 200])
def test_a_line_cut_anywhere_is_passed_over_and_swallows_no_other(home: Home, mlflow: MlflowClient, cut: int) -> None:
    promote_by_hand(home, NAME, "1", by="me", reason="schön 漢字" * 20)
    file = home.journal / "promotions.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    reconcile(home)
    assert promote_by_hand(home, NAME, "2", **ME).champion == "2"
    # Without its line's end alone, the first promotion was on record already.
    assert moves(home) == [
        *[("intent", None, "1"), ("confirmed", None, "1")],
        ("intent", "1", "2"),
        ("confirmed", "1", "2"),
    ]


def test_a_reason_may_hold_any_character(home: Home, mlflow: MlflowClient) -> None:
    reason = 'a\u2028b\u0085c\x0b"d"\nnull'
    promote_by_hand(home, NAME, "1", by="me", reason=reason)
    assert [line["reason"] for line in history(home)] == [reason, reason]
    assert reconcile(home) == []


# People and other homes.


def test_a_version_moved_by_hand_is_tagged_as_if_hone_had_moved_it(
    home: Home, mlflow: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    serve_in_turn(home, "1", "2")
    rollback_by_hand(home, NAME, **ME)
    mlflow.set_model_version_tag(NAME, "2", "hone.gate", "undecidable")
    for alias in ("champion", "challenger"):
        mlflow.set_registered_model_alias(NAME, alias, "2")
    (noted,) = reconcile(home)
    assert (noted["event"], noted["before"], noted["to"]) == ("by hand", "1", "2")
    assert "made champion by hand although the gate had too few test rows to decide" in caplog.text
    assert registry.aliases_of(mlflow, NAME) == {"champion": "2"}
    assert "hone.rolled_back" not in tags(mlflow, "2")
    assert tags(mlflow, "2")["hone.promoted"].endswith("by a person: moved outside hone")


def register(mlflow: MlflowClient, name: str, *, tags: dict[str, str] | None = None) -> None:
    """A version as a run of hone leaves it."""
    if registry.aliases_of(mlflow, name) == {} and not mlflow.search_registered_models(f"name = '{name}'"):
        mlflow.create_registered_model(name)
    given = {"hone.identity": "0f", "hone.gate": "reject"} if tags is None else tags
    mlflow.create_model_version(name, "s3://nowhere", tags=given)


def test_a_model_that_was_only_registered_is_noted_when_a_person_lets_it_serve(
    home: Home, mlflow: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    register(mlflow, "new")
    assert reconcile(home) == []
    mlflow.set_registered_model_alias("new", "champion", "1")
    (noted,) = reconcile(home)
    assert {key: noted[key] for key in ("name", "event", "before", "to", "decision")} == {
        "name": "new", "event": "by hand", "before": None, "to": "1", "decision": "reject",
    }  # fmt: skip
    assert "new version 1 was made champion by hand although it failed the gate" in caplog.text
    assert mlflow.get_model_version("new", "1").tags["hone.champion_before"] == ""
    assert reconcile(home) == []
    mlflow.delete_registered_model_alias("new", "champion")
    assert [(line["before"], line["to"]) for line in reconcile(home, "new")] == [("1", None)]


def test_models_that_hone_did_not_register_are_nobodys_business(home: Home, mlflow: MlflowClient) -> None:
    register(mlflow, "foreign", tags={})
    mlflow.set_registered_model_alias("foreign", "champion", "1")
    mlflow.set_registered_model_alias(NAME, "champion", "2")
    assert reconcile(home) == []


def test_what_another_home_did_with_its_own_model_is_not_noted_here_but_a_persons_move_is(
    home: Home, other: Home, mlflow: MlflowClient
) -> None:
    for _ in range(2):
        register(mlflow, "theirs")
    promote_by_hand(other, "theirs", "1", override=True, **ME)
    assert reconcile(home) == []
    mlflow.set_registered_model_alias("theirs", "champion", "2")
    assert [(line["event"], line["before"], line["to"]) for line in reconcile(home)] == [("by hand", "1", "2")]
    assert [(line["event"], line["before"], line["to"]) for line in reconcile(other)] == [("elsewhere", "1", "2")]


def test_a_round_without_news_is_one_request_however_many_models_there_are(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    for number in range(4):
        register(mlflow, f"more-{number}")
        promote_by_hand(home, f"more-{number}", "1", override=True, **ME)
    asked = []
    for request in [name for name in dir(MlflowClient) if name.startswith(("get_", "search_"))]:
        whole = getattr(MlflowClient, request)
        monkeypatch.setattr(
            MlflowClient, request, lambda *a, _r=request, _w=whole, **n: (asked.append(_r), _w(*a, **n))[1]
        )
    assert reconcile(home) == []
    assert asked == ["search_registered_models"]


def test_the_journal_says_what_the_gate_had_said(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1")
    mlflow.set_model_version_tag(NAME, "2", "hone.gate", "challenger")
    serve_in_turn(home, "2")
    rollback_by_hand(home, NAME, **ME)
    said = [(line["to"], line["decision"]) for line in history(home) if line["event"] == "confirmed"]
    assert said == [("1", "promote"), ("2", "challenger"), ("1", "promote")]


def test_a_move_by_hand_is_noted_once_wherever_the_noting_was_cut_short(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1")
    for number, cut_short in (("2", "_tell"), ("3", "_mark"), ("4", "by hand")):
        mlflow.set_registered_model_alias(NAME, "champion", number)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
            without_last_word(patch, "by hand") if cut_short == "by hand" else dying(patch, cut_short)
            reconcile(home)
        reconcile(home)
        assert reconcile(home) == []
    assert moves(home)[2:] == [("by hand", "1", "2"), ("by hand", "2", "3"), ("by hand", "3", "4")]
    assert tags(mlflow, "4")["hone.champion_before"] == "3"


def test_a_move_in_another_home_is_told_from_a_persons(home: Home, other: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1")
    promote_by_hand(other, NAME, "2", by="ada", reason="sharper")
    promote_by_hand(other, NAME, "3", by="ada", reason="sharper yet")
    (noted,) = reconcile(home)
    assert {key: noted[key] for key in ("event", "before", "to", "by", "reason", "host")} == {
        "event": "elsewhere", "before": "1", "to": "3", "by": "ada", "reason": "sharper yet",
        "host": socket.gethostname(),
    }  # fmt: skip
    assert reconcile(home) == []
    # The tags are the other home's, which knows better who served in between.
    assert rollback_by_hand(home, NAME, by="me", reason="no").champion == "2"
    assert [(line["event"], line["to"], line["rolls_back"]) for line in reconcile(other)] == [("elsewhere", "2", True)]


def test_a_hand_move_after_another_homes_is_noted_after_it_and_once(
    home: Home, other: Home, mlflow: MlflowClient
) -> None:
    serve_in_turn(home, "1")
    serve_in_turn(other, "2")
    mlflow.set_registered_model_alias(NAME, "champion", "3")
    assert [(line["event"], line["before"], line["to"]) for line in reconcile(home)] == [
        ("elsewhere", "1", "2"), ("by hand", "2", "3"),
    ]  # fmt: skip
    assert [(line["event"], line["before"], line["to"]) for line in reconcile(other)] == [("elsewhere", "2", "3")]
    assert tags(mlflow, "3")["hone.champion_before"] == "2"
    assert rollback_by_hand(other, NAME, **ME).champion == "2"


def test_of_two_homes_that_promote_at_once_the_later_wins_and_both_record_it(
    home: Home, other: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    finish = registry._finish

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(registry, "_finish", finish)
        promote(other, NAME, "3", expected_champion="2", by="ada", reason="sharper")
        return finish(*args)

    monkeypatch.setattr(registry, "_finish", meanwhile)
    change = promote_by_hand(home, NAME, "2", **ME)
    assert (change.to, change.champion) == ("2", "3")
    for one in (home, other):
        reconcile(one)
        assert reconcile(one) == []
        assert history(one)[-1]["to"] == serving(mlflow) == "3"


def test_a_move_cut_short_is_undone_when_another_home_moved_there_and_back(
    home: Home, other: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    with monkeypatch.context() as patch, pytest.raises(Died):
        dying(patch, "_set_champion")
        promote_by_hand(home, NAME, "2", **ME)
    serve_in_turn(other, "3")
    rollback_by_hand(other, NAME, **ME)
    assert [line["event"] for line in reconcile(home)] == ["undone"]
    assert serving(mlflow) == "1"


def test_what_a_person_writes_into_hones_tag_harms_nobody(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1")
    for text in ("", "mine", "[1]", '{"to": "2"}'):
        mlflow.set_registered_model_tag(NAME, "hone.last_move", text)
        assert reconcile(home) == []
    assert promote_by_hand(home, NAME, "2", **ME).champion == "2"


# Waiting.


def test_a_model_that_another_process_moves_is_left_to_it(home: Home, mlflow: MlflowClient) -> None:
    serve_in_turn(home, "1")
    mlflow.set_registered_model_alias(NAME, "champion", "2")
    with registry._lock(home, NAME):
        assert reconcile(home) == []
    assert len(reconcile(home)) == 1


def test_a_lock_that_is_never_freed_ends_in_a_fault_not_in_waiting_for_ever(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "SAID_AFTER_S", 0.1)
    monkeypatch.setattr(registry, "LOCK_S", 0.2)
    with registry._lock(home, NAME), pytest.raises(Fault, match="another process has been moving the champion of tiny"):
        promote_by_hand(home, NAME, "1", **ME)
    assert "another process is moving the champion of tiny; waiting for it" in caplog.text
    assert history(home) == []
    assert promote_by_hand(home, NAME, "1", **ME).champion == "1"


def test_an_mlflow_that_accepts_and_never_answers_is_a_fault(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MUST_S", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Fault, match="is away"):
            promote_by_hand(home, NAME, "1", **ME)
        with registry._lock(home, NAME).acquire(blocking=False):
            pass


def test_mlflow_going_away_in_mid_move_leaves_what_the_next_command_finishes(
    home: Home, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_in_turn(home, "1")
    monkeypatch.setattr(outbox, "MUST_S", 0.2)

    def away(*args: Any) -> None:
        raise ConnectionError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_model_version_tag", away)
        with pytest.raises(Fault, match="is away"):
            promote_by_hand(home, NAME, "2", **ME)
    assert [line["event"] for line in reconcile(home)] == ["confirmed"]
    assert (serving(mlflow), tags(mlflow, "2")["hone.champion_before"]) == ("2", "1")
