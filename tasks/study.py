"""The trials of a search, kept in a database: Optuna's, so that its dashboard and its other tools read them, too.

A search is known by what shapes it: the rows, the recipe and the space. The same command finds it again, with the
trials it has; one that was interrupted is gone on with, and none is run twice. Does not cover what a trial does
(`tasks.trial`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.errors import EnvironmentMistake, Problem
from schemas.recipe import Recipe
from schemas.tune import Range, Space, Trial, TrialState
from tasks.home import Home
from tasks.keys import key_of
from tasks.space import METHOD, applies, is_whole, resolved, with_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

log = logging.getLogger(__name__)

DATABASE = "HONE_STUDIES"
"""Environment variable with the database's SQLAlchemy URL; else it is a file in the home."""
STARTUP = 6
"""Trials at random before the others are drawn where good ones were."""
PRUNING_STARTUP = 4
"""Trials that none is given up for."""
IMPORTANCE_FROM = 10
"""Complete trials from which on it can be told what explains their variation."""
EARLY_LOOKS = 1
"""Looks after which nothing is given up: the learning rate has hardly reached its peak."""
LOOKS = 5
"""How often a trial is looked at while it learns."""
ATTEMPTS = 5
"""At making the tables of a database that others make, too."""
OURS, TOKEN, RECORD = "hone.home", "hone.command", "hone.trial"
"""Attributes of a trial in the database: whose it is, the command that runs it, and what it ended with."""


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run.

    Attributes:
        number: From 0.
        values: Field → value.
        before: Whether it was begun by a command that was interrupted.
    """

    number: int
    values: Mapping[str, Any]
    before: bool


class Study:
    """A search, and the trials it has.

    Args:
        home: Whose.
        recipe: The job.
        space: What is tried.
        rows: Key of the rows that all trials learn from and are measured on.
        share: Of the training rows that trials learn from.
        examples: Training rows in all.
    """

    def __init__(
        self, home: Home, recipe: Recipe, space: Space, *, rows: str, share: float, examples: int
    ) -> None:  # fmt: skip
        self._recipe, self._space, self._examples = recipe, space, examples
        self._owner = f"{socket.gethostname()}:{home.root}"
        self._token = uuid.uuid4().hex
        self.name = f"{recipe.name}-{_key(recipe, space, rows, share)}"
        with quiet():
            self._study = _open(home, self.name, prunes=recipe.tune.prune)
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(self._as_it_is())

    @property
    def trials(self) -> list[Trial]:
        """Those that have ended, in order."""
        found = (trial.user_attrs.get(RECORD) for trial in self._study.get_trials(deepcopy=False))
        return [Trial.model_validate(record) for record in found if record is not None]

    def next(self, most: int) -> Asked | None:
        """The next trial: one that was interrupted, or a new one; none where there are `most` of them."""
        from optuna.trial import TrialState as State

        trial = self._interrupted()
        before = trial is not None
        with quiet():
            if trial is None:
                if self._begun() >= most:
                    return None
                self._study.sampler = _sampler(self._begun())
                trial = self._study.ask()
                trial.set_user_attr(OURS, self._owner)
                if trial.number >= most:  # another machine took the last one in between
                    self._study.tell(trial, state=State.FAIL)
                    return None
            values = self._suggested(trial)
        trial.set_user_attr(TOKEN, self._token)
        return Asked(trial.number, {} if trial.number == 0 else values, before)

    def report(self, number: int, look: int, value: float) -> bool:
        """Keep what a trial is worth so far; returns whether it is to be given up.

        Args:
            number: The trial's.
            look: 1 to `LOOKS`; the last one is the end.
            value: Of the metric.
        """
        trial = self._trial(number)
        if look not in self._study.trials[number].intermediate_values:  # an interrupted trial comes here twice
            trial.report(value, look)
        return self._recipe.tune.prune and number > 0 and look < LOOKS and bool(trial.should_prune())

    def tell(self, trial: Trial) -> None:
        """Keep what a trial ended with."""
        from optuna.trial import TrialState as State

        states: dict[TrialState, Any] = {
            "complete": State.COMPLETE, "pruned": State.PRUNED, "failed": State.FAIL,
        }  # fmt: skip
        self._trial(trial.number).set_user_attr(RECORD, trial.model_dump(mode="json"))
        with quiet():
            self._study.tell(
                trial.number, trial.value if trial.state == "complete" else None, state=states[trial.state]
            )

    def _suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        """The trial's values, drawn one after the other: a method decides which others there are."""
        values: dict[str, Any] = {}
        first = trial.number == 0
        known = self._as_it_is() if first else {}
        recipe = self._recipe
        for field in sorted(self._space, key=lambda name: name != METHOD):
            if (first and field not in known) or not applies(recipe, field):
                continue
            values[field] = _value(trial, field, self._distribution(field))
            if field == METHOD:
                recipe = with_values(recipe, {METHOD: values[METHOD]})
        return values

    def _as_it_is(self) -> dict[str, Any]:
        """What the recipe says of the searched fields, as the database has it, where that is in the space."""
        found = {}
        for field in self._space:
            if not applies(self._recipe, field):
                continue
            kept, distribution = _kept(resolved(self._recipe, field, self._examples)), self._distribution(field)
            try:
                inside = distribution._contains(distribution.to_internal_repr(kept))
            except (TypeError, ValueError):
                inside = False  # a number of a field that has none yet
            if inside:
                found[field] = kept
        return found

    def _distribution(self, field: str) -> optuna.distributions.BaseDistribution:
        return distribution_of(self._space, field, whole=_takes_whole(self._recipe, self._space, field))

    def _begun(self) -> int:
        from optuna.trial import TrialState as State

        return len(self._study.get_trials(deepcopy=False, states=tuple(s for s in State if s != State.WAITING)))

    def _interrupted(self) -> optuna.Trial | None:
        """A trial of this home that nobody runs: the lock of the search says that nobody but this process could."""
        import optuna

        for trial in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            mine = trial.user_attrs.get(OURS) == self._owner
            if mine and trial.user_attrs.get(TOKEN) != self._token:
                return optuna.Trial(self._study, trial._trial_id)
        return None

    def _trial(self, number: int) -> optuna.Trial:
        import optuna

        (found,) = (t for t in self._study.get_trials(deepcopy=False) if t.number == number)
        return optuna.Trial(self._study, found._trial_id)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's lines about each trial, and its warnings that something may change in a later version."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def distribution_of(space: Space, field: str, *, whole: bool) -> optuna.distributions.BaseDistribution:
    """A dimension, as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    dimension = space[field]
    if not isinstance(dimension, Range):
        return CategoricalDistribution([_kept(choice) for choice in dimension])
    if whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)


def rebuilt(trials: Sequence[Trial], space: Space, recipe: Recipe) -> optuna.Study:
    """A study in memory with the trials that have a value, for Optuna's measures and pictures.

    Args:
        trials: As they were told.
        space: What was tried.
        recipe: The job.
    """
    import optuna

    with quiet():
        study = optuna.create_study(direction="maximize")
        for trial in trials:
            known = {f: _kept(v) for f, v in trial.values.items() if f in space}
            whole = {field: _takes_whole(recipe, space, field) for field in known}
            made = {field: distribution_of(space, field, whole=whole[field]) for field in known}
            params = {f: v for f, v in known.items() if made[f]._contains(made[f].to_internal_repr(v))}
            if trial.value is not None and trial.state == "complete":
                distributions = {field: made[field] for field in params}
                study.add_trial(
                    optuna.trial.create_trial(params=params, distributions=distributions, value=trial.value)
                )
    return study


def importance_of(study: optuna.Study) -> dict[str, float]:
    """Field → share of the metric's variation that it explains; empty where trials are too few to tell."""
    from optuna.trial import TrialState as State

    complete = study.get_trials(deepcopy=False, states=(State.COMPLETE,))
    if len(complete) < IMPORTANCE_FROM or len({trial.value for trial in complete}) < 2:
        return {}
    from optuna.importance import get_param_importances

    with quiet():
        return {field: float(share) for field, share in get_param_importances(study).items()}


