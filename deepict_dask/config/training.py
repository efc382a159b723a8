"""The config of ``deepict-dask train``: one YAML file, a misspelt key refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ..core.errors import ConfigError
from .recipes import PRESETS, RECIPES
from .run import DatasetConfig, RunConfig, model_beside, read_config_file, settings_from
from .stages import Strict
from .studies import CrossValidationSettings, RoundsSettings, SearchSettings

__all__ = [
    "PRESETS",
    "RECIPES",
    "AugmentSettings",
    "Choice",
    "ClassSettings",
    "CrossValidationSettings",
    "NetworkSettings",
    "OptimizerSettings",
    "PatchSettings",
    "RoundsSettings",
    "SearchSettings",
    "TrainConfig",
    "ValidationSettings",
    "load_train_config",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Choice = Literal["dice", "loss", "f1_alpha"]
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]


class NetworkSettings(Strict):
    """The network to train.

    Examples
    --------
    >>> NetworkSettings(preset="fas").initial_features
    16
    >>> NetworkSettings(preset="fas", depth=3).depth
    3
    """

    preset: str | None = None
    """One of `PRESETS`; what else is given overrides it."""
    kind: Literal["unet3d", "unet2d", "deepfinder", "deepetpicker"] = "unet3d"
    depth: PositiveInt = 2
    """Number of poolings."""
    initial_features: PositiveInt = 4
    """Channels of the first level, of the U-Nets."""
    width: PositiveFloat = 1.0
    """Of DeepFinder's and DeepETPicker's networks: channels of all levels over those published."""
    batch_norm: bool = True
    """3D U-Net only."""
    encoder_dropout: Dropout = 0.0
    decoder_dropout: Dropout = 0.0
    space_to_depth: PositiveInt = 1
    """3D U-Net only: 2 works on cells of 2x2x2 voxels, whose voxels are channels: a seventh of the
    work for as many features, and each sees twice as far."""
    mirror_symmetric: bool = False
    """Of a 3D U-Net or DeepETPicker's network: kernels are tied to their mirror images, so that the
    scores of a mirrored volume are the mirrored scores; one kernel is learnt for eight. Features in
    multiples of 8, to which a ``width`` is rounded."""
    start_from: str | None = None
    """A model file to continue from; its architecture replaces what is said here."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        name = values.get("preset") if isinstance(values, dict) else None
        if name is None:
            return values
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
        return {**PRESETS[name], **values}

    @model_validator(mode="after")
    def _can_be_mirrored(self) -> NetworkSettings:
        if self.mirror_symmetric and self.kind not in ("unet3d", "deepetpicker"):
            raise ValueError(
                f"mirror_symmetric: only of a 3D U-Net or a deepetpicker network, not {self.kind}"
            )
        return self


class ClassSettings(Strict):
    """What one class is made from: a particle list, or a label volume.

    Examples
    --------
    >>> ClassSettings(picks="ribosome_picks", radius_nm=10.8).shape
    'sphere'
    """

    picks: str | None = None
    """Column (or label) of the dataset with a particle list of each tomogram."""
    class_name: str | None = None
    """Take only picks of this class name (or number), where a list holds several."""
    radius_nm: PositiveFloat | None = None
    """Radius of the sphere round each particle."""
    radius_voxels: PositiveFloat | None = None
    shape: Literal["sphere", "mask", "ball", "tball", "cube"] = "sphere"
    """Spheres; or ``mask_file`` pasted with each particle's Euler angles."""
    mask_file: Path | None = None
    """Volume with the particle's shape, centred, on the tomogram's voxel spacing."""
    labels: str | None = None
    """Column (or label) of the dataset with a label volume or mask of each tomogram."""
    values: tuple[int, ...] | None = None
    """Labels that are this class; all but 0 by default."""

    @model_validator(mode="after")
    def _one_source(self) -> ClassSettings:
        if (self.picks is None) == (self.labels is None):
            raise ValueError("expected either picks (a particle list) or labels (a volume)")
        if self.labels is not None:
            extra = [n for n in ("radius_nm", "radius_voxels", "mask_file") if getattr(self, n)]
            if extra:
                raise ValueError(f"{', '.join(extra)}: only with picks")
        elif self.shape == "mask":
            if self.mask_file is None:
                raise ValueError("mask_file: expected a volume with shape: mask, found none")
        elif (self.radius_nm is None) == (self.radius_voxels is None):
            raise ValueError(f"shape {self.shape}: expected either radius_nm or radius_voxels")
        if self.class_name is not None and self.picks is None:
            raise ValueError("class_name: only with picks")
        if self.values is not None and self.labels is None:
            raise ValueError("values: only with labels")
        return self

    def relative_to(self, folder: Path) -> ClassSettings:
        """Return the class with its file taken from the config's folder."""
        if self.mask_file is None:
            return self
        return self.model_copy(update={"mask_file": folder / self.mask_file})


