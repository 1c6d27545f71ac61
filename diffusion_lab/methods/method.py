"""What a fine-tuning method supplies to the one loop, and what it declares about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffusion_lab.families.batch import Batch
    from diffusion_lab.families.family import Family, Sizes, Trainable


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters that share a learning rate. All are float32 and require gradients."""

    name: str  # "unet", "text_encoder"
    params: Sequence[torch.nn.Parameter]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a method, with its settings, is: all that the plan, the loop and the record need to know of its kind."""

    trains: frozenset[Trainable]  # what the model's family has to allow
    text_encoder: bool = False  # the text encoders train with it
    class_images: int = 0  # images of the class that the untouched model generates before training
    prior_weight: float = 0.0  # of their loss
    rank: int = 0  # of adapters beside the layers; 0: none
    vectors: int = 0  # of a new word; 0: none is learned
    average: bool = False  # a moving average of the weights is kept

    @property
    def whole_networks(self) -> bool:
        """Whether networks train as they are, and are saved whole."""
        return "network" in self.trains

    @property
    def learns_word(self) -> bool:
        return "word" in self.trains


@runtime_checkable
class Stateful(Protocol):
    """A method that remembers more than its parameters: an average of them, a phase. Checkpoints carry it.

    The run's pipe is already attached, and its trained parameters are restored, when a state comes back.
    """

    def state_dict(self, pipe: Any) -> dict[str, Any]:
        """Tensors, numbers, text, None, and lists and dicts of these."""

    def load_state_dict(self, pipe: Any, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave; tensors come on the CPU."""


@runtime_checkable
class SavesNetworks(Protocol):
    """A method that trains whole networks: checkpoints share their files, and `save` takes them from `ready`."""

    def files(self, pipe: Any) -> dict[str, dict[str, Tensor]]:
        """The tensors (no copies) of every file of weights that `save` writes, by path and by name in the file."""

    def unchanged(self, pipe: Any) -> bool:
        """Whether they are still the base model's, to the bit."""

    def complete(self, pipe: Any, folder: Path) -> None:
        """Adds the parts of a whole pipeline that `save` leaves out."""

    def save(
        self,
        pipe: Any,
        folder: Path,
        notes: Mapping[str, str] | None = None,
        ready: Path | None = None,
    ) -> list[Path]: ...


@runtime_checkable
class Averaging(Protocol):
    """A method that may evaluate other weights than those that train."""

    def evaluating(self, pipe: Any) -> AbstractContextManager[None]:
        """Inside, the pipe has the weights to evaluate and save (an average)."""


@runtime_checkable
class NewWord(Protocol):
    """A method that learns a word (`Traits.learns_word`)."""

    token: str | None  # null: data.identifier
    initialiser: str | None  # words whose vectors it starts from; null: the class noun
    vectors: int


@runtime_checkable
class Targeted(Protocol):
    """A method with adapters beside layers (`Traits.rank`)."""

    targets: list[str] | None  # ends of layers' names
    rank: int


class Method(Protocol):
    """What a fine-tuning method supplies to the one loop. The dataclass is also its config.

    Where it applies a method is also `SavesNetworks`, `Averaging`, `Stateful`, `NewWord`, `Targeted`.
    """

    name: str

    @property
    def traits(self) -> Traits: ...

    def fill(self, family: Family, *, small: bool, free: bool) -> None:
        """Puts numbers in the place of the nulls that stand for a rule.

        `small`: a miniature; `free`: the optimizer finds the learning rate, which is then a factor of 1.
        """

    def trained_numbers(self, sizes: Sizes) -> float:
        """About how many numbers it trains."""

    def attach(self, pipe: Any) -> list[ParamGroup]:
        """Unfreezes or inserts what trains and returns it; everything else is frozen."""

    def loss(self, pipe: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Scalar. Draws its noise and timesteps from `generator` only."""

    def after_step(self, pipe: Any) -> None: ...

    def save(self, pipe: Any, folder: Path, notes: Mapping[str, str] | None = None) -> list[Path]:
        """Writes the ecosystem's own format, `notes` into its header; returns the files."""

    def load(self, pipe: Any, folder: Path) -> None:
        """Reads what `save` wrote into an attached pipe."""
