from __future__ import annotations

import json

import pytest

from schemas.errors import DamagedArtifact
from tasks.store import MANIFEST, Store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    root = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    return Store(root, tmp_path / "copies")


def publish(store, text="hello", key="k1"):
    with store.draft("clean", key) as draft:
        (draft / "sub").mkdir()
        (draft / "rows.txt").write_text(text)
        (draft / "sub" / "more.txt").write_text("more")
        return store.publish(draft, "clean", key, ingredients={"a": 1}, summary={"rows": 2}, run_id="r")


def overwrite(store, name, text):
    store._fs.pipe_file(f"{store.location('clean', 'k1')}/{name}", text.encode())


def test_what_was_published_is_found_and_opened(store):
    made = publish(store)
    assert store.find("clean", "k1") == made
    assert made.summary == {"rows": 2}
    folder = store.open("clean", "k1")
    assert (folder / "rows.txt").read_text() == "hello"
    assert (folder / "sub" / "more.txt").read_text() == "more"


def test_an_artifact_without_a_manifest_does_not_exist(store):
    publish(store)
    store._fs.rm_file(f"{store.location('clean', 'k1')}/{MANIFEST}")
    assert store.find("clean", "k1") is None


def test_a_draft_that_fails_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.draft("clean", "k1") as draft:
        (draft / "rows.txt").write_text("half")
        raise RuntimeError
    assert store.find("clean", "k1") is None
    assert not draft.exists()


def test_a_file_of_another_size_is_noticed_when_the_artifact_is_found(store):
    publish(store)
    overwrite(store, "rows.txt", "hel")
    with pytest.raises(DamagedArtifact, match=r"rows\.txt has 3 bytes, not 5"):
        store.find("clean", "k1")


def test_a_missing_file_is_noticed_when_the_artifact_is_found(store):
    publish(store)
    store._fs.rm_file(f"{store.location('clean', 'k1')}/sub/more.txt")
    with pytest.raises(DamagedArtifact, match=r"sub/more\.txt is missing"):
        store.find("clean", "k1")


def test_other_bytes_of_the_same_size_are_noticed_when_it_is_opened(store):
    publish(store)
    overwrite(store, "rows.txt", "hellO")
    assert store.find("clean", "k1") is not None
    with pytest.raises(DamagedArtifact, match="digest"):
        store.open("clean", "k1")


def test_a_manifest_that_cannot_be_read_is_damage(store):
    publish(store)
    overwrite(store, MANIFEST, "{")
    with pytest.raises(DamagedArtifact, match="cannot be read"):
        store.find("clean", "k1")


def test_publishing_again_replaces_what_was_there(store):
    publish(store)
    publish(store, "other")
    assert (store.open("clean", "k1") / "rows.txt").read_text() == "other"


def test_the_manifest_names_format_sizes_and_digests(store):
    import hashlib

    publish(store)
    manifest = json.loads(store._fs.cat_file(f"{store.location('clean', 'k1')}/{MANIFEST}"))
    assert manifest["format"] == 1
    assert manifest["files"]["rows.txt"] == {"size": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    assert MANIFEST not in manifest["files"]


def test_usage_counts_whole_artifacts_and_their_bytes_by_stage(store):
    assert store.usage() == {}
    publish(store, "12345", key="a")
    publish(store, "1234", key="b")
    with store.draft("clean", "half") as draft:
        (draft / "rows.txt").write_text("not yet")
        artifacts, size = store.usage()["clean"]
    manifests = [store._fs.cat_file(f"{store.location('clean', key)}/{MANIFEST}") for key in ("a", "b")]
    contents = [file["size"] for manifest in manifests for file in json.loads(manifest)["files"].values()]
    assert artifacts == 2
    assert size == sum(map(len, manifests)) + sum(contents)
