"""The training loop that both embedded models share: AdamW, warm-up and cosine decay, progress, resuming."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from ferryman.files import replace_file


@dataclass(frozen=True)
class Schedule:
    """steps: optimiser steps in all; warmup: of them; peak: learning rate; clip: of the gradient's norm."""

    steps: int
    peak: float
    warmup: int = 200
    weight_decay: float = 1e-4
    clip: float = 1.0
    save_every: int = 250


def fit(
    name: str,
    model: nn.Module,
    groups: list[dict[str, object]],
    schedule: Schedule,
    step_loss: Callable[[int], Tensor],
    evaluate: Callable[[], str],
    folder: Path,
) -> None:
    """Trains `model` in place.

    groups: AdamW parameter groups; a group's `scale` multiplies the learning rate
    step_loss: the loss of a step, a scalar; the step's number is its only seed, so a resumed run sees what an
    uninterrupted one would have seen
    evaluate: figures on the validation split, printed whenever a checkpoint is saved
    folder: holds `NAME.pt`, from which an interrupted run resumes
    """
    scales = [float(str(group.pop("scale", 1.0))) for group in groups]
    optimiser = torch.optim.AdamW(groups, lr=schedule.peak, weight_decay=schedule.weight_decay)

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / schedule.warmup)
        return warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / schedule.steps))))

    saved = folder / f"{name}.pt"
    start = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=schedule.steps, completed=start)
        running = 0.0
        for step in range(start, schedule.steps):
            for group, scale in zip(optimiser.param_groups, scales, strict=True):
                group["lr"] = schedule.peak * scale * rate(step)
            model.train()
            loss = step_loss(step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            optimiser.step()
            running = loss.item() if step == start else 0.98 * running + 0.02 * loss.item()
            progress.update(task, completed=step + 1, description=f"{name} loss {running:.3f}")
            if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
                with replace_file(saved) as temporary:
                    torch.save(state, temporary)
                model.eval()
                progress.console.print(f"{name} step {step + 1}: loss {running:.3f}, {evaluate()}")
