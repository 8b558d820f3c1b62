"""What a registry knows: which versions are in memory, which of them are defaults, and which are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model_store import InvalidArtifactError, ModelNotFoundError
from service.engine.model import Model
from service.web.models.refusals import Key, Refusal, Stamp, refused_versions
from service.web.schemas import ModelSummary


@dataclass
class Served:
    """The state of a registry.

    Attributes:
        unnamed: the model of requests that name none; None: there are several, and each request must name one.
        defaults: each model's version of requests that name none.
        models: the versions in memory; those that are not defaults are in the order of their last use.
        stamps: of their files when they were loaded.
        refused: versions that did not pass their checks.
        unreadable: models whose folder cannot be listed.
    """

    unnamed: str | None = None
    defaults: dict[str, int] = field(default_factory=dict)
    models: dict[Key, Model] = field(default_factory=dict)
    stamps: dict[Key, Stamp] = field(default_factory=dict)
    refused: dict[Key, Refusal] = field(default_factory=dict)
    unreadable: dict[str, InvalidArtifactError] = field(default_factory=dict)

    def is_default(self, key: Key) -> bool:
        """Whether requests that name no version get this one."""
        return self.defaults.get(key[0]) == key[1]

    def others(self) -> list[Key]:
        """The versions in memory that are not defaults; the least recently used first."""
        return [key for key in self.models if not self.is_default(key)]

    def only_name(self) -> str:
        """The model of requests that name none.

        Raises:
            ModelNotFoundError: there are several models.
        """
        if self.unnamed is None:
            names = ", ".join(sorted(self.defaults))
            raise ModelNotFoundError(f"there are several models; name one with ?model=: {names}")
        return self.unnamed

    def problems(self) -> str:
        """Why what is not served is not."""
        refused = [f"{refusal.file}: {refusal.problem}" for refusal in self.refused.values()]
        return "; ".join([*refused, *map(str, self.unreadable.values())])

    def summaries(self, stored: Mapping[str, Sequence[int]]) -> list[ModelSummary]:
        """Every model that is served or has a refused version, and the versions that the store has."""
        names = sorted({name for name, _ in [*self.models, *self.refused]} | self.unreadable.keys())
        return [self.summary(name, self.models.get((name, self.defaults.get(name, 0))), stored) for name in names]

    def summary(self, name: str, model: Model | None, stored: Mapping[str, Sequence[int]]) -> ModelSummary:
        """One of its versions in full, and the numbers of all."""
        return ModelSummary(
            name=name,
            default=name == self.unnamed,
            default_version=self.defaults.get(name),
            versions=list(stored.get(name, [])),
            loaded_versions=sorted(number for other, number in self.models if other == name),
            refused=refused_versions(name, self.refused, self.unreadable),
            space=model.manifest.space if model else None,
            manifest=model.manifest if model else None,
            execution_provider=model.provider if model else None,
        )
