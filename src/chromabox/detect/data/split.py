"""A part of a set held out to judge by, where the files know none: by class, and with near-duplicates on one side."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from chromabox.detect.data.dataset import DetectionDataset, LabelIssue, Sample
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.errors import ChromaboxError, UsageError


def train_val_split(
    data: DetectionDataset,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    duplicates: Sequence[DuplicatePair] | None = None,
    on_progress: Callable[[], object] = lambda: None,
) -> DetectionDataset:
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
    if not 0 < val_fraction < 1:
        raise UsageError(f"share is {val_fraction}: what is held out is a part between 0 and 1")
    damaged: dict[Path, str] = {}
    if duplicates is None:
        prints, damaged = fingerprints([one.path for one in data.samples], on_progress)
        duplicates = find_duplicates(prints)
    pictures = [one for one in data.samples if one.path not in damaged]
    groups = _duplicate_groups([one.path for one in pictures], duplicates)
    if len(groups) < 2:
        raise ChromaboxError(f"{len(pictures)} pictures are too few to hold some out: two that differ are needed")
    counts = np.stack([_class_counts([pictures[index] for index in group], len(data.classes)) for group in groups])
    chosen = _iterative_stratification(counts, val_fraction, np.random.default_rng(seed))
    apart = {index for group, val in zip(groups, chosen, strict=True) if val for index in group}
    split = tuple(replace(one, split="val" if index in apart else "train") for index, one in enumerate(pictures))
    broken = tuple(LabelIssue("damaged picture", path, None, f"{why}; left out", True) for path, why in damaged.items())
    return replace(data, samples=split, splits=("train", "val"), issues=(*data.issues, *broken))


def _duplicate_groups(paths: Sequence[Path], duplicates: Sequence[DuplicatePair]) -> list[list[int]]:
    """Indices of pictures that are alike, directly or over others; most groups have one."""
    group: dict[Path, list[int]] = {}
    for index, path in enumerate(paths):
        group.setdefault(path, []).append(index)
    for pair in duplicates:
        one, other = group.get(pair.first, []), group.get(pair.second, [])
        if one and other and one is not other:
            one += other
            group |= {paths[index]: one for index in other}
    return list({min(indices): indices for indices in group.values()}.values())


def _class_counts(samples: Sequence[Sample], num_classes: int) -> Float64[np.ndarray, " kinds"]:
    """Boxes of each class, pictures without any, and pictures."""
    labels = np.concatenate([one.class_ids for one in samples])
    empty = sum(len(one.class_ids) == 0 for one in samples)
    return np.array([*np.bincount(labels, minlength=num_classes), empty, len(samples)], np.float64)


def _iterative_stratification(
    counts: Float64[np.ndarray, "groups kinds"], val_fraction: float, rng: np.random.Generator
) -> Bool[np.ndarray, " groups"]:
    """Which groups are held out: the rarest kind first, each of its groups where most of that kind is still wanted.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, algorithm 1) for two parts. Neither part is left
    empty.
    """
    wanted = np.array([1 - val_fraction, val_fraction])[:, None] * counts.sum(0)
    order = rng.permutation(len(counts))
    part = np.full(len(counts), -1)
    while (part < 0).any():
        left = counts[part < 0].sum(0)
        kind = int(np.where(left > 0, left, np.inf).argmin())
        for group in _groups_with_class(order, part, counts[:, kind]):
            # Where both want the same of this kind, the one that wants more pictures takes it.
            side = max((0, 1), key=lambda side: (wanted[side, kind], wanted[side, -1]))
            part[group] = side
            wanted[side] -= counts[group]
    if part.min() == part.max():
        part[order[0]] = 1 - part[order[0]]
    return part == 1


def _groups_with_class(
    order: Int64[np.ndarray, " groups"],
    assignment: Int64[np.ndarray, " groups"],
    counts: Float64[np.ndarray, " groups"],
) -> list[int]:
    """The groups not yet given that have something of a kind, those with most of it first, as drawn among equals."""
    open_ones = [int(group) for group in order if assignment[group] < 0 and counts[group] > 0]
    return sorted(open_ones, key=lambda group: -counts[group])
