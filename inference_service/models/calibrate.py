"""Fits the temperature of a classifier in a repository to labelled images."""

from dataclasses import asdict, dataclass
from pathlib import Path

from inference_service.models.calibration import TEMPERATURES, Quality, fit_temperature, measure
from inference_service.models.engine import Model
from inference_service.models.labelled import LabelledError, find, outputs, split
from inference_service.models.loader import Runtime, load_model
from inference_service.models.model_spec import ModelSpecError, read, write_temperature
from vision import ImageLimits, OnnxClassifier


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of a fit."""

    model: Model
    fitted_to: int
    """Images."""
    temperature: float
    before: Quality
    """Of images that were held out, with the temperature that the model has."""
    after: Quality
    """Of the same, with the one that was fitted."""

    def as_dict(self) -> dict[str, object]:
        """Return the same for JSON."""
        return {
            "name": self.model.name,
            "version": self.model.version,
            "fitted_to": self.fitted_to,
            "before": {"temperature": self.model.spec.temperature, **asdict(self.before)},
            "after": {"temperature": self.temperature, **asdict(self.after)},
        }

    def write(self, folder: Path) -> None:
        """Put the temperature into the `model.yaml` in the model's folder.

        Raises:
            ModelSpecError: the file cannot be written.
        """
        path = folder / "model.yaml"
        if not path.exists():
            path.write_text("task: classify\n")
        elif "task" not in read(path).model_fields_set:
            raise ModelSpecError(f"{path}: must say `task: classify` before it has a temperature")
        write_temperature(path, self.temperature)


def calibrate(
    folder: Path, images: Path, held_out: float, limits: ImageLimits, runtime: Runtime
) -> Calibration:
    """Fit the temperature to one part of a labelled set, and judges it by the other.

    Args:
        folder: of the model, `<name>/<version>`.
        images: the labelled set, as `labelled.find` reads it.
        held_out: share of each label to judge by, in (0, 1).
        limits: of an image.
        runtime: how the model is run.

    Raises:
        RepositoryError: the model cannot be used.
        LabelledError: it is no classifier, the set cannot be used, or no temperature fits it.
        ModelError: the model fails.
    """
    model = load_model(folder, runtime)
    network = model.network
    if not isinstance(network, OnnxClassifier):
        raise LabelledError(
            f"model {model.name} version {model.version} is no classifier: a temperature is for"
            " task classify"
        )
    fit, judge = split(find(images, network.names), held_out)
    temperature = fit_temperature(*outputs(network, fit, limits))
    _check_within(temperature, len(fit))
    logits, labels = outputs(network, judge, limits)
    return Calibration(
        model=model,
        fitted_to=len(fit),
        temperature=temperature,
        before=measure(logits, labels, model.spec.temperature),
        after=measure(logits, labels, temperature),
    )


def _check_within(temperature: float, images: int) -> None:
    if temperature == TEMPERATURES[0]:
        raise LabelledError(
            f"no temperature can be fitted: all of {images} images are classified right, so"
            " that being surer would always pay; give more images, or harder ones"
        )
    if temperature == TEMPERATURES[1]:
        raise LabelledError(
            "no temperature can be fitted: the model's answers have nothing to do with the labels;"
            " are these right?"
        )
