"""Language codes of multilingual models: tokens that tell what a text is written in, and what is to be written.

mBART-50, M2M100 and NLLB have the code before a text, on both sides, and a model is made to begin with that of the
language wanted. mBART of 25 languages has it behind the text, and its decoder starts from it. Does not cover models
that are told in words of the text itself (`>>fra<<`, `<2fr>`): to these `task.prefix` says it.

References:
    Y. Liu et al. (2020), Multilingual Denoising Pre-training for Neural Machine Translation.
    Y. Tang et al. (2020), Multilingual Translation with Extensible Multilingual Pretraining and Finetuning.
"""

from __future__ import annotations

import re
from typing import Any

from schemas.errors import Problem, RecipeError
from tasks.tokenizer import BaseTokenizer

CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}|__\w+__")
"""en_XX of mBART, eng_Latn of NLLB, __en__ of M2M100."""
CODE_LAST = ("MBartTokenizer", "MBartTokenizerFast")
"""Tokenizers of models that have the code behind a text."""
SHOWN = 5
"""Codes that an error names."""


def refuse_unnamed(tokenizer: BaseTokenizer) -> None:
    """A model of several languages is to be told them.

    Raises:
        RecipeError: It has language codes.
    """
    codes = [token for token in tokenizer.added if CODE.fullmatch(token)]
    if len(codes) > 1:
        rule = f"the base model writes {len(codes)} languages, and has to be told which"
        remedy = f"set source_code and target_code, each to one of its codes, such as {', '.join(codes[:SHOWN])}"
        raise RecipeError(Problem("task.target_code", None, rule, remedy))


def refuse_named(source: str, target: str) -> None:
    """A model without an encoder is told by an instruction.

    Raises:
        RecipeError: In any case.
    """
    rule = "the base model has no encoder; it is asked by task.instruction"
    remedy = "leave it out, or name a multilingual model with an encoder"
    codes = {"source_code": source, "target_code": target}
    raise RecipeError([Problem(f"task.{field}", code, rule, remedy) for field, code in codes.items()])


def languages(source: str, target: str, tokenizer: BaseTokenizer, start: int | None) -> dict[str, Any]:
    """How the codes are read and written.

    Args:
        source: Code of the language of what is read, as the recipe has it.
        target: Of what is to be written.
        tokenizer: The base model's.
        start: Token that its decoder starts from, where it says so.

    Returns:
        `source` and `target`, the tokens; `read` and `written`, the token ids before and behind a text; `generation`,
        what writing has to be told.

    Raises:
        RecipeError: There is no such code.
    """
    read, write = _token(source, "source_code", tokenizer), _token(target, "target_code", tokenizer)
    from_id, to_id, end = tokenizer.added[read], tokenizer.added[write], _end(tokenizer)
    told = {"source": read, "target": write}
    if tokenizer.kind in CODE_LAST:
        frames = {"read": [[], [end, from_id]], "written": [[], [end]]}
        return {**told, **frames, "generation": {"decoder_start_token_id": to_id}}
    frames = {"read": [[from_id], [end]], "written": [[to_id], [end]]}
    begin = {"decoder_start_token_id": end if start is None else start, "forced_bos_token_id": to_id}
    return {**told, **frames, "generation": begin}


def _token(code: str, field: str, tokenizer: BaseTokenizer) -> str:
    """The token of a code; M2M100's may be named without the marks around it."""
    known = [token for token in tokenizer.added if token not in tokenizer.special.values()]
    found = next((token for token in (code, f"__{code}__") if token in known), None)
    if found is not None:
        return found
    codes = [token for token in known if CODE.fullmatch(token)]
    if not codes:
        remedy = "leave source_code and target_code out, or name a multilingual model"
        raise RecipeError(Problem(f"task.{field}", code, "the base model's tokenizer has no language codes", remedy))
    language = code.strip("_")[:2].lower()
    like = sorted(codes, key=lambda known: not known.strip("_").startswith(language))
    remedy = f"set it to one of its {len(codes)}, such as {', '.join(like[:SHOWN])}"
    raise RecipeError(Problem(f"task.{field}", code, "the base model's tokenizer has no such language code", remedy))


def _end(tokenizer: BaseTokenizer) -> int:
    if not tokenizer.stop:
        rule, remedy = "its tokenizer has no token that ends a text", "add eos_token to its tokenizer_config.json"
        raise RecipeError(Problem("model.base", None, rule, remedy))
    return tokenizer.stop[0]
