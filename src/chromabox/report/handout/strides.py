"""Why strided and transposed convolutions do better than pooling and upsampling, or do not: each reason is tested."""

from pathlib import Path

from chromabox.report.found import summary_of
from chromabox.report.handout.compared import NOTICEABLE, draw_edges, gain_near_edges, probe_table
from chromabox.report.handout.examined import Examined, Ground
from chromabox.report.handout.stated import share, whole
from chromabox.report.written.document import Block, Text


def stride_reasons(pool: Examined, strided: Examined, ground: Ground, folder: Path, *, better: bool) -> list[Block]:
    """The reasons, with the numbers that they rest on; ``better``: whether there is a gain to be explained."""
    near, gain = gain_near_edges(pool, strided, ground, folder)
    return [
        _size(pool, strided),
        _kept(pool, strided),
        probe_table(pool, strided),
        gain,
        draw_edges((pool, strided), folder),
        _stride_summary(pool, strided, near=near, better=better),
    ]


def _size(pool: Examined, strided: Examined) -> Text:
    before, after = (
        whole(int(summary_of(one.run)["parameters"]), f"{one.run}/summary.json: parameters") for one in (pool, strided)
    )
    if before.value == after.value:
        return Text("Size is no reason: both nets have {count} parameters.", {"count": after})
    return Text(
        "The nets differ in size, {before} parameters against {after}, which may be a reason of its own.",
        {"before": before, "after": after},
    )


def _keeps_more(pool: Examined, strided: Examined) -> bool:
    before, after = (one.recovered["quarter"].grey_detail for one in (pool, strided))
    return after > before + NOTICEABLE


def _kept(pool: Examined, strided: Examined) -> Text:
    more = _keeps_more(pool, strided)
    return Text(
        "What gets through the bottleneck: a pooling keeps the largest of four neighbours and forgets which it was; a "
        "convolution with stride weighs all of them, with weights that are learnt. "
        + ("This is borne out" if more else "This is not borne out")
        + f": from `{pool.net}`'s bottleneck a linear map reads back {{before}} % of the variance of grey's fine "
        f"detail, from `{strided.net}`'s {{after}} %. By the grey that is read back, a table of grey values finds the "
        "true colour of {table_before} and {table_after} % of the pixels.",
        {
            "before": share(pool, "recovered", "quarter", "grey_detail"),
            "after": share(strided, "recovered", "quarter", "grey_detail"),
            "table_before": share(pool, "recovered", "quarter", "table_accuracy"),
            "table_after": share(strided, "recovered", "quarter", "table_accuracy"),
        },
    )


def _stride_summary(pool: Examined, strided: Examined, *, near: bool, better: bool) -> Text:
    more = _keeps_more(pool, strided)
    if not better:
        said = "As the second net is not better here, there is no gain that these reasons would have to explain."
    elif more and near:
        said = "Both tests support the reason “strides keep fine detail that pooling throws away”."
    elif more or near:
        said = "Of the two tests one supports the reason “strides keep fine detail that pooling throws away”."
    else:
        said = "Neither test supports the reason “strides keep fine detail that pooling throws away”."
    return Text(
        f"{said} What these runs cannot tell apart is the way down from the way up: `{strided.net}` has strides for "
        "poolings and also transposed convolutions for plain upsampling, and only a net with one of the two would say "
        "how much each brings."
    )
