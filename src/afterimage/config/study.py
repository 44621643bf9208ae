"""A whole study, read and validated."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from afterimage.config.arm import Arm, ForgetSet, TransferBlocks
from afterimage.config.arms import AnyArm, AtInference, Baseline, IetAgc, Unlearning
from afterimage.config.attribution import Attribution, Remedied
from afterimage.config.autoencoder import Autoencoder
from afterimage.config.base import ConfigError, Name
from afterimage.config.cluster import Cluster
from afterimage.config.data import Classifier, Data, Dedup, ImageFolder, Shape
from afterimage.config.explain import allowed, explain
from afterimage.config.measures import Attacks, Paths, Report, Sample, Statistics
from afterimage.config.selection import LoyalSelection, plan, settings_of
from afterimage.config.sweeps import Point, Sweep, expand, said, swept_arms
from afterimage.config.text import read_yaml
from afterimage.config.texts import ORIGINAL, ColumnCaptions, TextEncoder
from afterimage.config.training import Diffusion, Model, Train, overridden
from afterimage.config.unet import AnyModel, StoredModel


class Study(Attacks):
    """One study: all settings of ``snakemake all``."""

    study: Name
    """Results go to ``results/<study>``."""
    seed: Annotated[int, Field(ge=0)]
    """Root of all random streams."""
    replicates: Annotated[int, Field(ge=1)] = 1
    """Independent trainings and samplings of every arm."""
    data: Data
    """Source, splits and planted duplicates."""
    dedup: Dedup = Dedup()
    """Deduplication of the training split."""
    classifier: Classifier = Classifier()
    """The feature network."""
    text: TextEncoder | None = None
    """What captions are read with by arms with ``condition: text``; null: no arm has captions."""
    autoencoder: Autoencoder | None = None
    """Makes the latents that every arm denoises, instead of pixels; null: pixels."""
    model: AnyModel
    """The denoising network of every arm: with random weights (the default kind) or a trained one
    (``kind: stored``)."""
    diffusion: Diffusion = Diffusion()
    """The forward process."""
    train: Train
    """The training of every arm."""
    arms: Annotated[dict[Name, AnyArm], Field(min_length=1)]
    """Name of each arm -> how it is trained. Every attack is run on every arm."""
    sweeps: dict[Name, Sweep] = {}
    """Name -> an arm at several values of its keys; each becomes one of ``arms``."""
    paths: Paths | None = None
    """States of trainings that are attacked on the way; null: the last ones only."""
    forget: dict[Name, ForgetSet] = {}
    """Name -> images that arms forget (``forget``) or never see (``without``)."""
    sample: Sample
    """How generations are drawn."""
    attribution: Attribution | None = None
    """Attribution of images to training images; null skips the phase."""
    statistics: Statistics = Statistics()
    """Intervals."""
    report: Report = Report()
    """What pages show."""
    loyal_selection: LoyalSelection | None = None
    """Arms of ``snakemake loyal_selection``, not part of ``all``: which skips get blocks, and from
    which timestep on."""
    cluster: Cluster = Cluster()
    """How the work is split into jobs."""

    @model_validator(mode="before")
    @classmethod
    def _sweeps_expand(cls, params: Any) -> Any:
        return expand(params) if isinstance(params, dict) else params

    @model_validator(mode="after")
    def _names_exist(self) -> Study:
        for name, arm in self.arms.items():
            for key, other in _arms_named(arm).items():
                if other not in self.arms:
                    raise ValueError(
                        f"arms.{name}.{key} = {other!r} is not an arm; "
                        f"{allowed('arms', other, self.arms)}{self._origin(name)}"
                    )
            for key, forget_set in _sets_named(arm).items():
                if forget_set not in self.forget:
                    raise ValueError(
                        f"arms.{name}.{key} = {forget_set!r} is not a set under forget; "
                        f"{allowed('sets', forget_set, self.forget)}{self._origin(name)}"
                    )
        for name, block in self.forget.items():
            origin = block.extracted_from
            if origin is not None and origin not in self.arms:
                raise ValueError(
                    f"forget.{name}.extracted_from = {origin!r} is not an arm; "
                    f"{allowed('arms', origin, self.arms)}"
                )
            if origin is not None and self.sample.images < 2:
                raise ValueError(
                    f"sample.images = {self.sample.images}: forget.{name}.extracted_from needs at "
                    "least 2, one half to choose the set and one to judge it"
                )
        for name in self.arms:
            self._no_circle([name])
        return self

    def _no_circle(self, path: list[str]) -> None:
        for other in self.needs(path[-1]):
            if other in path:
                raise ValueError(
                    f"arms.{path[0]} goes round in a circle: {' -> '.join([*path, other])}"
                )
            self._no_circle([*path, other])

    @model_validator(mode="after")
    def _captions_exist(self) -> Study:
        key = "captions" if isinstance(self.data.source, ImageFolder) else "caption_column"
        no_captions = (
            f"data.source.{key} is not given; sources with captions are parquet, huggingface, "
            "image_folder and shapes"
        )
        own = {f"arms.{arm}.dedup": block for arm, block in self.deduplications.items()}
        if not self.data.source.captioned:
            for prefix, dedup in {"dedup": self.dedup, **own}.items():
                for key, needed in (
                    ("methods", "caption" in dedup.methods),
                    ("same_caption", dedup.same_caption),
                ):
                    if needed:
                        raise ValueError(
                            f"{prefix}.{key} = {getattr(dedup, key)} needs captions, but "
                            f"{no_captions}"
                        )
            for place, group in enumerate(self.data.plant):
                if group.repeat != "both":
                    raise ValueError(
                        f"data.plant.{place}.repeat = {group.repeat!r} needs captions, but "
                        f"{no_captions}"
                    )
            for name, block in self.forget.items():
                if block.caption is not None:
                    raise ValueError(
                        f"forget.{name}.caption = {block.caption!r} needs captions, but "
                        f"{no_captions}"
                    )
            if self.text is not None:
                raise ValueError(f"text: a text encoder needs captions, but {no_captions}")
        texts = [name for name in self.arms if self.condition_of(name) == "text"]
        if texts and self.text is None:
            raise ValueError(
                f"arms.{texts[0]}: condition = 'text' needs the block text, which says how captions "
                "are read"
            )
        if self.text is not None and not texts:
            raise ValueError("text: no arm has condition = 'text'; leave the block out")
        return self

    @model_validator(mode="after")
    def _captions_fit(self) -> Study:
        column = getattr(self.data.source, "caption_column", None)
        variants = {} if self.text is None else self.text.captions
        for name, variant in variants.items():
            if isinstance(variant, ColumnCaptions) and not self.data.source.has_columns:
                raise ValueError(
                    f"text.captions.{name}.column = {variant.column!r}: the source "
                    f"{self.data.source.kind!r} has no columns"
                )
            if isinstance(variant, ColumnCaptions) and variant.column == column:
                raise ValueError(
                    f"text.captions.{name}.column = {column!r} is data.source.caption_column: that "
                    f"variant is {ORIGINAL}"
                )
        for name, arm in self.arms.items():
            if arm.captions is not None and arm.captions not in (ORIGINAL, *variants):
                raise ValueError(
                    f"arms.{name}.captions = {arm.captions!r} is not a variant under "
                    f"text.captions; {allowed('variants', arm.captions, [ORIGINAL, *variants])}"
                    f"{self._origin(name)}"
                )
        replacing = [
            arm.forget
            for name, arm in self.arms.items()
            if self.condition_of(name) == "text"
            and isinstance(arm, Unlearning)
            and arm.needs_condition
        ]
        for name, block in self.forget.items():
            if block.surrogate is not None and name not in replacing:
                raise ValueError(
                    f"forget.{name}.surrogate = {block.surrogate!r}: no arm with condition = "
                    "'text' replaces the captions of this set"
                )
        return self

    @model_validator(mode="after")
    def _labels_exist(self) -> Study:
        labels = self.data.known_labels
        if labels is None:
            return self
        for name, block in self.forget.items():
            if block.label is None or (block.label in labels and len(set(labels)) > 1):
                continue
            problem = "all images have" if block.label in labels else "no image has"
            raise ValueError(
                f"forget.{name}.label = {block.label}: {problem} this label; labels of the images "
                f"are {', '.join(map(str, labels))}"
            )
        return self

    @model_validator(mode="after")
    def _latents_fit(self) -> Study:
        for name in self.arms if self.autoencoder is not None else ():
            if self.condition_of(name) != "text":
                raise ValueError(
                    f"arms.{name}: condition = {self.condition_of(name)!r}, but with an autoencoder "
                    "all arms must have condition = 'text'"
                )
        refused = self.images_refused()
        if refused is not None:
            raise ValueError(refused)
        return self

    @model_validator(mode="after")
    def _plantings_fit(self) -> Study:
        plantings = self.data.plantings
        if plantings > self.replicates:
            raise ValueError(
                f"data.plantings = {plantings} is more than replicates = {self.replicates}: "
                f"replicate r uses planting r modulo {plantings}; allowed are 1 to "
                f"{self.replicates}"
            )
        for name, block in self.forget.items():
            if block.ids is not None and plantings > 1:
                raise ValueError(
                    f"forget.{name}.ids = {block.ids}: with data.plantings = {plantings} a row of "
                    "the training split is another image in each planting; use label, "
                    "caption or extracted_from, or data.plantings = 1"
                )
        return self

    @model_validator(mode="after")
    def _arms_train(self) -> Study:
        for name, arm in self.arms.items():
            refused = arm.refusal(self, name)
            if refused:
                raise ValueError(f"arms.{name}: {refused}{self._origin(name)}")
        return self

    @model_validator(mode="after")
    def _stored_network_fits(self) -> Study:
        refused = self.model.refusal(self) if isinstance(self.model, StoredModel) else None
        if refused is not None:
            raise ValueError(refused)
        return self

    @model_validator(mode="after")
    def _paths_fit(self) -> Study:
        chosen = self.paths
        if chosen is None:
            return self
        for key, names in (("frontier", chosen.frontier), ("arms", chosen.arms or [])):
            for name in names:
                if name not in self.arms:
                    raise ValueError(
                        f"paths.{key} = {names}: {name!r} is not an arm; "
                        f"{allowed('arms', name, self.arms)}"
                    )
        conditions: dict[str, str] = {}
        for name in chosen.frontier:
            if not self.arms[name].is_plain:
                raise ValueError(
                    f"paths.frontier = {chosen.frontier}: {name!r} is not trained plainly: method "
                    "baseline on all planted images, with the study's network and train block (but "
                    "for its budget), from the start"
                )
            other = conditions.setdefault(self.condition_of(name), name)
            if other != name:
                raise ValueError(
                    f"paths.frontier = {chosen.frontier}: {other!r} and {name!r} both have "
                    f"condition {self.condition_of(name)!r}; give one for each condition"
                )
        if chosen.images is not None and chosen.images > self.sample.images:
            raise ValueError(
                f"paths.images = {chosen.images} is more than sample.images = {self.sample.images}"
            )
        return self

    @model_validator(mode="after")
    def _prompts_fit(self) -> Study:
        for name in self.prompts.arms if self.prompts is not None else []:
            key = f"prompts.arms: {name!r}"
            if name not in self.arms:
                raise ValueError(f"{key} is not an arm; {allowed('arms', name, self.arms)}")
            if self.condition_of(name) != "text":
                raise ValueError(
                    f"{key} has condition {self.condition_of(name)!r}; prompts are those of arms "
                    "with condition 'text'"
                )
            if not self.arms[name].trains:
                raise ValueError(
                    f"{key} changes how images are drawn, and its network is that of "
                    f"{self.arms[name].base!r}, which can be named instead"
                )
        return self

    @model_validator(mode="after")
    def _cluster_fits(self) -> Study:
        per_job, size = self.cluster.generations_per_job, self.sample.batch_size
        if per_job is not None and per_job % size:
            raise ValueError(
                f"cluster.generations_per_job = {per_job} is not a multiple of sample.batch_size = "
                f"{size}: jobs draw whole batches"
            )
        for name, arm in self.arms.items():
            train, processes = self.train_of(name), self.processes_of(name)
            if arm.shares == "batch" and train.batch_size % (processes * train.accumulation):
                raise ValueError(
                    f"cluster.gpus_per_training = {processes}: arms.{name} has train.batch_size = "
                    f"{train.batch_size}, which is not a multiple of {processes} processes x "
                    f"accumulation = {train.accumulation}{self._origin(name)}"
                )
        return self

    @model_validator(mode="after")
    def _attribution_fits(self) -> Study:
        chosen = self.attribution
        if chosen is None:
            return self
        if chosen.arm not in self.arms:
            raise ValueError(
                f"attribution.arm = {chosen.arm!r} is not an arm; "
                f"{allowed('arms', chosen.arm, self.arms)}"
            )
        arm = self.arms[chosen.arm]
        if (
            not isinstance(arm, Baseline)
            or arm.weights != "none"
            or arm.base is not None
            or arm.matched_to is not None
            or arm.fraction < 1
        ):
            raise ValueError(
                f"attribution.arm = {chosen.arm!r}: it must be trained plainly (method baseline), "
                "from the start, on all its images alike, with a budget of its own"
            )
        if self.autoencoder is not None and "journey_trak" in chosen.attributors:
            raise ValueError(
                "attribution.attributors: journey_trak follows the sampling of images, but with an "
                "autoencoder latents are sampled; list the others"
            )
        if chosen.concepts and (
            self.condition_of(chosen.arm) != "text" or arm.captions is not None
        ):
            raise ValueError(
                f"attribution.concepts: they are words of the captions as they are, but "
                f"attribution.arm = {chosen.arm!r} "
                + (
                    f"is trained with captions = {arm.captions!r}"
                    if arm.captions is not None
                    else "is not trained with condition = 'text'"
                )
            )
        if chosen.replicates > self.replicates:
            raise ValueError(
                f"attribution.replicates = {chosen.replicates} is more than replicates = "
                f"{self.replicates}"
            )
        levels = {
            "ground_truth.timesteps": chosen.ground_truth.timesteps,
            "features.timesteps": chosen.features.timesteps,
        }
        for variant in chosen.variants:
            levels[f"variants.{variant}.timesteps"] = chosen.features_of(variant).timesteps
        for key, count in levels.items():
            if count > self.diffusion.timesteps:
                raise ValueError(
                    f"attribution.{key} = {count} is more than diffusion.timesteps = "
                    f"{self.diffusion.timesteps}"
                )
        known: dict[str, tuple[str | bool, ...]] = {
            "precision": ("fp32", "bf16"),
            "optimizer": ("adamw",),
            "gradient_checkpointing": (False,),
            "compile": (False,),
        }
        for key, values in known.items():
            value = getattr(self.train_of(chosen.arm), key)
            if chosen.stacked and value not in values:
                raise ValueError(
                    f"attribution.stacked: networks trained at once cannot have train.{key} = "
                    f"{value!r}"
                )
        if chosen.stacked and self.model.dropout:
            raise ValueError(
                "attribution.stacked: networks trained at once cannot have dropout "
                f"(model.dropout = {self.model.dropout})"
            )
        if chosen.queries.generated > self.sample.images:
            raise ValueError(
                f"attribution.queries.generated = {chosen.queries.generated} is more than "
                f"sample.images = {self.sample.images}"
            )
        if chosen.queries.holdout > self.data.split.holdout:
            raise ValueError(
                f"attribution.queries.holdout = {chosen.queries.holdout} is more than "
                f"data.split.holdout = {self.data.split.holdout}"
            )
        removed = chosen.counterfactual.remove if chosen.counterfactual else 0
        if removed >= self.data.split.train:
            raise ValueError(
                f"attribution.counterfactual.remove = {removed}: some of data.split.train = "
                f"{self.data.split.train} images must be left"
            )
        if chosen.remedied is not None:
            self._remedied_fits(chosen.remedied)
        return self

    def _remedied_fits(self, chosen: Remedied) -> None:
        for key, name in [("before", chosen.before), *(("after", name) for name in chosen.after)]:
            if name not in self.arms:
                raise ValueError(
                    f"attribution.remedied.{key} = {name!r} is not an arm; "
                    f"{allowed('arms', name, self.arms)}"
                )
            if isinstance(self.model, StoredModel) and self.model.lora is not None:
                raise ValueError(
                    f"attribution.remedied.{key} = {name!r} trains adapters alone (model.lora), "
                    "whose influence is not compared"
                )
            if self.captions_of(name) != self.captions_of(chosen.before):
                raise ValueError(
                    f"attribution.remedied.after = {name!r} reads the captions "
                    f"{self.captions_of(name)!r}, {chosen.before!r} {self.captions_of(chosen.before)!r}"
                )
            if not self.arms[name].single_network:
                raise ValueError(
                    f"attribution.remedied.{key} = {name!r}: it must be one network, not two "
                    f"(method {self.arms[name].method})"
                )
            if key == "after" and not self.own_forget_sets(name):
                raise ValueError(f"attribution.remedied.after = {name!r}: this arm forgets nothing")
            if self.training_set_of(name) != self.training_set_of(chosen.before):
                raise ValueError(
                    f"attribution.remedied.after = {name!r} has {self.arms[name].data_given}, "
                    f"{chosen.before!r} has {self.arms[chosen.before].data_given}"
                )
        if chosen.queries > self.sample.images:
            raise ValueError(
                f"attribution.remedied.queries = {chosen.queries} is more than sample.images = "
                f"{self.sample.images}"
            )

    @model_validator(mode="after")
    def _selection_fits(self) -> Study:
        chosen = self.loyal_selection
        if chosen is None:
            return self
        if chosen.base not in self.arms:
            raise ValueError(
                f"loyal_selection.base = {chosen.base!r} is not an arm; "
                f"{allowed('arms', chosen.base, self.arms)}"
            )
        base = self.arms[chosen.base]
        if (
            not base.single_network
            or not base.trains
            or self.rau_net_of(chosen.base) is not None
            or base.fraction < 1
        ):
            raise ValueError(
                f"loyal_selection.base = {chosen.base!r}: it must be one network without rau_net, "
                "trained on all its images"
            )
        if self.condition_of(chosen.base) == "text":
            raise ValueError(
                f"loyal_selection.base = {chosen.base!r}: arms with condition = 'text' are not "
                "supported"
            )
        for tau in chosen.switch_timesteps:
            if tau >= self.diffusion.timesteps:
                raise ValueError(
                    f"loyal_selection.switch_timesteps = {chosen.switch_timesteps}: allowed are 1 "
                    f"to {self.diffusion.timesteps - 1}"
                )
        clashes = sorted(self.arms.keys() & plan(chosen, len(self.model.channels)).keys())
        if clashes:
            raise ValueError(
                f"arms.{clashes[0]}: loyal_selection makes an arm of this name; give yours another"
            )
        try:
            _ = self.with_selection
        except ValidationError as error:
            raise ValueError(f"loyal_selection: {explain(error, Study)}") from error
        return self

    def images_refused(self, assumed: Shape = (0, 0, 0)) -> str | None:
        """Return why the study's networks do not take its images, as far as that is known; None if
        they do.

        Args:
            assumed: Shape of the stored images where only the files tell it, 0 for what is not
                known.
        """
        height, width, channels = self.data.image_shape(assumed)
        encoder, model = self.autoencoder, self.model
        if isinstance(model, Model):
            factor, halvings = encoder.factor if encoder else 1, 2 ** (len(model.channels) - 1)
            if height % (factor * halvings) or width % (factor * halvings):
                by = f"autoencoder.channels divides their sides by {factor} and " if encoder else ""
                verb = "" if encoder else " divides their sides"
                return (
                    f"images of {height} x {width}: {by}model.channels{verb} by {halvings}; both "
                    f"sides must be multiples of {factor * halvings}"
                )
        refused = encoder.refusal(height, width, channels) if encoder else None
        if refused is None and isinstance(model, StoredModel):
            shape = encoder.latent(height, width) if encoder else (height, width, channels)
            refused = model.images_refused(shape, "latents" if encoder else "images")
        return refused

    @cached_property
    def with_selection(self) -> Study:
        """The study including the arms of ``loyal_selection``; itself without such a block."""
        chosen = self.loyal_selection
        if chosen is None:
            return self
        derived = {
            name: settings_of(cell, chosen, self.arms[chosen.base])
            for name, cell in plan(chosen, len(self.model.channels)).items()
        }
        whole = self.model_dump()
        return Study.model_validate(
            whole | {"loyal_selection": None, "arms": whole["arms"] | derived}
        )

    @cached_property
    def swept(self) -> dict[str, dict[str, Point]]:
        """Sweep -> arm -> its values of the swept keys; the swept arm itself stands at its own."""
        return swept_arms(self.sweeps, self.arms)

    def _origin(self, arm: str) -> str:
        """Return, for messages, the sweep that made an arm; empty for other arms."""
        for sweep, points in self.swept.items():
            if arm in points and arm != self.sweeps[sweep].of:
                return f" (made by {said(sweep, points[arm])})"
        return ""

    def needs(self, arm: str) -> list[str]:
        """Return the arms whose results the training of ``arm`` needs."""
        block = self.arms[arm]
        names: list[str | None] = [block.base, block.matched_to.arm if block.matched_to else None]
        names += [self.forget[name].extracted_from for name in self.own_forget_sets(arm)]
        return list(dict.fromkeys(name for name in names if name is not None))

    def condition_of(self, arm: str) -> str:
        """Return ``none``, ``label`` or ``text``: the arm's own condition, its base's, or none."""
        block = self.arms[arm]
        return block.condition or (self.condition_of(block.base) if block.base else "none")

    def captions_of(self, arm: str) -> str:
        """Return the variant of captions of an arm with ``condition: text``: its own, its base's,
        or ``original``."""
        block = self.arms[arm]
        return block.captions or (self.captions_of(block.base) if block.base else ORIGINAL)

    @property
    def caption_columns(self) -> dict[str, str]:
        """Variant of the captions -> the column of the source that it is read from, of those that
        are columns."""
        variants = {} if self.text is None else self.text.captions
        return {
            name: variant.column
            for name, variant in variants.items()
            if isinstance(variant, ColumnCaptions)
        }

    def rau_net_of(self, arm: str) -> TransferBlocks | None:
        """Return the blocks of the arm's network: its own, or its base's."""
        block = self.arms[arm]
        return block.rau_net or (self.rau_net_of(block.base) if block.base else None)

    def own_forget_sets(self, arm: str) -> list[str]:
        """Return the names of the sets that the arm forgets or is trained without."""
        return list(_sets_named(self.arms[arm]).values())

    def forget_sets_of(self, arm: str) -> list[str]:
        """Return the names of the sets that the arm is judged on: its own, and those of the arms
        that start from it."""
        sets = self.own_forget_sets(arm)
        for name, other in self.arms.items():
            if other.base == arm:
                sets += self.own_forget_sets(name)
        return list(dict.fromkeys(sets))

    def path_of(self, arm: str) -> dict[str, float]:
        """Return state -> share of the budget, of the states of an arm's trainings that are
        attacked, without the last; empty for an arm without a path. Those of a remedy at inference
        are its base's."""
        chosen, own = self.paths, self.arms[arm]
        if chosen is None or not (chosen.arms is None or arm in chosen.arms + chosen.frontier):
            return {}
        return self.path_of(own.base) if isinstance(own, AtInference) else chosen.shares

    def frontier_of(self, arm: str) -> str | None:
        """Return the plain arm whose path an arm's is compared with; None if it has no path, or is
        itself that arm, or if there is none with its condition."""
        if self.paths is None or not self.path_of(arm) or arm in self.paths.frontier:
            return None
        own = self.condition_of(arm)
        return next((name for name in self.paths.frontier if self.condition_of(name) == own), None)

    @property
    def mirrors(self) -> bool:
        """Whether extraction compares mirror images too, with every arm in the same way: if some
        training mirrors images, by ``data.flips`` or by an arm's ``augment_below``."""
        augmented = any(
            isinstance(arm, IetAgc) and arm.augment_below is not None for arm in self.arms.values()
        )
        return self.data.flips or augmented

    def states_of(self, arm: str) -> dict[str, float]:
        """Return state -> share of the budget, of the networks that an arm's trainings keep on the
        way: for attribution, evenly spread, and for its path."""
        chosen = self.attribution
        count = chosen.checkpoints if chosen is not None and chosen.arm == arm else 1
        return {f"state{k}": k / count for k in range(1, count)} | self.path_of(arm)

    def processes_of(self, arm: str) -> int:
        """Return the number of processes, each on its own GPU, that train ``arm`` together: one if
        its method cannot be distributed."""
        return self.arms[arm].processes(self.cluster.gpus_per_training)

    def train_of(self, arm: str) -> Train:
        """Return the ``train`` block of ``arm``: the study's, overridden by the arm's own keys."""
        try:
            return overridden(self.train.model_dump(), self.arms[arm].train)
        except ValidationError as error:
            text = explain(error, Train, f"arms.{arm}.train")
            raise ValueError(f"{text}{self._origin(arm)}") from error

    def dedup_of(self, arm: str) -> Dedup:
        """Return the ``dedup`` block of ``arm``: the study's, overridden by the arm's own keys."""
        try:
            return Dedup.model_validate(self.dedup.model_dump() | self.arms[arm].dedup)
        except ValidationError as error:
            text = explain(error, Dedup, f"arms.{arm}.dedup")
            raise ValueError(f"{text}{self._origin(arm)}") from error

    def training_set_of(self, arm: str) -> tuple[str, Dedup | None]:
        """Return what is done to the training set of a planting before an arm gets it: the same for
        arms with the same images."""
        data = self.arms[arm].data
        return data, self.dedup_of(arm) if data == "deduplicated" else None

    @property
    def deduplications(self) -> dict[str, Dedup]:
        """Arm -> its ``dedup`` block, where it is not the study's; of several arms with the same
        block, the first alone."""
        blocks: dict[str, Dedup] = {}
        for name in (name for name, arm in self.arms.items() if arm.dedup):
            block = self.dedup_of(name)
            if block not in (self.dedup, *blocks.values()):
                blocks[name] = block
        return blocks


def _arms_named(arm: Arm) -> dict[str, str]:
    """Return key -> the other arms that an arm names."""
    names = {
        "base": arm.base,
        "control": arm.control,
        "matched_to.arm": arm.matched_to.arm if arm.matched_to else None,
    }
    return {key: name for key, name in names.items() if name is not None}


def _sets_named(arm: Arm) -> dict[str, str]:
    """Return key -> the forget sets that an arm names."""
    names = {"forget": arm.forget if isinstance(arm, Unlearning) else None, "without": arm.without}
    return {key: name for key, name in names.items() if name is not None}


def parse(params: dict[str, Any], name: str = "params") -> Study:
    """Return the validated study.

    Raises:
        ConfigError: naming every wrong key, its value and what is allowed.
    """
    try:
        return Study.model_validate(params)
    except ValidationError as error:
        raise ConfigError(f"{name} is not a valid study:\n{explain(error, Study)}") from error


def load(path: str | Path) -> Study:
    """Read and validate a study file (YAML).

    Raises:
        ConfigError: if the file is missing or not a valid study.
    """
    return parse(read_yaml(path), str(path))


def schema() -> dict[str, Any]:
    """Return the JSON schema of a study."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
