"""What can be said about a model that runs in this process: where its weights are, what it needs, how it is run."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Positive = Annotated[int, Field(gt=0)]
Size = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
HubId = Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
HomePath = Annotated[Path, AfterValidator(Path.expanduser)]
EngineName = Literal["llamacpp", "mlx"]


def _number(value: object) -> object:
    """A number that the environment gives as text."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


class EngineOptions(BaseModel):
    """How a model in this process is run. Services and servers ignore it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grammar: bool = True
    """Whether a tool call, once begun, can only be one that fits the tool's schema. To call or not stays free."""
    speculation: bool = True
    """Whether text that repeats earlier text is guessed and checked in one step. Greedy output stays the same."""
    draft: NonEmpty | None = None
    """A smaller model of the same vocabulary that guesses ahead: an MLX directory, or a GGUF file for llama.cpp."""
    kv_bits: Annotated[Literal[4, 8] | None, BeforeValidator(_number)] = None
    """Bits of the attention cache beyond `kv_quantize_after` tokens; None keeps it exact."""
    kv_quantize_after: Positive = 4096
    """Tokens that stay exact where `kv_bits` is set."""
    prefix_cache: bool = True
    """Whether the attention cache of a conversation is kept on disk for when it goes on."""
    context: Positive | None = None
    """Tokens of prompt and answer at most; None: what the model takes, up to what is sensible here."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory that weights and cache may take; None: what the machine has to spare."""

    def overridden(self, by: "EngineOptions") -> "EngineOptions":
        """The same with what the other one sets itself."""
        return self.model_copy(update={name: getattr(by, name) for name in by.model_fields_set})


class PackagedFile(BaseModel):
    """A weights file that travels inside a wheel on the package index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: Sha256
    wheel_sha256: Sha256
    member: str
    """The file's path inside the wheel."""


class ModelFacts(BaseModel):
    """What an entry of the catalogue, or of the user's settings, may say. Nothing of it is needed to run a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    licence: str = "not stated"
    parameters: Size = 0
    active_parameters: Size = 0
    """That one token goes through, of a mixture of experts."""
    size_bytes: Size = 0
    """Of the GGUF file."""
    mlx_size_bytes: Size = 0
    """Of the 4-bit weights for MLX."""
    memory_bytes: Size = 0
    """That a machine needs to run it with some context."""
    context_window: Positive | None = None
    engines: tuple[EngineName, ...] = ("llamacpp", "mlx")
    note: str = ""

    path: HomePath | None = None
    """The user's own weights: a GGUF file, or an MLX directory."""
    mlx_id: HubId | None = None
    """Repository of the weights for MLX on the model hub."""
    mlx_revision: NonEmpty | None = None
    gguf_id: HubId | None = None
    gguf_name: NonEmpty | None = None
    """The file in that repository."""
    gguf_revision: NonEmpty | None = None
    gguf_sha256: Sha256 | None = None
    package: NonEmpty | None = None
    """`name==version` of a wheel on the package index that carries `file`."""
    file: PackagedFile | None = None

    adapter: HomePath | None = None
    """A LoRA adapter in MLX's format that is loaded with the model."""
    engine: EngineOptions = EngineOptions()
    """How this model is run, where that differs from the user's `[engine]`."""

    @model_validator(mode="after")
    def _whole_sources(self) -> Self:
        if (self.gguf_id is None) != (self.gguf_name is None):
            raise ValueError("gguf_id and gguf_name go together")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together")
        return self


class UserModel(ModelFacts):
    """A `[models.NAME]` table of the user's settings, used as `local:NAME`."""

    base: NonEmpty | None = None
    """A model of the catalogue that this one is, but for what is set here."""

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if not (self.base or self.path or self.mlx_id or self.gguf_id or self.package):
            raise ValueError("it does not say where the weights are: set base, path, mlx_id or gguf_id")
        return self
