"""The report of a run, on its page in Prefect and beside its model in MLflow."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.engine import has_server
from schemas.comparison import Candidate
from schemas.curve import Curve
from schemas.found import FoundRecipe
from schemas.records import ModelVersion, Summary
from schemas.tune import Trial
from tasks.gate import verdict_markdown
from tasks.markdown import table
from tasks.outbox import without_password
from tasks.registry import CHALLENGER
from tasks.space import said
from tasks.tracking import Run

PICTURE = re.compile(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)")
"""A picture that lies beside its page."""
PROMOTE = "promote/any-model"
"""The deployment by which a person lets a version serve; see `flows.deploy`."""


def page_of(summary: Summary, evaluation: str) -> str:
    """The report as Markdown: who serves, the verdict, the evaluation, rows set aside, and where the time went."""
    stages = [(s.name, "cached" if s.cached else "computed", f"{s.seconds:.1f}", s.why) for s in summary.stages]
    reasons = [(reason, f"{count:,}") for reason, count in summary.rows["quarantined"].items()]
    parts = [
        _headline(summary.model),
        verdict_markdown(summary.gate),
        evaluation,
        "## Rows set aside",
        table(("reason", "rows"), reasons) if reasons else "None.",
        "## Stages",
        table(("stage", "", "seconds", "why"), stages),
    ]
    return "\n\n".join(parts)


def _headline(model: ModelVersion) -> str:
    aliases = " ".join(f"`{alias}`" for alias in model.aliases)
    known = ", registered by an earlier run" if model.cached else ""
    return f"**{model.name}** version **{model.version}** {aliases}{known}"


# Tasks, because Prefect's artifact functions are asynchronous in an asynchronous flow, but not in its tasks.
@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_model(summary: Summary, page: str, folder: Path, run: Run) -> None:
    """Put the run's report, its metrics and the ways to MLflow on Prefect's page of the run.

    Args:
        summary: What the run found.
        page: The report.
        folder: Holds its pictures.
        run: Has them, too, below `evaluation`.
    """
    where = f"[MLflow run]({run.url})" if run.url else f"MLflow run `{run.run_id}`"
    shown = "\n\n".join([f"{where}{_next_step(summary, run)}", with_pictures(page, folder, run, "evaluation")])
    create_markdown_artifact(shown, key=f"report-{summary.recipe}", description=_headline(summary.model))
    rows = [_row(name, summary) for name in summary.metrics if f"{name}_low" in summary.metrics]
    create_table_artifact(rows, key=f"metrics-{summary.recipe}", description=f"Test metrics of {summary.recipe}")
    if run.url:
        create_link_artifact(run.url, link_text="MLflow run", key="mlflow-run", description="Parameters, curves, files")


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_data(recipe: str, folder: Path, run: Run | None) -> None:
    """Put what the data looks like on Prefect's page of the run."""
    page = with_pictures((folder / "report.md").read_text(encoding="utf-8"), folder, run, "data")
    create_markdown_artifact(page, key=f"report-{recipe}-data", description=f"The rows of {recipe}")


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_curve(found: Curve, folder: Path, run: Run) -> None:
    """Put a learning curve, as a picture and as a table, on Prefect's page of the run."""
    page = with_pictures((folder / "report.md").read_text(encoding="utf-8"), folder, run, "curve")
    create_markdown_artifact(page, key=f"curve-{found.recipe}", description=found.told)
    rows = [
        {"share": point.share, "rows": point.rows, "steps": point.steps, **point.value.model_dump()}
        for point in found.points
    ]
    create_table_artifact(rows, key=f"curve-{found.recipe}-points", description=f"{found.metric} by training rows")


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_trials(recipe: str, trials: Sequence[Trial], most: int) -> None:
    """Put the trials of a search, as far as it has come, on Prefect's page of the run."""
    rows = [
        {
            "trial": trial.number, "state": trial.state,
            "value": None if trial.value is None else round(trial.value, 4),
            "reached": round(trial.reached, 2),
            "seconds": round(trial.seconds, 1), **{field: said(value) for field, value in trial.values.items()},
        }
        for trial in sorted(trials, key=lambda one: (one.state != "complete", -(one.value or 0.0)))
    ]  # fmt: skip
    about = f"{len(trials)} of up to {most} trials of {recipe}, the best first"
    create_table_artifact(rows, key=f"trials-{recipe}", description=about)


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_candidates(recipe: str, candidates: Sequence[Candidate], most: int) -> None:
    """Put the candidates of a comparison, as far as it has come, on Prefect's page of the run."""
    shown = ("name", "latency_ms", "rows_per_second", "size_mb", "learnt_parameters", "train_seconds", "told")
    rows = [{name: getattr(one, name) for name in shown} for one in candidates]
    about = f"{len(candidates)} of {most} candidates of {recipe}"
    create_table_artifact(rows, key=f"candidates-{recipe}", description=about)


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_found(found: FoundRecipe, kind: str, folder: Path, run: Run) -> None:
    """Put what a search or a comparison found on Prefect's page of the run, and the recipe, where it is another one.

    Args:
        found: Says it in a sentence.
        kind: `tune` or `compare`: where MLflow has the folder.
        folder: Holds the page and its pictures.
        run: Has them, too.
    """
    page = with_pictures((folder / "report.md").read_text(encoding="utf-8"), folder, run, kind)
    recipe = f"\n## The recipe\n\n```yaml\n{found.recipe_yaml}```\n" if found.changes else ""
    create_markdown_artifact(page + recipe, key=f"{kind}-{found.recipe}", description=found.told)


