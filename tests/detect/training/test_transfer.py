"""Heads for other classes: what of the old net must stand where in the new one."""

import pytest
import torch

from chromabox.detect.models.architecture import Architecture, Convolution, Yolo
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.transfer import replace_heads
from chromabox.detect.weights.load import Detector, load_detector, save_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import make_small_detector

PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def numbers(trained: Detector) -> torch.Tensor:
    """The one head's numbers [anchors, 5 + classes, rows, columns]."""
    with torch.no_grad():
        return trained.model(PICTURE)[0][0]


def test_rows_follow_their_names_and_boxes_stay() -> None:
    trained = make_small_detector()
    other = replace_heads(trained, ["Red_Fox", "owl", "cat"])
    assert other.classes == ("Red_Fox", "owl", "cat")
    before, after = numbers(trained), numbers(other)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 5], before[:, 5 + 2], rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 7], before[:, 5 + 0], rtol=0, atol=1e-6)
    # One of three classes: a third everywhere.
    torch.testing.assert_close(after[:, 6].sigmoid(), torch.full_like(after[:, 6], 1 / 3))
    assert other.metadata["surgery"] == {"kept": ["Red_Fox", "cat"], "new": ["owl"]}
    assert not other.model.training


def test_new_classes_are_appended_to_the_old_ones() -> None:
    trained = make_small_detector()
    other = replace_heads(trained, ["dog", "owl"], keep_old_classes=True)
    assert other.classes == ("cat", "dog", "red fox", "owl")
    before, after = numbers(trained), numbers(other)
    torch.testing.assert_close(after[:, :8], before, rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 8].sigmoid(), torch.full_like(after[:, 8], 1 / 4))


def test_the_same_classes_change_nothing() -> None:
    trained = make_small_detector()
    state, other = trained.model.state_dict(), replace_heads(trained, trained.classes).model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_a_single_new_class_leaves_the_score_to_objectness() -> None:
    other = numbers(replace_heads(make_small_detector(), ["owl"]))
    torch.testing.assert_close(other[:, 5].sigmoid(), torch.full_like(other[:, 5], 0.99))


def test_a_new_class_may_begin_as_unsure_as_is_wished() -> None:
    other = numbers(replace_heads(make_small_detector(), ["owl", "newt"], max_prior=0.1))
    torch.testing.assert_close(other[:, 5:].sigmoid(), torch.full_like(other[:, 5:], 0.1))


def test_the_old_detector_is_not_touched_and_new_rows_can_learn() -> None:
    trained = make_small_detector()
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    other = replace_heads(trained, ["owl", "newt"])
    head = other.model(PICTURE)[0]
    (head[0, :, 5] - head[0, :, 6] * 2).sum().backward()
    assert other.model.layers[5].convolution.weight.grad.unflatten(0, (2, 7))[:, 5:].abs().amin(1).max() > 0
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 1
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_the_result_can_be_saved_and_read(tmp_path) -> None:
    other = replace_heads(make_small_detector(), ["owl"])
    save_detector(tmp_path / "a.safetensors", other)
    again = load_detector(tmp_path / "a.safetensors")
    assert again.classes == ("owl",)
    assert torch.equal(numbers(again), numbers(other))


@pytest.mark.parametrize(("names", "message"), [([], "none is given"), (["a b", "A_b"], "stands there twice")])
def test_names_that_are_no_list_of_classes(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace_heads(make_small_detector(), names)


def test_a_head_that_is_normalised_is_refused() -> None:
    layers = (Convolution(6, 1), Yolo((0,), ((8.0, 8.0),), 1))
    trained = make_small_detector()
    net = DarknetModel(Architecture("odd", layers, size=32), trained.variant)
    with pytest.raises(ChromaboxError, match="odd: layer 1 is no head behind a plain convolution"):
        replace_heads(Detector(net, ("a",), 32, {}), ["b"])
