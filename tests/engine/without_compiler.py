"""Run where there is no C++ compiler: ``auto`` must fall back to eager, ``yes`` must fail in one sentence."""

import sys
from pathlib import Path

from tiny_training import make_job, make_net, make_plan
from torch import Tensor

from chromabox.engine.autotune import Execution, choose_execution
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.engine.trainer import fit
from chromabox.errors import ChromaboxError


def main() -> None:
    job = make_job(net=make_net())
    [batch] = job.batches(0, 5)

    def losses(call: object) -> Tensor:
        print("compiled step" if call is not None and "OptimizedModule" in type(call).__name__ else "eager step")
        return job.losses(call, batch)["loss"]  # type: ignore[arg-type]

    options = ExecutionOptions(precision="float32", channels_last="no", threads=1)
    chosen = choose_execution(options, job.net, losses, steps=10**12)
    print(f"chosen: {chosen}")
    try:
        fit(job, make_plan(), folder=Path(sys.argv[1]), execution=Execution(threads=1, compiled=True))
    except ChromaboxError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
