"""The `data` section: sources, cleaning, splits, transforms, augmentation."""

from orchestrator.spec.data.augment import Augmentation, Color, Crop, Erase, Flip, Rotate
from orchestrator.spec.data.cleaning import CleanStep, DropDuplicates, DropNulls, DropOutliers, FillNulls
from orchestrator.spec.data.inputs import Image, Text
from orchestrator.spec.data.iterate import Iterate
from orchestrator.spec.data.section import DataSection
from orchestrator.spec.data.sources import (
    CsvSource,
    ImageFolderSource,
    LinearSource,
    ParquetSource,
    PythonSource,
    SklearnSource,
    Source,
    TextSource,
)
from orchestrator.spec.data.split import Split
from orchestrator.spec.data.transforms import MinMax, Scale, Standardize, Transform

__all__ = [
    "Augmentation",
    "CleanStep",
    "Color",
    "Crop",
    "CsvSource",
    "DataSection",
    "DropDuplicates",
    "DropNulls",
    "DropOutliers",
    "Erase",
    "FillNulls",
    "Flip",
    "Image",
    "ImageFolderSource",
    "Iterate",
    "LinearSource",
    "MinMax",
    "ParquetSource",
    "PythonSource",
    "Rotate",
    "Scale",
    "SklearnSource",
    "Source",
    "Split",
    "Standardize",
    "Text",
    "TextSource",
    "Transform",
]
