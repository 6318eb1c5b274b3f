"""The `data` section: sources, cleaning, splits, transforms, augmentation."""

from orchestrator.spec.data.augment import (
    Augmentation,
    Color,
    Crop,
    CutMix,
    Erase,
    Flip,
    Mixup,
    RandAugment,
    Rotate,
    TorchvisionStep,
)
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
from orchestrator.spec.data.transforms import MinMax, Scale, Standardize, Transform

__all__ = [
    "Augmentation",
    "CleanStep",
    "Color",
    "Crop",
    "CsvSource",
    "CutMix",
    "DataSection",
    "DropDuplicates",
    "DropNulls",
    "DropOutliers",
    "Erase",
    "FillNulls",
    "Flip",
    "Image",
    "ImageFolderSource",
    "LinearSource",
    "MinMax",
    "Mixup",
    "ParquetSource",
    "PythonSource",
    "RandAugment",
    "Rotate",
    "Scale",
    "SklearnSource",
    "Source",
    "Split",
    "Standardize",
    "Text",
    "TextSource",
    "TorchvisionStep",
    "Transform",
]
