"""The commands `log` and `infer`: pictures in, answers out."""

import glob
import json
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge import EdgeNode, InferenceClient, InferParameters, ModelHint
from edge.channel import Endpoint
from edge.cloud.types import ImageAnswer, InferAnswer
from edge.settings import EdgeSettings
from servicekit.errors import Category, SightlineError, invalid
from servicekit.settings import load
from servicekit.terminal import CommandError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_NOTES = Console(stderr=True)


def log(
    source: Annotated[
        str, typer.Argument(help="A picture, a folder of pictures, or a pattern such as 'a/*.jpg'.")
    ],
    model: Annotated[
        Path | None, typer.Option(help="Model file on this device. None: the cloud answers.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="onnx or ultralytics.")] = None,
    mode: Annotated[str | None, typer.Option(help="auto, device or cloud.")] = None,
    device_id: Annotated[str | None, typer.Option(help="This device's name.")] = None,
    ingest: Annotated[str | None, typer.Option(help="Ingest service, host:port.")] = None,
    inference: Annotated[str | None, typer.Option(help="Inference service, host:port.")] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait at the end for the log to be committed.", min=0)
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Detect in pictures and log what is found, with the cloud as fallback.

    Example: sightline log pictures/ --model model.onnx --device-id gate-1. What is not committed
    at the end stays in the spool and is sent the next time.
    """
    pictures = _pictures(source)
    settings = settings_with(
        device_model=model,
        detector=detector,
        mode=mode,
        device_id=device_id,
        ingest_target=ingest,
        inference_target=inference,
    )
    failed = 0
    with _node(settings) as node:
        with Progress(console=_NOTES) as progress:
            for path in progress.track(pictures, description="logging"):
                failed += not _log_one(node, path)
        committed = node.logger.flush(wait, until="committed")
        stats = node.stats()
    if as_json:
        typer.echo(json.dumps(asdict(stats)))
    else:
        pictures_, logger = stats.pictures, stats.logger
        by_cloud = sum(pictures_.by_cloud.values())
        typer.echo(
            f"{len(pictures)} pictures: {pictures_.by_device} answered by the device, "
            f"{by_cloud} by the cloud, {failed} failed; "
            f"{logger.spooled} spooled, {logger.backlog} of them not yet committed"
        )
    if failed or not committed:
        raise typer.Exit(1)


def infer(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    model: Annotated[str, typer.Option(help="Name of the model. Empty: the default one.")] = "",
    version: Annotated[str, typer.Option(help="Version of the model. Empty: the default.")] = "",
    confidence: Annotated[
        float | None, typer.Option(help="Leave out detections below it, 0 to 1.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Inference service, host:port.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for each picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per picture.")] = False,
) -> None:
    """Ask the inference service. Example: sightline infer part-1.jpg part-2.jpg --json."""
    settings = settings_with(inference_target=target, timeout_seconds=timeout)
    failed = False
    with InferenceClient(
        Endpoint.to_inference(settings), timeout=settings.timeout_seconds
    ) as client:
        for path in images:
            try:
                answer = client.infer(
                    [path],
                    image_ids=[path.name],
                    model=ModelHint(model, version),
                    parameters=InferParameters(confidence_threshold=confidence),
                )
            except SightlineError as error:
                if error.category is not Category.VALIDATION:
                    raise  # the next picture would fare no better
                _NOTES.print(f"{path}: {error}", markup=False)
                failed = True
            else:
                _show(answer, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def settings_with(**options: str | float | Path | None) -> EdgeSettings:
    """Returns the edge settings, with the options of a command over everything else.

    Args:
        options: settings by name; None: from the environment, the TOML file or the default.

    Raises:
        SettingsError: a value cannot be used.
    """
    given = {name: value for name, value in options.items() if value is not None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return load(EdgeSettings, flags, prog="sightline")


def _pictures(source: str) -> list[Path]:
    """Returns the pictures of a source, in the order of their names."""
    path = Path(source)
    if path.is_dir():
        found = [one for one in path.iterdir() if one.suffix.lower() in _SUFFIXES]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(source, recursive=True)]  # noqa: PTH207 - absolute ones, too
    if not found:
        raise invalid("source", f"must name at least one picture (got {source!r})")
    return sorted(found)


def _node(settings: EdgeSettings) -> EdgeNode:
    try:
        return EdgeNode.from_settings(settings)
    except ImportError as error:
        extra = settings.detector
        raise CommandError(
            f"detector {extra} needs {error.name}: pip install 'sightline[{extra}]'"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # a spool, a setting, a model
        raise CommandError(str(error)) from error


def _log_one(node: EdgeNode, path: Path) -> bool:
    """Returns whether the picture was answered; says why not."""
    try:
        node.process(path, image_id=path.name)
    except Exception as error:  # noqa: BLE001 - in mode device, whatever the model raises
        _NOTES.print(f"{path}: {str(error) or type(error).__name__}", markup=False)
        return False
    return True


def _show(answer: InferAnswer, *, as_json: bool) -> None:
    """Prints the answer for one picture."""
    (image,) = answer.results
    if as_json:
        model = {"model_name": answer.model_name, "model_version": answer.model_version}
        typer.echo(json.dumps({**model, **_plain(image)}))
        return
    title = f"{image.image_id}: {answer.model_name} {answer.model_version}"
    table = Table("class", "confidence", "x_min", "y_min", "x_max", "y_max", title=title)
    for found in image.detections:
        corners = astuple(found.box) if found.box else ()
        table.add_row(
            found.class_name, f"{found.confidence:.3f}", *(f"{edge:.1f}" for edge in corners)
        )
    Console().print(table)


def _plain(image: ImageAnswer) -> dict[str, object]:
    return {
        "image_id": image.image_id,
        "image_width": image.image_width,
        "image_height": image.image_height,
        "detections": [asdict(found) for found in image.detections],
        "classes": [asdict(found) for found in image.classes],
    }
