from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.rules import generation
from tasks.rules.generation import write
from tests.learning import tiny_decoder

PAD, END = 0, 2
PROMPTS = [[4, 7, 8, 9, 5], [4, 12, 5], [4, 9, 9, 9, 9, 9, 9, 9, 10, 11, 5], [5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(tiny_decoder(tmp_path_factory.mktemp("base"))).eval()


def written(model, prompts, **settings):
    more = {name: settings.pop(name) for name in ("stop", "most_at_once") if name in settings}
    chosen = {"max_new_tokens": 12, **settings}
    found = dict(write(model, prompts, chosen, pad=PAD, stop=more.pop("stop", (END,)), **more))
    return [found[place] for place in range(len(prompts))]


def by_hand(model, prompt, most=12, stop=(END,)):
    """The likeliest token each time, one pass over everything for each."""
    ids, margins = list(prompt), []
    for _ in range(most):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        best = logits.topk(2).values
        margins.append(float(best[0] - best[1]))
        ids.append(int(logits.argmax()))
        if ids[-1] in stop:
            return ids[len(prompt) : -1], True, min(margins)
    return ids[len(prompt) :], False, min(margins)


def test_every_text_is_the_one_that_is_written_alone(model):
    for prompt, found in zip(PROMPTS, written(model, PROMPTS), strict=True):
        ids, ended, margin = by_hand(model, prompt)
        assert (found.ids, found.ended) == (ids, ended)
        assert found.margin == pytest.approx(margin, abs=1e-4)


def test_a_text_ends_at_its_end_and_what_others_still_write_does_not_count(model):
    often = by_hand(model, PROMPTS[0])[0][3]  # a token that it writes comes to be the end
    found = written(model, PROMPTS, stop=(END, often))
    for prompt, each in zip(PROMPTS, found, strict=True):
        ids, ended, margin = by_hand(model, prompt, stop=(END, often))
        assert (each.ids, each.ended) == (ids, ended)
        assert each.margin == pytest.approx(margin, abs=1e-4)
    assert found[0].ended


def test_batches_are_bounded_by_rows_and_by_tokens(model, monkeypatch):
    sizes = []
    batch = generation._batch

    def counted(model, prompts, *rest):
        sizes.append(len(prompts))
        return batch(model, prompts, *rest)

    monkeypatch.setattr(generation, "_batch", counted)
    alone = written(model, PROMPTS, most_at_once=1)
    assert sizes == [1, 1, 1, 1]
    sizes.clear()
    monkeypatch.setattr(generation, "BATCH_TOKENS", 40)  # 11 + 12 tokens, then 5 + 12 twice
    assert [each.ids for each in written(model, PROMPTS)] == [each.ids for each in alone]
    assert sizes == [1, 2, 1]


def test_drawn_texts_differ_and_are_never_held_to_be_sure(model):
    torch.manual_seed(0)
    drawn = [tuple(written(model, PROMPTS[:1], temperature=5.0)[0].ids) for _ in range(5)]
    assert len(set(drawn)) > 1
    assert written(model, PROMPTS[:1], temperature=5.0)[0].margin == generation.UNSURE


def test_beams_find_what_is_at_least_as_likely(model):
    def likelihood(prompt, ids):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(ids))

    for prompt in PROMPTS:
        greedy, beams = (written(model, [prompt], num_beams=n, max_new_tokens=4)[0].ids for n in (1, 6))
        if len(greedy) == len(beams) == 4:
            assert likelihood(prompt, beams) >= likelihood(prompt, greedy) - 1e-5


def test_runs_of_tokens_occur_once_where_that_is_asked(model):
    for found in written(model, PROMPTS, no_repeat_ngram_size=2, max_new_tokens=30):
        pairs = list(zip(found.ids, found.ids[1:], strict=False))
        assert len(pairs) == len(set(pairs))


# Drawn, and in pieces.

DRAWN = {"temperature": 1.5, "top_k": 12}


def test_what_is_drawn_by_a_seed_is_drawn_again_and_leaves_the_global_one_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = written(model, PROMPTS, seed=1, **DRAWN)
    assert torch.equal(torch.rand(1), expected)
    assert [each.ids for each in written(model, PROMPTS, seed=1, **DRAWN)] == [each.ids for each in first]
    assert [each.ids for each in written(model, PROMPTS, seed=2, **DRAWN)] != [each.ids for each in first]
    assert [each.margin for each in first] == [generation.UNSURE] * len(PROMPTS)


def test_the_likeliest_of_one_is_what_is_drawn_of_one(model):
    likeliest = [each.ids for each in written(model, PROMPTS)]
    assert [each.ids for each in written(model, PROMPTS, temperature=2.0, top_k=1)] == likeliest
    assert [each.ids for each in written(model, PROMPTS, temperature=1.0, top_p=1e-6)] == likeliest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_decoder(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("most", [1, 2, 12])
def test_pieces_make_up_the_text_that_is_written_at_once(model, tokenizer, most):
    for prompt in PROMPTS:
        (whole,) = written(model, [prompt], max_new_tokens=most)
        *pieces, (rest, ended) = generation.stream(
            model, tokenizer, prompt, {"max_new_tokens": most}, pad=PAD, stop=(END,)
        )
        text = "".join(piece for piece, _ in pieces) + rest
        assert text.strip() == tokenizer.decode(whole.ids, skip_special_tokens=True).strip()
        assert {told for _, told in pieces} <= {None}
        assert ended == whole.ended


def test_whoever_stops_listening_stops_the_writing(model, tokenizer):
    steps = []
    watched = model.register_forward_hook(lambda *_: steps.append(1))
    try:
        listened = generation.stream(
            model, tokenizer, PROMPTS[0], {"max_new_tokens": 90, "temperature": 5.0}, pad=PAD, stop=()
        )
        next(listened)
        listened.close()
    finally:
        watched.remove()
    assert len(steps) < 90
    assert threading.active_count() < 30


def test_what_fails_while_writing_is_told_to_whoever_listens(model, tokenizer):
    with pytest.raises(IndexError):
        list(generation.stream(model, tokenizer, [10_000], {"max_new_tokens": 3}, pad=PAD, stop=(END,)))
