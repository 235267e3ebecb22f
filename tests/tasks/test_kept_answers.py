from __future__ import annotations

from tasks.kept_answers import KeptAnswers
from tasks.rules.writing import Answer


def answer(text: str) -> Answer:
    return Answer(text, ended=True, tokens=3, prompt_tokens=7, margin=0.25)


def test_answers_are_there_again_and_what_was_cut_off_is_not(tmp_path):
    path = tmp_path / "test.jsonl"
    kept = KeptAnswers(path)
    kept[4], kept[1] = answer("fünf\nlines"), answer("two")
    kept.close()
    with path.open("ab") as file:
        file.write(b'[9, {"text": "hal')

    again = KeptAnswers(path)
    assert again == {4: answer("fünf\nlines"), 1: answer("two")}
    again[9] = answer("whole")
    again.close()
    assert KeptAnswers(path) == {4: answer("fünf\nlines"), 1: answer("two"), 9: answer("whole")}
