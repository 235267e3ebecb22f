from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.sources.hub_stand_in import TOKEN, Hub, stand_in_hub

CHECKOUT = Path(__file__).resolve().parents[3]
CSV = b"text,label\ngood,pos\nbad,neg\n"
WANTED = {"task.text_column": "text", "task.label_column": "label"}
NOT_ASKED = "f" * 40
PROGRAM = """
import json, sys
from pathlib import Path
from schemas.errors import HoneError
from schemas.sources import HubSource
from tasks import sources
from tasks.home import Home

answers = []
for asked in json.load(sys.stdin):
    answer = {}
    try:
        found = sources.pieces(HubSource(**asked["source"]), Home(Path(asked["home"])))
        answer["digests"] = [piece.digest for piece in found]
        answer["names"] = [piece.name for piece in found]
        answer["sides"] = [piece.side for piece in found]
        if asked["wanted"]:
            batches = [list(piece.read(asked["wanted"])) for piece in found]
            answer["columns"] = [list(of_piece[0].columns) for of_piece in batches]
            answer["rows"] = [[row for batch in of_piece for row in batch.values.rows()] for of_piece in batches]
            answer["numbers"] = [[n for batch in of_piece for n in batch.numbers.tolist()] for of_piece in batches]
    except HoneError as error:
        answer["error"], answer["type"] = str(error), type(error).__name__
    answers.append(answer)
print(json.dumps(answers))
"""


@pytest.fixture
def hub():
    with stand_in_hub() as hub:
        yield hub


