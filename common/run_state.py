"""From a run to its checkpoint files, and back."""

import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from common import checkpoint, distributed
from common.checkpoint import Checkpoint, SavedModel
from common.errors import UserError, one_line
from common.files import data_dir
from common.metrics import check_not_running
from common.muon import Muon
from common.tokenizer import TrainedBPETokenizer, difference
from config import Config
from evaluate import mean_loss

FILES = ("best.pt", "metrics.jsonl", "curves.png", "last.pt")  # in the order of renaming


def save(run, best: bool) -> None:
    """Writes _last.pt, and _best.pt if this is the best model so far."""
    if not distributed.is_first():
        return
    state = Checkpoint(
        model=run.eval_model.state_dict(),
        raw_model=run.model.state_dict() if run.ema_model else {},
        optimizers=[optimizer.state_dict() for optimizer in run.optimizers],
        scaler=run.scaler.state_dict(),
        config=asdict(run.config),
        tokenizer=run.dataset.tokenizer.to_dict(),
        dataset_fingerprint=run.dataset.fingerprint,
        step=run.step,
        best_step=run.best_step,
        best_val_loss=run.best_val_loss,
        patience_start=run.patience_start,
        run_id=run.id,
    )
    if best:
        checkpoint.save(run.config.path("best.pt"), state)
    checkpoint.save(run.config.path("last.pt"), state)


def prepare_folder(run) -> None:
    """Makes sure that the run can write its files, and that nothing gets lost. Raises UserError."""
    folder = run.config.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: choose another --out_dir")
    check_not_running(run.config.path("metrics.jsonl"))
    check_disk_space(run)
    if not run.config.resume:
        refuse_unfinished(run.config.path("last.pt"))
        keep_earlier_run(run.config)


def refuse_unfinished(last: Path) -> None:
    """Raises UserError if the last run of this name was stopped: it can still be resumed."""
    state = checkpoint.peek(last)
    try:
        unfinished = state and state.step > 0 and not finished(state)
    except UserError:  # its settings are those of another version
        state = None
    if last.exists() and not state:
        raise UserError(
            f"can't read {last}, from an earlier run: choose another --run_name, or delete it",
            status=2,
        )
    if unfinished:
        step, steps = state.step, state.settings().max_steps
        raise UserError(
            f"{last} belongs to a run that was stopped at step {step:,} of {steps:,}: continue it"
            " with --resume (with a lower --learning_rate if it diverged), choose another"
            " --run_name, or delete it",
            status=2,
        )


def keep_earlier_run(config: Config) -> None:
    """Renames the files of a finished run of this name to <run_name>_best.prev.pt and so on.

    Those of a longer run stay there. Raises UserError if this run starts from a file that would be
    renamed or replaced.
    """
    best, metrics, _, last = paths = [config.path(name) for name in FILES]
    state = checkpoint.peek(last)
    recorded = metrics.exists() and metrics.stat().st_size > 0
    if state and state.step == 0 or not (state or best.exists() or recorded):
        return  # nothing worth keeping, and no reason to replace what an earlier run has kept
    places = {path: path.with_name(f"{path.stem}.prev{path.suffix}") for path in paths}
    kept = {path: new for path, new in places.items() if path.exists()}
    reached, longest = steps_of(last, best), steps_of(places[last], places[best])
    start = Path(os.path.expanduser(config.init_from or "")).resolve()
    moved = kept if reached < longest else [*kept, *places.values()]
    if start in map(Path.resolve, moved):
        raise UserError(
            f"this run would rename or replace {config.init_from}, which it starts from: choose"
            " another --run_name",
            status=2,
        )
    if reached < longest:
        print(
            f"replacing an earlier run of {reached:,} steps;"
            f" {config.path('*.prev.*')} are from a longer one, of {longest:,} steps"
        )
        return
    # files of one run under both names: a kill stopped an earlier renaming
    interrupted = run_ids(last, best) & run_ids(places[last], places[best])
    replaced = not interrupted and any(new.exists() for new in places.values())
    for path, new in places.items():
        if path in kept:
            os.replace(path, new)
        elif not interrupted:
            new.unlink(missing_ok=True)  # of another run than those that are kept now
    note = ", replacing those of the run before it" if replaced else ""
    print(f"kept the files of an earlier run as {config.path('*.prev.*')}{note}")


def steps_of(*checkpoints: Path) -> int:
    """The largest step of the checkpoints that exist; 0 if none does."""
    return max(state.step if (state := checkpoint.peek(path)) else 0 for path in checkpoints)


