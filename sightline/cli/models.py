"""`sightline models`: lists, checks, adds and calibrates models of the inference service."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.table import Table

from edge.commands.options import Json, settings_with
from servicekit.distribution import install_hint
from servicekit.errors import from_rpc_error
from servicekit.help import CONNECTION, Command, Group
from servicekit.resources import cpus
from servicekit.terminal import CommandError, UsageError
from sightline.inference.v1 import inference_pb2, inference_service_pb2, inference_service_pb2_grpc

if TYPE_CHECKING:
    from inference_service.models.loader import Runtime

app = typer.Typer(
    cls=Group,
    help="Models: list and check them, add one to a repository, calibrate a classifier.",
    no_args_is_help=True,
)

Repository = Annotated[
    Path,
    typer.Option(
        envvar="SIGHTLINE_INFERENCE_MODEL_REPOSITORY",
        help="Folder of <name>/<version>/model.onnx.",
    ),
]
Providers = Annotated[
    str,
    typer.Option(
        envvar="SIGHTLINE_INFERENCE_PROVIDERS",
        help="ONNX Runtime's execution providers, comma-separated, first choice first.",
    ),
]

_REPOSITORY = Path("models/repository")
_CPU = "CPUExecutionProvider"
_MAX_PIXELS = 200_000_000  # of an image to calibrate with


@app.command("ls", cls=Command)
def ls(
    repository: Repository = _REPOSITORY,
    address: Annotated[
        str | None,
        typer.Option(
            "--inference",
            help="Ask this inference service, host:port, instead.",
            rich_help_panel=CONNECTION,
        ),
    ] = None,
    providers: Providers = _CPU,
    as_json: Json = False,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds to wait for it.", min=0.001, rich_help_panel=CONNECTION),
    ] = 10.0,
) -> None:
    """List the models of a repository or a service.

    Example: sightline models ls --inference localhost:50052

    Models of a repository are loaded one by one, to find out which ones a service could serve.
    """
    if address is not None:
        rows = _served(address, timeout)
    else:
        with _inference():
            rows = [_try_out(key, repository, providers) for key in _versions(repository)]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _print_models(rows)


@app.command("check", cls=Command)
def check(
    path: Annotated[
        Path, typer.Argument(help="An .onnx file, or a folder with model.onnx and model.yaml.")
    ],
    providers: Providers = _CPU,
    as_json: Json = False,
) -> None:
    """Load a model, run it, and print its properties.

    Example: sightline models check best.onnx
    """
    with _inference():
        from inference_service.models.check import check_files, files

        checked = check_files(*files(path), _runtime(providers))
    _print_fields(checked.as_dict(), as_json=as_json)


@app.command("add", cls=Command)
def add(
    file: Annotated[
        Path, typer.Argument(help="An .onnx file, or a folder with model.onnx and model.yaml.")
    ],
    name: Annotated[str, typer.Option(help="The model's name.")],
    version: Annotated[str, typer.Option(help="Its version. Default: the next number.")] = "",
    spec: Annotated[
        Path | None, typer.Option(help="Its model.yaml. Default: the one beside the file, if any.")
    ] = None,
    repository: Repository = _REPOSITORY,
    again: Annotated[
        bool, typer.Option("--again", help="Add it even if the repository already has it.")
    ] = False,
    providers: Providers = _CPU,
    as_json: Json = False,
) -> None:
    """Check a model and put it into a repository.

    Example: sightline models add best.onnx --name plates

    A service that runs on the repository serves it within seconds, without a restart. Nothing is
    added if the model already has a version with the same content, model.yaml included.
    """
    if spec is not None and not spec.is_file():
        raise CommandError(f"--spec: there is no file {spec}")
    with _inference():
        from inference_service.models.check import files
        from inference_service.models.folders import ModelVersion
        from inference_service.models.install import install

        onnx, beside = files(file)
        key = ModelVersion(name, version)
        done = install(onnx, spec or beside, repository, key, _runtime(providers), again=again)
    place = {"name": name, "version": done.folder.name, "folder": str(done.folder)}
    fields = {**place, **done.description.as_dict(), "added": done.added}
    _print_fields(fields, as_json=as_json)
    if not done.added:
        typer.echo(
            f"model {name} version {done.folder.name} already has this content: nothing was added"
            " (--again adds it)",
            err=True,
        )


@app.command("calibrate", cls=Command)
def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="NAME[/VERSION]", help="No version: the highest.")
    ],
    images: Annotated[
        Path,
        typer.Option(help="Folder with a folder of images per label, or CSV of file,label."),
    ],
    repository: Repository = _REPOSITORY,
    held_out: Annotated[
        float, typer.Option(help="Share of each label to evaluate on, between 0 and 1.")
    ] = 0.5,
    write: Annotated[
        bool, typer.Option("--write", help="Put the temperature into the model's model.yaml.")
    ] = False,
    providers: Providers = _CPU,
    as_json: Json = False,
) -> None:
    """Fit a classifier's temperature, and evaluate it on images that it was not fitted to.

    Example: sightline models calibrate parts --images labelled --write
    """
    if not 0 < held_out < 1:
        raise UsageError(f"--held-out: must be between 0 and 1 (got {held_out:g})")
    with _inference():
        from inference_service.models import calibrate as calibration
        from vision import OWN_FORMATS, ImageLimits

        folder = _find(model, repository)
        limits = ImageLimits(2**31 - 1, _MAX_PIXELS, formats=OWN_FORMATS)
        result = calibration.calibrate(folder, images, held_out, limits, _runtime(providers))
        if write:
            result.write(folder)
    _print_calibration(result.as_dict(), written=write, as_json=as_json)


@contextmanager
def _inference() -> Iterator[None]:
    """Turn errors of the inference service's code into one sentence."""
    # ONNX Runtime and NumPy come with the `inference` extra, and take a while to load.
    try:
        from inference_service.models.labelled import LabelledError
        from inference_service.models.loader import RepositoryError
        from inference_service.models.model_spec import ModelSpecError
        from vision import ModelError
    except ImportError as error:
        raise CommandError(f"{error}: {install_hint('inference')}") from error
    try:
        yield
    except (RepositoryError, LabelledError, ModelError, ModelSpecError) as error:
        raise CommandError(str(error)) from error


