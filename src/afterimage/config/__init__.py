"""The typed study: every key of ``params.yaml``, its type, range, default and meaning.

Unknown keys are errors that name the nearest allowed key. ``workflow/schemas/params.schema.json``
is generated from these classes (``afterimage config schema``), and a test compares the two.
``plan.resolved`` extracts the settings that one job depends on: a change of any other key cannot
change, or rerun, that step.
"""

from afterimage.config.arms import (
    METHODS,
    Ambient,
    AnyArm,
    Arm,
    Baseline,
    DpSgd,
    EraseDiff,
    ForgetSet,
    GradientAscent,
    IetAgc,
    Loyal,
    Match,
    SalUn,
    SelectiveAmnesia,
    TransferBlocks,
    Unlearning,
)
from afterimage.config.attribution import (
    ATTRIBUTORS,
    Attribution,
    Counterfactual,
    Features,
    GroundTruth,
    Queries,
    Readout,
)
from afterimage.config.autoencoder import Autoencoder
from afterimage.config.base import Block, ConfigError, Name, Share, expand
from afterimage.config.cluster import Cluster
from afterimage.config.data import (
    ArrayFile,
    Classifier,
    Data,
    Dedup,
    Embedding,
    HuggingFace,
    ImageFolder,
    Likeness,
    Parquet,
    PerceptualHash,
    Perturbation,
    Plant,
    SklearnDigits,
    Source,
    Split,
)
from afterimage.config.measures import (
    Extraction,
    Forgetting,
    Margin,
    Membership,
    Quality,
    Report,
    Sample,
    Statistics,
)
from afterimage.config.selection import LoyalSelection
from afterimage.config.study import Study, load, parse, schema
from afterimage.config.text import read_yaml
from afterimage.config.training import Diffusion, Model, Train

__all__ = [
    "ATTRIBUTORS",
    "METHODS",
    "Ambient",
    "AnyArm",
    "Arm",
    "ArrayFile",
    "Attribution",
    "Autoencoder",
    "Baseline",
    "Block",
    "Classifier",
    "Cluster",
    "ConfigError",
    "Counterfactual",
    "Data",
    "Dedup",
    "Diffusion",
    "DpSgd",
    "Embedding",
    "EraseDiff",
    "Extraction",
    "Features",
    "ForgetSet",
    "Forgetting",
    "GradientAscent",
    "GroundTruth",
    "HuggingFace",
    "IetAgc",
    "ImageFolder",
    "Likeness",
    "Loyal",
    "LoyalSelection",
    "Margin",
    "Match",
    "Membership",
    "Model",
    "Name",
    "Parquet",
    "PerceptualHash",
    "Perturbation",
    "Plant",
    "Quality",
    "Queries",
    "Readout",
    "Report",
    "SalUn",
    "Sample",
    "SelectiveAmnesia",
    "Share",
    "SklearnDigits",
    "Source",
    "Split",
    "Statistics",
    "Study",
    "Train",
    "TransferBlocks",
    "Unlearning",
    "expand",
    "load",
    "parse",
    "read_yaml",
    "schema",
]
