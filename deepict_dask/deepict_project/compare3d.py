"""What in a 3D config contradicts itself, or asks for what is not done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .findings import Findings

__all__ = ["compare_3d"]

_POST = "postprocessing_clustering"


def compare_3d(read: dict[str, Any], findings: Findings) -> None:
    """Name what contradicts itself within the config, and what is asked for but not done."""
    actives = [name for name, value in read.items() if name.endswith(".active") and value]
    actives = [name for name in actives if not name.startswith("cross_validation")]
    if not actives:
        findings.absent("nothing is active: set prediction.active (or another active) to True")
    elif actives == ["training.active"]:
        findings.absent(
            "training.active: only training is asked for, which is done by `deepict-dask train "
            "CONFIG`; for a run, set prediction.active to True"
        )
    elif read["training.active"]:
        findings.warn(
            "training.active: training is done by `deepict-dask train CONFIG`; here the model file "
            "is used as it is, and the rest of the config is done"
        )
    if read["cross_validation.active"]:
        findings.warn("cross_validation.active: ignored, as DeePiCt in effect does")
    classes, chosen = read["training.semantic_classes"], read["prediction.semantic_class"]
    if classes is not None and chosen is not None and chosen not in classes:
        findings.error(
            f"prediction.semantic_class: expected one of training.semantic_classes "
            f"({', '.join(classes)}), found {chosen}"
        )
    _compare_boxes(read, findings)
    if read[f"{_POST}.active"]:
        _compare_clustering(read, findings)
    if read["evaluation.particle_picking.active"]:
        _compare_evaluation(read, findings)
    if any(a.startswith("evaluation.") for a in actives):
        findings.note("statistics go to output_dir/pp_statistics.csv, as with DeePiCt")


def _compare_boxes(read: dict[str, Any], findings: Findings) -> None:
    """Name a box that leaves nothing inside its overlap."""
    box, overlap = read["training.box_size"], read["training.overlap"]
    if box is None or overlap is None:
        return
    if box - 2 * overlap < 2:
        findings.error(
            f"training.box_size: expected more than twice training.overlap ({overlap}), found {box}"
        )
    elif box % 2:
        findings.error(f"training.box_size: expected an even number, found {box}")


def _compare_clustering(read: dict[str, Any], findings: Findings) -> None:
    """Name limits that nothing can pass, and settings without effect."""
    low, high = read[f"{_POST}.min_cluster_size"], read[f"{_POST}.max_cluster_size"]
    if low is not None and high is not None and high <= low:
        findings.error(
            f"{_POST}.max_cluster_size: expected more than min_cluster_size ({low}), found {high}: "
            "sizes above the first and up to the second are kept"
        )
    threshold = read[f"{_POST}.threshold"]
    if threshold is not None and not 0 <= threshold < 1:
        findings.warn(
            f"{_POST}.threshold: scores are between 0 and 1, found {threshold:g}: "
            f"{'every' if threshold < 0 else 'no'} voxel is chosen"
        )
    mode = read[f"{_POST}.contact_mode"]
    if mode is not None and mode != "colocalization":
        findings.note(f"{_POST}.contact_distance has no effect with contact_mode {mode}")


def _compare_evaluation(read: dict[str, Any], findings: Findings) -> None:
    """Name an evaluation of picks that nobody makes."""
    if read[f"{_POST}.active"] and not read[f"{_POST}.calculate_motl"]:
        findings.absent(
            f"evaluation.particle_picking.active: needs a particle list, but {_POST}.calculate_motl"
            " is False; set it to True"
        )
    radius = read["evaluation.particle_picking.pr_tolerance_radius"]
    if radius is not None and radius < 0:
        findings.error(
            "evaluation.particle_picking.pr_tolerance_radius: expected 0 voxels or more, "
            f"found {radius:g}"
        )
