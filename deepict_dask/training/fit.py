"""Train a network: from a config and its data to a model file, through kills and restarts.

1. A model that answers the same request is returned; one of another request is not touched.
2. Unfinished work of the same request goes on from its checkpoint.
3. Lightning runs the steps (`module`) and calls `epochs` after each.
4. The best weights get their batch normalisation measured again (`norms`), which is kept unless
   validation says that it was better before.
5. The model file appears, and the checkpoints go.

With ``max_minutes`` unset, one seed gives one set of weights on one machine and thread count,
however often the training was killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from ..core.errors import DeepictError, DeviceError, LedgerError, OutputExistsError
from ..core.heap import one_heap
from ..engine import Progress
from ..engine.output_lock import OutputLock
from ..io.replace import replace_file
from ..models.checkpoint import save_model
from .card import finished_card, model_card, training_key
from .mirror import settle_mirrored
from .networks import channel_names, network_to_train
from .norms import has_norms, measure_norms
from .packages import require_training_packages
from .processes import is_first_process, wait_for_first
from .tables import draw_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..config.training import TrainConfig
    from ..models.deepetpicker import DeepETPicker
    from ..models.unet3d import UNet3D
    from .data import TrainingData
    from .epochs import Epochs
    from .module import TrainingModule

__all__ = ["MODEL_NAME", "TrainingOutcome", "other_training", "train_network"]

MODEL_NAME = "model.safetensors"
NORM_BATCHES = 16
"""Batches over which batch normalisation is measured again."""
_KEY_FILE = "checkpoints/request"
_SUCCESSION_S = 180.0
"""A training whose worker was retired ends within this, and another worker goes on with it."""
_MADE = (MODEL_NAME, "checkpoints", "metrics.csv", "losses.png", "tensorboard")


@dataclass(frozen=True)
class TrainingOutcome:
    """What a training came to; picklable."""

    model: Path
    history: tuple[dict[str, float], ...] = ()
    """A row for each epoch; empty where the model was there before."""
    best: dict[str, float] = field(default_factory=dict)
    """The row of the epoch whose weights the model has."""
    card: dict[str, Any] = field(default_factory=dict, repr=False)
    was_finished: bool = False


def train_network(
    config: TrainConfig,
    *,
    data: TrainingData | None = None,
    folder: Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
    device: str | None = None,
    tell: Callable[[str], None] = lambda _text: None,
    progress: Progress | None = None,
    checkpoint_steps: int | None = None,
    alone: bool = False,
) -> TrainingOutcome:
    """Train a network and write its model file.

    Parameters
    ----------
    config
        Everything else.
    data
        Opened training data; by default those that the config names.
    folder
        Where to write ``model.safetensors``, ``metrics.csv``, ``losses.png``, ``tensorboard`` and,
        until the end, ``checkpoints``; the config's output by default.
    resume
        Go on with unfinished work, and keep a finished model, of the same request; else all that
        an earlier training left in the folder is removed.
    overwrite
        Replace what a training of another request left.
    device
        "auto", "cpu" or "cuda"; that of the config by default.
    tell
        Receives a line for each epoch.
    progress
        Shows the steps.
    checkpoint_steps
        Steps between checkpoints, besides those at the ends of epochs; every minute by default.
    alone
        Keep to this process and one GPU, whatever else the machine or Slurm offers.

    Raises
    ------
    ConfigError
        A package is missing, or the settings do not fit one another or the data.
    OutputExistsError, LedgerError
        The folder has the model, or unfinished work, of another request.
    WorkFailedError
        The loss became NaN.
    """
    require_training_packages()
    if data is None:
        from .data import open_training_data

        data = open_training_data(config)
    folder = (folder or config.output).absolute()
    key = training_key(config, data)
    on_gpu = _on_gpu(device or config.cluster.device)
    wishes = _Wishes(tell, progress, checkpoint_steps, on_gpu=on_gpu, alone=alone, anew=not resume)
    if not wishes.first:
        done = _finished_before(folder, key) if resume else None
        if done is None:
            wait_for_first(folder / _KEY_FILE, key)
        return done or _train(config, data, folder, key, wishes)
    with OutputLock(folder / "checkpoints" / "lock", _SUCCESSION_S if alone else 0.0):
        done = _prepare(folder, key, resume=resume, overwrite=overwrite)
        done = done or _train(config, data, folder, key, wishes)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


@dataclass(frozen=True)
class _Wishes:
    """How, not what."""

    tell: Callable[[str], None]
    progress: Progress | None
    checkpoint_steps: int | None
    on_gpu: bool
    alone: bool = False
    anew: bool = False
    """Whether what an earlier training left is not heeded: here it may be there still, where
    another process removes it."""

    @property
    def first(self) -> bool:
        """Whether this process writes: of several GPUs, each has a process."""
        return is_first_process() or self.alone or not self.on_gpu


def _prepare(folder: Path, key: str, *, resume: bool, overwrite: bool) -> TrainingOutcome | None:
    """Return a finished training; else leave the folder ready to start or to go on."""
    done = _finished_before(folder, key) if resume else None
    if done is not None:
        return done
    refusal = other_training(folder, key)
    is_lost = resume or isinstance(refusal, OutputExistsError)  # unfinished work may be begun anew
    if refusal is not None and is_lost and not overwrite:
        raise refusal
    if refusal is not None or not resume:
        _clear(folder)
    replace_file(folder / _KEY_FILE, key)
    return None


def _finished_before(folder: Path, key: str) -> TrainingOutcome | None:
    """Return what an earlier training of the same request came to, if it has finished."""
    model = folder / MODEL_NAME
    card = finished_card(model)
    if card is None or card.get("request") != key:
        return None
    return TrainingOutcome(model, (), card.get("metrics", {}), card, was_finished=True)


def other_training(folder: Path, key: str) -> DeepictError | None:
    """Return the refusal of a folder that has the training of another request, if it has one.

    Parameters
    ----------
    folder
        Of the training.
    key
        The request, as `deepict_dask.training.card.training_key` returns it.

    Examples
    --------
    >>> from pathlib import Path
    >>> other_training(Path("nowhere"), "a") is None
    True
    """
    card, note = finished_card(folder / MODEL_NAME), folder / _KEY_FILE
    if card is not None:
        return None if card.get("request") == key else _refusal(folder, finished=True)
    begun = note.is_file() and note.read_text() != key
    return _refusal(folder, finished=False) if begun else None


def _refusal(folder: Path, *, finished: bool) -> DeepictError:
    what = "of other settings or data; give another output, or --overwrite to replace it"
    if finished:
        return OutputExistsError(f"{folder / MODEL_NAME}: already exists, {what}")
    return LedgerError(f"{folder}: has an unfinished training {what}")


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, but for the lock that is held.

    The note of whose it was goes last: after a kill here no checkpoint is taken for another's.
    """
    note = folder / _KEY_FILE
    for name in _MADE:
        for path in [folder / name, *(folder / name).glob("*")][::-1]:
            if path.is_dir() and name != "checkpoints":
                shutil.rmtree(path)
            elif path.is_file() and path.name != "lock" and path != note:
                path.unlink()
    note.unlink(missing_ok=True)


