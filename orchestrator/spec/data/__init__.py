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
    ArrowSource,
    CsvSource,
    ImageFolderSource,
    JsonSource,
    LinearSource,
    MongodbSource,
    NumpySource,
    ParquetSource,
    PythonSource,
    SklearnSource,
    Source,
    SqlSource,
    TextSource,
    TorchvisionSource,
)
from orchestrator.spec.data.split import Split
from orchestrator.spec.data.transforms import MinMax, Scale, Standardize, Transform

__all__ = [
    "ArrowSource",
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
    "JsonSource",
    "LinearSource",
    "Map",
    "MinMax",
    "MongodbSource",
    "NumpySource",
    "ParquetSource",
    "PythonSource",
    "Rotate",
    "Scale",
    "SklearnSource",
    "Source",
    "Split",
    "SqlSource",
    "Standardize",
    "Text",
    "TextSource",
    "TorchvisionSource",
    "Transform",
]
