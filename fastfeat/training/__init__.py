"""Training sets: to each label the feature values as they stood at its time, by the kernel of every read.

    labels --chunks--> --buckets by key--> rows of the bucket --private table--> Plan.columns_at --> the labels' order

join_bucket is the whole of it for labels and rows that are in memory as Arrow: a pure function, which a cluster engine
can run per group of keys. A store adds where rows come from and how memory stays bounded.
"""

from __future__ import annotations

from .joining import join_bucket
from .saved import Origin, read_origin

__all__ = ["Origin", "join_bucket", "read_origin"]
