"""Stratified train/validation split for datasets without splits. Near-duplicates are assigned to the same split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from chromabox.detect.data.dataset import DetectionDataset, LabelIssue
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.errors import ChromaboxError, UsageError


def train_val_split(
    data: DetectionDataset,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    duplicates: Sequence[DuplicatePair] | None = None,
) -> DetectionDataset:
    """Assign each image to the split ``train`` or ``val``. Existing splits are replaced.

    About ``val_fraction`` of the boxes of each class, and of the images without boxes, are held out for validation.
    At least one image with boxes is held out, unless all boxes are in one image and its duplicates.
    Duplicates and near-duplicates are assigned to the same split. Equal images, fractions and seeds give equal results.

    ``duplicates`` is the result of ``find_duplicates``, which may include pairs of other images. If ``duplicates`` is
    None, all images are decoded to find the duplicates. Images that cannot be decoded are dropped and recorded in
    ``issues``.

    Raise UsageError if the fraction is out of range, and ChromaboxError if there are fewer than two distinct images.
    """
    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}: expected a number between 0 and 1")
    errors: dict[Path, str] = {}
    if duplicates is None:
        image_prints, errors = fingerprints([sample.path for sample in data.samples])
        duplicates = find_duplicates(image_prints)
    samples = [sample for sample in data.samples if sample.path not in errors]
    groups = _duplicate_groups([sample.path for sample in samples], duplicates)
    if len(groups) < 2:
        raise ChromaboxError(
            f"dataset too small to split (images: {len(samples)}): expected at least 2 distinct images"
        )
    # For each group: the number of boxes of each class, of images without boxes, and of all images.
    counts = np.zeros((len(groups), len(data.classes) + 2))
    for row, group in zip(counts, groups, strict=True):
        for class_ids in (samples[index].class_ids for index in group):
            row[:-2] += np.bincount(class_ids, minlength=len(data.classes))
            row[-2:] += len(class_ids) == 0, 1
    held_out = _iterative_stratification(counts, val_fraction, np.random.default_rng(seed))
    val = {index for group, is_val in zip(groups, held_out, strict=True) if is_val for index in group}
    assigned = tuple(replace(sample, split="val" if index in val else "train") for index, sample in enumerate(samples))
    issues = tuple(
        LabelIssue("damaged picture", path, None, f"{error}; dropped", True) for path, error in errors.items()
    )
    return replace(data, samples=assigned, splits=("train", "val"), issues=(*data.issues, *issues))


def _duplicate_groups(paths: Sequence[Path], duplicates: Sequence[DuplicatePair]) -> list[list[int]]:
    """Group the indices of images that are direct or indirect duplicates. Every other image is a separate group."""
    group: dict[Path, list[int]] = {}
    for index, path in enumerate(paths):
        group.setdefault(path, []).append(index)
    for pair in duplicates:
        first, second = group.get(pair.first, []), group.get(pair.second, [])
        if first and second and first is not second:
            first += second
            group |= {paths[index]: first for index in second}
    return list({min(indices): indices for indices in group.values()}.values())


def _iterative_stratification(
    counts: Float64[np.ndarray, "groups categories"], val_fraction: float, rng: np.random.Generator
) -> Bool[np.ndarray, " groups"]:
    """Return which groups are held out for validation, by iterative stratification into two subsets.

    The rarest category is distributed first. Each group with this category is assigned to the subset with the greatest
    remaining demand for this category (Sechidis, Tsoumakas and Vlahavas 2011, algorithm 1). Neither subset is empty.
    Each subset contains boxes if at least two groups do.
    """
    demand = np.array([1 - val_fraction, val_fraction])[:, None] * counts.sum(0)
    order = rng.permutation(len(counts))
    assignment = np.full(len(counts), -1)
    while (assignment < 0).any():
        remaining = counts[assignment < 0].sum(0)
        category = int(np.where(remaining > 0, remaining, np.inf).argmin())
        groups = [int(group) for group in order if assignment[group] < 0 and counts[group, category] > 0]
        for group in sorted(groups, key=lambda group: -counts[group, category]):
            # If both demands are equal, the subset with the greater demand for images is chosen.
            subset = max((0, 1), key=lambda subset: (demand[subset, category], demand[subset, -1]))
            assignment[group] = subset
            demand[subset] -= counts[group]
    candidates = counts[:, :-2].sum(axis=1) > 0
    if candidates.sum() < 2:
        candidates = np.ones(len(counts), bool)
    # The rarest class of each group. A group with frequent classes is moved, so that both subsets contain its classes.
    rarest = np.where(counts[:, :-2] > 0, counts[:, :-2].sum(0), np.inf).min(axis=1, initial=np.inf)
    for subset in (0, 1):
        if not (candidates & (assignment == subset)).any():
            movable = [int(group) for group in order if candidates[group]]
            assignment[max(movable, key=lambda group: rarest[group])] = subset
    return assignment == 1
