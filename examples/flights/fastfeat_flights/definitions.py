"""What is known about a flight before it leaves, and the service that a model of late arrivals reads.

A flight leaves an airport (`origin`) on an aircraft (`tailnum`) of an airline (`carrier`). Before it leaves we want to
know the weather, what the aircraft is, and how departures went of late: from this airport, of this aircraft, of this
airline. Two views hold what is true until something newer is, three what happened, and windows are computed over these:

    view                  kind    event_time                      one row per
    weather               state   the hour of the observation     airport and hour
    aircraft              state   start of the year (a registry)  aircraft
    airport_departures    event   the ACTUAL departure            departure
    aircraft_departures   event   the ACTUAL departure            departure
    airline_departures    event   the ACTUAL departure            departure

A read of a state view at T finds the last row with event_time <= T, a window the rows with event_time in [T - w, T). So
the one thing to get right is event_time.

Why the actual departure (the scheduled one plus the delay): a delay is known when the aircraft leaves. Filed under the
scheduled time, a flight that left two hours late would show its delay two hours before anyone could know it, and a
model trained on that would be wrong in production, silently. A cancelled flight never leaves and has no row.

When to ask: to predict a delay, ask before the flight can have left. By its scheduled departure a flight that left
early has left, and the last delay of its aircraft is then its own. `fastfeat demo` counts these, and shows that an hour
earlier there are none.

    fastfeat serve fastfeat_flights.definitions
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fastfeat import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    WindowView,
    on_demand_feature_view,
)

# --- who the features describe -----------------------------------------------------------------------------------

airport = Entity("airport", join_keys={"origin": "string"}, description="Airport of departure: EWR, JFK or LGA")
plane = Entity("plane", join_keys={"tailnum": "string"}, description="Aircraft, by the number on its tail")
airline = Entity("airline", join_keys={"carrier": "string"}, description="Airline, by its two letters")

# --- what is known about them ------------------------------------------------------------------------------------

weather = FeatureView(
    "weather",
    entity=airport,
    ttl=timedelta(hours=3),  # observations come hourly; after three missing ones we no longer know the weather
    schema=[
        Field("temp", "float64", description="Fahrenheit"),
        Field("dewp", "float64", description="dew point, Fahrenheit"),
        Field("humid", "float64", description="relative humidity, percent"),
        Field("wind_dir", "float64", description="degrees; 0 is calm"),
        Field("wind_speed", "float64", description="miles per hour"),
        Field("wind_gust", "float64", description="miles per hour; null when there was none"),
        Field("precip", "float64", description="inches in the hour"),
        Field("pressure", "float64", description="sea level, millibars"),
        Field("visib", "float64", description="visibility, miles"),
    ],
    description="Hourly observations at the airport",
)

aircraft = FeatureView(
    "aircraft",
    entity=plane,
    keep="latest",  # a registry: only the current entry matters
    schema=[
        Field("built", "int32", description="year of manufacture"),
        Field("manufacturer", "string", nullable=False),
        Field("model", "string", nullable=False),
        Field("engines", "int32", nullable=False),
        Field("seats", "int32", nullable=False),
    ],
    description="Registry entries; 721 of the 4,043 tail numbers have none",
)

# --- what happened: one row per departure, under each of the three that it belongs to -----------------------------

airport_departures = FeatureView(
    "airport_departures",
    entity=airport,
    kind="event",
    schema=[
        Field("minutes", "float64", nullable=False, description="how late it left; negative is early"),
        Field("carrier", "string", nullable=False, description="the airline that left"),
    ],
    description="Departures from an airport",
)

aircraft_departures = FeatureView(
    "aircraft_departures",
    entity=plane,
    kind="event",
    schema=[
        Field("minutes", "float64", nullable=False, description="how late it left; negative is early"),
        Field("origin_left", "string", nullable=False, description="the airport it left"),
    ],
    description="Departures of an aircraft from New York",
)

airline_departures = FeatureView(
    "airline_departures",
    entity=airline,
    kind="event",
    schema=[
        Field("minutes", "float64", nullable=False, description="how late it left; negative is early"),
        Field("origin_left", "string", nullable=False, description="the airport it left"),
    ],
    description="Departures of an airline from New York",
)

# --- windows over what happened: exact at every instant, and nothing to fill in beforehand -------------------------

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

airport_delays = WindowView(
    "airport_delays",
    source=airport_departures,
    features=[
        Aggregation("minutes", "mean", HOUR),
        Aggregation("minutes", "mean", 3 * HOUR),
        Aggregation("minutes", "mean", DAY, name="minutes_mean_24h"),
        Aggregation(None, "count", HOUR, where=("minutes", ">", 15), name="late_1h"),
    ],
    description="How late flights left this airport; how many over 15 minutes",
)

aircraft_delays = WindowView(
    "aircraft_delays",
    source=aircraft_departures,
    features=[Aggregation("minutes", "last", DAY, name="minutes_last_24h")],
    description="How late this aircraft last left, within a day",
)

airline_traffic = WindowView(
    "airline_traffic",
    source=airline_departures,
    features=[
        Aggregation(None, "count", HOUR, name="flights_1h"),
        Aggregation(None, "count", DAY, name="flights_24h"),
        Aggregation("minutes", "mean", 3 * HOUR),
    ],
    description="How many flights of this airline left, and how late",
)

# --- what the request itself says: a function of its fields, the same one online and for training ------------------


@on_demand_feature_view(
    request=[Field("scheduled", "timestamp", nullable=False, description="when the flight is to leave")],
    schema=[Field("is_night", "bool"), Field("hour", "int64", description="in New York, standard time all year")],
    description="The clock at the scheduled departure; night is 21 to 6",
)
def departure_clock(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    hour = (inputs["scheduled"] // 3_600_000_000 - 5) % 24  # timestamps are int64 microseconds UTC
    return {"is_night": (hour >= 21) | (hour < 6), "hour": hour}


# --- what the model reads, in the order of its columns -----------------------------------------------------------

late_arrival = FeatureService(
    "late_arrival",
    [
        weather,
        aircraft["built"],
        aircraft["engines"],
        aircraft["seats"],
        airport_delays,
        aircraft_delays,
        airline_traffic,
        departure_clock,
    ],
    description="Everything a model of late arrivals needs; all columns are numbers",
)
