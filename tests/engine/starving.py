"""train.py whose memory holds so many images: MOST=PICTURES for each process, RUN_OUT=STEP,RANK for one error there.

Both raise `torch.OutOfMemoryError`: MOST in any forward pass of the bare model, of the evaluation too; RUN_OUT in that
of the last micro-batch, or in its backward pass with IN=backward. What was trained on is written to SEEN: a line per
step, with the positions of this process's images, and their size. KILL=STEP kills the process behind that step,
before its state is saved.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davit import DaViT
from davit.engine.steps import Stepper
from davit.engine.train import main

most = int(os.environ.get("MOST", "1000000"))
bad_step, bad_rank = (int(part) for part in os.environ.get("RUN_OUT", "-9,0").split(","))
where, seen = os.environ.get("IN", "forward"), os.environ.get("SEEN")
killed_behind = int(os.environ.get("KILL", "-9"))
rank = int(os.environ.get("RANK", "0"))
forward, step = DaViT.forward, Stepper.step
now = {"step": -1, "failed": 0, "pass": 0}


class _Fail(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory: tried to hold the gradients")


def limited(self: DaViT, images: Tensor, *rest: Any) -> Tensor:
    if len(images) > most:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {len(images)} images")
    if not torch.is_grad_enabled() or not self.training:
        return forward(self, images, *rest)
    now["pass"] += 1
    is_last = now["pass"] == now.get("passes", 1)
    if now["step"] == bad_step and rank == bad_rank and not now["failed"] and is_last:
        now["failed"] = 1
        if where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory: now")
        x = self.forward_features(images)
        return self.forward_head(_Fail.apply(x))
    return forward(self, images, *rest)


def noted(self: Stepper, batches: Any, epoch: int, number: int, *rest: Any) -> Any:
    now.update({"step": number, "pass": 0, "passes": len(batches)})
    result = step(self, batches, epoch, number, *rest)
    if seen:
        positions = [batch.indices.tolist() for batch in batches]
        sizes = sorted({batch.images.shape[-1] for batch in batches})
        with Path(f"{seen}-{rank}.jsonl").open("a") as stream:
            stream.write(json.dumps([epoch, number, positions, sizes]) + "\n")
    if number == killed_behind:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


DaViT.forward = limited  # type: ignore[method-assign]
Stepper.step = noted  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(main())
