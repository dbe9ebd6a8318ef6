"""What every section of the topology is made of: numbers, names and the frozen model that refuses unknown keys. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Port = Annotated[int, Field(ge=0, le=65535, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ModelName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^\S+$")]
Pattern = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^\S+$")]
PoolMode = Literal["act", "approve", "observe"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