def _row(name: str, summary: Summary) -> dict[str, Any]:
    baselines: Mapping[str, Mapping[str, float]] = summary.baselines
    values = {
        "value": summary.metrics[name],
        "low": summary.metrics[f"{name}_low"],
        "high": summary.metrics[f"{name}_high"],
    }
    return {"metric": name, **values, **{other: scores.get(name) for other, scores in baselines.items()}}


def _next_step(summary: Summary, run: Run) -> str:
    """What a person can do about a version that waits."""
    model = summary.model
    if CHALLENGER not in model.aliases:
        return ""
    version = f"version {model.version}"
    if run.url:
        version = f"[{version}]({run.url.partition('#')[0]}#/models/{model.name}/versions/{model.version})"
    ask = _promote_url()
    promote = f"run [{PROMOTE}]({ask})" if ask else f"run `hone promote {model.name}`"
    look = "**It waits for you.** Look at the gate's checks and the slices below."
    return f"\n\n{look} To let {version} serve, {promote}, or move the alias `champion` to it in MLflow."


def _promote_url() -> str | None:
    """The page that promotes by a form, where it is deployed."""
    if not has_server():
        return None
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    server = get_current_settings().ui_url
    with get_client(sync_client=True) as client:
        try:
            return f"{server}/deployments/deployment/{client.read_deployment_by_name(PROMOTE).id}/run"
        except ObjectNotFound:
            return None


def with_pictures(page: str, folder: Path, run: Run | None, inside: str) -> str:
    """The page with its pictures where a browser finds them: on the MLflow server, else in the page itself.

    Args:
        page: Names pictures that lie beside it.
        folder: Where they are.
        run: Has them in its artifacts; none: no run has.
        inside: Below which folder of these.
    """

    def shown(match: re.Match[str]) -> str:
        title, name = match.groups()
        if not (folder / name).exists():
            return match.group()
        if run is not None and run.url is not None:
            query = urlencode({"run_uuid": run.run_id, "path": f"{inside}/{name}"})
            return f"![{title}]({without_password(run.url).partition('#')[0]}get-artifact?{query})"
        content = base64.b64encode((folder / name).read_bytes()).decode()
        return f"![{title}](data:image/png;base64,{content})"

    return PICTURE.sub(shown, page)
