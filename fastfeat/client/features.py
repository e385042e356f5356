"""What a caller wants to read, recognized again without comparing fifty names at every request."""

from __future__ import annotations

from typing import Any, Final

from ..schema import FeatureService, parse_features

KNOWN_MAX: Final = 256  # feature lists recognized by identity; a caller that makes a new list each time starts over


class Wanted:
    """A feature list or a service's name. Compared by identity: equal requests share one, which keys plans."""

    __slots__ = ("prepare",)

    def __init__(self, prepare: dict[str, Any]) -> None:
        self.prepare = prepare  # the params of PREPARE


class WantedFeatures:
    """Finds the Wanted of what a caller passes as `features`."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[object, list[object] | None, Wanted]] = {}
        self._by_names: dict[object, Wanted] = {}

    def find(self, features: object) -> Wanted:
        """Raises SchemaError: empty, malformed or twice the same feature."""
        known = self._by_id.get(id(features))
        # The entry keeps the object alive, so its id is its own; a list may have changed since, so it is compared.
        if known is not None and (known[1] is None or known[1] == features):
            return known[2]
        wanted = self._find_by_names(features)
        if len(self._by_id) >= KNOWN_MAX:
            self._by_id.clear()
        self._by_id[id(features)] = (features, list(features) if isinstance(features, list) else None, wanted)
        return wanted

    def _find_by_names(self, features: object) -> Wanted:
        if isinstance(features, str) and ":" not in features:
            return self._by_names.setdefault(features, Wanted({"service": features}))
        parts = features.features if isinstance(features, FeatureService) else features
        names = [str(feature) for feature in parse_features(parts, "features")]
        return self._by_names.setdefault(tuple(names), Wanted({"features": names}))
