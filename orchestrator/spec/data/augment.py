"""Random changes to training batches: one section per kind of step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.base import Section


class Flip(Section):
    """Mirror left and right, with a probability of `p`."""

    kind: Literal["flip"]
    p: float = Field(default=0.5, gt=0, le=1)


class Crop(Section):
    """Shift by up to `padding` pixels each way; what comes in is the image, mirrored at its edge."""

    kind: Literal["crop"]
    padding: int = Field(default=4, ge=1)


class Rotate(Section):
    """Turn by up to `degrees`, and zoom by up to `zoom` (a share), about the centre."""

    kind: Literal["rotate"]
    degrees: float = Field(default=10.0, ge=0, le=180)
    zoom: float = Field(default=0.0, ge=0, lt=1)


class Color(Section):
    """Change contrast and saturation by a factor from 1 - x to 1 + x, and brightness by up to x standard
    deviations of the image. Colours are taken as the model sees them, after `transforms`."""

    kind: Literal["color"]
    brightness: float = Field(default=0.2, ge=0, lt=1)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    saturation: float = Field(default=0.2, ge=0, lt=1)


class Erase(Section):
    """Fill a rectangle of up to `area` of the image with the image's mean colour, with a probability of `p`
    (Zhong et al. 2020)."""

    kind: Literal["erase"]
    p: float = Field(default=0.5, gt=0, le=1)
    area: float = Field(default=0.2, gt=0, lt=1)


Augmentation = Annotated[Flip | Crop | Rotate | Color | Erase, Field(discriminator="kind")]
