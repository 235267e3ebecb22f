"""Whether promotions survive: two processes move one champion at the same moment, and are killed while they do.

    python -m benchmarks.promotion_races --cases 100
    python -m benchmarks.promotion_races --report

A real MLflow server (SQLite, HTTP, a process of its own), one home, and for every case a registered model with a random
past. Two processes promote different challengers, or roll back, after random delays. About half of them are killed with
SIGKILL: at a random moment; before, during or after a chosen request or line of the journal; or with that line half
written. Then the next command runs, now and then killed itself, and everything must agree: one champion, every intent
closed once, no promotion lost that was reported as done, tags and journal telling the same, the lock free, and a
rollback that goes where it should. What was found is a line of `results/promotion-races.jsonl` as soon as a case is
done; a seed that has a line is not run again. The seed decides all but the timing.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from schemas.errors import Mistake
from tasks import registry
from tasks.home import Home
from tasks.promotion_journal import Move
from tasks.tracking import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESULTS = Path(__file__).parent / "results" / "promotion-races.jsonl"
LIBRARIES = ("mlflow", "filelock", "sqlalchemy")
VERSIONS = ("1", "2", "3", "4", "5", "6")
KILLED = 0.5
"""Share of the processes that are to be killed."""
REPAIR_KILLED = 0.25
"""Share of the next commands that are to be killed as well."""
POINTS = {"start": 22, "intent": 11}
"""Requests and lines of the journal from a command's start, or from its intent, among which one is chosen."""
MOVED_BETWEEN = 0.15
"""Share of the cases in which a person moves the alias before the next command."""
FLIGHT_S = 0.01
"""Longest after the beginning of a request that it is cut: about what one takes."""
CALLS = (
    "get_registered_model", "get_model_version", "set_registered_model_alias", "delete_registered_model_alias",
    "set_registered_model_tag", "set_model_version_tag", "delete_model_version_tag",
)  # fmt: skip
PHASES = {("deciding", "intent"): "moving", ("moving", "confirmed"): "done"}
"""What a command does, after what it did and a line of the journal; to decide it may repair first."""
ORDER = ("deciding", "moving", "done")
WHEN = ("before", "in", "after", "torn")
LIMIT_S = 60.0

Line = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promotion_races", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=100, help="how many; their seeds are 0, 1, 2, ...")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was found, as Markdown")
    asked = parser.parse_args(arguments)
    if not asked.report:
        run_cases(range(asked.cases), asked.results)
    found = recorded(asked.results)
    print(report(found))
    return int(any(line["violations"] for line in found))


def recorded(results: Path) -> list[Line]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def run_cases(seeds: Sequence[int], results: Path) -> None:
    """Run the cases that have no line yet."""
    from benchmarks.preparation import conditions

    done = {line["seed"] for line in recorded(results)}
    left = [seed for seed in seeds if seed not in done]
    if not left:
        return
    with tempfile.TemporaryDirectory(prefix="hone-races-") as folder, mlflow_server(Path(folder)) as uri:
        os.environ |= {
            "HONE_HOME": f"{folder}/home",
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        races = Races(Home.open(Path(folder)))
        under = conditions() | {"libraries": {name: version(name) for name in LIBRARIES}}
        results.parent.mkdir(parents=True, exist_ok=True)
        for seed in left:
            line = races.run(seed) | {"conditions": under}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"seed {seed}: {told(line)}", file=sys.stderr)
        print(f"the whole home: {races.all_agree() or 'nothing left to repair'}", file=sys.stderr)


def told(line: Line) -> str:
    """A case in one line."""
    ends = ", ".join(
        f"{command['verb']} {command.get('version', '')} {end['outcome']} {end['where']}"
        for command, end in zip(line["commands"], line["ended"], strict=True)
    )
    repaired = ", ".join(line["repaired"]) or "nothing"
    return f"{ends}; repaired {repaired}; champion {line['champion']}; {line['violations'] or 'agrees'}"


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Address of a server that lives as long as this."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + 90
            while not answers(f"{uri}/health"):
                if time.monotonic() > deadline:
                    raise TimeoutError((folder / "server.log").read_text()[-2000:])
                time.sleep(0.2)
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


