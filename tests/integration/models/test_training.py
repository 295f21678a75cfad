"""The parts of training, and that what it would write has the form of what is committed."""

from pathlib import Path

import onnx
import pytest
import torch
import yaml

from models.evaluate import MODEL
from models.export import write_model
from models.loss import assign, detection_loss, iou, to_corners
from models.network import INPUT_HEIGHT, INPUT_WIDTH, PlateDetector, cell_centres
from models.train import mirrored

EMPTY = [-1.0, 0.0, 0.0, 0.0, 0.0]


def test_cells_are_counted_row_by_row() -> None:
    assert cell_centres(2, 3).tolist() == [
        [0.5, 1.5, 2.5, 0.5, 1.5, 2.5],
        [0.5, 0.5, 0.5, 1.5, 1.5, 1.5],
    ]


def test_the_network_speaks_in_pixels_and_probabilities() -> None:
    network = PlateDetector(3, 64, 96).eval()
    with torch.no_grad():
        output = network(torch.rand(2, 3, 64, 96))
    assert output.shape == (2, 7, 8 * 12)
    # Untrained offsets are near 0, so that every box lies around its own cell of 8 pixels.
    assert torch.allclose(output[0, :2], cell_centres(8, 12) * 8, atol=8)
    assert (output[:, 4:] > 0).all()
    assert (output[:, 4:] < 0.1).all()


def test_the_cells_around_a_centre_answer_for_it_and_no_other() -> None:
    centres = cell_centres(4, 4)
    # The centre of this box is the corner between cells 5, 6, 9 and 10.
    truth = torch.tensor([[[2.0, 10, 12, 22, 20], EMPTY], [EMPTY, EMPTY]])
    slot, answers = assign(centres, truth)
    assert answers[0].nonzero().flatten().tolist() == [5, 6, 9, 10]
    assert (slot[0][answers[0]] == 0).all()
    assert not answers[1].any()


def test_a_cell_between_two_defects_answers_for_the_nearer() -> None:
    centres = cell_centres(1, 4)
    truth = torch.tensor([[[0.0, 2, 2, 6, 6], [1.0, 17, 2, 21, 6]]])
    slot, answers = assign(centres, truth)
    assert answers[0].tolist() == [True, True, True, False]
    assert slot[0][:3].tolist() == [0, 1, 1]


def test_overlap_of_boxes() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10]])
    overlap, generalised = iou(a, b)
    assert overlap.tolist() == pytest.approx([1, 1 / 3, 0])
    # The hull of the last pair is 300 pixels, of which 100 belong to neither.
    assert generalised.tolist() == pytest.approx([1, 1 / 3, -1 / 3])


def test_corners() -> None:
    assert to_corners(torch.tensor([[10.0, 20, 4, 6]])).tolist() == [[8, 17, 12, 23]]


def test_the_loss_is_low_for_the_truth_and_only_for_it() -> None:
    centres = cell_centres(4, 4)
    truth = torch.tensor([[[1.0, 10, 12, 22, 20]]])
    boxes = torch.tensor([16.0, 16, 12, 8])[None, :, None].expand(1, 4, 16)
    logits = torch.full((1, 2, 16), -12.0)
    logits[0, 1, [5, 6, 9, 10]] = 12.0
    right = detection_loss(boxes, logits, centres, truth)
    assert right < 1e-3
    assert detection_loss(boxes + 3, logits, centres, truth) > right + 0.1
    assert detection_loss(boxes, logits.flip(1), centres, truth) > right + 0.1
    assert detection_loss(boxes, -logits, centres, truth) > right + 0.1


def test_a_batch_of_clean_plates_has_a_loss() -> None:
    truth = torch.tensor([[EMPTY]])
    loss = detection_loss(torch.ones(1, 4, 16), torch.zeros(1, 2, 16), cell_centres(4, 4), truth)
    assert torch.isfinite(loss)
    assert loss > 0


def test_mirroring_turns_boxes_with_the_image() -> None:
    truth = torch.tensor([[[1.0, 10, 20, 50, 90]]])
    picture = torch.zeros(1, 1, INPUT_HEIGHT, INPUT_WIDTH)
    picture[0, 0, 20:90, 10:50] = 1
    for axis in (2, 3):
        _, x_min, y_min, x_max, y_max = mirrored(truth, axis)[0, 0].int().tolist()
        inside = picture.flip(axis)[0, 0, y_min:y_max, x_min:x_max]
        assert inside.numel() == 40 * 70
        assert inside.all()


def test_training_again_would_write_the_same_form(tmp_path: Path) -> None:
    network = PlateDetector(3, INPUT_HEIGHT, INPUT_WIDTH).eval()
    path = write_model(network, tmp_path)
    assert path == tmp_path / "plates" / "1" / "model.onnx"
    fresh, committed = onnx.load(path), onnx.load(MODEL)
    assert list(fresh.metadata_props) == list(committed.metadata_props)
    assert list(fresh.graph.input) == list(committed.graph.input)
    assert list(fresh.graph.output) == list(committed.graph.output)
    cards = [yaml.safe_load(file.with_name("model.yaml").read_text()) for file in (path, MODEL)]
    assert cards[0] == cards[1]
