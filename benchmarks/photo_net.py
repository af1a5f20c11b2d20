"""The network's part of colouring one photograph, against a forward pass of two published networks.

    python benchmarks/photo_net.py [--net RUN] [-o benchmarks/results/photo_net.json]

Ours is ``predict.opinion_on``: from the pixels in memory to merged probabilities, the reduction of the picture, the
lightness and all looks included. The others are given a finished input of their native size and only pass it forward:

* SIGGRAPH17: Zhang, Zhu, Isola, Geng, Lin, Yu and Efros 2017, "Real-Time User-Guided Image Colorization with Learned
  Deep Priors", figure 3, the main branch; 256 × 256.
* DDColor-tiny: Kang, Yang, Ouyang, Ren, Li and Xie 2023, "DDColor: Towards Photo-Realistic Image Colorization via Dual
  Decoders", section 3: ConvNeXt-T (Liu et al. 2022, "A ConvNet for the 2020s"), pixel decoder and colour decoder;
  512 × 512, and 256 × 256 as it was trained.

Both are written from these descriptions and have random weights: they serve for timing only. Each runs in whichever
memory layout is the faster for it. A ratio above 1 means that ours is the faster.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.inference.predict import ColourModel, predict_distribution
from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.weights.checkpoint import load_model
from machine import describe, median_seconds, paired, write_results


def block(inputs: int, outputs: int, count: int, *, dilation: int = 1) -> nn.Sequential:
    """``count`` 3×3 convolutions with ReLU, batch normalisation after the last."""
    layers: list[nn.Module] = []
    for index in range(count):
        first = inputs if index == 0 else outputs
        layers += [nn.Conv2d(first, outputs, 3, padding=dilation, dilation=dilation), nn.ReLU()]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs))


class Siggraph17(nn.Module):
    """Ten blocks: four halve the size and double the features, two are dilated, three come back up with shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = block(4, 64, 2), block(64, 128, 2)
        self.block3, self.block4 = block(128, 256, 3), block(256, 512, 3)
        self.block5, self.block6 = block(512, 512, 3, dilation=2), block(512, 512, 3, dilation=2)
        self.block7 = block(512, 512, 3)
        self.up8, self.short8, self.block8 = self._up(512, 256), self._short(256, 256), block(256, 256, 2)
        self.up9, self.short9, self.block9 = self._up(256, 128), self._short(128, 128), block(128, 128, 1)
        self.up10, self.short10, self.block10 = self._up(128, 128), self._short(64, 128), block(128, 128, 1)
        self.colours = nn.Conv2d(128, 2, 1)

    @staticmethod
    def _up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)

    @staticmethod
    def _short(inputs: int, outputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, lightness_and_hints: Tensor) -> Tensor:
        """[batch, 4, height, width]: L*, a* and b* of hints, and where hints are; a* and b* of all pixels out."""
        full = self.block1(lightness_and_hints)
        half = self.block2(full[:, :, ::2, ::2])
        quarter = self.block3(half[:, :, ::2, ::2])
        eighth = self.block7(self.block6(self.block5(self.block4(quarter[:, :, ::2, ::2]))))
        quarter = self.block8(F.relu(self.up8(eighth) + self.short8(quarter)))
        half = self.block9(F.relu(self.up9(quarter) + self.short9(half)))
        return torch.tanh(self.colours(self.block10(F.relu(self.up10(half) + self.short10(full)))))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [batch, channels, height, width]."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, normalisation, a perceptron four times as wide, a learnt scale; added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.perceptron = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, features: Tensor) -> Tensor:
        last = self.norm(self.depthwise(features).permute(0, 2, 3, 1))
        return features + (self.scale * self.perceptron(last)).permute(0, 3, 1, 2)


class ConvNeXtTiny(nn.Module):
    """Four stages of 3, 3, 9 and 3 blocks, 96 to 768 channels, at 1/4, 1/8, 1/16 and 1/32."""

    DEPTHS, WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 96, 4, stride=4), ChannelNorm(96))
        halves = [
            nn.Sequential(ChannelNorm(inputs), nn.Conv2d(inputs, outputs, 2, stride=2))
            for inputs, outputs in zip(self.WIDTHS[:-1], self.WIDTHS[1:], strict=True)
        ]
        self.reduce = nn.ModuleList([stem, *halves])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))
            for depth, width in zip(self.DEPTHS, self.WIDTHS, strict=True)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in self.WIDTHS)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """The four stages' features, normalised."""
        seen = []
        for reduce, stage, norm in zip(self.reduce, self.stages, self.norms, strict=True):
            picture = stage(reduce(picture))
            seen.append(norm(picture))
        return seen


class PixelStage(nn.Module):
    """A stage of the pixel decoder: pixel shuffle to twice the size, beside it the encoder's features, convolution."""

    def __init__(self, inputs: int, shortcut: int, outputs: int) -> None:
        super().__init__()
        self.spread = nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 1), nn.ReLU(), nn.PixelShuffle(2))
        self.norm = nn.BatchNorm2d(shortcut)
        self.mix = nn.Sequential(nn.ReLU(), nn.Conv2d(outputs + shortcut, outputs, 3, padding=1), nn.ReLU())

    def forward(self, features: Tensor, shortcut: Tensor) -> Tensor:
        return self.mix(torch.cat([self.spread(features), self.norm(shortcut)], 1))