def _train(
    config: TrainConfig, data: TrainingData, folder: Path, key: str, wishes: _Wishes
) -> TrainingOutcome:
    """Fit, choose the weights and write the model."""
    from .epochs import Epochs
    from .module import TrainingModule

    network = network_to_train(config)
    module = TrainingModule(network, config, data)
    books = Epochs(folder, tell=wishes.tell, checkpoint_steps=wishes.checkpoint_steps)
    _fit(module, books, folder, wishes)
    network = module.end_with(books.best_weights)
    if wishes.on_gpu and torch.cuda.is_available():  # where Lightning takes it away at the end
        network.cuda()
    found = _with_norms(module)
    network.cpu()
    card = model_card(
        config, data, key=key, best=books.best, found=found, steps=int(books.rows[-1]["step"]),
        minutes=books.seconds / 60, why_ended=books.stopped,
    )  # fmt: skip
    if wishes.first:
        draw_losses(folder / "losses.png", books.rows, title=", ".join(data.class_names))
        save_model(
            folder / MODEL_NAME, network,
            class_names=channel_names(network.settings, data.class_names),
            voxel_spacing_angstrom=data.voxel_spacing_angstrom, card=card,
        )  # fmt: skip
    return TrainingOutcome(folder / MODEL_NAME, tuple(books.rows), books.best, card)