class PatchSettings(Strict):
    """Which parts of the tomograms are drawn.

    Examples
    --------
    >>> PatchSettings().shape
    (64, 64, 64)
    """

    shape: Triple = (64, 64, 64)
    """Voxels on z, y, x; one slice for a 2D network."""
    sampling: Literal["labelled", "balanced", "particles", "uniform", "grid"] = "balanced"
    """labelled: patches of which more than ``min_label_fraction`` is labelled; balanced: a share of
    them (``centred_fraction``) is drawn round a voxel of a class, all classes alike; uniform:
    anywhere; particles: round each particle of the lists in turn; grid: DeePiCt's patches (a grid,
    kept where labelled)."""
    min_label_fraction: Fraction = 0.002
    """For labelled and grid: least part of a patch that is of some class."""
    centred_fraction: Fraction = 0.5
    """For balanced."""
    largest_shift: NonNegativeInt | None = None
    """For balanced and particles: farthest that a place that a patch is drawn round lies from its
    middle on an axis, voxels; a quarter of the patch where it is not given."""
    overlap: NonNegativeInt = 12
    """For grid: voxels that neighbours share."""


class AugmentSettings(Strict):
    """How patches are changed before the network sees them; 0 or false switches a change off.

    Examples
    --------
    >>> AugmentSettings().flips
    True
    """

    flips: bool = True
    quarter_turns: bool = False
    """Turns about z by 90 degrees: for 2D, or where the missing wedge does not matter."""
    half_turns: bool = False
    """Turns about y, the tilt axis, by 180 degrees, which leave handedness and missing wedge."""
    rotation_degrees: NonNegativeFloat = 0.0
    """Largest turn about z, either way."""
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest relative change of size, either way."""
    gaussian_noise: NonNegativeFloat = 0.0
    """Largest standard deviation, in standard deviations of the tomogram."""
    tomogram_noise: Fraction = 0.0
    """Largest weight of a patch from anywhere that is subtracted: noise as the tomograms have it,
    with which a network cannot learn the noise of few tomograms by heart."""
    salt_and_pepper: Fraction = 0.0
    """Largest part of the voxels that is replaced."""
    salt_and_pepper_amplitude: NonNegativeFloat = 3.0
    elastic: NonNegativeFloat = 0.0
    """Largest displacement in voxels."""
    contrast: Fraction = 0.0
    """Largest relative change of contrast, and of brightness in standard deviations."""


class OptimizerSettings(Strict):
    """How the weights are found.

    Examples
    --------
    >>> OptimizerSettings().loss
    'dice'
    """

    loss: Literal[
        "dice", "soft_dice", "generalized_dice", "dice_cross_entropy", "cross_entropy", "tversky"
    ] = "dice"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "plateau", "cosine", "one_cycle", "early_cycle"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    """muon: orthogonal steps for kernels, which learn faster where noise is strong; its learning
    rates are higher than Adam's (0.02)."""
    second_beta: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """How slowly Adam forgets the squares of gradients; with muon, for biases and norms."""
    choose: Choice = "dice"
    """By which figure of the validation the best epoch is chosen."""
    batch_size: PositiveInt = 4
    epochs: PositiveInt = 50
    steps_per_epoch: PositiveInt = 100
    max_minutes: PositiveFloat | None = None
    """Stop after this time even if epochs are left."""
    patience: NonNegativeInt = 0
    """Epochs without improvement after which training stops; 0 for never."""
    precision: Literal["float32", "bfloat16"] = "float32"
    patches_apart: bool = False
    """Each patch of a batch by itself, on a CPU at once: faster there with several cores; batch
    normalisation is then of single patches. Not with dropout."""
    weight_averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of a running mean of the weights that a step keeps (0.998: over some 500 steps); that
    mean is validated and becomes the model. 0: the weights themselves."""
    gradient_clip: NonNegativeFloat = 0.0
    """Largest norm of the gradient; 0 for any."""


class ValidationSettings(Strict):
    """What is kept out of training: whole tomograms, or the end of each along an axis.

    Examples
    --------
    >>> ValidationSettings(fraction=0.2).axis
    'y'
    """

    tomograms: tuple[str, ...] = ()
    """Names."""
    fraction: Fraction = 0.0
    """Instead: this part of each tomogram, at its end along ``axis``; no patch reaches over."""
    axis: Literal["z", "y", "x"] = "y"

    @model_validator(mode="after")
    def _one_way(self) -> ValidationSettings:
        if self.tomograms and self.fraction:
            raise ValueError("expected either tomograms or fraction, found both")
        return self


class TrainConfig(DatasetConfig):
    """Everything `deepict-dask train` needs; the model is the output, with its logs.

    The dataset has the columns that the classes name. A model's card repeats the settings of
    ``equalize`` for prediction.

    Examples
    --------
    >>> classes = {"ribosome": {"picks": "ribosome", "radius_nm": 10.8}}
    >>> TrainConfig(tomograms="cells.csv", output="model", classes=classes).seed
    0
    """

    recipe: str | None = None
    """One of `RECIPES`: how a published program trains; what else is given overrides it."""
    network: NetworkSettings = NetworkSettings()
    classes: Annotated[dict[str, ClassSettings], Field(min_length=1)]
    """By name, in the order of the network's channels."""
    patches: PatchSettings = PatchSettings()
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    validation: ValidationSettings = ValidationSettings()
    cross_validation: CrossValidationSettings | None = None
    search: SearchSettings | None = None
    """For ``--search``; its defaults where it is not given."""
    rounds: RoundsSettings | None = None
    """For ``--rounds``; its defaults where it is not given."""
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, values: Any) -> Any:
        name = values.get("recipe") if isinstance(values, dict) else None
        if name is None:
            return values
        if name not in RECIPES:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, found {name!r}")
        parts = {}
        for part, settings in RECIPES[name].items():
            given = values.get(part, {})
            if isinstance(given, dict) and "preset" not in given:
                parts[part] = {**settings, **given}
        return {**values, **parts}

    @model_validator(mode="after")
    def _picks_to_choose_by(self) -> TrainConfig:
        flat = self.patches.shape[0] == 1 or self.network.kind == "unet2d"
        lists = [name for name, one in self.classes.items() if one.picks is not None]
        if self.optimizer.choose == "f1_alpha" and (flat or not lists):
            raise ValueError(
                "optimizer.choose: f1_alpha: expected a 3D network and a class that is made from "
                "picks, found none; choose dice or loss"
            )
        return self

    @model_validator(mode="after")
    def _no_chance_apart(self) -> TrainConfig:
        dropout = max(self.network.encoder_dropout, self.network.decoder_dropout)
        if self.optimizer.patches_apart and dropout > 0:
            raise ValueError(
                "optimizer.patches_apart: expected a network without dropout, whose chance would "
                f"depend on the threads, found {dropout:g}; set one of them to 0 or false"
            )
        return self

    def relative_to(self, folder: Path) -> Self:
        """Return the config with paths taken from the folder of its file."""
        update: dict[str, Any] = {
            "classes": {name: one.relative_to(folder) for name, one in self.classes.items()}
        }
        if self.cross_validation is not None:
            update["cross_validation"] = self.cross_validation.relative_to(folder)
        if self.network.start_from is not None:
            start = model_beside(self.network.start_from, folder)
            update["network"] = self.network.model_copy(update={"start_from": start})
        return super().relative_to(folder).model_copy(update=update)


def load_train_config(path: Path) -> TrainConfig:
    r"""Read the YAML of ``deepict-dask train``; its paths are relative to its folder.

    Raises
    ------
    ConfigError
        The file is absent, no YAML, or has unknown, missing or contradictory keys.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.yaml"
    >>> text = "tomograms: cells.csv\noutput: out\nclasses: {ribosome: {labels: ribosome_mask}}"
    >>> _ = path.write_text(text)
    >>> load_train_config(path).tomograms.name
    'cells.csv'
    """
    values = read_config_file(path)
    of_run = RunConfig.model_fields.keys() - TrainConfig.model_fields.keys()
    strange = [key for key in values if key in of_run]
    if strange and "classes" not in values:
        raise ConfigError(
            f"{path}: expected a config of `train` (tomograms, output, classes, ...), found keys "
            f"of `run`: {', '.join(strange)}; use `deepict-dask run {path.name}`, or another file"
        )
    config: TrainConfig = settings_from(TrainConfig, values, str(path))
    return config.relative_to(path.parent.absolute())
