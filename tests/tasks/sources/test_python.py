from __future__ import annotations

import sys
from pathlib import Path

import pytest

from schemas.errors import DataError, Fault
from schemas.sources import PythonSource
from tasks import sources
from tasks.home import Home
from tasks.sources.snapshot import FOLDER

WANTED = {"task.text_column": "text", "task.label_column": "label"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the user's module `feeds`, to be imported anew."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(code: str) -> Path:
        sys.modules.pop("feeds", None)
        (folder / "feeds.py").write_text(code)
        return folder / "feeds.py"

    yield write
    sys.modules.pop("feeds", None)


def pieces(tmp_path: Path, **fields):
    return sources.pieces(PythonSource(**{"callable": "python://feeds:rows"} | fields), Home(tmp_path / "home"))


def rows(piece: sources.Piece, wanted: dict[str, str] = WANTED) -> list[tuple]:
    return [row for batch in piece.read(wanted) for row in batch.values.rows()]


def test_rows_become_text_as_those_of_json_do(tmp_path, module):
    module(
        "def rows(start, tags=()):\n"
        "    yield {'text': 'good', 'label': start}\n"
        "    yield {'label': None, 'text': {'a': list(tags)}, 'more': 1}\n"
        "    yield {}\n"
    )
    (piece,) = pieces(tmp_path, arguments={"start": 3, "tags": ["ü", True]})
    assert rows(piece) == [("good", "3"), ('{"a": ["ü", true]}', None), (None, None)]
    assert (piece.name, piece.field, piece.side) == ("python://feeds:rows", "collect.source.callable", None)
    assert [list(batch.columns) for batch in piece.read(WANTED)] == [["text", "label", "more"]]


def test_more_than_a_batch_of_rows_comes_whole_and_in_order(tmp_path, module):
    module("def rows():\n    return ({'text': f't{n}', 'label': 'a'} for n in range(120_001))")
    (piece,) = pieces(tmp_path)
    batches = list(piece.read({"task.text_column": "text"}))
    assert len(batches) == 3
    assert [v for b in batches for v in b.values["text"]] == [f"t{n}" for n in range(120_001)]
    assert batches[-1].numbers[-1] == 120_001


def test_the_digest_is_that_of_the_rows(tmp_path, module):
    code = "def rows(**asked):\n    yield {'text': 'good', 'label': 'pos'}\n"
    module(code)
    first = pieces(tmp_path)[0].digest
    module("# another comment\n" + code)
    assert pieces(tmp_path, arguments={"any": 1})[0].digest == first
    module(code.replace("good", "better"))
    assert pieces(tmp_path)[0].digest != first


def test_with_a_version_rows_are_read_only_when_asked_for(tmp_path, module):
    code = (
        "calls = []\n"
        "def rows(day):\n    calls.append('rows')\n    yield {'text': day, 'label': 'pos'}\n"
        "def version(day):\n    calls.append('version')\n    return {'etag': VERSION, 'day': day}\n"
    )
    module(code.replace("VERSION", "1"))
    asked = {"version": "python://feeds:version", "arguments": {"day": "monday"}}
    (first,) = pieces(tmp_path, **asked)
    (again,) = pieces(tmp_path, **asked)
    assert sys.modules["feeds"].calls == ["version", "version"]
    assert first.digest == again.digest
    assert rows(first) == [("monday", "pos")]
    assert sys.modules["feeds"].calls == ["version", "version", "rows"]
    (other_day,) = pieces(tmp_path, version="python://feeds:version", arguments={"day": "tuesday"})
    module(code.replace("VERSION", "2"))
    (newer,) = pieces(tmp_path, **asked)
    assert len({first.digest, other_day.digest, newer.digest}) == 3


def test_an_error_of_the_function_is_one_line_with_its_place(tmp_path, module):
    path = module(
        "def rows():\n    yield {'text': 'a', 'label': 'b'}\n    check(None)\n\ndef check(x):\n    x['\\n']\n"
    )
    with pytest.raises(DataError) as caught:
        pieces(tmp_path)
    assert "\n" not in str(caught.value)
    assert f"raised TypeError at {path}:6: 'NoneType' object is not subscriptable" in str(caught.value)
    assert list((tmp_path / "home" / FOLDER).iterdir()) == [], "no half snapshot stays"


def test_a_lost_connection_is_worth_another_try_and_an_error_of_hone_passes(tmp_path, module):
    module("def rows():\n    raise ConnectionResetError('peer')\n")
    with pytest.raises(Fault, match=r"raised ConnectionResetError at .*feeds\.py:2: peer"):
        pieces(tmp_path)
    module("from schemas.errors import Fault\ndef rows():\n    raise Fault('server is busy')\n")
    with pytest.raises(Fault, match=r"^server is busy$"):
        pieces(tmp_path)


MISTAKES = {
    "rows = 3": "'rows' is no function",
    "": "feeds has no 'rows'",
    "def rows(): return None": "returned NoneType, which has no rows",
    "async def rows(): return []": "returned coroutine, which has no rows",
    "def rows(): yield ('good', 'pos')": "row 1 is a tuple, not a dictionary",
    "def rows(): return 'text'": "row 1 is a str, not a dictionary",
    "def rows(): return [{'text': 'a', 'label': 'b'}, {1: 'a'}]": "row 2 is a dict, not a dictionary of named columns",
    "def rows(day): yield {}": "collect.source.arguments = {}: missing a required argument: 'day'",
    "import nowhere_to_be_found": "raised ModuleNotFoundError at",
    "def rows(:": "raised SyntaxError",
    "def rows(): yield {'text': object()}": "column 'text' holds object objects",
}


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("code", MISTAKES)
def test_what_yields_no_rows_is_a_mistake_in_one_line(tmp_path, module, code):
    module(code)
    with pytest.raises(DataError) as caught:
        pieces(tmp_path)
    assert MISTAKES[code] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_names_the_remedy(tmp_path, module):
    module("")
    for location, missing in {"nosuch.feeds:rows": "nosuch", "feeds.deep:rows": "feeds.deep"}.items():
        with pytest.raises(DataError, match=f"there is no module '{missing}'.*PYTHONPATH"):
            pieces(tmp_path, callable=f"python://{location}")


def test_a_column_that_no_row_has_is_a_mistake(tmp_path, module):
    module("def rows(): yield {'text': 'good', 'lable': 'pos'}")
    with pytest.raises(DataError, match="did you mean 'lable'"):
        rows(pieces(tmp_path)[0])


@pytest.mark.parametrize("folder", [".", "deployments"])
def test_a_module_may_lie_beside_the_recipes_and_hides_no_other(tmp_path, monkeypatch, folder):
    project = tmp_path / "project"
    (project / folder).mkdir(parents=True, exist_ok=True)
    (project / folder / "own_feeds.py").write_text("def rows():\n    yield {'text': 'ours', 'label': 'a'}\n")
    (project / folder / "json.py").write_text("raise RuntimeError('not the one of the library')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_feeds", raising=False)
    source = PythonSource(callable="python://own_feeds:rows")
    (piece,) = sources.pieces(source, Home(project / ".hone"))
    assert rows(piece) == [("ours", "a")]
    assert sys.modules.pop("own_feeds").__file__ == str(project / folder / "own_feeds.py")
    with pytest.raises(DataError, match="json has no 'rows'"):
        sources.pieces(PythonSource(callable="python://json:rows"), Home(project / ".hone"))
