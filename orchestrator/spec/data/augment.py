"""Random changes to training batches: one section per kind of step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


class RandAugment(Section):
    """Do `num_ops` operations, drawn for each image from 14 (Cubuk et al. 2020): shear and shift either way, rotate,
    brightness, color, contrast, sharpness, posterize, solarize, autocontrast, equalize, or nothing.

    They work on pixel values as they were before `transforms`, from black to full brightness; where images are
    arrays of floats, whose range nobody knows, from an image's lowest value to its highest."""

    kind: Literal["rand_augment"]
    num_ops: int = Field(default=2, ge=1, le=14)
    magnitude: float = Field(default=9.0, ge=0, le=30)
    """How strong they are, from 0 to 30: 30 shears by a slope of 0.3, turns by 30 degrees, shifts by 45% of the
    image, changes colours by 90%, and leaves 4 of 8 bits."""


class TorchvisionStep(Section):
    """A transform of `torchvision.transforms.v2`, such as `ColorJitter`, on one image at a time.

    Many times slower than the other steps. It gets float images with values from 0 to 1 (see `rand_augment`), and
    must keep their shape."""

    kind: Literal["torchvision"]
    name: str = Field(min_length=1)
    args: dict[str, Any] = Field(default_factory=dict)
    """Its keyword arguments; `interpolation` is written as text, as in `bilinear`."""


class Mixup(Section):
    """Mix each sample and its target with those of another training row, the shares drawn from Beta(`alpha`,
    `alpha`) (Zhang et al. 2018), with a probability of `p`. For images, tables and other arrays of numbers; the loss
    must be cross_entropy or bce, or the task a regression."""

    kind: Literal["mixup"]
    alpha: float = Field(default=0.2, gt=0, le=1000)
    """Small: mostly one of the two; 1: all shares are equally likely."""
    p: float = Field(default=1.0, gt=0, le=1)


class CutMix(Section):
    """Replace a rectangle of each image by that of another training image, and mix the targets by the areas, with a
    probability of `p` (Yun et al. 2019). The loss must be cross_entropy or bce."""

    kind: Literal["cutmix"]
    alpha: float = Field(default=1.0, gt=0, le=1000)
    """The rectangle's share of the image is drawn from Beta(`alpha`, `alpha`); what lies outside is cut off."""
    p: float = Field(default=1.0, gt=0, le=1)


Augmentation = Annotated[
    Flip | Crop | Rotate | Color | Erase | RandAugment | TorchvisionStep | Mixup | CutMix,
    Field(discriminator="kind"),
]
