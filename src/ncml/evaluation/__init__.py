"""Evaluation: likelihood, robustness, out-of-distribution detection, Fréchet distance, figures."""

from ncml.density import time_posterior
from ncml.evaluation.bridges import kernel_gap, ladder_bound
from ncml.evaluation.classifier import Classifier, TrainedClassifier, train_classifier
from ncml.evaluation.fid import fid
from ncml.evaluation.frechet import features_of, frechet_distance, gaussian_frechet
from ncml.evaluation.grids import save_grid
from ncml.evaluation.ladder import (
    LadderAudit,
    audit_ladder,
    flow_log_prob,
    fokker_planck_residual,
)
from ncml.evaluation.likelihood import bits_per_dim
from ncml.evaluation.ood import AUROC, auroc, auroc_interval, ood_statistics
from ncml.evaluation.perturbation import crossing_time, mean_abs_perturbation
from ncml.evaluation.plots import plot_images, plot_robustness
from ncml.evaluation.robustness import (
    DeltaLogP,
    LevelNoiseRow,
    RobustnessCurve,
    delta_log_p,
    level_noise_table,
    robustness_curve,
)
from ncml.evaluation.two_sample import ClassifierTest, EnergyTest, classifier_test, energy_distance, energy_test
from ncml.evaluation.typicality import Typicality, ladder_statistics

__all__ = [
    "AUROC",
    "Classifier",
    "ClassifierTest",
    "DeltaLogP",
    "EnergyTest",
    "LadderAudit",
    "LevelNoiseRow",
    "RobustnessCurve",
    "TrainedClassifier",
    "Typicality",
    "audit_ladder",
    "auroc",
    "auroc_interval",
    "bits_per_dim",
    "classifier_test",
    "crossing_time",
    "delta_log_p",
    "energy_distance",
    "energy_test",
    "features_of",
    "fid",
    "flow_log_prob",
    "fokker_planck_residual",
    "frechet_distance",
    "gaussian_frechet",
    "kernel_gap",
    "ladder_bound",
    "ladder_statistics",
    "level_noise_table",
    "mean_abs_perturbation",
    "ood_statistics",
    "plot_images",
    "plot_robustness",
    "robustness_curve",
    "save_grid",
    "time_posterior",
    "train_classifier",
]