class ColourBlock(nn.Module):
    """Colour queries ask the picture (cross-attention), then each other (self-attention), then think (perceptron)."""

    def __init__(self, width: int = 256, heads: int = 8, wide: int = 2048) -> None:
        super().__init__()
        self.ask = nn.MultiheadAttention(width, heads, batch_first=True)
        self.talk = nn.MultiheadAttention(width, heads, batch_first=True)
        self.think = nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = self.norms[0](queries + self.ask(queries, tokens, tokens, need_weights=False)[0])
        queries = self.norms[1](queries + self.talk(queries, queries, queries, need_weights=False)[0])
        return self.norms[2](queries + self.think(queries))


class DDColorTiny(nn.Module):
    """Encoder, pixel decoder to full size, nine colour blocks over three scales with 100 queries, fusion."""

    def __init__(self, queries: int = 100, width: int = 256) -> None:
        super().__init__()
        self.encode = ConvNeXtTiny()
        shapes = [(768, 384, 512), (512, 192, 512), (512, 96, 256)]
        self.stages = nn.ModuleList(PixelStage(*shape) for shape in shapes)
        self.last = nn.Sequential(nn.Conv2d(256, 16 * width, 1), nn.ReLU(), nn.PixelShuffle(4))
        self.project = nn.ModuleList(nn.Conv2d(outputs, width, 1) for _, _, outputs in shapes)
        self.queries = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.blocks = nn.ModuleList(ColourBlock(width) for _ in range(9))
        self.embed = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
        self.fuse = nn.Conv2d(queries, 2, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """[batch, 3, height, width]: the grey picture in RGB; a* and b* of all pixels out."""
        *shortcuts, features = self.encode(picture)
        scales = []
        for stage, shortcut in zip(self.stages, reversed(shortcuts), strict=True):
            features = stage(features, shortcut)
            scales.append(features)
        queries = self.queries.expand(len(picture), -1, -1)
        tokens = [project(scale).flatten(2).mT for project, scale in zip(self.project, scales, strict=True)]
        for index, colour_block in enumerate(self.blocks):
            queries = colour_block(queries, tokens[index % 3])
        return self.fuse(torch.einsum("bqc,bchw->bqhw", self.embed(queries), self.last(features)))


CONTENDERS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "SIGGRAPH17 at 256 × 256": (Siggraph17, 4, (256, 256)),
    "DDColor-tiny at 256 × 256": (DDColorTiny, 3, (256, 256)),
    "DDColor-tiny at 512 × 512": (DDColorTiny, 3, (512, 512)),
}
#: Width and height of the photograph that ours begins with.
PHOTOGRAPHS = {"0.3 megapixels": (512, 512), "12 megapixels": (4000, 3000)}


def forward_pass(
    build: Callable[[], nn.Module], channels: int, size: tuple[int, ...]
) -> tuple[Callable[[], Tensor], int]:
    """A call that passes one input forward in the layout that is the faster, and the parameters."""
    net = build().eval()
    picture = torch.rand(1, channels, *size)

    def in_layout(layout: torch.memory_format) -> Callable[[], Tensor]:
        def call() -> Tensor:
            net.to(memory_format=layout)
            with torch.inference_mode():
                return net(picture.to(memory_format=layout))

        return call

    calls = [in_layout(layout) for layout in (torch.contiguous_format, torch.channels_last)]
    assert calls[0]().shape == (1, 2, *size)
    seconds = [median_seconds(call, 3) for call in calls]
    return calls[seconds.index(min(seconds))], num_trainable_parameters(net)


def duel(trained: ColourModel, pairs: int) -> list[dict[str, object]]:
    """Ours on both photographs against every contender."""
    source = Image.fromarray(skimage.data.astronaut())
    rows: list[dict[str, object]] = []
    for name, (build, channels, size) in CONTENDERS.items():
        torch.manual_seed(0)
        call, parameters = forward_pass(build, channels, size)
        for photograph, shape in PHOTOGRAPHS.items():
            pixels = np.asarray(source.resize(shape, Image.Resampling.BICUBIC))
            timed = paired(lambda p=pixels: predict_distribution(p, trained), call, pairs)
            verdict = "wins" if timed.ratio > 1 else "LOSES"
            print(
                f"{timed.ratio:6.2f}×: ours on {photograph} {verdict}, {timed.a_seconds * 1e3:.0f} ms against "
                f"{timed.b_seconds * 1e3:.0f} ms of {name} ({parameters / 1e6:.1f} M parameters); "
                f"single ratios {min(timed.ratios):.2f} to {max(timed.ratios):.2f}",
                flush=True,
            )
            rows.append({"against": name, "parameters": parameters, "photograph": photograph, **asdict(timed)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", type=Path, help="run folder or checkpoint; the shipped net if left out")
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs for each contender")
    parser.add_argument("--threads", type=int, default=2, help="for both sides")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe()
    trained = load_model(options.net)
    parameters = sum(parameter.numel() for parameter in trained.network.parameters())
    print(f"ours: {trained.metadata['net']}, {parameters / 1e6:.1f} M parameters; {options.threads} threads")
    rows = duel(trained, options.pairs)
    print(machine)
    if options.output:
        ours = {"net": trained.metadata["net"], "parameters": parameters}
        write_results(options.output, {"ours": ours, "threads": options.threads, "duels": rows, "machine": machine})
        print(options.output)


if __name__ == "__main__":
    main()
