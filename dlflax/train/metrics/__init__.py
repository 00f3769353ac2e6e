"""Metrics; `metric.Metric` is the base class of your own."""

from dlflax.train.metrics.classes import (
    ROCAUC,
    Accuracy,
    AveragePrecision,
    CalibratedLoss,
    MacroF1,
    MacroMean,
    average_precision,
    average_sigmoid,
    average_softmax,
    calibration,
    class_counts,
    confusion,
    per_class,
    per_class_from_logits,
    predictions,
    roc_auc,
    subset_findings,
    worst_confusion,
)
from dlflax.train.metrics.labels import LabelAccuracy, LabelF1, MeanAveragePrecision
from dlflax.train.metrics.metric import (
    Additive,
    Collecting,
    MeanLoss,
    Metric,
    additive_scores,
    batch_sums,
    collecting_scores,
)
from dlflax.train.metrics.numeric import R2, ForecastMAE, ForecastRMSE, MeanError

__all__ = [
    "Accuracy", "Additive", "AveragePrecision", "CalibratedLoss", "Collecting", "ForecastMAE",
    "ForecastRMSE", "LabelAccuracy", "LabelF1", "MacroF1", "MacroMean", "MeanAveragePrecision",
    "MeanError", "MeanLoss", "Metric", "R2", "ROCAUC", "additive_scores", "average_precision",
    "average_sigmoid", "average_softmax", "batch_sums", "calibration", "class_counts",
    "collecting_scores", "confusion", "per_class", "per_class_from_logits", "predictions",
    "roc_auc", "subset_findings", "worst_confusion",
]  # fmt: skip
