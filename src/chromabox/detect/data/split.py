"""A part of a set held out to judge by, where the files know none: by class, and with near-duplicates on one side."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from chromabox.detect.data.dataset import DetectionSet, Fault, Labelled
from chromabox.detect.data.duplicates import Twins, find_twins, fingerprints
from chromabox.errors import ChromaboxError, UsageError


def held_out(
    data: DetectionSet,
    *,
    share: float = 0.2,
    seed: int = 0,
    alike: Sequence[Twins] | None = None,
    tick: Callable[[], object] = lambda: None,
) -> DetectionSet:
    """The set with every picture in the split ``train`` or ``val``, whatever splits it had.

    About ``share`` of the boxes of each class, and of the pictures without any, are held out. Pictures that are the
    same or nearly go to one side together. What comes out depends on the pictures and ``seed`` alone.

    Args:
        share: between 0 and 1.
        alike: what ``find_twins`` says of the pictures (of others it may say more); None: all are decoded for it.
        tick: called after each picture that is decoded.

    Returns:
        The set in its own order. Pictures that cannot be decoded are left out and told among the faults. Raises
        UsageError for another share, ChromaboxError where there are no two different pictures.
    """
    if not 0 < share < 1:
        raise UsageError(f"share is {share}: what is held out is a part between 0 and 1")
    damaged: dict[Path, str] = {}
    if alike is None:
        prints, damaged = fingerprints([one.path for one in data.pictures], tick)
        alike = find_twins(prints)
    pictures = [one for one in data.pictures if one.path not in damaged]
    groups = _groups([one.path for one in pictures], alike)
    if len(groups) < 2:
        raise ChromaboxError(f"{len(pictures)} pictures are too few to hold some out: two that differ are needed")
    counts = np.stack([_counts([pictures[index] for index in group], len(data.classes)) for group in groups])
    chosen = _stratified(counts, share, np.random.default_rng(seed))
    apart = {index for group, val in zip(groups, chosen, strict=True) if val for index in group}
    split = tuple(replace(one, split="val" if index in apart else "train") for index, one in enumerate(pictures))
    broken = tuple(Fault("damaged picture", path, None, f"{why}; left out", True) for path, why in damaged.items())
    return replace(data, pictures=split, splits=("train", "val"), faults=(*data.faults, *broken))


def _groups(paths: Sequence[Path], alike: Sequence[Twins]) -> list[list[int]]:
    """Indices of pictures that are alike, directly or over others; most groups have one."""
    group: dict[Path, list[int]] = {}
    for index, path in enumerate(paths):
        group.setdefault(path, []).append(index)
    for pair in alike:
        one, other = group.get(pair.first, []), group.get(pair.second, [])
        if one and other and one is not other:
            one += other
            group |= {paths[index]: one for index in other}
    return list({min(indices): indices for indices in group.values()}.values())


def _counts(pictures: Sequence[Labelled], classes: int) -> Float64[np.ndarray, " kinds"]:
    """Boxes of each class, pictures without any, and pictures."""
    labels = np.concatenate([one.classes for one in pictures])
    empty = sum(len(one.classes) == 0 for one in pictures)
    return np.array([*np.bincount(labels, minlength=classes), empty, len(pictures)], np.float64)


def _stratified(
    counts: Float64[np.ndarray, "groups kinds"], share: float, draw: np.random.Generator
) -> Bool[np.ndarray, " groups"]:
    """Which groups are held out: the rarest kind first, each of its groups where most of that kind is still wanted.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, algorithm 1) for two parts. Neither part is left
    empty.
    """
    wanted = np.array([1 - share, share])[:, None] * counts.sum(0)
    order = draw.permutation(len(counts))
    part = np.full(len(counts), -1)
    while (part < 0).any():
        left = counts[part < 0].sum(0)
        kind = int(np.where(left > 0, left, np.inf).argmin())
        for group in _of_kind(order, part, counts[:, kind]):
            # Where both want the same of this kind, the one that wants more pictures takes it.
            side = max((0, 1), key=lambda side: (wanted[side, kind], wanted[side, -1]))
            part[group] = side
            wanted[side] -= counts[group]
    if part.min() == part.max():
        part[order[0]] = 1 - part[order[0]]
    return part == 1


def _of_kind(
    order: Int64[np.ndarray, " groups"], part: Int64[np.ndarray, " groups"], of_kind: Float64[np.ndarray, " groups"]
) -> list[int]:
    """The groups not yet given that have something of a kind, those with most of it first, as drawn among equals."""
    open_ones = [int(group) for group in order if part[group] < 0 and of_kind[group] > 0]
    return sorted(open_ones, key=lambda group: -of_kind[group])
