"""What is known about a flight before it leaves: four views and the service that a delay model reads.

A flight leaves an airport (`origin`) on an aircraft (`tailnum`). At its scheduled departure we want to know the
weather at the airport, what the aircraft is, and how late the last departures were: of this aircraft, and of
this airport. Each view answers "the last row with event_time <= T", so the one thing to get right is event_time:

    view                  event_time                      one row per
    weather               the hour of the observation     airport and hour
    aircraft              start of the year (a registry)  aircraft
    last_aircraft_delay   the ACTUAL departure            departure
    last_airport_delay    the ACTUAL departure            departure

Why the actual departure: a delay is known when the aircraft leaves. Filed under the scheduled time, a flight that left
two hours late would show its delay two hours before anyone could know it, and a model trained on that would be wrong
in production, silently.

When to ask: to predict a delay, ask before the flight can have left. By its scheduled departure a flight that left
early has left, and the last delay of its aircraft is then its own. `fastfeat demo` counts these, and shows that an hour
earlier there are none.

    fastfeat serve fastfeat_flights.definitions
"""

from __future__ import annotations

from datetime import timedelta

from fastfeat import Entity, FeatureService, FeatureView, Field

# --- who the features describe -----------------------------------------------------------------------------------

airport = Entity("airport", join_keys={"origin": "string"}, description="Airport of departure: EWR, JFK or LGA")
plane = Entity("plane", join_keys={"tailnum": "string"}, description="Aircraft, by the number on its tail")

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
    description="The registry entry of an aircraft; 721 of the 4,043 tail numbers have none",
)

last_aircraft_delay = FeatureView(
    "last_aircraft_delay",
    entity=plane,
    schema=[
        Field("minutes", "float64", nullable=False, description="of the last departure; negative is early"),
        Field("origin_left", "string", nullable=False, description="the airport it left"),
    ],
    description="How late this aircraft last left New York",
)

last_airport_delay = FeatureView(
    "last_airport_delay",
    entity=airport,
    schema=[
        Field("minutes", "float64", nullable=False, description="of the last departure; negative is early"),
        Field("carrier", "string", nullable=False, description="the airline that left"),
    ],
    description="How late the last flight left this airport",
)

# --- what the model reads, in the order of its columns -----------------------------------------------------------

departure_delay = FeatureService(
    "departure_delay",
    [
        weather,
        aircraft["built"],
        aircraft["engines"],
        aircraft["seats"],
        last_aircraft_delay["minutes"],
        last_airport_delay["minutes"],
    ],
    description="Everything a departure delay model needs; all columns are numbers",
)
