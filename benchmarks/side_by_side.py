"""Contestants side by side: each in a process of its own, in turns over some rounds, every measurement kept at once.

A benchmark names its contestants and measures the one it is asked for by `--here`, in a process that ends afterwards,
so that nobody inherits another's memory, threads or compiled kernels. What was measured is a line of the benchmark's
`.jsonl` file as soon as it is known, and is not measured again; the page beside it is made from the lines alone.
Contestants take turns, another one first in every round; ratios are taken within a round, so that a machine that is
slower for a while does not decide.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.preparation import conditions
from schemas.loading import load_recipe
from tasks.base_model import base_model
from tasks.child import environment
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.home import Home
from tasks.split import split
from tasks.tokenize import tokenize

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # as hone's own child process has it
}
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets")
READY = "ready.json"
"""Written last into a folder that was prepared."""
SAVE_MINUTES = 5.0
"""Between two checkpoints of hone, as a recipe has it by default."""
MATMUL_SIZE = 2_048
MATMUL_SECONDS = 1.0

Line = dict[str, Any]
Case = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """What is compared.

    Attributes:
        name: Of the module, and of the files with results.
        contestants: Name → what it is, in words for the page.
        settings: Names of the options that a case depends on.
        prepare: Writes what all contestants read into a folder; told the settings. None: there is no such thing.
        measure: Measures the contestant of a case; told the folder, too.
        page: The lines of the same settings as Markdown, below a heading of their own.
        title: Of the page.
        introduction: What was done, for the page.
        in_child: Contestants that hone's child process does, in whose environment they are measured.
    """

    name: str
    contestants: Mapping[str, str]
    settings: Sequence[str]
    prepare: Callable[[Case, Path], None] | None
    measure: Callable[[Case, Path], Line]
    page: Callable[[Sequence[Line]], str]
    title: str
    introduction: str
    in_child: Sequence[str] = ()

    @property
    def module(self) -> str:
        return f"benchmarks.{self.name}"


def main(
    benchmark: Benchmark,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
    *,
    expand: Callable[[argparse.Namespace], Iterable[Case]] | None = None,
    rounds: int = 3,
) -> int:
    """The command line of a benchmark.

    Args:
        benchmark: What is compared.
        parser: Its own options are in there already.
        arguments: Default: those of the process.
        expand: Makes settings of the options, one after the other; default: the options themselves.
        rounds: How often everyone is measured, where nothing is asked for.
    """
    parser.add_argument("--contestants", nargs="+", choices=benchmark.contestants, default=list(benchmark.contestants))
    parser.add_argument("--rounds", type=int, default=rounds, help="how often everyone is measured")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="begin no measurement after so long")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / f"hone-{benchmark.name}")
    parser.add_argument("--results", type=Path, default=RESULTS / f"{benchmark.name}.jsonl")
    parser.add_argument("--report", action="store_true", help="write the page from what was measured, and no more")
    parser.add_argument("--here", metavar="CASE", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.here:
        print(json.dumps(_here(benchmark, json.loads(asked.here), asked.work)))
        return 0
    if not asked.report:
        every = expand(asked) if expand else [{name: getattr(asked, name) for name in benchmark.settings}]
        cases = [case for settings in every for case in turns(asked.contestants, asked.rounds, settings)]
        run_cases(benchmark, cases, asked.work.resolve(), asked.results, asked.within)
    asked.results.with_suffix(".md").write_text(written(benchmark, recorded(asked.results)), encoding="utf-8")
    return 0


def turns(contestants: Sequence[str], rounds: int, settings: Mapping[str, Any]) -> Iterator[Case]:
    """Everyone once in every round, another one first in each."""
    for number in range(rounds):
        first = number % len(contestants)
        for name in (*contestants[first:], *contestants[:first]):
            yield {"contestant": name, "round": number, **settings}


def run_cases(
    benchmark: Benchmark, cases: Sequence[Case], work: Path, results: Path, within: float | None = None
) -> None:
    """Measure the cases that have no line yet."""
    began = time.monotonic()
    done = [line["case"] for line in recorded(results)]
    for case in cases:
        told = f"{case['contestant']}, round {case['round'] + 1}"
        if case in done:
            print(f"{told}: done before", file=sys.stderr)
            continue
        if within is not None and time.monotonic() - began > within:
            print(f"{told}: no time is left for it", file=sys.stderr)
            continue
        if benchmark.prepare and not (folder_of(case, work) / READY).exists():
            _in_own_process(benchmark, {**settings_of(case), "prepare": True}, work)
        line = {"case": case, **_in_own_process(benchmark, case, work), "conditions": conditions(LIBRARIES)}
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{told}: {json.dumps({name: v for name, v in line.items() if _is_short(v)})}", file=sys.stderr)


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _in_own_process(benchmark: Benchmark, case: Case, work: Path) -> Line:
    """What a process says in its last line.

    Raises:
        subprocess.CalledProcessError: It failed; what it complained of went to standard error.
    """
    command = [sys.executable, "-P", "-m", benchmark.module, "--work", str(work), "--here", json.dumps(case)]
    around = environment() if case.get("contestant") in benchmark.in_child else os.environ
    child = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**ENVIRONMENT, **around, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    found: Line = json.loads(child.stdout.splitlines()[-1])
    return found


def _here(benchmark: Benchmark, case: Case, work: Path) -> Line:
    """Prepare, or measure, in this process."""
    folder = folder_of(case, work)
    if case.pop("prepare", False) and benchmark.prepare:
        folder.mkdir(parents=True, exist_ok=True)
        benchmark.prepare(case, folder)
        (folder / READY).write_text(json.dumps(case))
        return {}
    return benchmark.measure(case, folder)


def settings_of(case: Case) -> Case:
    """What all contestants share."""
    return {name: value for name, value in case.items() if name not in {"contestant", "round", "prepare"}}


def folder_of(case: Case, work: Path) -> Path:
    """Where what was prepared for these settings lies."""
    settings = json.dumps(settings_of(case), sort_keys=True)
    return work / hashlib.sha256(settings.encode()).hexdigest()[:12]


def recorded(results: Path) -> list[Line]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def written(benchmark: Benchmark, lines: Sequence[Line]) -> str:
    """The page: a section for each settings that were measured."""
    parts = [f"# {benchmark.title}", f"`python -m {benchmark.module}`: {benchmark.introduction}"]
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(json.dumps(settings_of(line["case"])), []).append(line)
    for settings, group in groups.items():
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in json.loads(settings).items())
        parts += [f"## {told[:1].upper()}{told[1:]}", benchmark.page(group), "\n".join(machines(group))]
    present = {line["case"]["contestant"] for line in lines}
    legend = [f"- {name}: {words}" for name, words in benchmark.contestants.items() if name in present]
    return "\n\n".join([*parts, "\n".join(legend)]) + "\n"


def prepare_tokens(recipe: Path, changes: Sequence[str], rows: Mapping[str, int], folder: Path) -> None:
    """Take rows through the stages that a recipe runs before training, and keep some of each side.

    Writes `tokens/`, as the tokenize stage does, and `spec.json`, what `tasks.learner.Job` takes; the home that the
    stages work in lies beside the folder. Which rows are kept depends on their number alone.

    Args:
        recipe: The recipe's file.
        changes: `a.b=c`, as `hone run --set` takes them.
        rows: Side → how many rows are kept, or all where there are not so many.
        folder: Where to write.
    """
    import pyarrow as pa

    context = context_of(recipe, changes, folder)
    cleaned = clean(context, collect(context))
    found = context.path(tokenize(context, cleaned, split(context, cleaned)))
    tokens = folder / "tokens"
    tokens.mkdir(exist_ok=True)
    for side, wanted in rows.items():
        table = read_arrow(found / f"{side}.arrow")
        chosen = np.random.default_rng(0).permutation(table.num_rows)[:wanted]
        with pa.ipc.new_stream(str(tokens / f"{side}.arrow"), table.schema) as writer:
            writer.write_table(table.take(chosen).combine_chunks())
    shutil.copyfile(found / "meta.json", tokens / "meta.json")
    asked = context.recipe
    sections = {name: getattr(asked, name).model_dump(mode="json") for name in ("task", "model", "train")}
    base = str(base_model(asked.model, context.home)[0])
    spec = {**sections, "base": base, "tokens": str(tokens), "metric": asked.learns_by}
    (folder / "spec.json").write_text(json.dumps(spec))


def context_of(recipe: Path, changes: Sequence[str], folder: Path) -> Context:
    """A run of a recipe in the home beside a folder."""
    home = folder.parent / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["HONE_HOME"] = str(home)
    return Context(load_recipe(recipe, list(changes)), Home.open(recipe), run_id="")


def read_arrow(path: Path) -> pa.Table:
    """The rows of a file of the tokenize stage."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        return stream.read_all()