class Races:
    """Cases in one home, against its MLflow server."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.mlflow = client(home)
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(
            ["tasks.registry", "mlflow.tracking.client", "mlflow.store.model_registry.rest_store"]
        )
        self._taken: deque[float] = deque(maxlen=12)
        self._register("usual")
        for number in VERSIONS[:3]:
            self._race("usual", [{"verb": "promote", "version": number}], [0.0])

    @property
    def usual(self) -> float:
        """Seconds that a command takes: the median of the last that moved a champion."""
        return median(self._taken)

    def run(self, seed: int) -> Line:
        """One case: past, race, repair, and what does not agree."""
        began = time.perf_counter()
        draw = random.Random(seed)
        name = f"race-{seed:03d}"
        self._register(name)
        past = self._past(draw, name)
        commands = [command_of(draw) for _ in range(2)]
        delays = [draw.uniform(0, self.usual) for _ in commands]
        since = len(journal(self.home, name))
        ended = self._race(name, commands, delays)
        wrong = [] if lock_is_free(self.home, name) else ["the lock is held by nobody alive"]
        between = draw.choice(VERSIONS) if draw.random() < MOVED_BETWEEN else None
        if between:
            self.mlflow.set_registered_model_alias(name, "champion", between)
        before = len(journal(self.home, name))
        repairs = self._repair(name, draw)
        repaired = [line["event"] for line in journal(self.home, name)[before:]]
        wrong += [f"another command found {line['event']}" for line in registry.reconcile(self.home, name)]
        wrong += disagreements(self.home, self.mlflow, name)
        wrong += broken_promises(self.home, name, since, commands, ended)
        champion = registry.aliases_of(self.mlflow, name).get("champion")
        wrong += self._rollback(name)
        return {
            "seed": seed, "past": past, "commands": commands, "delays": [round(delay, 3) for delay in delays],
            "ended": ended, "by_hand": between, "repairs": repairs, "repaired": repaired, "champion": champion,
            "journal": [[line["event"], line["before"], line["to"], line["by"]] for line in journal(self.home, name)],
            "violations": wrong,
            "usual_seconds": round(self.usual, 3), "seconds": round(time.perf_counter() - began, 2),
        }  # fmt: skip

    def all_agree(self) -> list[str]:
        """What does not, in the whole home, once every model was reconciled."""
        added = [f"{line['name']}: {line['event']}" for line in registry.reconcile(self.home)]
        names = sorted({line["name"] for line in journal(self.home)})
        return added + [f"{name}: {wrong}" for name in names for wrong in disagreements(self.home, self.mlflow, name)]

    def _register(self, name: str) -> None:
        self.mlflow.create_registered_model(name)
        for number in VERSIONS:
            self.mlflow.create_model_version(name, f"s3://nowhere/{name}/{number}", tags={"hone.gate": "promote"})

    def _past(self, draw: random.Random, name: str) -> list[str]:
        """Up to four moves, nobody being in their way."""
        steps = []
        for _ in range(draw.randrange(5)):
            number = draw.choice(VERSIONS)
            step = draw.choices(["promote", "rollback", "by hand"], [6, 2, 1])[0]
            try:
                if step == "promote":
                    registry.promote_by_hand(self.home, name, number, by="past", reason="past", override=True)
                elif step == "rollback":
                    registry.rollback_by_hand(self.home, name, by="past", reason="past")
                else:
                    self.mlflow.set_registered_model_alias(name, "champion", number)
            except Mistake:
                step = f"{step} (refused)"
            steps.append(f"{step} {number}" if step != "rollback" else step)
        challenger = draw.choice(VERSIONS)
        if registry.aliases_of(self.mlflow, name).get("champion") != challenger:
            self.mlflow.set_registered_model_alias(name, "challenger", challenger)
        return steps

    def _race(self, name: str, commands: Sequence[Line], delays: Sequence[float]) -> list[Line]:
        """Run commands in processes of their own that start together; returns how each ended."""
        known = {"name": name, "serving": registry.aliases_of(self.mlflow, name).get("champion")}
        with tempfile.TemporaryDirectory() as folder:
            racers = [
                Racer(self._processes, self.home, known | command, Path(folder) / str(place))
                for place, command in enumerate(commands)
            ]
            start = time.monotonic() + 0.01
            for racer, delay in zip(racers, delays, strict=True):
                racer.go(start + delay)
            moments = [
                (start + delay + command["kill"]["moment"] * self.usual, racer)
                for racer, command, delay in zip(racers, commands, delays, strict=True)
                if "moment" in command.get("kill", {})
            ]
            for moment, racer in sorted(moments, key=lambda pair: pair[0]):
                time.sleep(max(0.0, moment - time.monotonic()))
                racer.kill()
            ended = [racer.end() for racer in racers]
        self._taken += [end["seconds"] for end in ended if end["outcome"] == "moved"]
        return ended

    def _repair(self, name: str, draw: random.Random) -> list[Line]:
        """The next command, again until it is let finish."""
        ends = []
        while True:
            command: Line = {"verb": "reconcile"}
            if draw.random() < REPAIR_KILLED:
                command["kill"] = kill_of(draw, "start", POINTS["intent"])
            ends += self._race(name, [command], [0.0])
            if not ends[-1]["killed"]:
                break
        return ends

    def _rollback(self, name: str) -> list[str]:
        """A rollback goes where the journal says it must."""
        lines = journal(self.home, name)
        expected = former_of(lines)
        if expected == "":
            return []
        try:
            registry.rollback_by_hand(self.home, name, by="afterwards", reason="afterwards")
        except Mistake as refusal:
            return [] if expected == "unknown" else [f"a rollback was refused: {refusal}"]
        serves = registry.aliases_of(self.mlflow, name).get("champion")
        wrong = [] if serves == expected else [f"a rollback went to {serves}, not to {expected}"]
        return wrong + disagreements(self.home, self.mlflow, name)


def command_of(draw: random.Random) -> Line:
    command: Line = {"verb": draw.choices(["promote", "promote as decided", "rollback"], [5, 3, 2])[0]}
    if command["verb"] != "rollback":
        command["version"] = draw.choice(VERSIONS)
    if draw.random() < KILLED:
        origin = draw.choice(list(POINTS))
        command["kill"] = kill_of(draw, origin, POINTS[origin])
    return command


def kill_of(draw: random.Random, origin: str, points: int) -> Line:
    """When to kill: at a moment, in usual durations after the start; at a point; or within a line of the journal."""
    if draw.random() < 0.3:
        return {"moment": round(draw.uniform(0, 2), 3)}
    how, share = draw.choice(["before", "during", "after", "torn"]), round(draw.random(), 3)
    if how == "torn":
        return {"how": how, "line": draw.randrange(2), "share": share}
    return {"how": how, "from": origin, "point": draw.randrange(points), "share": share}


class Racer:
    """A command in a process of its own, ready to start."""

    def __init__(self, processes: Any, home: Home, command: Line, trace: Path) -> None:
        self._trace = trace
        self._pipe, theirs = processes.Pipe()
        arguments = (theirs, str(home.root), home.mlflow_uri, command | {"trace": str(trace)})
        self._process = processes.Process(target=take_part, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it is ready

    def go(self, at: float) -> None:
        self._pipe.send(at)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> Line:
        """How it ended, and where it was killed."""
        self._process.join(LIMIT_S)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"a command has run for {LIMIT_S} s: {self._trace.read_text()}")
        killed = self._process.exitcode == -signal.SIGKILL
        said = None
        if not killed or self._pipe.poll():
            try:
                said = self._pipe.recv()
            except EOFError:
                said = None
        if said is None and not killed:
            raise RuntimeError(f"a command died by itself, exit code {self._process.exitcode}")
        end = {"by": f"process {self._process.pid}", "killed": said is None, "where": ""}
        return end | (said or {"outcome": "killed", "seconds": None, "where": self._where()})

    def _where(self) -> str:
        steps = self._trace.read_text().split() if self._trace.exists() else []
        return steps[-1] if steps else "start"


def take_part(pipe: Connection, root: str, uri: str, command: Line) -> None:
    """The racer's process."""
    os.environ |= {"HONE_HOME": root, "MLFLOW_TRACKING_URI": uri}
    logging.disable(logging.CRITICAL)
    home, name, by = Home(Path(root)), command["name"], f"process {os.getpid()}"
    act: dict[str, Callable[[], object]] = {
        "promote": lambda: registry.promote_by_hand(
            home, name, command["version"], by=by, reason="better", override=True
        ),
        "promote as decided": lambda: promote_as_decided(home, command, by),
        "rollback": lambda: registry.rollback_by_hand(home, name, by=by, reason="complaints"),
        "reconcile": lambda: registry.reconcile(home, name),
    }
    watch(command["trace"], command.get("kill", {}), home)
    pipe.send("ready")
    time.sleep(max(0.0, pipe.recv() - time.monotonic()))
    began = time.monotonic()
    try:
        done = act[command["verb"]]()
        outcome = "moved" if isinstance(done, registry.Change) and done.champion != done.before else "nothing to do"
    except Mistake as refusal:
        outcome = f"refused: {refusal.problems[0].rule}"
    pipe.send({"outcome": outcome, "seconds": round(time.monotonic() - began, 4)})


