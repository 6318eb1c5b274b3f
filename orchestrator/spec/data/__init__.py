"""The `data` section: sources, cleaning, splits, transforms, augmentation."""

from orchestrator.spec.data.augment import Augmentation, Color, Crop, Erase, Flip, Rotate
from orchestrator.spec.data.cleaning import CleanStep, DropDuplicates, DropNulls, DropOutliers, FillNulls
from orchestrator.spec.data.inputs import Image, Text
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
from orchestrator.spec.data.transforms import (
    CategoryTransform,
    Hashing,
    MinMax,
    NumberTransform,
    OneHot,
    Ordinal,
    Robust,
    Scale,
    Standardize,
    TargetEncoding,
    Transform,
)

__all__ = [
    "Augmentation",
    "CategoryTransform",
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
    "Hashing",
    "Image",
    "ImageFolderSource",
    "LinearSource",
    "MinMax",
    "NumberTransform",
    "OneHot",
    "Ordinal",
    "ParquetSource",
    "PythonSource",
    "Robust",
    "Rotate",
    "Scale",
    "SklearnSource",
    "Source",
    "Split",
    "Standardize",
    "TargetEncoding",
    "Text",
    "TextSource",
    "Transform",
]
