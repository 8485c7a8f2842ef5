"""From configurations to objects: the only place that knows every room."""

from unveil.build.classification import build_classification, finetune
from unveil.build.common import build_source, build_training_loader, count_parameters, find_machine
from unveil.build.contrastive import build_contrastive, train_clip
from unveil.build.pretext import build_pretext
from unveil.build.pretraining import examples, pretrain
from unveil.build.probing import probe
from unveil.build.starting_clip import fit_clip
from unveil.build.starting_weights import network_in

__all__ = [
    "build_classification",
    "build_contrastive",
    "build_pretext",
    "build_source",
    "build_training_loader",
    "count_parameters",
    "examples",
    "find_machine",
    "finetune",
    "fit_clip",
    "network_in",
    "pretrain",
    "probe",
    "train_clip",
]
