"""Script without a C++ compiler: ``auto`` must use eager mode, ``on`` must raise a one-line error."""

import sys
from pathlib import Path

from tiny_training import make_model, make_schedule, make_task
from torch import Tensor

from chromabox.engine.autotune import RuntimeConfig, autotune
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.trainer import fit
from chromabox.errors import ChromaboxError


def main() -> None:
    task = make_task(model=make_model())
    [batch] = task.batches(0, 5)

    def compute_loss(forward: object) -> Tensor:
        print("compiled step" if "OptimizedModule" in type(forward).__name__ else "eager step")
        return task.compute_loss(forward, batch)["loss"]  # type: ignore[arg-type]

    options = RuntimeOptions(precision="float32", channels_last="off", threads=1)
    selected = autotune(options, task.model, compute_loss, total_steps=10**12)
    print(f"selected: {selected}")
    try:
        fit(task, make_schedule(), folder=Path(sys.argv[1]), runtime=RuntimeConfig(threads=1, compile=True))
    except ChromaboxError as error:
        print(f"error: {error}")


if __name__ == "__main__":
    main()
