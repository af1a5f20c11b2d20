"""Time and memory of the application of chroma at full size, compared with scikit-image.

    python benchmarks/recolour.py [-o benchmarks/results/recolour.json]

The image is a tiled greyscale photograph. The chroma map has 96 cells along the short side. Its random colours are
either moderate (a*, b* up to ±20) or far outside of sRGB (up to ±100). The baseline uses rgb2lab, bilinear
interpolation of the map, and lab2rgb, in float64 with clipping. It neither preserves the lightness nor follows edges.
Both wall-clock and processor seconds are reported, because other programs on the machine affect only the wall-clock
seconds. Working memory is measured in a separate process and excludes the input and the output.
"""

import argparse
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from skimage import data
from skimage.color import lab2rgb, rgb2lab
from skimage.transform import resize

from chromabox.colour.chroma.recolour import apply_chroma, lightness
from environment import describe_machine, median_seconds, time_paired, write_results

SIZES = {1: (866, 1154), 3: (1500, 2000), 12: (3000, 4000), 24: (4000, 6000)}  # megapixels: (height, width)
