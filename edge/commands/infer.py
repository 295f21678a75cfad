"""The command `infer`: sends images to the inference service and prints the answers."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.cloud.client import InferenceClient
from edge.cloud.types import ImageAnswer, InferAnswer, InferParameters, ModelHint
from edge.commands.draw import Copies, label_of
from edge.commands.options import InferenceTarget, notes, settings_with
from edge.detect.limits import DeviceImageLimits
from edge.endpoints import inference_endpoint
from edge.names import image_id_of
from edge.records import Detection
from edge.settings import EdgeSettings
from servicekit.distribution import install_hint
from servicekit.errors import Category, SightlineError
from servicekit.help import CONNECTION, OUTPUT
from servicekit.mask_formats import MaskFormat
from servicekit.names import readable
from servicekit.terminal import CommandError, sentence

_ENDS_RUN = (Category.NETWORK, Category.AUTH)  # the next image would fail the same way


def infer(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(help="Name of the model. Not given: the setting cloud_model, or the default."),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Version of the model. Not given: as for --model.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Leave out detections below this confidence, 0 to 1.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Most classes per image (classification).", min=1, max=1000)
    ] = None,
    mask_format: Annotated[
        MaskFormat | None,
        typer.Option(help="Format of the masks, if the model has masks. Not given: the setting."),
    ] = None,
    polygon_tolerance: Annotated[
        float | None,
        typer.Option(help="Most pixels between a polygon and the outline of a mask, 0 to 100."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Folder for copies of the images with boxes and labels.", rich_help_panel=OUTPUT
        ),
    ] = None,
    target: InferenceTarget = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for each image.", rich_help_panel=CONNECTION)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line per image.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Ask the inference service about images.

    Example: sightline infer part-1.jpg part-2.jpg --save boxes/

    Exit code 1: an image got no answer.
    """
    settings = settings_with(
        inference_target=target,
        timeout_seconds=timeout,
        # The reserve has no effect here, and must not forbid a short timeout.
        cloud_reserve_seconds=None if timeout is None else min(1.0, timeout / 2),
        cloud_model=model,
        cloud_model_version=version,
        confidence_threshold=confidence,
        mask_format=mask_format,
        polygon_tolerance=polygon_tolerance,
    )
    limits = settings.image_limits
    copies = _copies(save, images, limits) if save is not None else None
    failed = 0
    with InferenceClient(
        inference_endpoint(settings), timeout=settings.timeout_seconds, limits=limits
    ) as client:
        for path in images:
            try:
                answer = _ask(client, path, settings, top_k)
                saved = copies.save(path, answer.results[0]) if copies else None
            except SightlineError as error:
                if error.category in _ENDS_RUN:
                    raise
                if error.reason == "MODEL_NOT_FOUND" and Path(settings.cloud_model).is_file():
                    raise CommandError(_is_a_file(settings.cloud_model)) from error
                _show_error(path, error, as_json=as_json)
                failed += 1
            except MemoryError as error:
                raise CommandError(f"{path}: there is not enough memory: {error}") from error
            except OSError as error:
                raise CommandError(f"--save: {path} cannot be copied: {error}") from error
            else:
                _show(answer, saved, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _ask(
    client: InferenceClient, path: Path, settings: EdgeSettings, top_k: int | None
) -> InferAnswer:
    """Return the answer for one image. Raises SightlineError: there is none."""
    answer = client.infer(
        [path],
        image_ids=[image_id_of(path.name)],
        model=ModelHint(settings.cloud_model, settings.cloud_model_version),
        parameters=InferParameters(
            confidence_threshold=settings.confidence_threshold,
            iou_threshold=settings.iou_threshold,
            max_detections=settings.max_detections,
            top_k=top_k,
            mask_format=settings.mask_format,
            polygon_tolerance=settings.polygon_tolerance,
        ),
    )
    if answer.results[0].error is not None:
        raise answer.results[0].error
    return answer


def _copies(folder: Path, images: list[Path], limits: DeviceImageLimits) -> Copies:
    try:
        import PIL.ImageDraw  # noqa: F401 - an error before the first request

        return Copies(folder, images, limits)
    except ImportError as error:
        raise CommandError(f"--save needs {error.name}: {install_hint('onnx')}") from error
    except OSError as error:
        raise CommandError(f"--save: {folder} must be a folder: {error.strerror}") from error


def _is_a_file(model: str) -> str:
    return (
        f"--model: must be the name of a model of the service, got the file {model}:"
        " `sightline models add` gives it a name there, `sightline log --model` runs it here"
    )


def _show_error(path: Path, error: SightlineError, *, as_json: bool) -> None:
    notes().print(
        f"{readable(path)}: {sentence(error)}", markup=False, highlight=False, soft_wrap=True
    )
    if as_json:
        plain = {"reason": error.reason, "category": error.category, "message": error.message}
        typer.echo(json.dumps({"image_id": image_id_of(path.name), "error": plain}))


def _show(answer: InferAnswer, saved: Path | None, *, as_json: bool) -> None:
    """Print the answer for one image."""
    (image,) = answer.results
    if as_json:
        model = {"model_name": answer.model_name, "model_version": answer.model_version}
        copy = {"saved": readable(saved)} if saved else {}
        typer.echo(json.dumps({**model, **_plain(image), **copy}, default=list))
        return
    title = f"{image.image_id}: {answer.model_name} {answer.model_version}"
    console = Console()
    console.print(_classes(image, title) if image.classes else _detections(image, title))
    if saved:
        notes().print(f"saved {readable(saved)}", markup=False, highlight=False, soft_wrap=True)


def _detections(image: ImageAnswer, title: str) -> Table:
    shown = {name: form for name, form in _MORE.items() if any(map(form, image.detections))}
    table = Table("class", "confidence", "x_min", "y_min", "x_max", "y_max", title=escape(title))
    for name in shown:
        table.add_column(name)
    for detection in image.detections:
        corners = astuple(detection.box) if detection.box else ("",) * 4
        table.add_row(
            escape(label_of(detection.class_id, detection.class_name)),
            f"{detection.confidence:.3f}",
            *(edge if isinstance(edge, str) else f"{edge:.1f}" for edge in corners),
            *(form(detection) for form in shown.values()),
        )
    return table


def _rotated_box(detection: Detection) -> str:
    box = detection.rotated_box
    if box is None:
        return ""
    centre = f"{box.center_x:.1f}, {box.center_y:.1f}"
    return f"{centre}: {box.width:.1f} x {box.height:.1f}, {math.degrees(box.angle):.1f}°"


def _keypoints(detection: Detection) -> str:
    return str(len(detection.keypoints)) if detection.keypoints else ""


def _mask(detection: Detection) -> str:
    mask = detection.mask
    if mask is None:
        return ""
    points = sum(len(polygon) // 2 for polygon in mask.polygons)
    return "run lengths" if mask.rle else f"{len(mask.polygons)} polygons, {points} points"


_MORE: dict[str, Callable[[Detection], str]] = {
    "rotated box": _rotated_box,
    "keypoints": _keypoints,
    "mask": _mask,
}
"""Columns that the table of detections has only if the model's task has them."""


def _classes(image: ImageAnswer, title: str) -> Table:
    table = Table("class", "probability", title=escape(title))
    for score in image.classes:
        label = label_of(score.class_id, score.class_name)
        table.add_row(escape(label), f"{score.probability:.3f}")
    return table


def _plain(image: ImageAnswer) -> dict[str, object]:
    return {
        "image_id": image.image_id,
        "image_width": image.image_width,
        "image_height": image.image_height,
        "detections": [asdict(result) for result in image.detections],
        "classes": [asdict(result) for result in image.classes],
    }
