"""A base model that comes as one GGUF file: its weights written out once, in float32, as transformers saves a model.

Weights of 4 or 8 bits cannot learn; written out they are what the quantised ones stand for, not what they were made of.
Done in a process of its own, because the whole model is in memory meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from schemas.errors import EnvironmentMistake, Problem
from tasks.digests import content_digest
from tasks.home import Home

SUFFIX = ".gguf"
SHOWN_CHARS = 300
"""Of what the process said before it failed."""


def unpacked(file: Path, home: Home) -> Path:
    """Folder with the model of a GGUF file; written when it is first asked for, and once for each content.

    Raises:
        EnvironmentMistake: The file cannot be read as a model, or the library that reads it is not installed.
    """
    folder = home.unpacked / content_digest(file, home)
    with FileLock(home.locks / f"gguf-{folder.name}.lock"):
        if not folder.exists():
            if find_spec("gguf") is None:
                raise _unusable(file, "the package gguf, which reads it, is not installed", "pip install 'hone[gguf]'")
            _unpack(file, folder)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        command = [sys.executable, "-P", "-m", "tasks.gguf", str(file), str(Path(draft) / "model")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip().rpartition("\n")[2][-SHOWN_CHARS:]
            raise _unusable(
                file, f"cannot be read as a model: {said}", "name one of an architecture transformers reads"
            )
        (Path(draft) / "model").rename(folder)


def _unusable(file: Path, rule: str, remedy: str) -> EnvironmentMistake:
    return EnvironmentMistake(Problem("model.base", str(file), rule, remedy))


def write_out(file: Path, folder: Path) -> None:
    """Save the model and tokenizer of a GGUF file into a folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # What it says of itself is no longer so: a quantised model neither saves nor learns.
    model.is_quantized, model.hf_quantizer = False, None
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    write_out(Path(sys.argv[1]), Path(sys.argv[2]))
