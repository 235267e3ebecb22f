from __future__ import annotations

import polars as pl

from tasks import entity_baselines


def test_words_get_their_usual_tag_and_unknown_ones_the_most_frequent(tmp_path):
    train = [("Ada met Ada in Rome", "B-P O B-P O B-L"), ("Rome fell", "O O"), ("Rome", "B-L"), ("so it is", "O O O")]
    test = [("b", "Ada  saw\nRome", "B-P O B-L"), ("a", "Ada", "O")]
    pl.DataFrame(train, schema=["text", "tags"], orient="row").write_parquet(tmp_path / "train.parquet")
    pl.DataFrame(test, schema=["id", "text", "tags"], orient="row").write_parquet(tmp_path / "test.parquet")
    chosen = entity_baselines.tagging(tmp_path, tmp_path)
    assert chosen == {"majority": {"tag": "O", "share": round(7 / 11, 4)}, "dictionary": {"words": 8}}
    found = pl.read_parquet(tmp_path / "dictionary.parquet")
    assert found["id"].to_list() == ["b", "a"]
    assert found["truth"].to_list() == [["B-P", "O", "B-L"], ["O"]]
    assert found["prediction"].to_list() == [["B-P", "O", "B-L"], ["B-P"]]
    assert pl.read_parquet(tmp_path / "majority.parquet")["prediction"].to_list() == [["O"] * 3, ["O"]]
