"""The stages of one tomogram: the only file that knows their order.

Equalize (if asked for), the score maps of all models, the mask of each region that a model makes,
one folder of picks per pick section. With ``keep_scores: false`` no score map is made that only
picks need: these picks are made from the tomogram. Every stage leaves a finished output or none,
and ``stages.json`` notes the request that each output answers: what answers the same request is not
made again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .engine import StagedOutput, beside_torch, damage_in, fingerprint, request_key
from .jobs.equalize import equalize_volume
from .jobs.particle_lists.check import is_from_tiles
from .jobs.picking.outputs import PICK_FILES
from .jobs.picking.pick import pick_particles
from .jobs.picking.predicted import PickSection, pick_predicted
from .jobs.picking.tiles import pick_tiles
from .jobs.polish import polish_volume
from .jobs.segmenting.chosen_model import class_names_of, is_unet3d
from .jobs.segmenting.segment import segment_volume
from .jobs.segmenting.windows import segment_together
from .models.checkpoint import model_info
from .models.registry import resolve_model
from .run_outputs import (
    EQUALIZED,
    is_mask_at_once,
    model_of_pick,
    model_of_region,
    pick_folder_of,
    region_mask_of,
    score_map_of,
    stored_models,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .config import PickSettings, RegionSettings, RunConfig, SegmentSettings
    from .io.dataset import TomogramEntry
    from .jobs.runs.stage_record import StageRecord
    from .jobs.session import Session

__all__ = ["TomogramStages"]


@dataclass(frozen=True)
class TomogramStages:
    """The stages of one tomogram, each made once."""

    session: Session
    config: RunConfig
    entry: TomogramEntry
    folder: Path
    record: StageRecord
    say: Callable[[str], None]

    def run(self) -> dict[str, int]:
        """Run all stages in their order; return the picks by folder."""
        return replace(self, session=replace(self.session, warn=self._warn))._run()

    def _warn(self, text: str) -> None:
        """Warn, and note it with what is made from now on."""
        self.record.hear(text)
        self.session.warn(text)

    def _run(self) -> dict[str, int]:
        tomogram = self.equalize()
        maps = self.segment(tomogram)
        masks = self.regions(tomogram, maps)
        counts = self.picks(tomogram, maps, masks)
        current = {*counts, *(path.name for path in (*maps.values(), *masks.values()))}
        for output in self.record.outputs():
            if output not in current and (output != EQUALIZED or self.config.equalize is None):
                self.say(
                    f"{self.entry.name}: {output} is of an earlier config and was left as it is"
                )
        return counts

    @property
    def _light(self) -> Session:
        """The session for stages without a network, whose workers have had one before."""
        workers = self.session.workers
        left = beside_torch(workers.memory_bytes)
        return replace(self.session, workers=replace(workers, memory_bytes=left))

    def _key(self, request: dict[str, Any]) -> str:
        """Return the key of what an output is asked to be."""
        session = self.session
        return request_key(
            {**request, "chunks": session.chunks, "spacing": session.voxel_spacing_angstrom}
        )

    def _is_made(self, output: str, key: str) -> bool:
        """Say whether a finished output answers a request; if so, tell, else it will be made."""
        if not self.record.answers(output, key):
            self.record.promise(output, key)
            return False
        damage = _damage_in_picks(self.folder / output) or damage_in(self.folder / output)
        news = f"is damaged and is made again: {damage}" if damage else "is up to date"
        self.say(f"{self.entry.name}: {output} {news}")
        if not damage:
            own = None if output.endswith(".zarr") else PICK_FILES
            StagedOutput(self.folder / output, key, own=own).clear_remains()
            self.record.confirm(output)
            for text in self.record.warnings_of(output):  # it is not looked for again
                self.session.warn(text)
        return not damage

    def _note(self, output: str, key: str) -> None:
        self.record.note(output, key)
        self.say(f"{self.entry.name}: wrote {output}")

    def _make(self, output: str, request: dict[str, Any], make: Callable[[Path], Any]) -> Path:
        """Make an output unless a finished one answers the same request."""
        target, key = self.folder / output, self._key(request)
        if not self._is_made(output, key):
            make(target)
            self._note(output, key)
        return target

    def equalize(self) -> Path:
        """Return the tomogram the networks see."""
        settings = self.config.equalize
        if settings is None:
            return self.entry.path
        request = {
            "input": fingerprint(self.entry.path), "target": fingerprint(settings.target),
            "settings": settings.model_dump(mode="json", exclude={"target"}),
        }  # fmt: skip
        return self._make(
            EQUALIZED,
            request,
            lambda target: equalize_volume(self._light, self.entry.path, target, settings),
        )

    def segment(self, tomogram: Path) -> dict[SegmentSettings, Path]:
        """Return the score maps that are stored; 3D ones are made together, reading once."""
        maps = {s: self.folder / score_map_of(s) for s in stored_models(self.config)}
        keys = {s: self._key(self._segment_request(tomogram, s)) for s in maps}
        missing = [s for s in maps if not self._is_made(maps[s].name, keys[s])]
        together = [s for s in missing if s.compat is None and is_unet3d(s.model)]
        if together:
            segment_together(self.session, tomogram, {maps[s]: s for s in together})
        for settings in together:
            self._note(maps[settings].name, keys[settings])
        for settings in missing:
            if settings not in together:
                region = self._compat_region(settings)
                segment_volume(self.session, tomogram, maps[settings], settings, region=region)
                self._note(maps[settings].name, keys[settings])
        return maps

    def _segment_request(self, tomogram: Path, settings: SegmentSettings) -> dict[str, Any]:
        region = self._compat_region(settings)
        return {
            "input": fingerprint(tomogram), "model": fingerprint(resolve_model(settings.model)),
            "settings": settings.model_dump(mode="json", exclude={"model"}),
            "region": region and fingerprint(region),
        }  # fmt: skip

    def _compat_region(self, settings: SegmentSettings) -> Path | None:
        """Return the mask that limits published-style prediction: the one all its users need."""
        if settings.compat is None or not is_unet3d(settings.model):
            return None
        config = self.config
        if any(r.model is not None and model_of_region(r) == settings for r in config.regions):
            return None
        picks = [pick for pick in config.pick if model_of_pick(config, pick) == settings]
        needed = {frozenset(contact.region for contact in pick.all_contacts) for pick in picks}
        region = next((r for r in config.regions if needed == {frozenset({r.name})}), None)
        return None if region is None else self._file_of(region)

    def _file_of(self, region: RegionSettings) -> Path | None:
        """Return this tomogram's given file of a region, None where there is none."""
        return region.path if region.column is None else self.entry.file_of(region.column)

    def regions(self, tomogram: Path, maps: Mapping[SegmentSettings, Path]) -> dict[str, Path]:
        """Return the mask of every region that this tomogram has."""
        masks = {}
        for region in self.config.regions:
            if region.model is None:
                mask = self._file_of(region)
            elif is_mask_at_once(self.config, region):
                mask = self._region_mask_at_once(region, tomogram)
            else:
                mask = self._region_mask(region, maps[model_of_region(region)])
            if mask is not None:
                masks[region.name] = mask
        return masks

    def _region_mask_at_once(self, region: RegionSettings, tomogram: Path) -> Path:
        """Predict, smooth and cut in one pass over the tomogram."""
        settings = model_of_region(region)
        if region.class_name is not None:
            settings = settings.model_copy(update={"classes": (region.class_name,)})
        request = {
            **self._segment_request(tomogram, settings),
            "threshold": region.threshold, "z_sigma": region.z_sigma,
        }  # fmt: skip
        return self._make(
            region_mask_of(region),
            request,
            lambda target: segment_volume(
                self.session, tomogram, target, settings,
                z_sigma=region.z_sigma, threshold=region.threshold,
            ),
        )  # fmt: skip

    def _region_mask(self, region: RegionSettings, scores: Path) -> Path:
        """Smooth and threshold a model's scores to a mask."""
        wanted = region.class_name if len(_classes_of(region)) > 1 else None
        request = {
            "input": fingerprint(scores), "class": wanted,
            "threshold": region.threshold, "z_sigma": region.z_sigma, "compat": region.compat,
        }  # fmt: skip
        return self._make(
            region_mask_of(region),
            request,
            lambda target: polish_volume(
                self._light, scores, target,
                z_sigma=region.z_sigma, threshold=region.threshold, class_name=wanted,
                compat=region.compat,
            ),
        )  # fmt: skip

    def picks(
        self, tomogram: Path, maps: Mapping[SegmentSettings, Path], masks: Mapping[str, Path]
    ) -> dict[str, int]:
        """Make all folders of picks; return how many picks each has."""
        predicted: dict[str, PickSection] = {}
        folders = []
        for i, pick in enumerate(self.config.pick):
            model, name = model_of_pick(self.config, pick), pick_folder_of(pick, i)
            regions = _regions_of(pick, masks)
            folders.append(name)
            if is_from_tiles(model, pick):
                self._pick_tiles(tomogram, name, model, pick)
            elif model in maps:
                if model.argmax:
                    pick = pick.model_copy(update={"class_names": class_names_of(model)})
                self._pick(maps[model], name, pick, regions)
            else:
                predicted[name] = PickSection(model, pick, regions)
        self._pick_predicted(tomogram, predicted)
        return {name: self._count(name) for name in folders}

    def _pick(
        self, score: Path, name: str, settings: PickSettings, regions: Mapping[str, Path]
    ) -> None:
        """Make the picks of one section from a stored score map."""
        request = {
            "input": fingerprint(score),
            "regions": {name: fingerprint(mask) for name, mask in regions.items()},
            "settings": settings.model_dump(mode="json"),
        }
        self._make(
            name,
            request,
            lambda target: pick_particles(
                self._light, score, target, settings,
                regions=regions, tomogram_name=self.entry.name,
            ),
        )  # fmt: skip

    def _pick_tiles(
        self, tomogram: Path, name: str, model: SegmentSettings, settings: PickSettings
    ) -> None:
        """Make the picks of one section from a network's tiles."""
        request = {
            "segment": self._segment_request(tomogram, model),
            "settings": settings.model_dump(mode="json"),
        }
        self._make(
            name,
            request,
            lambda target: pick_tiles(
                self.session, tomogram, target, model, settings, tomogram_name=self.entry.name
            ),
        )

    def _pick_predicted(self, tomogram: Path, sections: Mapping[str, PickSection]) -> None:
        """Make the picks of some sections in one pass over the tomogram."""
        keys = {name: self._key(self._pass_request(tomogram, s)) for name, s in sections.items()}
        missing = {
            self.folder / name: section
            for name, section in sections.items()
            if not self._is_made(name, keys[name])
        }
        if missing:
            pick_predicted(self.session, tomogram, missing, tomogram_name=self.entry.name)
        for name, key in keys.items():
            if self.folder / name in missing:
                self._note(name, key)

    def _pass_request(self, tomogram: Path, section: PickSection) -> dict[str, Any]:
        return {
            "segment": self._segment_request(tomogram, section.model),
            "regions": {name: fingerprint(mask) for name, mask in section.regions.items()},
            "settings": section.settings.model_dump(mode="json"),
        }

    def _count(self, name: str) -> int:
        """Return how many picks a folder has, and say it."""
        folder = self.folder / name
        n_picks: int = json.loads((folder / "run.json").read_text())["n_picks"]
        self.say(f"{self.entry.name}: {n_picks} picks in {folder}")
        return n_picks


def _damage_in_picks(folder: Path) -> str:
    """Return which file a folder of picks lacks without which it is no result."""
    if folder.suffix == ".zarr":
        return ""
    lacking = [name for name in ("picks.csv", "run.json") if not (folder / name).is_file()]
    return f"it has no {' and no '.join(lacking)}" if lacking else ""


def _regions_of(settings: PickSettings, masks: Mapping[str, Path]) -> dict[str, Path]:
    """Return the masks that a pick section needs."""
    needed = {contact.region for contact in settings.all_contacts}
    needed |= set(masks if settings.distances is None else settings.distances)
    return {name: masks[name] for name in masks if name in needed}


def _classes_of(region: RegionSettings) -> tuple[str, ...]:
    """Return the classes of the model behind a region."""
    return model_info(resolve_model(str(region.model))).class_names
