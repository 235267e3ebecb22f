"""The ONNX file of a model seen from the flow: whether it can be made here, and making it in the child process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from schemas.base import load_family
from schemas.errors import EnvironmentMistake, Problem
from schemas.recipe import Registry
from schemas.records import Artifact
from tasks.context import Context
from tasks.digests import content_digest
from tasks.families import Family
from tasks.predict_job import RunJob, run_in_child

ONNX = "onnx"
"""Folder of the artifact, and of the logged model, with the ONNX file and what belongs to it."""
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
"""The extra `onnx`."""
SAMPLED_ROWS = 5_000
"""About how many test rows are looked at for their length, where there are more."""
CHECKED_ROWS = 64
"""Of these, evenly spread over the lengths, as many are used to compare file and model."""
README = """\
# The model as an ONNX file

Takes token ids and gives what the network says of them, as PyTorch would. `about.json` names inputs, outputs and
labels, and how far the two were apart on real rows; `tokenizer.json` cuts and pads as the model was trained.

```python
import json, numpy, onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx")
encoded = tokenizer.encode_batch(["a text", "another one"])
known = {
    "input_ids": [each.ids for each in encoded],
    "attention_mask": [each.attention_mask for each in encoded],
    "token_type_ids": [each.type_ids for each in encoded],
}
feed = {each.name: numpy.array(known[each.name]) for each in session.get_inputs()}
outputs = session.run(None, feed)
```

Not in the file, and done by the version itself when MLflow loads it: putting texts right as those of the training
were (`../code/hone_serving`, `text_rules` in `../artifacts/model/hone.json`), joining the windows of a long text,
and what was fitted on validation (`../artifacts/calibration.json`).
"""


def require(registry: Registry) -> None:
    """Make sure that an ONNX file can be made here, where the recipe asks for one.

    Raises:
        EnvironmentMistake: The extra `onnx` is not installed.
    """
    if registry.onnx and not all(importlib.util.find_spec(library) for library in LIBRARIES):
        remedy = "pip install 'hone[onnx]', or leave registry.onnx out"
        raise EnvironmentMistake(Problem("registry.onnx", registry.onnx, "needs the extra `onnx`", remedy))


def onnx_file(*, family: str, serving: str, split: Path, model: Path, run_job: RunJob, out: Path) -> dict[str, Any]:
    """Write the folder `onnx` with `model.onnx`, `tokenizer.json`, `about.json` and a README; see `tasks.onnx_export`.

    Args:
        family: The recipe's.
        serving: Digest of its serving file, part of the key.
        split: Folder of the split artifact.
        model: Folder of the train artifact.
        run_job: Runs a job in the child process.
        out: Where to write.
    """
    import numpy as np
    import polars as pl

    del serving
    chosen: Family = load_family(family)
    columns = list(chosen.text_columns)
    scan = pl.scan_parquet(split / "test.parquet", glob=False).select(columns)
    every = max(1, scan.select(pl.len()).collect().item() // SAMPLED_ROWS)
    rows = scan.gather_every(every).collect().sort(pl.sum_horizontal(pl.col(columns).str.len_bytes()))
    places = np.linspace(0, rows.height - 1, num=min(rows.height, CHECKED_ROWS)).astype(int)
    rows_file, folder = out / "rows.parquet", out / ONNX
    folder.mkdir()
    rows[places].write_parquet(rows_file)
    spec = {
        "serving": str(chosen.serving),
        "model": str(model / "model"),
        "rows": str(rows_file),
        "columns": columns,
        "out": str(folder),
    }
    about = dict(run_job("onnx", spec))
    rows_file.unlink()
    (folder / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "README.md").write_text(README, encoding="utf-8")
    return about


def onnx_artifact(context: Context, sides: Artifact, model: Artifact) -> Artifact:
    """The model's ONNX file and what belongs to it."""
    family = context.family
    return context.artifact(
        "onnx",
        onnx_file,
        settings={"family": context.recipe.task.family, "serving": content_digest(family.serving, context.home)},
        inputs={"split": sides, "model": model},
        unkeyed={"run_job": run_in_child(context)},
        modules=("tasks.onnx_export",),
        libraries=(*LIBRARIES, "tokenizers", "torch", "transformers"),
        part_of="register",
    )
