"""Calibration of a classifier in a repository: fits its temperature to labelled images."""

from dataclasses import asdict, dataclass
from pathlib import Path

from inference_service.models.calibration import TEMPERATURES, Quality, fit_temperature, measure
from inference_service.models.engine import Model
from inference_service.models.labelled import LabelledError, find, outputs, split
from inference_service.models.loader import Runtime, load_model
from inference_service.models.model_spec import ModelSpecError, read, write_temperature
from vision import ImageLimits, OnnxClassifier
from vision.external_data import onnx_sha256


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result of a calibration."""

    model: Model
    fitted_to: int
    """Number of images."""
    temperature: float
    before: Quality
    """Quality on the held-out images with the model's current temperature."""
    after: Quality
    """Quality on the same images with the fitted temperature."""

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON."""
        return {
            "name": self.model.name,
            "version": self.model.version,
            "fitted_to": self.fitted_to,
            "before": {"temperature": self.model.spec.temperature, **asdict(self.before)},
            "after": {"temperature": self.temperature, **asdict(self.after)},
        }

    def write(self, folder: Path) -> None:
        """Write the temperature to the `model.yaml` in the model's folder.

        Raises:
            ModelSpecError: the file cannot be written, or the folder has another network than the
                one that the temperature was fitted to.
            ModelError: the network cannot be read.
        """
        if onnx_sha256(folder / "model.onnx") != self.model.network.sha256:
            raise ModelSpecError(
                f"{folder / 'model.onnx'} changed while the temperature was fitted: calibrate again"
            )
        path = folder / "model.yaml"
        if not path.exists():
            path.write_text("task: classify\n")
        elif "task" not in read(path).model_fields_set:
            raise ModelSpecError(
                f"{path}: has no task: add `task: classify` before the temperature"
            )
        write_temperature(path, self.temperature)


def calibrate(
    folder: Path, images: Path, held_out: float, limits: ImageLimits, runtime: Runtime
) -> Calibration:
    """Fit the temperature to one part of a labelled set, and measure it on the other.

    Args:
        folder: of the model, `<name>/<version>`.
        images: the labelled set, as `labelled.find` reads it.
        held_out: fraction of the images of each label to measure with, in (0, 1).
        limits: limits on an image.
        runtime: how the model is run.

    Raises:
        RepositoryError: the model is unusable.
        LabelledError: it is not a classifier, the set is unusable, or no temperature fits.
        ModelError: the model fails.
    """
    model = load_model(folder, runtime)
    network = model.network
    if not isinstance(network, OnnxClassifier):
        raise LabelledError(
            f"model {model.name} version {model.version} is not a classifier: only models with task"
            " classify have a temperature"
        )
    fit_images, test_images = split(find(images, network.names), held_out)
    temperature = fit_temperature(*outputs(network, fit_images, limits))
    _check_within(temperature, len(fit_images))
    logits, labels = outputs(network, test_images, limits)
    return Calibration(
        model=model,
        fitted_to=len(fit_images),
        temperature=temperature,
        before=measure(logits, labels, model.spec.temperature),
        after=measure(logits, labels, temperature),
    )


def _check_within(temperature: float, images: int) -> None:
    if temperature == TEMPERATURES[0]:
        raise LabelledError(
            f"no temperature can be fitted: all {images} images are classified correctly, so"
            " that a lower temperature is always better; add more or harder images"
        )
    if temperature == TEMPERATURES[1]:
        raise LabelledError(
            "no temperature can be fitted: the model's answers do not depend on the labels; check"
            " the labels"
        )
