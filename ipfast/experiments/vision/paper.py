"""Table 6 of arXiv 2405.17490: test accuracy in %. Of data sets it is known for the ensemble alone, of others as a mean."""

from __future__ import annotations

TABLE_6 = {
    "vit": {
        "none": 68.87,
        "ip": 69.28,
        "ip_ensemble": 70.06,
        "tracin": 68.66,
        "gex": 69.88,
        "lissa": 69.07,
        "datainf": 69.13,
        "ekfac": 68.85,
        "tda": 69.12,
        "self_tracin": 69.36,
        "self_lissa": 69.66,
    },
    "mixer": {
        "none": 60.91,
        "ip": 61.55,
        "ip_ensemble": 62.23,
        "tracin": 60.78,
        "gex": 62.10,
        "lissa": 61.58,
        "datainf": 61.35,
        "ekfac": 61.65,
        "tda": 61.20,
        "self_tracin": 62.14,
        "self_lissa": 61.34,
    },
}
"""Network -> method -> mean over CIFAR-10N aggregate, CIFAR-100N and Animal-10N."""
ENSEMBLE = {
    "vit": {"aggregate": 81.96, "cifar100": 51.01, "animal": 77.20},
    "mixer": {"aggregate": 75.77, "cifar100": 37.12, "animal": 73.80},
}
"""Network -> data -> accuracy of ip_ensemble."""
