"""The fresh process that proves a logged model serves what was measured. Run as a file; imports nothing of hone.

    python -P tasks/verify.py MODULE...

Imports MLflow and the modules named, which takes seconds, then waits for one job, a line of JSON on standard input:
`tracking_uri`, `model_uri`, `into` (where to download it, or null for a model on this disk), `rows` (JSON file: records
to predict), `out` (JSON file to write: the predicted records).
Ends by itself when standard input closes, so it never outlives the process that started it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from pathlib import Path

# A registered model must carry what it needs: hone's rooms are not to be had where it serves.
for room in ("flows", "tasks", "schemas"):
    sys.modules[room] = None  # type: ignore[assignment]


def main() -> None:
    """Warm up, then do one job."""
    gc.set_threshold(50_000, 20, 20)  # as `tasks.process` has it, which is not to be had here
    import mlflow
    import pandas as pd

    for module in sys.argv[1:]:
        importlib.import_module(module)
    line = sys.stdin.readline()
    if not line:
        return
    job = json.loads(line)
    mlflow.set_tracking_uri(job["tracking_uri"])
    # Suppressed: comparing the requirements with what is installed takes half a second, and they were pinned from it.
    model = mlflow.pyfunc.load_model(job["model_uri"], suppress_warnings=True, dst_path=job["into"])
    rows = pd.DataFrame(json.loads(Path(job["rows"]).read_text(encoding="utf-8")))
    served = model.predict(rows).to_dict(orient="records")
    Path(job["out"]).write_text(json.dumps(served, ensure_ascii=False), encoding="utf-8")
    os._exit(0)  # tearing torch down takes a while, and the answer is on the disk


if __name__ == "__main__":
    main()