class Asking:
    """Asks for sources in a process of its own, because the libraries read where the hub is when they are imported."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def __call__(self, *requests: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        asked = [
            {
                "source": {"dataset": "team/reviews"} | request.get("source", {}),
                "home": str(self.folder / "home"),
                "wanted": request.get("wanted", WANTED),
            }
            for request in requests
        ]
        # What could lead to the real hub, or to this user's own settings, is not handed on.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment = {"HF_ENDPOINT": self.hub.url} | environment
        ended = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM], input=json.dumps(asked), capture_output=True, text=True, timeout=120,
            cwd=self.folder, check=False,
            env=clean | {"HF_HOME": str(self.folder / "hf"), "PYTHONPATH": str(CHECKOUT)} | environment,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        answers = json.loads(ended.stdout)
        assert all("\n" not in answer.get("error", "") for answer in answers), answers
        return answers


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Asking:
    return Asking(hub, tmp_path)


def with_classes() -> bytes:
    """A Parquet file as `Dataset.push_to_hub` writes it: classes as numbers, their names in the schema."""
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]), stars=datasets.Value("int8"),
        tags=datasets.List(datasets.Value("string")),
    )  # fmt: skip
    rows = {"text": ["gut ü", "so so", "bad"], "label": [1, -1, 0], "stars": [5, 3, None], "tags": [["a"], [], None]}
    file = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return file.getvalue()


def test_the_rows_of_a_csv_come_at_the_commit_of_the_branch(hub, ask):
    first = hub.repository("team/reviews").commit({"data/train.csv": CSV, "README.md": b"# Reviews\n"})
    (answer,) = ask({})
    assert answer["rows"] == [[["good", "pos"], ["bad", "neg"]]]
    assert (answer["columns"], answer["numbers"]) == ([["text", "label"]], [[1, 2]])
    assert (answer["names"], answer["sides"]) == (["hf://datasets/team/reviews:train"], [None])

    hub.repository("team/reviews").commit({"data/train.csv": CSV + b"new,pos\n"})
    newer, pinned = ask({}, {"source": {"revision": first}})
    assert newer["rows"] == [[["good", "pos"], ["bad", "neg"], ["new", "pos"]]]
    assert newer["digests"] != answer["digests"]
    assert (pinned["digests"], pinned["rows"]) == (answer["digests"], answer["rows"])


def test_an_unchanged_data_set_costs_one_question_and_a_pinned_one_none(hub, ask):
    commit = hub.repository("team/reviews").commit({"data/train.csv": CSV})
    hub.repository("team/reviews").refs["v1"] = commit
    branch, tag, pinned = ask(*({"source": s, "wanted": None} for s in ({}, {"revision": "v1"}, {"revision": commit})))
    assert branch["digests"] == tag["digests"] == pinned["digests"]
    assert [line for line in hub.asked if "agent-harness" not in line] == [
        "GET /api/datasets/team/reviews",
        "GET /api/datasets/team/reviews/revision/v1",
    ]


def test_classes_become_their_names_and_lists_json(hub, ask):
    hub.repository("team/reviews").commit({"data/train-00000-of-00001.parquet": with_classes()})
    (answer,) = ask({"wanted": WANTED | {"a": "stars", "b": "tags"}})
    assert answer["rows"] == [[["gut ü", "pos", "5", '["a"]'], ["so so", None, "3", "[]"], ["bad", "neg", None, None]]]
    assert answer["columns"] == [["text", "label", "stars", "tags"]]


def test_several_splits_are_official_sides_and_a_configuration_is_chosen(hub, ask):
    card = (
        b"---\nconfigs:\n"
        b"- config_name: de\n  data_files:\n  - {split: train, path: de/a.csv}\n  - {split: test, path: de/b.csv}\n"
        b"- config_name: fr\n  data_files:\n  - {split: train, path: fr/a.csv}\n---\n"
    )
    german = {"de/a.csv": CSV, "de/b.csv": b"text,label\nheld out,pos\n"}
    hub.repository("team/reviews").commit({"README.md": card, "fr/a.csv": b"text,label\nbon,pos\n", **german})
    both, french, unnamed, unknown, no_split, no_column = ask(
        {"source": {"config": "de", "splits": ["train", "test"]}},
        {"source": {"config": "fr"}},
        {},
        {"source": {"config": "nl"}},
        {"source": {"config": "fr", "splits": ["test"]}},
        {"source": {"config": "fr"}, "wanted": {"task.text_column": "txt"}},
    )
    assert both["sides"] == ["train", "test"]
    assert both["rows"] == [[["good", "pos"], ["bad", "neg"]], [["held out", "pos"]]]
    assert len({*both["digests"], *french["digests"]}) == 3
    assert french["rows"] == [[["bon", "pos"]]]
    assert french["names"] == ["hf://datasets/team/reviews/fr:train"]
    for answer, says in {
        "unnamed": (unnamed, "collect.source.config: Config name is missing."),
        "unknown": (unknown, "collect.source.config = 'nl': BuilderConfig 'nl' not found. Available: ['de', 'fr']"),
        "no_split": (no_split, "collect.source.splits = 'test': Unknown split \"test\". Should be one of ['train']"),
        "no_column": (no_column, "task.text_column = 'txt': hf://datasets/team/reviews/fr:train has no such column"),
    }.values():
        assert answer["type"] == "DataError"
        assert says in answer["error"]


def test_a_gated_or_private_data_set_takes_a_token_from_the_environment(hub, ask):
    hub.repository("team/reviews", gated=True).commit({"data/train.csv": CSV})
    hub.repository("team/secret", private=True).commit({"data/train.csv": CSV})
    requests = ({}, {"source": {"dataset": "team/secret"}})
    for environment in ({}, {"HF_TOKEN": "hf_of_another"}):
        gated, private = ask(*requests, **environment)
        assert gated["type"] == private["type"] == "DataError"
        assert "'team/reviews': is gated; accept its terms at" in gated["error"]
        assert "and set HF_TOKEN" in gated["error"]
        assert "'team/secret': the hub has no such data set, or not for this token" in private["error"]
    gated, private = ask(*requests, HF_TOKEN=TOKEN)
    assert gated["rows"] == private["rows"] == [[["good", "pos"], ["bad", "neg"]]]
    assert TOKEN not in json.dumps([gated, private])


def test_what_is_not_there_or_is_no_table_is_a_mistake(hub, ask, tmp_path):
    hub.repository("team/reviews").commit({"data/train.csv": CSV})
    hub.repository("team/script").commit({"script.py": b"print('never run')\n"})
    hub.repository("team/empty").commit({".gitattributes": b"\n"})
    hub.repository("team/damaged").commit({"data/train.parquet": b"PAR1 and nothing more"})
    hub.repository("team/hidden").commit({"data/train.csv": CSV})
    (tmp_path / "team" / "hidden").mkdir(parents=True)
    expected = {
        "no such data set": {"dataset": "team/nothing"},
        "collect.source.revision = 'v9': team/reviews has no such revision": {"revision": "v9"},
        "team/reviews has no such revision": {"revision": NOT_ASKED},
        "Dataset scripts are no longer supported": {"dataset": "team/script"},
        "cannot be read": {"dataset": "team/empty"},
        "'team/damaged': cannot be read: ": {"dataset": "team/damaged"},
        "a file or folder of this name would be read in its place": {"dataset": "team/hidden"},
    }
    answers = ask(*({"source": source} for source in expected.values()))
    for says, answer in zip(expected, answers, strict=True):
        assert answer.get("type") == "DataError", (says, answer)
        assert says in answer["error"]


def test_a_hub_that_fails_is_worth_another_try(hub, ask):
    hub.broken = True
    for environment in ({}, {"HF_ENDPOINT": unreachable()}):
        (answer,) = ask({}, **environment)
        assert answer["type"] == "Fault", answer


@pytest.mark.slow
def test_a_hub_that_fails_while_it_is_read_is_worth_another_try(hub, ask):
    commit = hub.repository("team/reviews").commit({"data/train.csv": CSV})
    hub.broken = True
    for environment in ({}, {"HF_ENDPOINT": unreachable()}):
        (answer,) = ask({"source": {"revision": commit}}, **environment)
        assert answer["type"] == "Fault", answer


def unreachable() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_offline_a_pinned_commit_is_known_and_everything_else_says_what_to_do(hub, ask):
    commit = hub.repository("team/reviews").commit({"data/train.csv": CSV})
    branch, pinned, read = ask(
        {"wanted": None},
        {"source": {"revision": commit}, "wanted": None},
        {"source": {"revision": commit}},
        HF_HUB_OFFLINE="1",
    )
    assert len(pinned["digests"]) == 1
    for answer in (branch, read):
        assert answer["type"] == "EnvironmentMistake"
        assert "HF_HUB_OFFLINE forbids asking the hub; unset HF_HUB_OFFLINE" in answer["error"]
    assert hub.asked == []
