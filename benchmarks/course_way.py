"""The assignment's way of training its UNet, written plainly: what ``time_to_accuracy.py`` compares with.

Nothing of chromabox runs here, so that nothing of it can help or hinder: the pictures are read with numpy, the palette
labels are found by computing every distance in numpy, batches are numpy slices in file order, the net is eager float32,
the optimiser Adam at 1e-3, the batch 100, and after each of 25 epochs the test split is evaluated and a sheet of ten
pictures (grey, truth, prediction) is plotted with matplotlib.

    python benchmarks/course_way.py CIFAR_FOLDER PALETTE.npy OUTPUT_FOLDER [EPOCHS [SEED]]
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

HORSE = 7
BATCH = 100


class UNet(nn.Module):
    """Figure 1c with kernel 3, 32 filters, 24 colours and one input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        up = {"stride": 2, "padding": 1, "output_padding": 1}
        self.up1 = nn.Sequential(nn.ConvTranspose2d(64, 32, 3, **up), nn.BatchNorm2d(32), nn.ReLU())
        self.up2 = nn.Sequential(nn.ConvTranspose2d(64, 24, 3, **up), nn.BatchNorm2d(24), nn.ReLU())
        self.last = nn.Conv2d(25, 24, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down1(x)
        second = self.up1(self.down2(first))
        third = self.up2(torch.cat([second, first], dim=1))
        return self.last(torch.cat([third, x], dim=1))


def load(files: list[Path]) -> np.ndarray:
    """The horses of some CIFAR-10 files, RGB/256, [N, 3, 32, 32] float32."""
    rows = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in files])
    return rows[rows[:, 0] == HORSE, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 256


def nearest(pictures: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Labels by all distances, a hundred pictures at a time."""
    labels = []
    for start in range(0, len(pictures), 100):
        pixels = pictures[start : start + 100].transpose(0, 2, 3, 1)
        distances = ((pixels[..., None, :] - palette) ** 2).sum(-1)
        labels.append(distances.argmin(-1))
    return np.concatenate(labels)


def evaluate(net: nn.Module, loss_of: nn.Module, grey: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    net.eval()
    losses, hits = [], 0
    with torch.no_grad():
        for start in range(0, len(grey), BATCH):
            x = torch.from_numpy(grey[start : start + BATCH])
            y = torch.from_numpy(labels[start : start + BATCH])
            scores = net(x)
            losses.append(loss_of(scores, y).item())
            hits += (scores.argmax(1) == y).sum().item()
    net.train()
    return float(np.mean(losses)), hits / labels.size


def plot(net: nn.Module, grey: np.ndarray, truth: np.ndarray, palette: np.ndarray, path: Path) -> None:
    net.eval()
    with torch.no_grad():
        labels = net(torch.from_numpy(grey[:10])).argmax(1).numpy()
    net.train()
    figure, axes = plt.subplots(3, 10, figsize=(10, 3))
    for column in range(10):
        axes[0, column].imshow(grey[column, 0], cmap="gray")
        axes[1, column].imshow(truth[column].transpose(1, 2, 0))
        axes[2, column].imshow(palette[labels[column]])
    for cell in axes.flat:
        cell.axis("off")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    data, palette_file, output = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    epochs = int(sys.argv[4]) if len(sys.argv) > 4 else 25
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(int(sys.argv[5]) if len(sys.argv) > 5 else 0)
    palette = np.load(palette_file, allow_pickle=False)
    train = load([data / f"data_batch_{number}.bin" for number in range(1, 6)])
    test = load([data / "test_batch.bin"])
    train_grey, test_grey = train.mean(1, keepdims=True), test.mean(1, keepdims=True)
    train_labels, test_labels = nearest(train, palette), nearest(test, palette)
    net, loss_of = UNet(), nn.CrossEntropyLoss()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    history = []
    for epoch in range(1, epochs + 1):
        losses = []
        for start in range(0, len(train_grey), BATCH):
            x = torch.from_numpy(train_grey[start : start + BATCH])
            y = torch.from_numpy(train_labels[start : start + BATCH])
            optimiser.zero_grad()
            loss = loss_of(net(x), y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        test_loss, accuracy = evaluate(net, loss_of, test_grey, test_labels)
        plot(net, test_grey, test, palette, output / f"epoch-{epoch}.png")
        history.append(
            {"epoch": epoch, "train_loss": float(np.mean(losses)), "test_loss": test_loss, "test_accuracy": accuracy}
        )
        print(history[-1], flush=True)
    plt.figure()
    plt.plot([entry["train_loss"] for entry in history], label="train")
    plt.plot([entry["test_loss"] for entry in history], label="validation")
    plt.legend()
    plt.savefig(output / "curves.png")
    (output / "history.json").write_text(json.dumps(history, indent=2))


if __name__ == "__main__":
    main()
