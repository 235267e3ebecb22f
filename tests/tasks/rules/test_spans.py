from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.rules.spans import N_BEST, NUMBERS, best_spans, masked, merged, threshold_of, trimmed, windows
from tasks.tokenizer import load_tokenizer, read_config
from tests.question_rows import tiny_encoder


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory):
    base: Path = tiny_encoder(tmp_path_factory.mktemp("base"))
    return load_tokenizer(base, read_config(base), trust_remote_code=False).backend


def test_windows_overlap_by_the_stride_and_have_the_whole_question(backend):
    context = " ".join(f"w{i % 10}" for i in range(25))
    (found,) = windows(backend, ["where is a ?"], [context], longest=17, stride=4, question=8)
    for window in found:
        assert window.input_ids[:6] == found[0].input_ids[:6]
        assert len(window.input_ids) == len(window.begins) == len(window.ends) == len(window.token_type_ids) <= 17
        assert window.token_type_ids == [0] * 6 + [1] * (len(window.input_ids) - 6)
    read = [[(b, e) for b, e in zip(w.begins, w.ends, strict=True) if b >= 0] for w in found]
    assert [len(spans) for spans in read] == [10, 10, 10, 7]
    for one, other in pairwise(read):
        assert one[-4:] == other[:4]
    assert {context[b:e] for spans in read for b, e in spans} == {f"w{i}" for i in range(10)}
    assert {span for spans in read for span in spans} == {(place, place + 2) for place in range(0, len(context), 3)}


def test_a_question_is_cut_before_its_context_is(backend):
    (found,) = windows(backend, ["where " * 50], ["w1 w2 w3"], longest=17, stride=2, question=6)
    assert [len(window.input_ids) for window in found] == [6 + 3 + 3]
    assert backend.truncation is None


def brute_force(starts: np.ndarray, ends: np.ndarray, most: int) -> list[float]:
    width = len(starts)
    found = [float(starts[i] + ends[j]) for i in range(1, width) for j in range(i, min(i + most, width))]
    return sorted((score for score in found if score > -math.inf), reverse=True)[:N_BEST]


@pytest.mark.parametrize("most", [1, 3, 50])
def test_the_best_spans_are_those_of_all_spans(most):
    generator = torch.Generator().manual_seed(most)
    logits = torch.randn(2, 3, 15, generator=generator)
    begins = torch.arange(15).repeat(3, 1) * 2
    begins[:, :4] = -1
    begins[1, 10:] = -100
    begins[2, :] = -1
    starts, ends = (masked(scores, begins) for scores in logits)
    found = best_spans(starts, ends, (begins, begins + 1), most).numpy()
    assert found.shape == (3, NUMBERS)
    for row in range(3):
        expected = brute_force(starts[row].numpy(), ends[row].numpy(), most)
        spans = found[row, 1:].reshape(-1, 3)
        assert spans[: len(expected), 0].tolist() == pytest.approx(expected)
        assert (spans[len(expected) :, 0] == -math.inf).all()
        for score, begin, end in spans[: len(expected)].tolist():
            first, last = int(begin) // 2, int(end) // 2
            assert 0 <= last - first < most
            assert score == pytest.approx(float(logits[0, row, first] + logits[1, row, last]))
        assert found[row, 0] == pytest.approx(float(logits[0, row, 0] + logits[1, row, 0]))


def window(nothing: float, *spans: tuple[float, int, int]) -> list[float]:
    filled = [*spans, *[(-math.inf, -1, -1)] * (N_BEST - len(spans))]
    return [nothing, *(float(number) for span in filled for number in span)]


def test_windows_are_merged_by_the_better_score_and_the_least_score_of_no_answer():
    numbers = np.array([window(3.0, (1.0, 0, 2), (0.5, 3, 5)), window(1.0, (2.0, 3, 5), (0.0, 6, 7))])
    found = merged(numbers, "ab cd e", unanswerable=True)
    assert found.spans == [(3, 5), (0, 2), (6, 7)]
    powers = np.exp([2.0, 1.0, 0.0, 1.0])
    assert [*found.probabilities, found.nothing] == pytest.approx((powers / powers.sum()).tolist())
    assert found.odds == pytest.approx(-1.0)
    assert found.decided(0.0) == ((3, 5), found.probabilities[0])
    assert found.decided(-2.0) == (None, found.nothing)
    assert found.decided(None)[0] == (3, 5)
    always = merged(numbers, "ab cd e", unanswerable=False)
    assert always.nothing == 0.0
    assert sum(always.probabilities) == pytest.approx(1.0)


def test_a_context_without_a_span_has_no_answer():
    assert merged(np.array([window(0.0, (1.0, 2, 3))]), "ab ", unanswerable=False).decided(None) == (None, 1.0)


def test_white_space_is_no_part_of_a_span():
    assert trimmed("a  cat ", 1, 7) == (3, 6)
    assert trimmed("a  cat ", 1, 3) is None


def test_a_model_that_always_answers_has_no_threshold():
    assert threshold_of({"unanswerable": False}, {"no_answer_above": 1.0}) is None
    assert threshold_of({"unanswerable": True}, {}) == 0.0
    assert threshold_of({"unanswerable": True}, {"no_answer_above": -1.5}) == -1.5
