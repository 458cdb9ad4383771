"""From a run to its checkpoint files, and back."""

import os
from dataclasses import asdict

from common import checkpoint, distributed
from common.checkpoint import Checkpoint, SavedModel
from common.errors import UserError
from common.tokenizer import difference


def save(run, best: bool) -> None:
    """Writes _last.pt, and _best.pt if this is the best model so far.

    Another run's _best.pt is renamed to _best.prev.pt.
    """
    if not distributed.is_first():
        return
    state = Checkpoint(
        model=run.eval_model.state_dict(),
        raw_model=run.model.state_dict() if run.average else {},
        optimizers=[optimizer.state_dict() for optimizer in run.optimizers],
        scaler=run.scaler.state_dict(),
        config=asdict(run.config),
        tokenizer=run.dataset.tokenizer.to_dict(),
        dataset_fingerprint=run.dataset.fingerprint,
        step=run.step,
        best_step=run.best_step,
        best_val_loss=run.best_val_loss,
        run_id=run.id,
    )
    if best:
        path, kept = run.config.path("best.pt"), run.config.path("best.prev.pt")
        if path.exists() and checkpoint.run_id(path) != run.id:
            os.replace(path, kept)
            print(f"kept the best checkpoint of an earlier run as {kept}")
        checkpoint.save(path, state)
    checkpoint.save(run.config.path("last.pt"), state)


def resume(run, saved: Checkpoint) -> None:
    """Continues the run from its checkpoint. Raises UserError if they do not match."""
    path = run.config.path("last.pt")
    if saved.dataset_fingerprint != run.dataset.fingerprint:
        raise UserError(f"data/{run.dataset.name} is not the data that {path} was trained on")
    if saved.step > run.config.max_steps:
        raise UserError(
            f"{path} is already at step {saved.step:,}:"
            f" max_steps={run.config.max_steps:,} must be higher",
            status=2,
        )
    try:
        run.eval_model.load_state_dict(saved.model)
        run.model.load_state_dict(saved.raw_model or saved.model)
        for optimizer, state in zip(run.optimizers, saved.optimizers, strict=True):
            groups = optimizer.state_dict()["param_groups"]  # with this run's settings
            for group, before in zip(groups, state["param_groups"], strict=True):
                group["params"] = before["params"]  # load_state_dict compares their number
            optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        if saved.scaler and run.scaler.is_enabled():  # the dtype may have changed
            run.scaler.load_state_dict(saved.scaler)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} does not match this run ({reason}); --init_from={path} starts a new run from"
            " its weights"
        ) from None
    run.step, run.id = saved.step, saved.run_id
    run.best_step, run.best_val_loss = saved.best_step, saved.best_val_loss


def init_from(run, saved: SavedModel) -> None:
    """Gives the run another model's weights. Raises UserError if their tokens or shapes differ."""
    source, dataset = run.config.init_from, run.dataset
    model, tokenizer = saved.build(run.model.device)
    if problem := difference(tokenizer, dataset.tokenizer):
        raise UserError(f"can't fine-tune {source} on data/{dataset.name}: {problem}")
    try:
        run.model.load_state_dict(model.state_dict())
        if run.average:
            run.average.load_state_dict(model.state_dict())
    except RuntimeError as error:
        details = " ".join(str(error).split())[:200]
        raise UserError(f"{source} has a different architecture: {details}") from None