def _runtime(providers: str) -> "Runtime":
    from inference_service.models.loader import Runtime
    from vision import SessionOptions

    names = tuple(name.strip() for name in providers.split(","))
    return Runtime(SessionOptions(names, cpus()))


def _versions(repository: Path) -> "Sequence[tuple[str, str]]":
    from inference_service.models.folders import scan

    return list(scan(repository, {}))


def _find(model: str, repository: Path) -> Path:
    """Return a version's folder. Raises CommandError: there is none."""
    name, _, version = model.partition("/")
    versions = [key for key in _versions(repository) if key[0] == name]
    if not versions:
        raise CommandError(f"{repository} holds no model {name!r}: see sightline models ls")
    key = (name, version or versions[-1][1])
    if key not in versions:
        raise CommandError(
            f"model {name} has no version {version!r} (it has {', '.join(v for _, v in versions)})"
        )
    return repository / key[0] / key[1]


def _try_out(key: tuple[str, str], repository: Path, providers: str) -> dict[str, Any]:
    from inference_service.models.check import check_files, files
    from inference_service.models.loader import RepositoryError

    name, version = key
    row = {"name": name, "version": version}
    try:
        checked = check_files(*files(repository / name / version), _runtime(providers))
    except RepositoryError as error:
        return {**row, "problem": str(error)}
    return {**row, **checked.as_dict(), "problem": None}


def _served(address: str, timeout: float) -> list[dict[str, Any]]:
    from edge.endpoints import inference_endpoint

    service = inference_endpoint(settings_with(inference_target=address))
    with service.channel() as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = inference_service_pb2.ListModelsRequest()
        try:
            answer = stub.ListModels(request, timeout=timeout, metadata=service.metadata)
        except grpc.RpcError as error:
            raise service.explain(from_rpc_error(error), "inference", "--inference") from error
    return [
        {
            "name": model.name,
            "version": model.version,
            "task": _task(model.task),
            "labels": list(model.labels),
            "input_width": model.input_width,
            "input_height": model.input_height,
            "provider": model.provider,
            "default_version": model.default_version,
            "default_model": model.default_model,
            "keypoint_names": list(model.keypoint_names),
        }
        for model in answer.models
    ]


def _task(task: "inference_pb2.ModelTask.ValueType") -> str:
    return inference_pb2.ModelTask.Name(task).removeprefix("MODEL_TASK_").lower()


def _print_models(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("model", "version", "task", "labels", "input", "provider", "")
    for row in rows:
        if row.get("problem"):
            table.add_row(row["name"], row["version"], "", "", "", "", row["problem"])
            continue
        table.add_row(
            row["name"],
            row["version"],
            row["task"],
            str(len(row["labels"])),
            f"{row['input_width']} x {row['input_height']}",
            row["provider"].removesuffix("ExecutionProvider"),
            _note(row),
        )
    Console().print(table)


def _note(row: Mapping[str, Any]) -> str:
    if "run_ms" in row:
        return f"{row['run_ms']:.1f} ms"
    notes = [word for word in ("default_model", "default_version") if row[word]]
    return ", ".join(note.replace("_", " ") for note in notes)


def _print_fields(fields: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(fields))
        return
    table = Table(show_header=False)
    for name, value in fields.items():
        text = ", ".join(value) if isinstance(value, tuple) else value
        if value is not None:
            table.add_row(name.replace("_", " "), str(text))
    Console().print(table)


def _print_calibration(result: Mapping[str, Any], *, written: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**result, "written": written}))
        return
    table = Table("held-out images", "before", "after")
    before, after = result["before"], result["after"]
    table.add_row("temperature", f"{before['temperature']:g}", f"{after['temperature']:.4f}")
    for name in ("ece", "nll", "accuracy"):
        table.add_row(name.upper() if len(name) == 3 else name, *_figures(before, after, name))
    Console().print(table)
    parts = f"fitted to {result['fitted_to']} images, evaluated on {after['pictures']}"
    tail = "written to model.yaml" if written else "not written: --write writes it"
    typer.echo(f"{parts}; {tail}", err=True)


def _figures(before: Mapping[str, float], after: Mapping[str, float], name: str) -> list[str]:
    return [f"{figures[name]:.4f}" for figures in (before, after)]