def promote_as_decided(home: Home, command: Line, by: str) -> registry.Change:
    """As a run does: against the champion that served when its verdict was measured."""
    before = command["serving"]
    registry.promote(
        home, command["name"], command["version"],
        expected_champion=before, by=by, reason="the gate said so", even_if_rolled_back=True,
    )  # fmt: skip
    return registry.Change(command["name"], command["version"], command["version"], before)


def watch(trace: str, kill: Line, home: Home) -> None:
    """Write down every request and line of the journal, and end this process at the chosen one."""
    from mlflow import MlflowClient

    out = os.open(trace, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    passed = Counter({"start": 0})
    phase = ["deciding"]

    def due(name: str) -> bool:
        """Whether this step is the chosen one; counts it."""
        chosen = kill.get("point") == passed[kill["from"]] if "from" in kill else kill.get("line") == passed["note"]
        counted = ["start", "intent"] if phase[0] != "deciding" else ["start"]
        passed.update([*counted, name])
        return chosen and (kill.get("from") in counted or (kill.get("how") == "torn" and name == "note"))

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def step(*args: Any, **named: Any) -> Any:
            how = kill.get("how") if due(name) else None
            place = f"{phase[0]}:{args[2] if name == 'note' else name}".replace(" ", "-")
            os.write(out, f"before/{place}\n".encode())
            if how == "before":
                die()
            os.write(out, f"in/{place}\n".encode())
            if how == "during":
                threading.Timer(kill["share"] * FLIGHT_S, die).start()
            if how == "torn":
                tear(call, args, named, kill["share"], home)
                os.write(out, f"torn/{place}\n".encode())
                die()
            result = call(*args, **named)
            if name == "note":
                phase[0] = PHASES.get((phase[0], args[2]), phase[0])
            os.write(out, f"after/{place}\n".encode())
            if how == "after":
                die()
            return result

        return step

    for name in CALLS:
        setattr(MlflowClient, name, watched(name, getattr(MlflowClient, name)))
    Move.note = watched("note", Move.note)  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tear(note: Callable[..., Any], args: Any, named: Any, share: float, home: Home) -> None:
    """Leave of a line of the journal what a crash within the write would leave."""
    file = home.journal / "promotions.jsonl"
    before = file.stat().st_size if file.exists() else 0
    note(*args, **named)
    written = file.stat().st_size - before
    os.truncate(file, before + int(share * written))


def journal(home: Home, name: str | None = None) -> list[Line]:
    """The lines that are whole, read without hone."""
    file = home.journal / "promotions.jsonl"
    lines = []
    for raw in file.read_bytes().split(b"\n") if file.exists() else []:
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if name in {None, line["name"]}:
            lines.append(line)
    return lines


def lock_is_free(home: Home, name: str) -> bool:
    try:
        with FileLock(home.locks / f"promote-{name}.lock", blocking=False):
            return True
    except Timeout:
        return False


def disagreements(home: Home, mlflow: MlflowClient, name: str) -> list[str]:
    """Where journal, aliases and tags of a model tell different stories."""
    lines = journal(home, name)
    settled = settled_of(lines)
    aliases = registry.aliases_of(mlflow, name)
    wrong = []
    for line in lines:
        if line["event"] == "intent":
            ends = [other["event"] for other in lines if other["id"] == line["id"] and other["event"] != "intent"]
            if len(ends) != 1 or ends[0] not in {"confirmed", "undone"}:
                wrong.append(f"an intent to let {line['to']} serve ended {len(ends)} times: {ends}")
        elif line["event"] in {"confirmed", "undone"} and not any(
            other["event"] == "intent" and other["id"] == line["id"] for other in lines
        ):
            wrong.append(f"{line['event']} without an intent")
    wrong += [
        f"{line['to']} followed {line['before']}, but {former['to']} served"
        for former, line in pairwise(settled)
        if line["before"] != former["to"]
    ]
    if settled and settled[-1]["to"] != aliases.get("champion"):
        wrong.append(f"the journal ends with {settled[-1]['to']}, the alias with {aliases.get('champion')}")
    if aliases.get("champion") and aliases.get("champion") == aliases.get("challenger"):
        wrong.append("the champion is its own challenger")
    return wrong + [w for number in VERSIONS for w in tags_astray(mlflow, name, number, settled)]


def settled_of(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["event"] in {"confirmed", "by hand"}]


def tags_astray(mlflow: MlflowClient, name: str, number: str, settled: Sequence[Line]) -> list[str]:
    """Where a version's tags are not what the last moves to it and away from it make them."""
    tags = mlflow.get_model_version(name, number).tags
    came = [line for line in settled if line["to"] == number and not line["rolls_back"]]
    marks = [line["rolls_back"] for line in settled if line["before" if line["rolls_back"] else "to"] == number]
    replaced = any(line["before"] == number and not line["rolls_back"] for line in settled)
    expected = {
        "hone.champion_before": (came[-1]["before"] or "") if came else None,
        "hone.rolled_back": bool(marks) and marks[-1],
        "hone.was_champion": replaced,
        "hone.promoted": bool(came),
    }
    found = {key: key in tags for key in expected} | {"hone.champion_before": tags.get("hone.champion_before")}
    return [
        f"version {number}: {key} is {found[key]!r}, not {expected[key]!r}"
        for key in expected
        if found[key] != expected[key]
    ]


def broken_promises(home: Home, name: str, since: int, commands: Sequence[Line], ended: Sequence[Line]) -> list[str]:
    """Commands that said they moved the champion and are not on record, or were refused and did something."""
    wrong = []
    for command, end in zip(commands, ended, strict=True):
        mine = [line for line in journal(home, name) if line["event"] == "confirmed" and line["by"] == end["by"]]
        moved = [line["to"] for line in mine]
        if end["outcome"].startswith("refused") and moved:
            wrong.append(f"a refused {command['verb']} let {moved} serve")
        anybodys = [line["to"] for line in journal(home, name)[since:] if line["event"] == "confirmed"]
        if end["outcome"] == "moved" and "version" in command and command["version"] not in anybodys:
            wrong.append(f"version {command['version']} was reported as promoted, on record are {anybodys}")
    return wrong


def former_of(lines: Sequence[Line]) -> str | None:
    """Who should serve after a rollback: by the journal alone. Empty when nothing serves."""
    settled = settled_of(lines)
    if not settled or settled[-1]["to"] is None:
        return ""
    before = {line["to"]: line["before"] for line in settled if not line["rolls_back"]}
    bad = set()
    for line in settled:
        if line["rolls_back"]:
            bad.add(line["before"])
        else:
            bad.discard(line["to"])
    seen, at = set(), settled[-1]["to"]
    while at is not None and (at == settled[-1]["to"] or at in bad):
        if at in seen:
            return None
        seen.add(at)
        if at not in before:
            return "unknown"
        at = before[at]
    return at


def report(lines: Sequence[Line]) -> str:
    """What was found, as Markdown: how the commands ended, where they were killed, and what did not agree."""
    ended = [end for line in lines for end in line["ended"]]
    repairs = [end for line in lines for end in line["repairs"]]
    killed = [end for end in [*ended, *repairs] if end["killed"]]
    wrong = [f"seed {line['seed']}: {violation}" for line in lines for violation in line["violations"]]
    outcomes = Counter(end["outcome"].split(":")[0] for end in ended)
    repaired = Counter(event for line in lines for event in line["repaired"])
    last = sorted({json.dumps(line["conditions"] | {"date": "", "load_1min": ""}) for line in lines})
    return "\n".join([
        f"{len(lines)} cases, {len(wrong)} disagreements.",
        "",
        *(f"- {violation}" for violation in wrong),
        f"- how {len(ended)} commands ended: {listed(outcomes)}",
        f"- both killed: {sum(all(end['killed'] for end in line['ended']) for line in lines)} cases, "
        f"one: {sum(sum(end['killed'] for end in line['ended']) == 1 for line in lines)}",
        f"- next commands: {len(repairs)}, of which killed {sum(end['killed'] for end in repairs)}; "
        f"journalled by them: {listed(repaired) or 'nothing'}",
        "",
        "| killed while | before | in | after | torn |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {row} |" for row in places(killed)),
        "",
        *(machine(json.loads(under)) for under in last),
        f"A command that nobody killed took {median(line['usual_seconds'] for line in lines) * 1000:.0f} ms (median).",
    ])  # fmt: skip


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.most_common())


def places(killed: Sequence[Line]) -> list[str]:
    """Where processes were killed: a row for each request and kind of line, and how many before, in and after it."""
    counts = Counter(tuple(end["where"].partition("/")[::2]) for end in killed)
    steps = sorted({step for _, step in counts if step}, key=lambda step: (ORDER.index(step.split(":")[0]), step))
    rows = [
        [
            step.replace(":", ", ").replace("deciding", "deciding or repairing"),
            *(str(counts[when, step] or "") for when in WHEN),
        ]
        for step in steps
    ]
    return [" | ".join(row) for row in [["not begun", str(counts["start", ""] or ""), "", "", ""], *rows]]


def machine(under: Line) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in under["libraries"].items())
    return f"{under['cpu']}, {under['cores']} cores, Python {under['python']}, {libraries}, {under['commit']}."


if __name__ == "__main__":
    sys.exit(main())
