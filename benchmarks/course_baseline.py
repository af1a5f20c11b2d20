"""Train the assignment's UNet with the assignment's settings, as the baseline of ``time_to_accuracy.py``.

The script is independent of chromabox: the images are read with NumPy, the palette labels are assigned by computing
every distance in NumPy, and batches are NumPy slices in file order. The model runs eagerly in float32. The optimizer is
Adam with a learning rate of 1e-3, and the batch size is 100. After each of 25 epochs, the test split is evaluated and a
grid of ten images (greyscale, ground truth, prediction) is plotted with matplotlib.

    python benchmarks/course_baseline.py CIFAR_FOLDER PALETTE.npy OUTPUT_FOLDER [EPOCHS [SEED]]
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
BATCH_SIZE = 100


class UNet(nn.Module):
    """UNet of figure 1c with kernel size 3, 32 filters, 24 colours and one input channel."""

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


def load_images(files: list[Path]) -> np.ndarray:
    """Return the horses of CIFAR-10 files as RGB/256, [N, 3, 32, 32] float32."""
    rows = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in files])
    return rows[rows[:, 0] == HORSE, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 256


def assign_labels(images: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return the nearest palette colour of every pixel by computing all distances, 100 images at a time."""
    labels = []
    for start in range(0, len(images), 100):
        pixels = images[start : start + 100].transpose(0, 2, 3, 1)
        distances = ((pixels[..., None, :] - palette) ** 2).sum(-1)
        labels.append(distances.argmin(-1))
    return np.concatenate(labels)


def evaluate(model: nn.Module, criterion: nn.Module, grey: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    model.eval()
    losses, num_correct = [], 0
    with torch.no_grad():
        for start in range(0, len(grey), BATCH_SIZE):
            x = torch.from_numpy(grey[start : start + BATCH_SIZE])
            y = torch.from_numpy(labels[start : start + BATCH_SIZE])
            logits = model(x)
            losses.append(criterion(logits, y).item())
            num_correct += (logits.argmax(1) == y).sum().item()
    model.train()
    return float(np.mean(losses)), num_correct / labels.size


def plot_samples(model: nn.Module, grey: np.ndarray, truth: np.ndarray, palette: np.ndarray, path: Path) -> None:
    model.eval()
    with torch.no_grad():
        labels = model(torch.from_numpy(grey[:10])).argmax(1).numpy()
    model.train()
    figure, axes = plt.subplots(3, 10, figsize=(10, 3))
    for column in range(10):
        axes[0, column].imshow(grey[column, 0], cmap="gray")
        axes[1, column].imshow(truth[column].transpose(1, 2, 0))
        axes[2, column].imshow(palette[labels[column]])
    for panel in axes.flat:
        panel.axis("off")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    data, palette_file, output = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    epochs = int(sys.argv[4]) if len(sys.argv) > 4 else 25
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(int(sys.argv[5]) if len(sys.argv) > 5 else 0)
    palette = np.load(palette_file, allow_pickle=False)
    train = load_images([data / f"data_batch_{number}.bin" for number in range(1, 6)])
    test = load_images([data / "test_batch.bin"])
    train_grey, test_grey = train.mean(1, keepdims=True), test.mean(1, keepdims=True)
    train_labels, test_labels = assign_labels(train, palette), assign_labels(test, palette)
    model, criterion = UNet(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = []
    for epoch in range(1, epochs + 1):
        losses = []
        for start in range(0, len(train_grey), BATCH_SIZE):
            x = torch.from_numpy(train_grey[start : start + BATCH_SIZE])
            y = torch.from_numpy(train_labels[start : start + BATCH_SIZE])
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        test_loss, accuracy = evaluate(model, criterion, test_grey, test_labels)
        plot_samples(model, test_grey, test, palette, output / f"epoch-{epoch}.png")
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
