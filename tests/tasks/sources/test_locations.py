from __future__ import annotations

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from schemas.errors import DataError, EnvironmentMistake, Fault
from tasks.home import Home
from tasks.sources.locations import File, find

FIELD = "collect.source.path"
SUFFIXES = (".csv", ".tsv", ".csv.gz")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    return Home.open(tmp_path)


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with files that fit, files that do not, and hidden ones."""
    folder = tmp_path / "data"
    for name in ("b.csv", "a.tsv", "deep/c.CSV", "deep/er/d.csv.gz", "notes.txt", ".hidden.csv", ".git/e.csv"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\na\n")
    return folder


def names(files: list[File]) -> list[str]:
    return [file.name for file in files]


def mistake(*locations: object, home: Home) -> str:
    """The mistake, which is one line."""
    with pytest.raises(DataError) as caught:
        find([str(location) for location in locations], SUFFIXES, FIELD, home)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_means_all_files_in_it_that_fit(data, home):
    assert names(find([str(data)], SUFFIXES, FIELD, home)) == ["a.tsv", "b.csv", "deep/c.CSV", "deep/er/d.csv.gz"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a.tsv", "b.csv", "notes.txt"]),
        ("?.csv", ["b.csv"]),
        ("[ab].*sv", ["a.tsv", "b.csv"]),
        ("**/*.csv*", ["b.csv", "deep/er/d.csv.gz"]),
        ("deep/**", ["c.CSV", "er/d.csv.gz"]),
    ],
)
def test_a_glob_means_the_files_that_match(data, home, pattern, expected):
    files = find([str(data / pattern)], SUFFIXES, FIELD, home)
    assert sorted(name.removeprefix("deep/") if pattern == "deep/**" else name for name in names(files)) == expected
    assert [file.place for file in files] == sorted(file.place for file in files)


def test_a_name_with_brackets_is_a_name_where_it_exists(data, home):
    (data / "b[1].csv").write_text("text\na\n")
    assert names(find([str(data / "b[1].csv")], SUFFIXES, FIELD, home)) == ["b[1].csv"]


def test_locations_that_overlap_mean_each_file_once(data, home):
    found = find([str(data / "b.csv"), str(data), str(data / "*.csv")], SUFFIXES, FIELD, home)
    assert names(found) == ["b.csv", "a.tsv", "deep/c.CSV", "deep/er/d.csv.gz"]


def test_nothing_found_names_what_is_there(data, home):
    assert f"matches no file; name files in {data}, such as a.tsv, b.csv, notes.txt" in mistake(data / "*.x", home=home)
    assert f"the folder {data / 'no'} is not there" in mistake(data / "no" / "*.csv", home=home)
    (data / "none").mkdir()
    (data / "none" / "x.txt").write_text("x")
    assert "is a folder without a .csv or .tsv file; name a file, such as x.txt" in mistake(data / "none", home=home)
    assert "is not there; did you mean 'b.csv'?" in mistake(data / "bb.csv", home=home)
    assert f"the folder {data / 'no'} is not there either" in mistake(data / "no" / "b.csv", home=home)


def test_what_is_no_file_is_refused_and_not_waited_for(data, home):
    os.mkfifo(data / "pipe.csv")
    assert "pipe.csv': is not a regular file; name a file" in mistake(data / "pipe.csv", home=home)
    assert "pipe.csv': is not a regular file" in mistake(data, home=home)
    (data / "pipe.csv").unlink()
    (data / "gone.csv").symlink_to("nowhere.csv")
    assert "gone.csv': is a link to nothing" in mistake(data / "gone.csv", home=home)
    assert "gone.csv': is a link to nothing" in mistake(data, home=home)


def test_an_empty_file_is_refused_where_it_is_named(data, home):
    (data / "b.csv").write_text("")
    assert "is empty; name a file with rows" in mistake(data / "b.csv", home=home)
    assert "b.csv" in names(find([str(data)], SUFFIXES, FIELD, home))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_refused(data, home):
    (data / "b.csv").chmod(0)
    assert "cannot be read: Permission denied; let this user read it" in mistake(data / "b.csv", home=home)


def test_a_file_that_may_not_be_opened_is_refused(data, home, monkeypatch):
    def forbidden(self, *args, **kwargs):  # root may read anything, so the refusal is played
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert "cannot be read: Permission denied; let this user read it" in mistake(data / "b.csv", home=home)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose import fails, as that of many an old data package does."""
    folder = tmp_path / "site" / "old_corpus"
    (folder / "de").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('needs scikit-learn 0.18')")
    for name in ("rows.csv", "de/rows.csv", "de/more.csv"):
        (folder / name).write_text("text,label\na,pos\n")
    (tmp_path / "site" / "outside.csv").write_text("secret")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_a_package_is_found_but_never_imported(package, home):
    (file,) = find(["package://old_corpus/rows.csv"], SUFFIXES, FIELD, home)
    assert file.fetch(file.digest()) == package / "rows.csv"
    assert names(find(["package://old_corpus/**/*.csv"], SUFFIXES, FIELD, home)) == [
        "de/more.csv", "de/rows.csv", "rows.csv",
    ]  # fmt: skip
    assert names(find(["package://old_corpus/de"], SUFFIXES, FIELD, home)) == ["more.csv", "rows.csv"]
    assert "old_corpus" not in sys.modules


