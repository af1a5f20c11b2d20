"""Time of model inference for one photograph, compared with a forward pass of two published networks.

    python benchmarks/photo_net.py [--model RUN] [-o benchmarks/results/photo_net.json]

For chromabox, ``predict_distribution`` is timed. It computes the merged probabilities from pixels in memory, including
downsampling, lightness and test-time augmentation. For the other networks, only the forward pass for a prepared input
of the native size is timed:

* SIGGRAPH17: Zhang, Zhu, Isola, Geng, Lin, Yu and Efros 2017, "Real-Time User-Guided Image Colorization with Learned
  Deep Priors", figure 3, the main branch; 256 × 256.
* DDColor-tiny: Kang, Yang, Ouyang, Ren, Li and Xie 2023, "DDColor: Towards Photo-Realistic Image Colorization via Dual
  Decoders", section 3: ConvNeXt-T (Liu et al. 2022, "A ConvNet for the 2020s"), pixel decoder and colour decoder;
  512 × 512, and 256 × 256 as it was trained.

Both networks are implemented from these descriptions, with random weights, only to measure their time. Each uses the
memory format with which it is faster. A ratio above 1 means that chromabox is faster.
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

from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import predict_distribution
from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.weights.checkpoint import load_model
from chromabox.colour.weights.onnx_model import ColourModel
from environment import describe_machine, median_seconds, time_paired, write_results


def conv_block(in_channels: int, out_channels: int, count: int, *, dilation: int = 1) -> nn.Sequential:
    """Return ``count`` 3×3 convolutions with ReLU, with batch normalisation after the last convolution."""
    layers: list[nn.Module] = []
    for index in range(count):
        channels = in_channels if index == 0 else out_channels
        layers += [nn.Conv2d(channels, out_channels, 3, padding=dilation, dilation=dilation), nn.ReLU()]
    return nn.Sequential(*layers, nn.BatchNorm2d(out_channels))


class Siggraph17(nn.Module):
    """Ten blocks: four downsampling blocks, two dilated blocks, and three upsampling blocks with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = conv_block(4, 64, 2), conv_block(64, 128, 2)
        self.block3, self.block4 = conv_block(128, 256, 3), conv_block(256, 512, 3)
        self.block5, self.block6 = conv_block(512, 512, 3, dilation=2), conv_block(512, 512, 3, dilation=2)
        self.block7 = conv_block(512, 512, 3)
        self.up8, self.skip8, self.block8 = self._up_conv(512, 256), self._skip_conv(256, 256), conv_block(256, 256, 2)
        self.up9, self.skip9, self.block9 = self._up_conv(256, 128), self._skip_conv(128, 128), conv_block(128, 128, 1)
        self.up10, self.skip10, self.block10 = (
            self._up_conv(128, 128),
            self._skip_conv(64, 128),
            conv_block(128, 128, 1),
        )
        self.head = nn.Conv2d(128, 2, 1)

    @staticmethod
    def _up_conv(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)

    @staticmethod
    def _skip_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, lightness_and_hints: Tensor) -> Tensor:
        """Return a* and b* of all pixels from [batch, 4, height, width]: L*, a* and b* of hints, hint mask."""
        full = self.block1(lightness_and_hints)
        half = self.block2(full[:, :, ::2, ::2])
        quarter = self.block3(half[:, :, ::2, ::2])
        eighth = self.block7(self.block6(self.block5(self.block4(quarter[:, :, ::2, ::2]))))
        quarter = self.block8(F.relu(self.up8(eighth) + self.skip8(quarter)))
        half = self.block9(F.relu(self.up9(quarter) + self.skip9(half)))
        return torch.tanh(self.head(self.block10(F.relu(self.up10(half) + self.skip10(full)))))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [batch, channels, height, width]."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Residual block: depthwise 7×7 convolution, normalisation, an MLP four times as wide, and a learnt scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, features: Tensor) -> Tensor:
        normalised = self.norm(self.depthwise(features).permute(0, 2, 3, 1))
        return features + (self.scale * self.mlp(normalised)).permute(0, 3, 1, 2)


class ConvNeXtTiny(nn.Module):
    """Four stages of 3, 3, 9 and 3 blocks, 96 to 768 channels, at 1/4, 1/8, 1/16 and 1/32."""

    DEPTHS, WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 96, 4, stride=4), ChannelNorm(96))
        downsampling = [
            nn.Sequential(ChannelNorm(in_channels), nn.Conv2d(in_channels, out_channels, 2, stride=2))
            for in_channels, out_channels in zip(self.WIDTHS[:-1], self.WIDTHS[1:], strict=True)
        ]
        self.reduce = nn.ModuleList([stem, *downsampling])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))
            for depth, width in zip(self.DEPTHS, self.WIDTHS, strict=True)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in self.WIDTHS)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the normalised features of the four stages."""
        features, outputs = image, []
        for reduce, stage, norm in zip(self.reduce, self.stages, self.norms, strict=True):
            features = stage(reduce(features))
            outputs.append(norm(features))
        return outputs


class PixelStage(nn.Module):
    """A stage of the pixel decoder: upsampling by pixel shuffle, concatenation of encoder features, and convolution."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 1), nn.ReLU(), nn.PixelShuffle(2))
        self.norm = nn.BatchNorm2d(skip_channels)
        self.mix = nn.Sequential(
            nn.ReLU(), nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1), nn.ReLU()
        )

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        return self.mix(torch.cat([self.upsample(features), self.norm(skip)], 1))


