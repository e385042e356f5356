"""A model of late arrivals: labels, the training set that a store makes of them, and the model that learns from it.

    flights --labels--> label per flight --store.get_historical_features--> training set --by time--> model, AUC

The label: did the flight arrive more than 15 minutes late? All 336,776 flights are labels. 9,430 of them have no
arrival delay, as they were cancelled (8,255) or landed elsewhere (1,175): nobody arrived within 15 minutes of the
schedule, so they count as late.

The label's time is an hour before the scheduled departure, when the question is asked in production too; what is known
only later is in none of its features.

The split is by time: the model learns from what was scheduled before October and is judged on the rest of the year. A
random one would let it learn from flights of the very hours that it is judged on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from fastfeat import Store

from .data import TIMESTAMP
from .definitions import late_arrival
from .demo import Questions

try:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits
except ImportError as error:
    raise ImportError("the model needs scikit-learn; run: pip install 'fastfeat[demo]'") from error

SPLIT = datetime(2013, 10, 1, tzinfo=UTC)
SEED = 2013


@dataclass(frozen=True)
class Model:
    """What was learned, and how well it tells late flights from others in the months it has not seen."""

    classifier: Any
    auc: float  # 0.5 is guessing, 1 is knowing
    learned_from: int
    judged_on: int

    def chances(self, vectors: np.ndarray) -> np.ndarray:
        """The chance of a late arrival for each vector of the service's features."""
        chances: np.ndarray = self.classifier.predict_proba(vectors)[:, 1]
        return chances


def labels(asked: Questions) -> pa.Table:
    """A label per question: its keys and request fields, its time, and whether the flight was late."""
    return pa.table(
        {
            **asked.entities(),
            "scheduled": pa.array(asked.scheduled_us, TIMESTAMP),
            "event_timestamp": pa.array(asked.moments_us, TIMESTAMP),
            "is_late": asked.is_late,
        }
    )


def training_set(store: Store, asked: Questions) -> pa.Table:
    """The labels with a column per feature of the service, as it stood at the label's time."""
    return store.get_historical_features(labels(asked), late_arrival).read_all()


def vectors(examples: pa.Table) -> np.ndarray:
    """The features of a training set as a model reads them: float64, null is NaN, as get_feature_vectors gives them."""
    columns = [examples[str(feature)].cast(pa.float64()).to_numpy() for feature in late_arrival.features]
    return np.column_stack(columns)


def is_judged(examples: pa.Table) -> np.ndarray:
    """Which examples the model does not learn from."""
    split_us = int(SPLIT.timestamp()) * 1_000_000
    judged: np.ndarray = examples["scheduled"].cast(pa.int64()).to_numpy() >= split_us
    return judged


def train(examples: pa.Table) -> Model:
    """A model that learned from the training set's first nine months, judged on the others."""
    features, is_late, judged = vectors(examples), examples["is_late"].to_numpy(), is_judged(examples)
    classifier = HistGradientBoostingClassifier(max_iter=50, early_stopping=False, random_state=SEED)
    with threadpool_limits(1):  # more threads wait for one another awake: on a busy machine minutes, not seconds
        classifier.fit(features[~judged], is_late[~judged])
        chances = classifier.predict_proba(features[judged])[:, 1]
    auc = float(roc_auc_score(is_late[judged], chances))
    return Model(classifier, auc, int((~judged).sum()), int(judged.sum()))
