"""The verbs that count a net and ask about its paddings."""

from tyro.conf import Positional

from chromabox.errors import UsageError


def count(
    net: Positional[str],
    /,
    *,
    size: int | None = None,
    kernel: int | None = None,
    filters: int | None = None,
    colours: int | None = None,
    in_channels: int | None = None,
    biases: bool = False,
    batch_norm: bool = False,
    others: bool = False,
) -> int:
    """Count weights, outputs and connections of a net, as formulas and as numbers, for a size and for twice that.

    chromabox count pool-upsample

    chromabox count unet --kernel 5 --filters 16 --biases

    chromabox count yolov3-tiny --size 416

    chromabox count runs/first

    Formulas are derived from the net itself. A connection is a product of an input by a weight; padding's zeros count.

    Args:
        net: pool-upsample, conv-transpose, unet, colournet, photo (the shipped one), yolov3, yolov3-tiny, or a run
            folder or file with a net.
        size: Side of the pictures in pixels; 32, of a detector its own.
        kernel: k, the kernel size (3).
        filters: NF, the number of filters (32).
        colours: NC, the number of colours (24).
        in_channels: NIC, the channels of the pictures (1).
        biases: Count biases as weights.
        batch_norm: Count BatchNorm: its weights, outputs and connections.
        others: Count the outputs of pooling, upsampling and activations.
    """
    from chromabox.assignment.count import Counted
    from chromabox.assignment.count_tables import count_named, print_counting

    counting = count_named(
        net, size=size, kernel=kernel, num_filters=filters, num_colours=colours, num_in_channels=in_channels
    )
    print_counting(counting, Counted(biases, batch_norm, others))
    return 0


def geometry(*, kernel: tuple[int, ...] = (3, 4, 5), stride: int = 2, dilation: int = 1) -> int:
    """Say which paddings and output paddings keep the shapes of the assignment's figure 1b, or why none does.

    chromabox geometry --kernel 4 5

    chromabox geometry --kernel 1 2 3 4 5 6 7 8 9 --dilation 2

    Args:
        kernel: Kernel sizes.
        stride: Of all layers but the last, which has 1.
        dilation: Of all layers.
    """
    if not kernel:
        raise UsageError("kernel: names no size; give at least one")
    from chromabox.assignment.count_tables import print_geometry

    print_geometry(kernel, stride, dilation)
    return 0
