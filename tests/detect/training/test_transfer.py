"""Replacement of heads: outputs of the new model against the corresponding outputs of the original one."""

import pytest
import torch

from chromabox.detect.models.architecture import Architecture, Convolution, Yolo
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.transfer import replace_heads
from chromabox.detect.weights.load import Detector, load_detector, save_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import make_small_detector

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def head_output(detector: Detector) -> torch.Tensor:
    """Return the raw outputs of the only head [anchors, 5 + classes, rows, columns]."""
    with torch.no_grad():
        return detector.model(IMAGE)[0][0]


def test_class_rows_follow_their_names_and_boxes_are_unchanged() -> None:
    detector = make_small_detector()
    new = replace_heads(detector, ["Red_Fox", "owl", "cat"])
    assert new.classes == ("Red_Fox", "owl", "cat")
    before, after = head_output(detector), head_output(new)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 5], before[:, 5 + 2], rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 7], before[:, 5 + 0], rtol=0, atol=1e-6)
    # The new one of three classes has the score 1/3 everywhere.
    torch.testing.assert_close(after[:, 6].sigmoid(), torch.full_like(after[:, 6], 1 / 3))
    assert new.metadata["surgery"] == {"kept": ["Red_Fox", "cat"], "new": ["owl"], "dropped": ["dog"]}
    assert not new.model.training


def test_new_classes_are_appended_to_the_old_ones() -> None:
    detector = make_small_detector()
    new = replace_heads(detector, ["dog", "owl"], keep_old_classes=True)
    assert new.classes == ("cat", "dog", "red fox", "owl")
    before, after = head_output(detector), head_output(new)
    torch.testing.assert_close(after[:, :8], before, rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 8].sigmoid(), torch.full_like(after[:, 8], 1 / 4))


def test_same_classes_give_the_same_weights() -> None:
    detector = make_small_detector()
    state, new_state = detector.model.state_dict(), replace_heads(detector, detector.classes).model.state_dict()
    assert all(torch.equal(value, new_state[name]) for name, value in state.items())


def test_single_new_class_has_the_default_max_prior() -> None:
    output = head_output(replace_heads(make_small_detector(), ["owl"]))
    torch.testing.assert_close(output[:, 5].sigmoid(), torch.full_like(output[:, 5], 0.99))


def test_initial_score_of_new_classes_is_at_most_max_prior() -> None:
    output = head_output(replace_heads(make_small_detector(), ["owl", "newt"], max_prior=0.1))
    torch.testing.assert_close(output[:, 5:].sigmoid(), torch.full_like(output[:, 5:], 0.1))


def test_original_detector_is_not_modified_and_new_rows_have_gradients() -> None:
    detector = make_small_detector()
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    new = replace_heads(detector, ["owl", "newt"])
    head = new.model(IMAGE)[0]
    (head[0, :, 5] - head[0, :, 6] * 2).sum().backward()
    assert new.model.layers[5].convolution.weight.grad.unflatten(0, (2, 7))[:, 5:].abs().amin(1).max() > 0
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter += 1
    assert all(torch.equal(value, before[name]) for name, value in detector.model.state_dict().items())


def test_result_can_be_saved_and_loaded(tmp_path) -> None:
    new = replace_heads(make_small_detector(), ["owl"])
    save_detector(tmp_path / "a.safetensors", new)
    loaded = load_detector(tmp_path / "a.safetensors")
    assert loaded.classes == ("owl",)
    assert torch.equal(head_output(loaded), head_output(new))


@pytest.mark.parametrize(
    ("names", "message"), [([], "classes is an empty list"), (["a b", "A_b"], "contains 'a b' more than once")]
)
def test_empty_or_repeated_names_are_rejected(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace_heads(make_small_detector(), names)


def test_head_after_a_convolution_with_batch_norm_is_rejected() -> None:
    layers = (Convolution(6, 1), Yolo((0,), ((8.0, 8.0),), 1))
    detector = make_small_detector()
    model = DarknetModel(Architecture("odd", layers, size=32), detector.variant)
    with pytest.raises(ChromaboxError, match="odd: cannot change the classes of the head in layer 1"):
        replace_heads(Detector(model, ("a",), 32, {}), ["b"])


def test_new_class_with_the_name_of_an_old_class_has_new_rows() -> None:
    detector = make_small_detector()
    new = replace_heads(detector, ["Dog", "cat"], new_classes=["dog"])
    expected = replace_heads(detector, ["wolf", "cat"])
    assert new.metadata["surgery"] == {"kept": ["cat"], "new": ["Dog"], "dropped": ["dog", "red fox"]}
    torch.testing.assert_close(head_output(new), head_output(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("keep_old_classes", "name", "message"),
    [(False, "wolf", "new class wolf is not in the dataset"), (True, "Dog", "class Dog cannot be new while")],
)
def test_new_class_must_be_in_the_dataset_and_not_be_kept(keep_old_classes: bool, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace_heads(make_small_detector(), ["Dog", "cat"], keep_old_classes, new_classes=[name])