def run_ids(*checkpoints: Path) -> set[str]:
    """The runs that the checkpoints belong to, of those that exist."""
    return {state.run_id for path in checkpoints if (state := checkpoint.peek(path))}


def finished(saved: Checkpoint) -> bool:
    """Whether the run of a checkpoint reached its last step or ran out of patience.

    Raises UserError if its settings don't fit this version of the code.
    """
    config, step = saved.settings(), saved.step
    return step >= config.max_steps or out_of_patience(config, step, saved.patience_start)


def out_of_patience(config: Config, step: int, start: int) -> bool:
    """Whether there were config.patience evaluations after step `start`, none an improvement."""
    evaluations = step // config.eval_interval - start // config.eval_interval
    return config.patience is not None and evaluations >= config.patience


def check_disk_space(run) -> None:
    """Raises UserError if the disk is too full for the checkpoints that the run will write."""
    size = sum(parameter.nbytes for parameter in run.model.parameters())
    total = size + (size if run.ema_model else 0)
    for optimizer in run.optimizers:
        states = 1 if isinstance(optimizer, Muon) else 2  # as many bytes as the parameters, each
        groups = optimizer.param_groups
        total += states * sum(p.nbytes for group in groups for p in group["params"])
    replaced = 0
    if run.config.resume:  # a new run may have to keep all the files that are there
        paths = [run.config.path(name) for name in ("best.pt", "last.pt")]
        replaced = sum(path.stat().st_size for path in paths if path.exists())
    needed = 3 * total - replaced  # best, last, and the one being written
    folder = run.config.folder
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:,.1f} MB of free disk space, but the checkpoints of this run"
            f" need {needed / 1e6:,.1f} MB: free some or choose another --out_dir"
        )


def resume(run, saved: Checkpoint) -> None:
    """Continues the run from its checkpoint. Raises UserError if they do not match."""
    path = run.config.path("last.pt")
    saved.check_data(run.dataset, path)
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
        raise UserError(
            f"{path} does not match this run ({one_line(error)}); --init_from={path} starts a new"
            " run from its weights"
        ) from None
    run.step, run.id = saved.step, saved.run_id
    run.best_step, run.best_val_loss = saved.best_step, saved.best_val_loss
    run.patience_start = saved.patience_start
    before, config = saved.settings(), run.config
    # patience counts evaluations of one schedule: start again with another
    if (before.eval_interval, before.max_steps) != (config.eval_interval, config.max_steps):
        run.patience_start = run.step
    if math.isfinite(saved.best_val_loss):
        best = load_best(config.path("best.pt"), saved)
        if not best:
            run.best_val_loss = math.inf
        elif before.eval_tokens != config.eval_tokens or best.step != saved.best_step:
            model, _ = best.build(run.model.device)  # its loss on the same tokens
            run.best_val_loss = mean_loss(model, run.dataset.val, run.dtype, config.eval_tokens)
            run.best_step, run.patience_start = best.step, max(run.patience_start, best.step)


def load_best(path: Path, last: Checkpoint) -> Checkpoint | None:
    """The best checkpoint of the run of `last`; if there is none, says so and returns None.

    A file that can't be read is renamed. Raises UserError if the file is another run's.
    """
    try:
        best = checkpoint.load(path)
    except UserError:
        problem, kept = "is missing", path.with_suffix(".unreadable.pt")
        if distributed.is_first() and path.exists():
            path.replace(kept)
            problem = f"can't be read and was renamed to {kept}"
        print(f"note: {path} {problem}; the best model from now on is saved as {path}")
        return None
    if best.run_id != last.run_id:
        raise UserError(
            f"{path} belongs to a different run than the checkpoint to resume: move it away"
        )
    return best


def init_from(run, saved: SavedModel) -> None:
    """Gives the run another model's weights. Raises UserError if their tokens or shapes differ."""
    source, dataset = run.config.init_from, run.dataset
    model, tokenizer = saved.build(run.model.device)
    if problem := difference(tokenizer, dataset.tokenizer):
        original = saved.config.get("dataset")
        hint = f"prepare it as <name>_{tokenizer.kind}"
        if tokenizer.kind == "char" and original:
            hint += f" with --tokenizer_of {original} (and --replace_unknown)"
        elif isinstance(tokenizer, TrainedBPETokenizer):
            hint += f" with --tokenizer_of {original}"
        raise UserError(
            f"can't fine-tune {source} on {data_dir() / dataset.name}: {problem}; {hint}"
        )
    try:
        run.model.load_state_dict(model.state_dict())
        if run.ema_model:
            run.ema_model.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise UserError(f"{source} has a different architecture: {one_line(error)}") from None
