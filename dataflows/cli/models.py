"""``anabranch models``: versions of models, with their lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anabranch.dataflows.cli.options import renamed_options
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.state.errors import InputError, StateError

models = typer.Typer(
    name="models",
    help=(
        "Keep versions of a pipeline's models with their lineage: see them, compare them, carry "
        "them elsewhere.\n\n"
        "They are in the state directory of the pipeline (`registry/NAME/VERSION`), and can be "
        "looked at and made while it runs. A version is made when you ask for one (`snapshot`, "
        "from time to time by a timer of yours, or `import`); of each name the newest 20 are kept, "
        "and those that a state has begun with.\n\n"
        "Examples:\n\n"
        "    anabranch models snapshot payments --note 'before the new merchants'\n\n"
        "    anabranch models list payments\n\n"
        "    anabranch run payments --state data/state/second --model LogisticRegression@1 "
        "--registry data/state/payments"
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Place = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE|DIR",
        help="A state directory; or a pipeline, whose state is in data/state/PIPELINE.",
    ),
]
Reference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="Which model; without VERSION the newest.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]
Keep = Annotated[
    int,
    typer.Option("--retain", min=1, metavar="N", help="Versions of that name to keep, the newest."),
]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="To be shown with it.")]


@models.command("list")
def list_(
    place: Place,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Only versions of this name.")
    ] = None,
    json: Json = False,
) -> None:
    """List the versions of all models: what each has learned, how good it was, where it is from.

    Examples:

        anabranch models list payments

        anabranch models list data/state/payments --json
    """
    from anabranch.dataflows.cli.display.models import print_list
    from anabranch.models.registry.registry import Registry

    registry = Registry.of(_state_directory(place))
    print_list(registry.list(name), registry, json)
    problems = registry.problems()
    if problems:
        raise StateError("; ".join(problems))


@models.command()
def show(place: Place, model: Reference, json: Json = False) -> None:
    """Show all that is known of a version: lineage, metrics, hyperparameters, largest weights.

    Examples:

        anabranch models show payments LogisticRegression@3
    """
    from anabranch.dataflows.cli.display.models import print_version
    from anabranch.models.registry.registry import Registry

    print_version(Registry.of(_state_directory(place)).find(model), json)


@models.command()
def diff(
    place: Place,
    first: Annotated[str, typer.Argument(metavar="A", help="NAME[@VERSION].")],
    second: Annotated[str, typer.Argument(metavar="B", help="NAME[@VERSION].")],
    top: Annotated[
        int, typer.Option("--top", min=0, metavar="N", help="Weights to show, most changed first.")
    ] = 10,
    json: Json = False,
) -> None:
    """Compare two versions: lineage, metrics, hyperparameters, and weights of linear models.

    Examples:

        anabranch models diff payments LogisticRegression@1 LogisticRegression@3
    """
    from anabranch.dataflows.cli.display.models import print_differences
    from anabranch.models.registry.registry import Registry

    registry = Registry.of(_state_directory(place))
    print_differences(registry.find(first), registry.find(second), top, json)


@models.command(cls=renamed_options({"--keep": "--retain"}))
def snapshot(
    place: Place,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="What to call it.", show_default="as the champion"
        ),
    ] = None,
    note: Note = "",
    retain: Keep = 20,
    json: Json = False,
) -> None:
    """Make a version of the champion as it was last committed; a run may be going on meanwhile.

    When nothing was learned since the last one of that name, none is made.

    Examples:

        anabranch models snapshot payments

        anabranch models snapshot data/state/payments --name friday --note "before the sale"
    """
    from anabranch.dataflows.cli.display.models import print_made
    from anabranch.dataflows.registry.model_snapshot import nothing_new, take_snapshot
    from anabranch.models.registry.registry import Registry
    from anabranch.models.registry.version import check_name

    if name is not None:
        check_name(name)
    path = _state_directory(place)
    taken, registry = take_snapshot(path, name, note), Registry.of(path)
    found = nothing_new(registry, taken.about)
    if found is not None:
        print_made(found, "nothing was learned since", json)
        return
    print_made(registry.add(taken.model, taken.about, retain, taken.distributions), "made", json)


@models.command()
def export(
    place: Place,
    model: Reference,
    to: Annotated[
        Path,
        typer.Option("--to", metavar="FILE", help="Where the pickle goes; replaced if it exists."),
    ],
) -> None:
    """Write a version as a plain River object: a pickle, and FILE.json, which tells its lineage.

    `pickle.load(open("FILE", "rb"))` gives the River model, wherever the same River is installed.

    Examples:

        anabranch models export payments LogisticRegression@3 --to fraud.pickle
    """
    from anabranch.models.registry.registry import Registry
    from anabranch.models.registry.river_file import beside, write_river_file

    registry = Registry.of(_state_directory(place))
    version = registry.find(model)
    write_river_file(to, registry.pickle(version), version)
    typer.echo(f"{version.reference} is in {to} (river {version.river}), told of in {beside(to)}")


@models.command("import", cls=renamed_options({"--keep": "--retain"}))
def import_(
    pipeline: Annotated[
        str, typer.Argument(metavar="PIPELINE", help="The pipeline that it is for.")
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A pickle of a River model, on this machine.")
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="The state directory; it need not be there yet.",
            show_default="data/state/PIPELINE",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="What to call it.",
            show_default="as it was, or its class",
        ),
    ] = None,
    river: Annotated[
        str | None,
        typer.Option(
            "--river",
            metavar="VERSION",
            help="The version of River that wrote it, if no FILE.json tells.",
        ),
    ] = None,
    note: Note = "",
    retain: Keep = 20,
    json: Json = False,
) -> None:
    """Make a River model from a local file a version, if it fits the pipeline.

    Unpickling runs whatever code is in the file: name only files that you trust. What another River
    has written is refused before that.

    Examples:

        anabranch models import payments fraud.pickle --name offline

        anabranch models import fraud.py trained.pickle --river 0.26.1 --state data/state/new
    """
    from anabranch.dataflows.cli.display.models import print_made
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.registry.model_import import check_import, read_import
    from anabranch.models.registry.registry import Registry
    from anabranch.models.registry.version import check_name

    if name is not None:
        check_name(name)
    if _is_state(Path(pipeline)):
        raise InputError(
            f"{pipeline} is a state directory: name the pipeline that the model has to fit, and "
            f"the directory with --state {pipeline}"
        )
    declared = load_pipeline(pipeline)
    found = read_import(file, river, declared)
    console = stderr_console()
    console.print(
        f"warning: unpickling {file}, which runs whatever code is in it: trust where it is from",
        style="yellow",
        highlight=False,
        soft_wrap=True,
    )
    checked = check_import(found, declared, name, note, river)
    for remark in checked.remarks:
        console.print(f"note: {remark}", highlight=False, soft_wrap=True)
    registry = Registry.of(state or Path("data", "state", declared.name))
    print_made(registry.add(checked.model, checked.about, retain), "made", json)


def _state_directory(place: str) -> Path:
    """The directory that a user names, or that of a pipeline.

    Raises:
        InputError, DeclarationError: there is no such thing.
    """
    path = Path(place)
    if path.is_dir():
        if not _is_state(path):
            raise InputError(
                f"{path} is no state directory and has no models: name one that `anabranch run` or "
                "`anabranch models import` has made"
            )
        return path
    from anabranch.dataflows.pipelines.loader import load_pipeline

    path = Path("data", "state", load_pipeline(place).name)
    if not _is_state(path):
        raise InputError(
            f"there is no state directory {path}: run the pipeline, or name the directory instead "
            f"of {place}"
        )
    return path


def _is_state(path: Path) -> bool:
    return any((path / name).exists() for name in ("identity.json", "registry"))
