"""Definitions as plain values: what the log, the arena's catalogue and INFO hold of them, and back again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from .aggregation import aggregation_from_dict, aggregation_to_dict
from .durations import duration_us
from .errors import SchemaError
from .ondemand import OnDemandFeatureView
from .schema import Entity, FeatureService, FeatureView, Field, WindowView

Definition = Entity | FeatureView | WindowView | OnDemandFeatureView | FeatureService


def definition_dict(view: FeatureView) -> dict[str, Any]:
    """The view as plain values, for INFO and for comparing definitions."""
    keep = view.keep
    return {
        "name": view.name,
        "entity": view.entity.name,
        "join_keys": dict(view.entity.join_keys),
        "fields": [{"name": f.name, "dtype": str(f.dtype), "nullable": f.nullable} for f in view.schema],
        "ttl_us": view.ttl_us,
        "keep": {"duration_us": duration_us(keep)} if isinstance(keep, timedelta) else keep,
        "delay_us": view.delay_us,
        "kind": view.kind,
        "event_id": view.event_id,
        "description": view.description,
        "owner": view.owner,
        "tags": dict(view.tags),
    }


def definitions_to_list(definitions: Iterable[Definition]) -> list[dict[str, Any]]:
    """Definitions as plain values that JSON can hold, in their order; definitions_from_list makes them again."""
    return [definition_to_dict(each) for each in definitions]


def window_dict(view: WindowView) -> dict[str, Any]:
    """The window view as plain values."""
    return {
        "name": view.name,
        "source": view.source.name,
        "features": [aggregation_to_dict(each) for each in view.features],
        "description": view.description,
        "owner": view.owner,
        "tags": dict(view.tags),
    }


def on_demand_dict(view: OnDemandFeatureView) -> dict[str, Any]:
    """The on-demand feature view as plain values."""
    return {
        "name": view.name,
        "inputs": [str(each) for each in view.inputs],
        "request": fields_to_list(view.request),
        "fields": fields_to_list(view.schema),
        "source": view.source,
        "hash": view.hash,
        "description": view.description,
        "owner": view.owner,
        "tags": dict(view.tags),
    }


def definition_to_dict(definition: Definition) -> dict[str, Any]:
    if isinstance(definition, Entity):
        return {"type": "entity", **about(definition), "join_keys": list(map(list, definition.join_keys.items()))}
    if isinstance(definition, FeatureService):
        return {"type": "service", **about(definition), "features": [str(feature) for feature in definition.features]}
    if isinstance(definition, WindowView):
        return {"type": "windows", **window_dict(definition)}
    if isinstance(definition, OnDemandFeatureView):
        return {"type": "on_demand", **on_demand_dict(definition)}
    return {"type": "view", **definition_dict(definition), "fields": fields_to_list(definition.schema)}


def fields_to_list(fields: Iterable[Field]) -> list[dict[str, Any]]:
    return [
        {"name": f.name, "dtype": str(f.dtype), "nullable": f.nullable, "description": f.description} for f in fields
    ]


def fields_from_list(items: Iterable[Mapping[str, Any]]) -> list[Field]:
    return [Field(f["name"], f["dtype"], f["nullable"], f["description"]) for f in items]


def about(definition: Entity | FeatureService) -> dict[str, str]:
    return {"name": definition.name, "description": definition.description, "owner": definition.owner}


def definitions_from_list(items: Iterable[Mapping[str, Any]]) -> list[Definition]:
    """The definitions that definitions_to_list wrote; what others name comes before them.

    Functions of on-demand features are made of the text in it: what is read here is trusted as code is.
    """
    entities: dict[str, Entity] = {}
    views: dict[str, FeatureView] = {}
    out: list[Definition] = []
    for item in items:
        common = {"name": item["name"], "description": item["description"], "owner": item["owner"]}
        if item["type"] == "entity":
            entities[item["name"]] = Entity(join_keys=dict(item["join_keys"]), **common)
            out.append(entities[item["name"]])
        elif item["type"] == "service":
            out.append(FeatureService(features=item["features"], **common))
        elif item["type"] == "windows":
            features = [aggregation_from_dict(each) for each in item["features"]]
            out.append(WindowView(source=views[item["source"]], features=features, tags=item["tags"], **common))
        elif item["type"] == "on_demand":
            out.append(on_demand_from_dict(item, common))
        else:
            views[item["name"]] = view_from_dict(item, entities[item["entity"]], common)
            out.append(views[item["name"]])
    return out


def on_demand_from_dict(item: Mapping[str, Any], common: Mapping[str, str]) -> OnDemandFeatureView:
    """Raises SchemaError: its source is not the one that its hash is of."""
    view = OnDemandFeatureView(
        inputs=item["inputs"],
        request=fields_from_list(item["request"]),
        schema=fields_from_list(item["fields"]),
        source=item["source"],
        tags=item["tags"],
        **common,
    )
    if view.hash != item["hash"]:
        raise SchemaError(
            f"on-demand feature view {view.name!r}: its source has hash {view.hash}, and {item['hash']} was defined;"
            " the text was changed at rest: apply the definition again"
        )
    return view


def view_from_dict(item: Mapping[str, Any], entity: Entity, common: Mapping[str, str]) -> FeatureView:
    keep = item["keep"]
    return FeatureView(
        entity=entity,
        schema=fields_from_list(item["fields"]),
        ttl=None if item["ttl_us"] is None else timedelta(microseconds=item["ttl_us"]),
        keep=timedelta(microseconds=keep["duration_us"]) if isinstance(keep, dict) else keep,
        delay=timedelta(microseconds=item["delay_us"]),
        kind=item["kind"],
        event_id=item.get("event_id"),
        tags=item["tags"],
        **common,
    )
