"""Feast's own historical retrieval, in an environment of its own: python feast_peer.py FOLDER ROUNDS

    FOLDER/rows.parquet, FOLDER/labels.parquet --> FOLDER/answer.parquet; on stdout the seconds of each round

Local provider, file offline store, as Feast sets them up by itself. The labels are in memory as the DataFrame that
Feast takes; the rows are its source's file. The first round warms up and is not in the list. Nothing of ours is
imported: that environment holds Feast and what it brings.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64


def store_of(folder: Path) -> FeatureStore:
    """One view of one float64, without a ttl."""
    store = FeatureStore(
        config=RepoConfig(
            project="peer",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store="file",
            online_store=None,
            entity_key_serialization_version=3,
        )
    )
    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
    source = FileSource(path=str(folder / "rows.parquet"), timestamp_field="event_timestamp")
    price = FeatureView(
        name="price", entities=[card], ttl=timedelta(0), schema=[Field(name="amount", dtype=Float64)], source=source
    )
    store.apply([card, price])
    return store


def timed(store: FeatureStore, labels: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    answer = store.get_historical_features(entity_df=labels, features=["price:amount"]).to_df()
    seconds = time.perf_counter() - began
    gc.enable()
    return seconds, answer


def main(folder: Path, rounds: int) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # Feast talks; stdout is for what was found
        store = store_of(folder)
        labels = pd.read_parquet(folder / "labels.parquet")
        seconds = []
        for _ in range(rounds + 1):
            took, answer = timed(store, labels)
            seconds.append(took)
        answer.to_parquet(folder / "answer.parquet")
    print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