def _open(home: Home, name: str, *, prunes: bool) -> optuna.Study:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    url = os.environ.get(DATABASE) or f"sqlite:///{home.root / 'studies.db'}"
    try:
        storage = _storage(url)
        return optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(PRUNING_STARTUP, EARLY_LOOKS + 1)
            if prunes
            else optuna.pruners.NopPruner(),
        )
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).splitlines()[0]
        remedy = "set it to a SQLAlchemy URL such as postgresql+psycopg://host/studies, or unset it"
        raise EnvironmentMistake(Problem(DATABASE, None, f"the database does not open: {reason}", remedy)) from error


def _storage(url: str) -> optuna.storages.RDBStorage:
    """The database, with its tables; several machines may make these in the same moment, of which one succeeds."""
    import optuna
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    attempt = 1
    while True:
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": _patience(url)})
        except (IntegrityError, ProgrammingError):
            if attempt == ATTEMPTS:
                raise
            attempt += 1


def _patience(url: str) -> dict[str, Any]:
    """How long a writer waits for another one."""
    return {"timeout": 60} if url.startswith("sqlite") else {}


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Draws the next trial; seeded by how many there are, so that an interrupted search draws on as it would have."""
    import optuna

    return optuna.samplers.TPESampler(
        n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True, seed=seed
    )


def _value(trial: optuna.Trial, field: str, distribution: optuna.distributions.BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match distribution:
        case CategoricalDistribution():
            return _read(trial.suggest_categorical(field, distribution.choices))
        case IntDistribution():
            return trial.suggest_int(field, distribution.low, distribution.high, log=distribution.log)
        case FloatDistribution():
            drawn = trial.suggest_float(field, distribution.low, distribution.high, log=distribution.log)
            return float(f"{drawn:.3g}")  # people read it, and no fourth digit of a learning rate matters
    raise TypeError(f"{type(distribution).__name__} is not a distribution of a space")


LIST = "yaml:"
"""Marks a choice that is written as text in the database, as it is a list or a section."""


def _kept(value: Any) -> Any:
    """A choice as a database keeps it: numbers and texts as they are, all else as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else LIST + json.dumps(value)


def _read(value: Any) -> Any:
    return json.loads(value.removeprefix(LIST)) if isinstance(value, str) and value.startswith(LIST) else value


def _takes_whole(recipe: Recipe, space: Space, field: str) -> bool:
    dimension = space[field]
    if not isinstance(dimension, Range) or not isinstance(dimension.low, int) or not isinstance(dimension.high, int):
        return False
    return not applies(recipe, field) or is_whole(recipe, field)


def _key(recipe: Recipe, space: Space, rows: str, share: float) -> str:
    """Digest of all that shapes the trials; how many there are, how long they take, and who wins, does not."""
    searched = {name: recipe.model_dump(mode="json")[name] for name in ("task", "tokenize", "model", "train")}
    dimensions = {
        field: dimension.model_dump() if isinstance(dimension, Range) else list(dimension)
        for field, dimension in space.items()
    }
    return key_of({**searched, "space": dimensions, "rows": rows, "share": share, "prune": recipe.tune.prune})[:12]