class ColourBlock(nn.Module):
    """Cross-attention of colour queries to image features, self-attention of the queries, and an MLP."""

    def __init__(self, width: int = 256, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = self.norms[0](queries + self.cross_attention(queries, tokens, tokens, need_weights=False)[0])
        queries = self.norms[1](queries + self.self_attention(queries, queries, queries, need_weights=False)[0])
        return self.norms[2](queries + self.mlp(queries))


class DDColorTiny(nn.Module):
    """Encoder, pixel decoder to full size, nine colour blocks over three scales with 100 queries, and fusion."""

    def __init__(self, queries: int = 100, width: int = 256) -> None:
        super().__init__()
        self.encoder = ConvNeXtTiny()
        shapes = [(768, 384, 512), (512, 192, 512), (512, 96, 256)]
        self.stages = nn.ModuleList(PixelStage(*shape) for shape in shapes)
        self.last = nn.Sequential(nn.Conv2d(256, 16 * width, 1), nn.ReLU(), nn.PixelShuffle(4))
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for _, _, channels in shapes)
        self.queries = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.blocks = nn.ModuleList(ColourBlock(width) for _ in range(9))
        self.embed = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
        self.fuse = nn.Conv2d(queries, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return a* and b* of all pixels of a greyscale image in RGB, [batch, 3, height, width]."""
        *skips, features = self.encoder(image)
        scales = []
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            features = stage(features, skip)
            scales.append(features)
        queries = self.queries.expand(len(image), -1, -1)
        tokens = [project(scale).flatten(2).mT for project, scale in zip(self.project, scales, strict=True)]
        for index, colour_block in enumerate(self.blocks):
            queries = colour_block(queries, tokens[index % 3])
        return self.fuse(torch.einsum("bqc,bchw->bqhw", self.embed(queries), self.last(features)))


REFERENCE_MODELS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "SIGGRAPH17 at 256 × 256": (Siggraph17, 4, (256, 256)),
    "DDColor-tiny at 256 × 256": (DDColorTiny, 3, (256, 256)),
    "DDColor-tiny at 512 × 512": (DDColorTiny, 3, (512, 512)),
}
#: Width and height of the input photographs of our model.
PHOTO_SIZES = {"0.3 megapixels": (512, 512), "12 megapixels": (4000, 3000)}


def forward_pass(
    build: Callable[[], nn.Module], channels: int, size: tuple[int, ...]
) -> tuple[Callable[[], Tensor], int]:
    """Return a function that runs a forward pass in the faster memory format, and the number of parameters."""
    model = build().eval()
    image = torch.rand(1, channels, *size)

    def in_format(memory_format: torch.memory_format) -> Callable[[], Tensor]:
        def call() -> Tensor:
            model.to(memory_format=memory_format)
            with torch.inference_mode():
                return model(image.to(memory_format=memory_format))

        return call

    calls = [in_format(memory_format) for memory_format in (torch.contiguous_format, torch.channels_last)]
    assert calls[0]().shape == (1, 2, *size)
    seconds = [median_seconds(call, 3) for call in calls]
    return calls[seconds.index(min(seconds))], num_trainable_parameters(model)


def compare(model: ColourModel, pairs: int) -> list[dict[str, object]]:
    """Compare our model on both photographs with every reference model."""
    source = Image.fromarray(skimage.data.astronaut())
    rows: list[dict[str, object]] = []
    for name, (build, channels, size) in REFERENCE_MODELS.items():
        torch.manual_seed(0)
        call, parameters = forward_pass(build, channels, size)
        for photo_name, size_pixels in PHOTO_SIZES.items():
            pixels = np.asarray(source.resize(size_pixels, Image.Resampling.BICUBIC))
            timing = time_paired(lambda p=pixels: predict_distribution(p, model), call, pairs)
            verdict = "wins" if timing.ratio > 1 else "LOSES"
            print(
                f"{timing.ratio:6.2f}×: ours on {photo_name} {verdict}, {timing.a_seconds * 1e3:.0f} ms compared with "
                f"{timing.b_seconds * 1e3:.0f} ms of {name} ({parameters / 1e6:.1f} M parameters); "
                f"ratios {min(timing.ratios):.2f} to {max(timing.ratios):.2f}",
                flush=True,
            )
            rows.append({"against": name, "parameters": parameters, "photograph": photo_name, **asdict(timing)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="run folder or checkpoint (default: the bundled model)")
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs per reference model")
    parser.add_argument("--threads", type=int, default=2, help="number of threads of all models")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    model = open_model(options.model, threads=options.threads)
    network = load_model(options.model).network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"ours: {model.metadata['net']}, {parameters / 1e6:.1f} M parameters; {options.threads} threads")
    rows = compare(model, options.pairs)
    print(machine)
    if options.output:
        ours = {"net": model.metadata["net"], "parameters": parameters}
        write_results(options.output, {"ours": ours, "threads": options.threads, "duels": rows, "machine": machine})
        print(options.output)


if __name__ == "__main__":
    main()