def _fit(module: TrainingModule, books: Epochs, folder: Path, wishes: _Wishes) -> None:
    """Run the steps that are left."""
    from .checkpoint_io import read_checkpoint
    from .epochs import CHECKPOINT

    last = folder / CHECKPOINT
    goes_on = last.is_file() and not wishes.anew
    done = int(read_checkpoint(last)["global_step"]) if goes_on else 0
    if done and wishes.first:
        epoch = 1 + min(done, module.n_steps - 1) // module.config.optimizer.steps_per_epoch
        wishes.tell(f"continuing from epoch {epoch} (step {done})")
    progress = wishes.progress or Progress(shown=False)
    with (
        torch.random.fork_rng(devices=[]),
        progress.stage("train", module.n_steps, done) as advance,
        _quiet_lightning(),
        contextlib.nullcontext() if wishes.on_gpu else one_heap(),
    ):
        books.advance = advance
        trainer = _trainer(module, books, folder, done, wishes)
        trainer.fit(module, ckpt_path=last if done else None)


def _trainer(
    module: TrainingModule, books: Epochs, folder: Path, done: int, wishes: _Wishes
) -> Any:
    """Return Lightning's trainer; GPUs and nodes are those that Slurm or the machine give."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from .checkpoint_io import WholeCheckpoints

    optimizer, on_gpu = module.config.optimizer, wishes.on_gpu
    several = on_gpu and not wishes.alone
    # else Lightning takes Slurm's tasks for its own, and refuses a script without srun
    here = not several or _is_one_task_of_slurm()
    logger = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=done or None)
    return Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices="auto" if several else 1,
        num_nodes=_nodes() if several else 1,
        sync_batchnorm=several,
        precision="bf16-mixed" if optimizer.precision == "bfloat16" else "32-true",
        max_steps=module.n_steps,
        max_epochs=-1,
        gradient_clip_val=optimizer.gradient_clip or None,
        callbacks=[books],
        logger=logger,
        plugins=[WholeCheckpoints(), *([LightningEnvironment()] if here else [])],
        default_root_dir=folder / "checkpoints",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def _on_gpu(device: str) -> bool:
    """Say whether to train on GPUs."""
    there = torch.cuda.is_available()
    if device.startswith("cuda") and not there:
        raise DeviceError(
            f"device {device!r}: PyTorch {torch.__version__} finds no CUDA GPU; train on the cpu, "
            "or install PyTorch for CUDA"
        )
    return there and device != "cpu"


def _is_one_task_of_slurm() -> bool:
    """Say whether Slurm gave several GPUs to one process, which must start the others itself."""
    return os.environ.get("SLURM_NTASKS") == "1" and torch.cuda.device_count() > 1


def _nodes() -> int:
    """Return the number of machines, where Slurm's srun started a process on each."""
    return int(os.environ.get("SLURM_NNODES", "1")) if "SLURM_PROCID" in os.environ else 1


def _with_norms(module: TrainingModule) -> Any:
    """Measure batch normalisation again and keep it if it is no worse; return the validation."""
    from .epochs import validate

    network = module.network.eval()
    _settle(module)
    before = validate(module)
    if not has_norms(network):
        return before
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_norms(network, module.fresh_patches(NORM_BATCHES))
    _settle(module)
    after = validate(module)
    if before is None or after is None:
        return after
    choose = module.config.optimizer.choose
    better, worse = before.score(choose), after.score(choose)
    if better is not None and worse is not None and worse < better:
        network.load_state_dict(state)
        return before
    return after


def _settle(module: TrainingModule) -> None:
    """Make tied weights as symmetric as they are meant to be, where rounding moved them."""
    if module.config.network.mirror_symmetric:
        settle_mirrored(cast("UNet3D | DeepETPicker", module.network))


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's talk out, and its way to end the whole program at a Ctrl-C."""
    from lightning.fabric.utilities.warnings import PossibleUserWarning
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    log = logging.getLogger("lightning.pytorch")
    level, main = log.level, threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    terminated = False
    log.setLevel(logging.ERROR)
    if main:  # Lightning's own way with SIGTERM ends the step and writes a checkpoint
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            # of a way that Lightning calls PyTorch
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    except SystemExit as error:
        terminated = isinstance(error, SIGTERMException)
        raise KeyboardInterrupt from error
    finally:
        log.setLevel(level)
        if main:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            if terminated and callable(before[signal.SIGTERM]):
                signal.raise_signal(signal.SIGTERM)  # to who heeded it before Lightning
