"""The commands ``count`` and ``padding``, called from Python as the command line calls them."""

import pytest

from chromabox.cli.assignment import count, padding
from chromabox.errors import UsageError


def test_options_reach_the_model_and_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"kernel": 2, "num_filters": 3, "num_colours": 5, "num_in_channels": 2}
    assert count("conv-transpose", size=16, biases=True, **settings) == 0
    out = capsys.readouterr().out
    assert "weights of kernels, biases (not BatchNorm)" in out
    assert "NIC = 2, NF = 3, NC = 5, k = 2" in out
    assert "32 × 32" in out
    # 4·(NIC·NF + 4·NF² + NF·NC + NC²) + 4·NF + 2·NC.
    assert f" {4 * (6 + 36 + 15 + 25) + 12 + 10} │" in out


def test_batch_norm_and_activations_are_rows_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    count("unet", batch_norm=True, count_activations=True)
    out = capsys.readouterr().out
    assert "BatchNorm2d" in out
    assert "ReLU" in out
    count("unet")
    assert "ReLU" not in capsys.readouterr().out


def test_paddings_of_default_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert padding() == 0
    out = capsys.readouterr().out
    assert [f"kernel {kernel}, stride 2, dilation 1" in out for kernel in (3, 4, 5, 6)] == [True, True, True, False]
    padding(kernel=(2,), stride=3, dilation=2)
    assert "kernel 2, stride 3, dilation 2" in capsys.readouterr().out


def test_invalid_options_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="--kernel: expected at least one"):
        padding(kernel=())
    with pytest.raises(UsageError, match="stride is 0"):
        padding(stride=0)
    with pytest.raises(UsageError, match="kernel is -1"):
        count("unet", kernel=-1)