@pytest.mark.parametrize("inside", ["../outside.csv", "a/../../outside.csv", "/etc/passwd", "", "../*.csv"])
def test_a_location_cannot_leave_its_package(package, home, inside):
    assert "leaves the package's folder" in mistake(f"package://old_corpus/{inside}", home=home)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("package://not_installed/x.csv", "package 'not_installed' is not installed; pip install not-installed"),
        ("package://gt-all/x.csv", "'gt-all' is not the name of a Python package; write package://gt_all/x.csv"),
        ("package://json.tool/x.csv", "'json.tool' is not the name of a Python package"),
        ("package://zipfile_of_none/", "leaves the package's folder"),
        ("package://old_corpus/row.csv", "is not there; did you mean 'rows.csv'?"),
        ("package://old_corpus/*.tsv", "matches no file"),
    ],
)  # fmt: skip
def test_a_wrong_package_location_gets_one_clear_line(package, home, location, expected):
    said = mistake(location, home=home)
    assert expected in said
    assert said.startswith("collect.source.path = ")


class Server:
    """A web server on loopback whose files, headers and state the test sets.

    Attributes:
        files: Path → body.
        headers: Headers of every answer.
        status: Status of every answer, where it is not that of the file.
        gets: Paths that were downloaded.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.status = 0
        self.gets: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                body = self.answer()
                if body:
                    outer.gets.append(self.path)
                    self.wfile.write(body)

            def answer(self) -> bytes:
                body = outer.files.get(self.path.partition("?")[0])
                self.send_response(outer.status or (404 if body is None else 200))
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                return b"" if outer.status else body or b""

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server():
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def the_file(server: Server, home: Home, path: str = "/deep/rows.csv") -> File:
    (file,) = find([server.url + path], SUFFIXES, FIELD, home)
    return file


def test_a_web_file_is_downloaded_once_for_each_etag(server, home):
    server.files["/deep/rows.csv"] = b"text\na\n"
    server.headers["ETag"] = '"1"'
    file = the_file(server, home)
    first = file.digest()
    assert server.gets == []
    path = file.fetch(first)
    assert (path.read_bytes(), path.name) == (b"text\na\n", "rows.csv")
    assert path.is_relative_to(home.root / "cache" / "sources" / first)
    again = the_file(server, home)
    assert again.fetch(again.digest()) == path
    assert server.gets == ["/deep/rows.csv"]
    server.files["/deep/rows.csv"], server.headers["ETag"] = b"text\nb\n", '"2"'
    changed = the_file(server, home)
    assert changed.digest() != first
    assert changed.fetch(changed.digest()).read_bytes() == b"text\nb\n"


def test_what_changes_between_digest_and_download_is_a_fault(server, home):
    server.files["/deep/rows.csv"] = b"text\na\n"
    server.headers["ETag"] = '"1"'
    file = the_file(server, home)
    digest = file.digest()
    server.headers["ETag"] = '"2"'
    with pytest.raises(Fault, match="changed while it was read"):
        file.fetch(digest)
    assert not list((home.root / "cache" / "sources").rglob("*.csv"))


def test_without_an_etag_the_time_of_the_last_change_counts(server, home):
    server.files["/deep/rows.csv"] = b"text\na\n"
    server.headers["Last-Modified"] = "Mon, 01 Jun 2026 10:00:00 GMT"
    first = the_file(server, home).digest()
    assert the_file(server, home).digest() == first
    server.headers["Last-Modified"] = "Mon, 01 Jun 2026 10:00:01 GMT"
    assert the_file(server, home).digest() != first
    assert server.gets == []


def test_where_the_server_says_nothing_the_content_counts(server, home):
    server.files["/deep/rows.csv"] = b"text\na\n"
    first = the_file(server, home).digest()
    assert the_file(server, home).digest() == first
    server.files["/deep/rows.csv"] = b"text\nb\n"  # of the same size
    file = the_file(server, home)
    assert file.digest() != first
    assert file.fetch(file.digest()).read_bytes() == b"text\nb\n"


def test_a_question_mark_in_a_url_begins_its_query(server, home):
    server.files["/rows.csv"] = b"text\na\n"
    server.headers["ETag"] = "x"
    file = the_file(server, home, "/rows.csv?version=3")
    assert file.name == "rows.csv"
    assert file.fetch(file.digest()).read_bytes() == b"text\na\n"
    assert file.digest() != the_file(server, home, "/rows.csv?version=4").digest()


def test_a_glob_follows_the_links_of_a_page_but_not_to_other_servers(server, home):
    server.files = dict.fromkeys(("/d/a.csv", "/d/b.csv", "/d/c.txt"), b"text\na\n")
    server.files["/d/"] = server.files["/d"] = (
        b'<a href="b.csv">b</a> <a href="/d/a.csv">a</a> <a href="c.txt">c</a> <a href="http://localhost:1/d/x.csv">x</a>'
    )
    files = find([f"{server.url}/d/*.csv"], SUFFIXES, FIELD, home)
    assert names(files) == ["a.csv", "b.csv"]
    assert "matches no file" in mistake(f"{server.url}/d/*.tsv", home=home)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, "is not there; name a file that is"), (401, "may not be read; put credentials"), (403, "may not be read")],
)
def test_a_server_that_refuses_names_the_mistake(server, home, status, expected):
    server.files["/deep/rows.csv"] = b"text\na\n"
    server.status = status
    with pytest.raises(DataError) as caught:
        the_file(server, home).digest()
    assert expected in str(caught.value)


def test_a_server_that_breaks_is_a_fault(server, home):
    server.files["/deep/rows.csv"] = b"text\na\n"
    server.status = 503
    with pytest.raises(Fault, match="cannot be read now"):
        the_file(server, home).digest()


def test_a_server_that_is_away_is_a_fault(home):
    (file,) = find(["http://127.0.0.1:9/rows.csv"], SUFFIXES, FIELD, home)
    with pytest.raises(Fault, match="cannot be read now"):
        file.digest()


def test_a_missing_driver_names_the_extra(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(EnvironmentMistake) as caught:
        find(["gs://bucket/rows.csv"], SUFFIXES, FIELD, home)
    assert 'the driver of gs:// is missing; pip install "hone[gs]"' in str(caught.value)


@pytest.fixture
def bucket(monkeypatch):
    """An object store: fsspec's own in memory, under the scheme of a store whose driver is not installed."""
    from fsspec.implementations.memory import MemoryFileSystem
    from fsspec.registry import _registry

    class Bucket(MemoryFileSystem):
        protocol = "az"
        store: dict = {}  # noqa: RUF012  # as in the base
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.removeprefix("az://"))

    monkeypatch.setitem(_registry, "az", Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    return Bucket()


def test_folders_and_globs_work_in_an_object_store(bucket, home):
    for name in ("in/b.csv", "in/a.csv", "in/deep/c.tsv", "in/x.txt", "in/.hidden/d.csv", "out/x.txt"):
        bucket.pipe_file(f"/{name}", b"text\na\n")
    folder = find(["az://in"], SUFFIXES, FIELD, home)
    assert names(folder) == ["a.csv", "b.csv", "deep/c.tsv"]
    assert names(find(["az://in/*.csv"], SUFFIXES, FIELD, home)) == ["a.csv", "b.csv"]
    assert names(find(["az://in/deep/c.tsv"], SUFFIXES, FIELD, home)) == ["c.tsv"]
    assert folder[0].fetch(folder[0].digest()).read_bytes() == b"text\na\n"
    assert "is a folder without a file of this kind" in mistake("az://out", home=home)
    assert "is not there" in mistake_of_digest("az://in/none.csv", home)


def mistake_of_digest(location: str, home: Home) -> str:
    (file,) = find([location], SUFFIXES, FIELD, home)
    with pytest.raises(DataError) as caught:
        file.digest()
    return str(caught.value)
