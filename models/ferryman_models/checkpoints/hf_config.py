"""What every `config.json` of transformers may have."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class HFConfig(BaseModel):
    """Base of the facts that we read. Absent fields have transformers' own defaults, since it leaves those out.

    Facts that only matter in training are ignored; one that we can't follow has a type that refuses it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    id2label: dict[int, str] | None = None
    num_channels: Literal[3] = 3
