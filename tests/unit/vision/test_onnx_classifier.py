"""Real ONNX Runtime sessions on tiny classifiers: the class is the picture's strongest colour."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.unit.vision.models import save, save_detector
from vision import ModelError, OnnxClassifier, Preprocess, Scores

COLOURS = {0: "red", 1: "green", 2: "blue"}
METADATA = {"names": repr(COLOURS), "imgsz": "[32, 48]", "task": "classify"}


def save_classifier(
    path: Path,
    *,
    softmax: bool = False,
    shape: Sequence[int | str] = (1, 3, 32, 48),
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
    declare: bool = True,
) -> Path:
    """Save a model whose scores are the means of the colours."""
    last = helper.make_node("Softmax" if softmax else "Identity", ["means"], ["scores"])
    declared: list[int | str] = [shape[0], 3] if declare else ["n", "classes"]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0), last],
        "colours",
        [helper.make_tensor_value_info("images", kind, list(shape))],
        [helper.make_tensor_value_info("scores", kind, declared)],
    )
    return save(path, graph, METADATA if metadata is None else metadata)


def colour(*levels: int) -> np.ndarray:
    return np.full((40, 80, 3), levels, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_an_export_of_ultralytics_says_all_there_is_to_say(path: Path) -> None:
    classifier = OnnxClassifier.load(save_classifier(path, softmax=True))
    assert dict(classifier.names) == COLOURS
    assert classifier.input_size == (32, 48)
    assert classifier.scores is Scores.PROBABILITIES
    assert classifier.preprocess == Preprocess(resize=(32, 48))  # not square: resized exactly
    classifier.warm_up()
    classes = classifier.classify(colour(0, 255, 0))
    powers = np.exp([1, 0, 0])
    assert classes.class_id.tolist() == [1, 0, 2]
    assert classes.probability == pytest.approx(powers / powers.sum(), abs=1e-4)


def test_a_model_that_says_nothing_puts_out_logits(path: Path) -> None:
    save_classifier(path, metadata={})
    how = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    classifier = OnnxClassifier.load(path, names=COLOURS, preprocess=how)
    assert classifier.scores is Scores.LOGITS
    batch, nothing = classifier.prepare(colour(0, 255, 128))
    assert nothing is None
    (logits,) = classifier.logits(classifier.run(batch))
    assert logits == pytest.approx([-5, 5, (128 / 255 - 0.5) / 0.1], abs=1e-4)
    classes = classifier.classify(colour(0, 255, 128), temperature=5, top_k=2)
    powers = np.exp(logits / 5)
    assert classes.class_id.tolist() == [1, 2]
    assert classes.probability == pytest.approx(np.sort(powers / powers.sum())[:0:-1], abs=1e-6)


def test_what_is_given_outweighs_the_metadata(path: Path) -> None:
    save_classifier(path)
    classifier = OnnxClassifier.load(
        path, names={0: "a", 1: "b", 2: "c"}, preprocess=Preprocess(resize=40), scores=Scores.LOGITS
    )
    assert (classifier.names[0], classifier.scores) == ("a", Scores.LOGITS)
    assert classifier.preprocess.resize == 40


def test_half_precision_models(path: Path) -> None:
    save_classifier(path, softmax=True, kind=TensorProto.FLOAT16)
    classifier = OnnxClassifier.load(path)
    assert classifier.session.outputs[0].dtype == np.float16
    assert classifier.classify(colour(0, 0, 255), top_k=1).class_id.tolist() == [2]


@pytest.mark.parametrize("shape", [("n", 3, 32, 48), ("n", 3, "h", "w")])
def test_any_number_of_images_runs(path: Path, shape: tuple[int | str, ...]) -> None:
    classifier = OnnxClassifier.load(save_classifier(path, shape=shape, declare=False))
    assert (classifier.batch_size, classifier.input_size) == (None, (32, 48))
    pictures = [colour(255, 0, 0), colour(0, 255, 0), colour(0, 0, 255)]
    outputs = classifier.run(np.concatenate([classifier.prepare(each)[0] for each in pictures]))
    decoder = OnnxClassifier(classifier.session, scores=Scores.LOGITS)
    assert [decoder.decode(row, top_k=1).class_id[0] for row in outputs] == [0, 1, 2]


def test_the_crop_says_the_size_of_an_input_that_takes_any(path: Path) -> None:
    save_classifier(path, shape=("n", 3, "h", "w"), metadata={})
    how = Preprocess(crop=(20, 24))
    assert OnnxClassifier.load(path, names=COLOURS, preprocess=how).input_size == (20, 24)
    with pytest.raises(ModelError, match="crop"):
        OnnxClassifier.load(path, names=COLOURS)


@pytest.mark.parametrize(
    ("options", "reason", "named"),
    [
        ({"names": {0: "a"}}, "MODEL_UNSUPPORTED", "each of 1 labels"),
        ({"names": {1: "a"}}, "MODEL_METADATA_INVALID", "'names'"),
        ({"preprocess": Preprocess(crop=(32, 32))}, "MODEL_UNSUPPORTED", "crop"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    path: Path, options: dict[str, object], reason: str, named: str
) -> None:
    save_classifier(path)
    with pytest.raises(ModelError) as caught:
        OnnxClassifier.load(path, **options)  # type: ignore[arg-type]
    assert (caught.value.reason, named in caught.value.message) == (reason, True)


def test_a_detector_is_no_classifier(path: Path) -> None:
    with pytest.raises(ModelError, match="'task' must be 'classify', got 'detect'"):
        OnnxClassifier.load(save_detector(path))
    metadata = {"names": repr(COLOURS)}
    with pytest.raises(ModelError, match="must be \\[batch, 3\\]"):
        OnnxClassifier.load(save_detector(path, metadata=metadata))


def test_scores_that_are_none_are_an_error(path: Path) -> None:
    classifier = OnnxClassifier.load(save_classifier(path))  # its means are no probabilities
    with pytest.raises(ModelError) as caught:
        classifier.classify(colour(255, 255, 255))
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"
