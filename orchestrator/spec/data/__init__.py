"""The `data` section: sources, cleaning, splits, transforms, augmentation."""

from orchestrator.spec.data.augment import Augmentation, Color, Crop, Erase, Flip, Rotate
from orchestrator.spec.data.cleaning import (
    Cast,
    CleanStep,
    ClipOutliers,
    DropDuplicates,
    DropNulls,
    DropOutliers,
    FillNulls,
    Filter,
    Map,
)
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
from orchestrator.spec.data.transforms import MinMax, Scale, Standardize, Transform

__all__ = [
    "Augmentation",
    "Cast",
    "CleanStep",
    "ClipOutliers",
    "Color",
    "Crop",
    "CsvSource",
    "DataSection",
    "DropDuplicates",
    "DropNulls",
    "DropOutliers",
    "Erase",
    "FillNulls",
    "Filter",
    "Flip",
    "Image",
    "ImageFolderSource",
    "LinearSource",
    "Map",
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