def spec_of(folder: Path) -> Line:
    """What `prepare_tokens` wrote for `tasks.learner.Job`."""
    spec: Line = json.loads((folder / "spec.json").read_text())
    return spec


def machines(lines: Sequence[Line]) -> list[str]:
    """What the numbers were measured under, one sentence for each that differs."""
    return sorted({_machine(line) for line in lines})


def _machine(line: Line) -> str:
    under = line["conditions"]
    libraries = ", ".join(f"{name} {number}" for name, number in under["libraries"].items())
    device = f", {line['device']}" if "device" in line else ""
    return (
        f"{under['cpu']}, {under['cores']} cores{device}, Python {under['python']}, {libraries}, commit "
        f"{under['commit']}, {under['date'][:10]}."
    )


def by_contestant(lines: Sequence[Line], order: Mapping[str, str]) -> dict[str, list[Line]]:
    """Contestant → its lines, in the order that the benchmark names them."""
    found = {name: [line for line in lines if line["case"]["contestant"] == name] for name in order}
    return {name: measured for name, measured in found.items() if measured}


def middle(lines: Sequence[Line], value: str) -> float:
    """Median over the rounds."""
    return float(median(line[value] for line in lines))


def spread(lines: Sequence[Line], value: str, form: str = ",.0f") -> str:
    """Median over the rounds, with the least and the most where there are several."""
    found = [line[value] for line in lines]
    told = format(median(found), form)
    return told if len(found) == 1 else f"{told} ({min(found):{form}} to {max(found):{form}})"


