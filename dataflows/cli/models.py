"""``anabranch models``: versions of models, with their lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anabranch.dataflows.cli.options import renamed_options
from anabranch.dataflows.telemetry.console import echo
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.state.errors import InputError, StateError

models = typer.Typer(
    name="models",
    help=(
        "Manage versions of a pipeline's models with their lineage: list, compare, export and "
        "import them.\n\n"
        "Versions are in the registry of the pipeline's state directory "
        "(`registry/NAME/VERSION`), and can be read and added while the pipeline runs. A version "
        "is added by `snapshot` (from time to time by a timer of yours) or `import`; of each name "
        "the newest 20 are kept, and those that a state was started from.\n\n"
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
        help="A state directory, or a pipeline, whose state is in data/state/PIPELINE.",
    ),
]
Reference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="The model; without VERSION the newest.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]
Keep = Annotated[
    int,
    typer.Option("--retain", min=1, metavar="N", help="Versions of that name to keep, the newest."),
]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="A note to keep with it.")]


@models.command("list")
def list_(
    place: Place,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Only versions of this name.")
    ] = None,
    json: Json = False,
) -> None:
    """List the versions of all models: labels learned, metrics and lineage.

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
    """Show the description of a version: lineage, metrics, hyperparameters, largest weights.

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
        int,
        typer.Option("--top", min=0, metavar="N", help="Weights to show, most changed first."),
    ] = 10,
    json: Json = False,
) -> None:
    """Compare two versions: lineage, metrics, hyperparameters, and weights of linear models.

    Examples:

        anabranch models diff payments LogisticRegression@1 LogisticRegression@3
    """
    from anabranch.dataflows.cli.display.models import print_diff
    from anabranch.models.registry.registry import Registry

    registry = Registry.of(_state_directory(place))
    print_diff(registry.find(first), registry.find(second), top, json)


@models.command(cls=renamed_options({"--keep": "--retain"}))
def snapshot(
    place: Place,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the model.", show_default="as the champion"
        ),
    ] = None,
    note: Note = "",
    retain: Keep = 20,
    json: Json = False,
) -> None:
    """Add the champion as it was last committed as a version; the pipeline may be running.

    If nothing was learned since the last version of that name, none is added.

    Examples:

        anabranch models snapshot payments

        anabranch models snapshot data/state/payments --name friday --note "before the sale"
    """
    from anabranch.dataflows.cli.display.models import print_added
    from anabranch.dataflows.registry.model_snapshot import latest_equal, take_snapshot
    from anabranch.models.registry.registry import Registry
    from anabranch.models.registry.version import check_name

    if name is not None:
        check_name(name)
    path = _state_directory(place)
    new, registry = take_snapshot(path, name, note), Registry.of(path)
    same = latest_equal(registry, new.version)
    if same is not None:
        print_added(same, "nothing was learned since", json)
        return
    print_added(registry.add(new.model, new.version, retain, new.distributions), "added", json)


@models.command()
def export(
    place: Place,
    model: Reference,
    to: Annotated[
        Path,
        typer.Option("--to", metavar="FILE", help="The file to write; replaced if it exists."),
    ],
) -> None:
    """Write a version as a plain River model: a pickle, and FILE.json, which holds its lineage.

    `pickle.load(open("FILE", "rb"))` returns the model wherever the same River is installed.

    Examples:

        anabranch models export payments LogisticRegression@3 --to fraud.pickle
    """
    from anabranch.models.registry.registry import Registry
    from anabranch.models.registry.river_file import description_path, write_river_file

    registry = Registry.of(_state_directory(place))
    version = registry.find(model)
    write_river_file(to, registry.pickle(version), version)
    echo(
        f"wrote {version.reference} to {to} (river {version.river}), its description to "
        f"{description_path(to)}"
    )


@models.command("import", cls=renamed_options({"--keep": "--retain"}))
def import_(
    pipeline: Annotated[
        str, typer.Argument(metavar="PIPELINE", help="The pipeline that the model is for.")
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A pickle of a River model, on this machine.")
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="The state directory; created if it does not exist.",
            show_default="data/state/PIPELINE",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the model.",
            show_default="its name in FILE.json, or its class",
        ),
    ] = None,
    river: Annotated[
        str | None,
        typer.Option(
            "--river",
            metavar="VERSION",
            help="The version of River that wrote it, if there is no FILE.json.",
        ),
    ] = None,
    note: Note = "",
    retain: Keep = 20,
    json: Json = False,
) -> None:
    """Add a River model from a local file as a version, if it suits the pipeline.

    Unpickling runs any code that is in the file: name only files that you trust. What another
    version of River wrote is refused before that.

    Examples:

        anabranch models import payments fraud.pickle --name offline

        anabranch models import fraud.py trained.pickle --river 0.26.1 --state data/state/new
    """
    from anabranch.dataflows.cli.display.models import print_added
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.registry.model_import import check_import, read_import
    from anabranch.models.registry.registry import Registry
    from anabranch.models.registry.version import check_name

    if name is not None:
        check_name(name)
    if _is_state(Path(pipeline)):
        raise InputError(
            f"{pipeline} is a state directory: name the pipeline that the model is for, and the "
            f"directory with --state {pipeline}"
        )
    declared = load_pipeline(pipeline)
    read = read_import(file, river, declared)
    console = stderr_console()
    console.print(
        f"warning: unpickling {file}, which runs any code that is in it",
        style="yellow",
        highlight=False,
        soft_wrap=True,
    )
    checked = check_import(read, declared, name, note)
    for remark in checked.remarks:
        console.print(f"note: {remark}", highlight=False, soft_wrap=True)
    registry = Registry.of(state or Path("data", "state", declared.name))
    print_added(registry.add(checked.model, checked.version, retain), "added", json)


def _state_directory(place: str) -> Path:
    """The directory that the argument names, or that of a pipeline.

    Raises:
        InputError, DeclarationError: there is none.
    """
    path = Path(place)
    if path.is_dir():
        if not _is_state(path):
            raise InputError(
                f"{path} is not a state directory and has no models: name one that `anabranch "
                "run` or `anabranch models import` created"
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
    from anabranch.dataflows.recovery.manifest import is_state_directory

    return is_state_directory(path) or (path / "registry").exists()
