"""Run where there is no C++ compiler: ``auto`` must fall back to eager, ``yes`` must fail in one sentence."""

import sys
from pathlib import Path

from tiny_training import make_model, make_schedule, make_task
from torch import Tensor

from chromabox.engine.autotune import RuntimeConfig, autotune
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import fit
from chromabox.errors import ChromaboxError


def main() -> None:
    job = make_task(model=make_model())
    [batch] = job.batches(0, 5)

    def losses(call: object) -> Tensor:
        print("compiled step" if call is not None and "OptimizedModule" in type(call).__name__ else "eager step")
        return job.compute_loss(call, batch)["loss"]  # type: ignore[arg-type]

    options = RuntimeOptions(precision="float32", channels_last="off", threads=1)
    chosen = autotune(options, job.model, losses, total_steps=10**12)
    print(f"chosen: {chosen}")
    try:
        fit(job, make_schedule(), folder=Path(sys.argv[1]), runtime=RuntimeConfig(threads=1, compile=True))
    except ChromaboxError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