def ratio(lines: Sequence[Line], others: Sequence[Line], value: str) -> float | None:
    """A value by that of others in the same round, median over the rounds that both have; none without any."""
    theirs = {line["case"]["round"]: line[value] for line in others}
    found = [line[value] / theirs[line["case"]["round"]] for line in lines if line["case"]["round"] in theirs]
    return float(median(found)) if found else None


def times(found: float | None) -> str:
    """A ratio in words."""
    return "" if found is None else f"{found:.2f}x"


def peak_memory() -> int:
    """Most resident memory this process ever had, in bytes.

    What `getrusage` says begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1_024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1_024)


def matmul_flops(device: str = "cpu", size: int = MATMUL_SIZE, seconds: float = MATMUL_SECONDS) -> float:
    """FLOP/s of the bfloat16 matrix product on this machine, now: what training could at best reach."""
    import torch

    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(taken) < 4:
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * size**3 / median(taken[1:])


def parameters_multiplied(model: torch.nn.Module, *, head: bool = True) -> int:
    """Parameters that every token is multiplied by: all but embeddings, which are looked up, and adapters.

    Args:
        model: Adapters may be on it.
        head: Whether an output layer that shares its weights with the embeddings is counted.
    """
    from torch import nn

    from tasks.layers import bare, looked_up

    free = looked_up(model) if head else {id(m.weight) for m in bare(model).modules() if isinstance(m, nn.Embedding)}
    adapted = ("lora_", "original_module")
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if id(parameter) not in free and not any(part in name for part in adapted)
    )


class Watch:
    """Times `train` and `evaluate` of a Trainer class, and keeps what every evaluation found.

    Args:
        trainer: The class; its methods are replaced.
        metric: What of the metrics is kept, and where: name → key.

    Attributes:
        seconds: Of `train`, evaluations included.
        evaluating: Of all evaluations.
        curve: Step, seconds since training began, and metrics, of each evaluation.
    """

    def __init__(self, trainer: type[Any], metrics: Mapping[str, str]) -> None:
        self.seconds = self.evaluating = 0.0
        self.curve: list[Line] = []
        self._began = 0.0
        train, evaluate = trainer.train, trainer.evaluate

        def timed_train(learner: Any, *args: Any, **named: Any) -> Any:
            self._began = time.perf_counter()
            try:
                return train(learner, *args, **named)
            finally:
                self.seconds = time.perf_counter() - self._began

        def timed_evaluate(learner: Any, *args: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = evaluate(learner, *args, **named)
            now = time.perf_counter()
            self.evaluating += now - began
            kept = {name: float(found[key]) for name, key in metrics.items()}
            self.curve.append({"step": learner.state.global_step, "seconds": round(now - self._began, 3), **kept})
            return found

        trainer.train, trainer.evaluate = timed_train, timed_evaluate


def hone_learns(spec: Line, work: Path, metrics: Mapping[str, str], *, head: bool = True) -> Line:
    """The jobs that hone's child process does for a run, one after the other in this one: the plan, then training.

    Args:
        spec: What `tasks.learner.Job` takes.
        work: An empty folder; the trained model is in `out/model` afterwards.
        metrics: See `Watch`.
        head: See `parameters_multiplied`.
    """
    from tasks import learner
    from tasks.probe import plan_training

    watch, parameters, save = Watch(learner.Learner, metrics), list[int](), learner.save_model

    def counting(model: Any, *args: Any, **named: Any) -> Any:
        parameters.append(parameters_multiplied(model, head=head))
        return save(model, *args, **named)

    learner.save_model = counting
    checkpoints, out = work / "checkpoints", work / "out"
    for folder in (checkpoints, out):
        folder.mkdir()
    began = time.perf_counter()
    plan = plan_training(emit=_silent, **spec)
    planning = time.perf_counter() - began
    record = learner.train(
        emit=_silent, plan=plan, work=str(checkpoints), out=str(out), save_minutes=SAVE_MINUTES, **spec
    )
    return {
        **{name: plan[name] for name in ("precision", "attention", "micro_batch_tokens")},
        "planning_seconds": planning,
        "steps": record["steps"],
        "seconds": watch.seconds,
        "evaluating_seconds": watch.evaluating,
        "curve": watch.curve,
        "parameters": parameters[0],
    }


def _silent(event: str, **values: Any) -> None:
    """Nobody listens."""
