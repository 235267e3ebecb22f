"""`hone deploy`: what recipes say, as deployments, schedules, limits and automations on a Prefect server.

Of each recipe: `finetune`, `retrain`, `curve`, `tune`, `compare` and each stage alone, named `<flow>/<recipe>`; once:
promote, rollback and evaluate of any model. Deploying twice changes nothing, and what was switched on or off in the UI
stays so while its schedule is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.desk import HEARTBEAT_SECONDS, POOL
from flows.engine import LOGGING, configure
from flows.limits import GPU_LIMIT
from schemas.errors import EnvironmentMistake, Problem, RecipeError
from schemas.loading import find_recipes, load_recipe
from schemas.recipe import Recipe
from schemas.schedule import Schedule
from schemas.stages import STAGES
from tasks.home import Home
from tasks.machine import accelerators

if TYPE_CHECKING:
    from uuid import UUID

    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

ANY_MODEL = "any-model"
"""Name of the deployments that are not of one recipe."""
TAG = "hone"
RUN_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),  # as the automation that ends dead runs expects it
    "PREFECT_LOGGING_EXTRA_LOGGERS": LOGGING["PREFECT_LOGGING_EXTRA_LOGGERS"],
}
"""What runs of every pool have in their environment."""
OURS = "Runs of hone"
"""Description of a work pool that hone has made."""
COMMAND = "python -P -m flows.under_worker"
"""How a flow run starts: so that it can end well, and without a folder on the path that may have a `tasks/` too."""


@dataclass(frozen=True)
class Wanted:
    """A deployment as it should be.

    Attributes:
        entrypoint: Module path of the flow; hone is installed wherever its runs are carried out.
        form: JSON Schema of its parameters.
        alone: Runs of it never overlap; one that is due meanwhile waits, or is cancelled.
    """

    flow: str
    name: str
    entrypoint: str
    description: str
    tags: tuple[str, ...]
    parameters: dict[str, Any]
    form: dict[str, Any]
    schedule: Schedule | None = None
    alone: str | None = None
    job_variables: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Digest of all that; kept as the deployment's version."""
        values = {**self.__dict__, "schedule": self.schedule.model_dump() if self.schedule else None}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Deployed:
    """A deployment on the server, and what was done about it: `created`, `updated` or `unchanged`."""

    name: str
    done: str
    schedule: str | None


def deploy(paths: Sequence[Path], *, pool: str, write: Path | None, as_json: bool) -> int:
    """Create or update the deployments of recipes, by default all in the project's `deployments/`.

    Args:
        paths: The recipes.
        pool: Name of the work pool.
        write: Write a file for `prefect deploy` instead.
        as_json: Print what was done as one JSON object.
    """
    found = paths or find_recipes(Path.cwd())
    if not found:
        raise RecipeError(Problem("RECIPE", None, f"there is none in {Path.cwd() / 'deployments'}", "name a recipe"))
    recipes = [load_recipe(path) for path in found]
    home = Home.open(found[0])
    configure(home)
    if write is not None:
        from flows import prefect_file

        prefect_file.write(recipes, write, pool=pool)
        print(json.dumps({"written": str(write)}) if as_json else f"{write}: deployments of {len(recipes)} recipes")
        return 0
    refuse_embedded()
    deployed = apply(recipes, home, pool=pool)
    if as_json:
        print(json.dumps({"deployments": [vars(each) for each in deployed], "pool": pool}))
        return 0
    for each in deployed:
        print(f"{each.done:<10} {each.name}{f'  {each.schedule}' if each.schedule else ''}")
    return 0


def refuse_embedded() -> None:
    """Raise Mistake where no Prefect server is configured: deployments would go with this process."""
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        remedy = "start `hone up`, or set PREFECT_API_URL"
        raise EnvironmentMistake(Problem("PREFECT_API_URL", None, "no Prefect server is configured", remedy))


def apply(recipes: Sequence[Recipe], home: Home, *, pool: str = POOL) -> list[Deployed]:
    """Make the server have what these recipes say, no more and no less of it.

    Args:
        recipes: Their deployments are made.
        home: Whose project flow runs work in.
        pool: The work pool; made, of type process, where there is none of that name.
    """
    from prefect.client.orchestration import get_client

    from flows.automations import apply_automations

    with get_client(sync_client=True) as client:
        local = _ready_pool(client, pool)
        variables: dict[str, Any] = {"env": RUN_ENVIRONMENT}
        if local:
            variables["working_dir"] = str(home.project)
        deployed = [_apply(client, wanted, pool) for wanted in wanted_of(recipes, variables)]
        if accelerators():
            client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, len(accelerators()))
        apply_automations(client, recipes)
    return deployed


def wanted_of(recipes: Sequence[Recipe], job_variables: dict[str, Any]) -> list[Wanted]:
    """Every deployment that these recipes ask for."""
    return [
        *(wanted for recipe in recipes for wanted in _of_recipe(recipe, job_variables)),
        *_of_any_model(recipes, job_variables),
    ]


