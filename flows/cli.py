"""The command line. Nothing heavy is imported before a verb needs it: `hone --help` answers at once.

Exit codes: 0 done; 1 a fault, after its retries; 2 a mistake in what was asked; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from schemas.errors import Fault, Mistake
from tasks import process

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
EXIT_FAULT = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


def command() -> NoReturn:
    """Run the command that this process was started for, and end it."""
    codes: list[int] = []
    process.end_at_once(codes)
    process.begin()
    codes.append(main())
    sys.exit(codes[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = options.verb
    try:
        return verb(options)
    except Mistake as mistake:
        _explain_mistake(mistake, as_json=options.json)
        return EXIT_MISTAKE
    except Fault as fault:
        _explain_fault(fault, as_json=options.json)
        return EXIT_FAULT
    except KeyboardInterrupt as interrupt:
        told = str(interrupt) or "the same command goes on from the last checkpoint"
        print(f"hone: interrupted; {told}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hone",
        description="Keeps fine-tuned language models current, and only lets a better model through.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("recipe", type=Path, metavar="RECIPE", help="the recipe, such as deployments/sentiment.yaml")
    recipe.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a field of the recipe: --set train.learning_rate=3e-5",
    )  # fmt: skip
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_running(verbs, recipe, common)

    check = verbs.add_parser("check", parents=[common], help="dry run: validate, preview the data, time a few steps")
    check.add_argument("recipe", type=Path, metavar="RECIPE", nargs="?", help="the recipe")
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="as in run")
    check.add_argument("--schema", action="store_true", help="print the recipe's JSON Schema, for editors")
    check.add_argument("--power", action="store_true", help="only say what differences the test rows can show")
    check.set_defaults(verb=_check)

    quarantine = verbs.add_parser("quarantine", parents=[recipe, common], help="rows set aside: list, export, replay")
    quarantine.add_argument("--reason", metavar="REASON", help="only rows set aside for this reason")
    quarantine.add_argument("--examples", type=int, default=2, metavar="N", help="rows shown per reason; default 2")
    quarantine.add_argument("--export", type=Path, metavar="FILE", help="write the rows as a CSV file of corrections")
    quarantine.add_argument("--replay", action="store_true", help="what the present recipe would make of these rows")
    quarantine.set_defaults(verb=_quarantine)

    up = verbs.add_parser("up", parents=[common], help="the desk: Prefect, MLflow and a worker, until Ctrl-C")
    up.add_argument("recipes", type=Path, metavar="RECIPE", nargs="*", help="default: all in deployments/")
    up.add_argument("--prefect-port", type=int, metavar="PORT", help="default: 4200, or another one that is free")
    up.add_argument("--mlflow-port", type=int, metavar="PORT", help="default: 5000, or another one that is free")
    up.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1",
        help="network address to listen on; beyond this machine HONE_PASSWORD must be set",
    )  # fmt: skip
    up.set_defaults(verb=_up)

    deploy = verbs.add_parser("deploy", parents=[common], help="put recipes with their schedules onto a Prefect server")
    deploy.add_argument("recipes", type=Path, metavar="RECIPE", nargs="*", help="default: all in deployments/")
    deploy.add_argument("--pool", metavar="NAME", default="hone", help="work pool; default: hone, made if need be")
    deploy.add_argument("--write", type=Path, metavar="FILE", help="write a file for `prefect deploy` instead")
    deploy.set_defaults(verb=_deploy)

    _add_deciding(verbs, common)

    status = verbs.add_parser("status", parents=[common], help="what runs, what serves, and the history of champions")
    status.set_defaults(verb=_status)

    evaluate = verbs.add_parser(
        "evaluate", parents=[common], help="measure a registered version on today's rows, and put it before the gate"
    )
    evaluate.add_argument("model", metavar="NAME", help="a registered model, or the recipe to evaluate it by")
    evaluate.add_argument("version", metavar="VERSION", nargs="?", help="number or alias; default: champion")
    evaluate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="as in run")
    evaluate.set_defaults(verb=_evaluate)

    reproduce = verbs.add_parser(
        "reproduce", parents=[common], help="make a version again from its recorded recipe, rows and code, and compare"
    )
    reproduce.add_argument("model", metavar="NAME", help="a registered model, or the recipe that makes it")
    reproduce.add_argument("version", metavar="VERSION", help="number or alias")
    reproduce.add_argument("--keep", action="store_true", help="leave the home of the rebuilt model behind")
    reproduce.set_defaults(verb=_reproduce)

    forget = verbs.add_parser(
        "forget", parents=[recipe, common], help="erase a person's rows from all that hone keeps, and keep them out"
    )
    forget.add_argument("--id", nargs="+", action="extend", default=[], metavar="ID", dest="ids", help="ids of rows")
    forget.add_argument(
        "--text", nargs="+", action="extend", default=[], metavar="TEXT", dest="texts",
        help="texts of rows; case, punctuation, links and mentions do not count",
    )  # fmt: skip
    forget.add_argument("--file", type=Path, metavar="FILE", help="CSV or JSONL file with a column id, text or both")
    forget.add_argument("--dry-run", action="store_true", help="only list what holds the rows")
    forget.set_defaults(verb=_forget)
    return parser


def _add_running(verbs: Verbs, recipe: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """The verbs that run the pipeline."""
    run = verbs.add_parser("run", parents=[recipe, common], help="run the whole pipeline, here and now")
    run.add_argument("--refresh", metavar="STAGE", help="compute this stage and all after it again")
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.set_defaults(verb=_run)

    retrain = verbs.add_parser(
        "retrain", parents=[recipe, common], help="run again if rows, recipe or champion have changed since last time"
    )
    retrain.add_argument("--refresh", metavar="STAGE", help="in any case; compute this stage and all after it again")
    retrain.set_defaults(verb=_retrain)

    curve = verbs.add_parser(
        "curve",
        parents=[recipe, common],
        help="the metric against the number of training rows; would more pay?",
    )
    curve.add_argument(
        "--shares", metavar="SHARES",
        help="of the training rows, with commas between them; default: 0.05,0.1,0.25,0.5,1",
    )  # fmt: skip
    curve.add_argument("--seeds", type=int, metavar="N", default=1, help="trainings of each share; default: 1")
    curve.set_defaults(verb=_curve)

    tune = verbs.add_parser("tune", parents=[recipe, common], help="search a better recipe; what does it surely gain?")
    tune.add_argument("--trials", type=int, metavar="N", help="most trials; default: the recipe's, 20")
    tune.add_argument("--minutes", type=float, metavar="N", help="most minutes in all; default: the recipe's, no limit")
    tune.add_argument("--run", action="store_true", help="then run the whole pipeline with the recipe that won")
    tune.add_argument(
        "--write", type=Path, metavar="FILE",
        help="write the recipe's file with what was found; it may be the recipe itself",
    )  # fmt: skip
    tune.set_defaults(verb=_tune)

    compare = verbs.add_parser("compare", parents=[recipe, common], help="which base model and method to have")
    compare.add_argument(
        "--base", action="append", default=[], metavar="BASE", dest="bases",
        help="a base model, as in model.base; may be given several times; default: the recipe's",
    )  # fmt: skip
    compare.add_argument(
        "--method", action="append", default=[], metavar="METHOD", dest="methods",
        help="full, lora, freeze and so on; may be given several times; default: the recipe's",
    )  # fmt: skip
    compare.add_argument("--share", type=float, metavar="SHARE", default=1.0, help="of the training rows; default: 1")
    compare.add_argument("--minutes", type=float, metavar="N", help="most minutes of training, of all together")
    compare.add_argument("--seeds", type=int, metavar="N", default=1, help="trainings of each; default: 1")
    compare.add_argument("--run", action="store_true", help="then run the whole pipeline with the one that is chosen")
    compare.add_argument("--write", type=Path, metavar="FILE", help="write the recipe's file with what was chosen")
    compare.set_defaults(verb=_compare)


def _add_deciding(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """The verbs by which a person decides who serves."""
    who = argparse.ArgumentParser(add_help=False)
    who.add_argument("model", metavar="NAME", help="a registered model, or a recipe file, which means its model")
    who.add_argument("--reason", metavar="TEXT", help="why; kept in the journal and in MLflow")
    who.add_argument("--by", metavar="WHO", help="who decided; default: your login name")

    promote = verbs.add_parser("promote", parents=[who, common], help="let a version of a model serve")
    promote.add_argument(
        "version", metavar="VERSION", nargs="?",
        help="which one; default: the challenger, and with --to the champion of the environment before",
    )  # fmt: skip
    promote.add_argument(
        "--to", metavar="ENVIRONMENT",
        help="copy it to this environment of the recipe, if it passes its gate on today's rows, and let it serve there",
    )  # fmt: skip
    promote.add_argument(
        "--override", action="store_true",
        help="even if the gate did not let it through or it was rolled back; needs --reason",
    )  # fmt: skip
    promote.set_defaults(verb=_promote)

    rollback = verbs.add_parser("rollback", parents=[who, common], help="let the former champion serve again")
    rollback.set_defaults(verb=_rollback)


def _run(options: argparse.Namespace) -> int:
    from flows.run import run

    asked = {"refresh": options.refresh, "until": options.until}
    return run(options.recipe, options.overrides, **asked, as_json=options.json)


def _retrain(options: argparse.Namespace) -> int:
    from flows.run import retrain

    return retrain(options.recipe, options.overrides, refresh=options.refresh, as_json=options.json)


def _curve(options: argparse.Namespace) -> int:
    from flows.curve import curve

    return curve(options.recipe, options.overrides, shares=options.shares, seeds=options.seeds, as_json=options.json)


def _tune(options: argparse.Namespace) -> int:
    from flows.tune import tune

    asked = {"tune.trials": options.trials, "tune.minutes": options.minutes}
    overrides = [*options.overrides, *(f"{field}={value}" for field, value in asked.items() if value is not None)]
    return tune(options.recipe, overrides, write=options.write, then_run=options.run, as_json=options.json)


def _compare(options: argparse.Namespace) -> int:
    from flows.compare import compare

    candidates = {name: getattr(options, name) for name in ("bases", "methods", "share", "minutes", "seeds")}
    how = {"write": options.write, "then_run": options.run, "as_json": options.json}
    return compare(options.recipe, options.overrides, candidates, **how)


def _up(options: argparse.Namespace) -> int:
    from flows.up import up

    ports = {"prefect_port": options.prefect_port, "mlflow_port": options.mlflow_port}
    return up(options.recipes, **ports, host=options.host, as_json=options.json)


def _deploy(options: argparse.Namespace) -> int:
    from flows.deploy import deploy

    return deploy(options.recipes, pool=options.pool, write=options.write, as_json=options.json)


def _check(options: argparse.Namespace) -> int:
    from schemas.errors import Problem, RecipeError

    if options.schema:
        from schemas.recipe import Recipe

        print(json.dumps(Recipe.model_json_schema(), indent=2))
        return 0
    if options.recipe is None:
        raise RecipeError(Problem("RECIPE", None, "is required", "name a recipe, or ask for --schema"))
    from flows.check import check

    return check(options.recipe, options.overrides, power=options.power, as_json=options.json)


def _quarantine(options: argparse.Namespace) -> int:
    from flows.quarantine import quarantine

    return quarantine(
        options.recipe,
        options.overrides,
        reason=options.reason,
        examples=options.examples,
        export=options.export,
        replay=options.replay,
        as_json=options.json,
    )


def _promote(options: argparse.Namespace) -> int:
    asked = {"reason": options.reason, "by": options.by, "override": options.override, "as_json": options.json}
    if options.to is not None:
        from flows.rollout import roll_out

        return roll_out(options.model, options.version, options.to, **asked)
    from flows.promote import promote

    return promote(options.model, options.version, **asked)


def _rollback(options: argparse.Namespace) -> int:
    from flows.promote import rollback

    return rollback(options.model, reason=options.reason, by=options.by, as_json=options.json)


def _status(options: argparse.Namespace) -> int:
    from flows.status import status

    return status(as_json=options.json)


def _evaluate(options: argparse.Namespace) -> int:
    from flows.evaluate import evaluate

    return evaluate(options.model, options.version, options.overrides, as_json=options.json)


def _reproduce(options: argparse.Namespace) -> int:
    from flows.reproduce import reproduce

    return reproduce(options.model, options.version, keep=options.keep, as_json=options.json)


def _forget(options: argparse.Namespace) -> int:
    from flows.forget import forget

    return forget(
        options.recipe,
        options.overrides,
        ids=options.ids,
        texts=options.texts,
        file=options.file,
        dry_run=options.dry_run,
        as_json=options.json,
    )


def _explain_mistake(mistake: Mistake, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": mistake.as_dict()}, ensure_ascii=False))
    for problem in mistake.problems:
        print(f"hone: {problem}", file=sys.stderr)


def _explain_fault(fault: Fault, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": {"type": type(fault).__name__, "message": str(fault)}}, ensure_ascii=False))
    print(f"hone: {fault}", file=sys.stderr)
    print("hone: nothing is lost: the same command goes on where this one stopped", file=sys.stderr)


if __name__ == "__main__":
    command()