def _of_recipe(recipe: Recipe, job_variables: dict[str, Any]) -> Iterable[Wanted]:
    from flows import stages
    from flows.comparing import compare
    from flows.finetune import finetune
    from flows.form import recipe_form
    from flows.learning_curve import curve
    from flows.retrain import retrain
    from flows.tuning import tune

    rhythms = {s.stage: s for s in recipe.schedule.stages}
    about = recipe.description or f"The recipe {recipe.name}."
    grows = "The metric against the number of training rows, and what more of them would add."
    better = "A better recipe: other values of its fields are tried, and the best are compared with it."
    chosen = "Base models and methods side by side, and the one to have."
    unless = "Trains only when rows, recipe or champion have changed since the last attempt."
    kinds: list[tuple[Flow[..., Any], str, Schedule | None, str]] = [
        (finetune, "flows.finetune.finetune", recipe.schedule.finetune, f"{about} The whole pipeline."),
        (retrain, "flows.retrain.retrain", recipe.schedule.retrain, f"{about} {unless}"),
        (curve, "flows.learning_curve.curve", None, f"{about} {grows}"),
        (tune, "flows.tuning.tune", None, f"{about} {better}"),
        (compare, "flows.comparing.compare", None, f"{about} {chosen}"),
    ]
    for stage in STAGES:
        name = f"{stage}_flow"
        kinds.append((getattr(stages, name), f"flows.stages.{name}", rhythms.get(stage), f"{about} Up to {stage}."))
    for flow, entrypoint, schedule, description in kinds:
        form, parameters = recipe_form(flow, recipe)
        yield Wanted(
            flow=flow.name,
            name=recipe.name,
            entrypoint=entrypoint,
            description=description,
            tags=(TAG, recipe.name, recipe.task.family),
            parameters=parameters,
            form=form,
            schedule=schedule,
            alone=recipe.schedule.overlap,
            job_variables=job_variables,
        )


def _of_any_model(recipes: Sequence[Recipe], job_variables: dict[str, Any]) -> Iterable[Wanted]:
    from flows import decisions
    from flows.form import form_of

    environments = sorted({e.name for r in recipes for e in r.registry.environments})
    models = sorted({name for recipe in recipes for name in models_of(recipe)})
    choices = {"model": models, "to": environments}
    for flow in (decisions.promote, decisions.rollback, decisions.evaluate):
        yield Wanted(
            flow=flow.name,
            name=ANY_MODEL,
            entrypoint=f"flows.decisions.{flow.fn.__name__}",
            description=(flow.description or "").partition("\n")[0],
            tags=(TAG,),
            parameters={"model": models[0]} if models else {},
            form=form_of(flow, choices={name: known for name, known in choices.items() if known}),
            job_variables=job_variables,
        )


def models_of(recipe: Recipe) -> list[str]:
    """Registered models of a recipe: its own, and those of the environments behind it."""
    return [recipe.model_name, *(f"{recipe.model_name}-{each.name}" for each in recipe.registry.environments)]


def _ready_pool(client: SyncPrefectClient, name: str) -> bool:
    """Have a work pool of that name; returns whether its runs are processes of a machine that has this project."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["command"]["default"] = COMMAND
    try:
        known = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template, description=OURS))
        return True
    if known.description == OURS and known.base_job_template != template:  # made by another version of hone or Prefect
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    return known.type == "process"


def _apply(client: SyncPrefectClient, wanted: Wanted, pool: str) -> Deployed:
    from prefect.exceptions import ObjectNotFound

    full_name = f"{wanted.flow}/{wanted.name}"
    version = f"{wanted.fingerprint}-{hashlib.sha256(pool.encode()).hexdigest()[:4]}"
    schedule = _shown(wanted.schedule) if wanted.schedule else None
    try:
        known: DeploymentResponse | None = client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        known = None
    if known is not None and known.version == version:
        return Deployed(full_name, "unchanged", schedule)
    switched = {s.slug: s for s in known.schedules} if known else {}
    flow_id: UUID = client.create_flow_from_name(wanted.flow)
    client.create_deployment(
        flow_id,
        wanted.name,
        version=version,
        schedules=[_schedule(wanted.schedule, switched)] if wanted.schedule else [],
        concurrency_limit=1 if wanted.alone else None,
        concurrency_options=_concurrency(wanted.alone) if wanted.alone else None,
        parameters=wanted.parameters,
        description=wanted.description,
        work_pool_name=pool,
        tags=list(wanted.tags),
        entrypoint=wanted.entrypoint,
        parameter_openapi_schema=wanted.form,
        enforce_parameter_schema=True,
        job_variables=wanted.job_variables,
    )
    return Deployed(full_name, "updated" if known else "created", schedule)


def _schedule(schedule: Schedule, known: dict[str | None, DeploymentSchedule]) -> DeploymentScheduleCreate:
    """A schedule for the server; one that it has already stays on or off as somebody left it."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    slug = f"recipe-{hashlib.sha256(schedule.model_dump_json().encode()).hexdigest()[:12]}"
    rhythm = (
        CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
        if schedule.cron is not None
        else IntervalSchedule(interval=timedelta(minutes=schedule.every_minutes or 0), timezone=schedule.timezone)
    )
    active = known[slug].active if slug in known else schedule.active
    return DeploymentScheduleCreate(schedule=rhythm, active=active, slug=slug)


def _concurrency(overlap: str) -> Any:
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    strategy = ConcurrencyLimitStrategy.ENQUEUE if overlap == "queue" else ConcurrencyLimitStrategy.CANCEL_NEW
    return ConcurrencyOptions(collision_strategy=strategy)


def _shown(schedule: Schedule) -> str:
    rhythm = f"cron {schedule.cron}" if schedule.cron else f"every {schedule.every_minutes} min"
    return f"{rhythm} {schedule.timezone}{'' if schedule.active else ', off until switched on'}"
