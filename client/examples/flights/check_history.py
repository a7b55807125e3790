"""What DuckDB makes of the files that `make demo-history` is about, as JSON; fails where Cairn has something else.

    check_history.py rows legs.sql flights.parquet legs.parquet        # history as Cairn has it
    check_history.py dataset legs.sql flights.parquet year.parquet     # a training set of Cairn's
    check_history.py scores scores.parquet                             # scores by model, as a backtest writes them

Shares no code with Cairn but the SQL of the view.
"""

import json
import sys

import duckdb

TTL = "interval '1 day'"  # of the view `legs`
FEATURES = ["legs_1d", "late_legs_1d", "late_share_1d", "last_minutes"]
FROM, WINDOW = "timestamptz '2013-01-01 00:00:00+00'", 7 * 86_400


def main():
    what, *files = sys.argv[1:]
    database = duckdb.connect()
    database.execute("set TimeZone = 'UTC'")
    print(json.dumps({"rows": rows, "dataset": dataset, "scores": scores}[what](database, *files)))


def legs(database, sql, flights):
    database.execute(f"create view source as select * from read_parquet({quoted(flights)})")
    with open(sql) as file:
        database.execute(f"create table legs as {file.read()}")


def rows(database, sql, flights, exported):
    legs(database, sql, flights)
    database.execute(f"create table theirs as select * from read_parquet({quoted(exported)})")
    columns = ", ".join(["tailnum", "event_timestamp", *FEATURES])
    for one, other in [("legs", "theirs"), ("theirs", "legs")]:
        more = f"select {columns} from {one} except all select {columns} from {other}"
        odd = database.execute(f"select count(*), any_value(tailnum) from ({more})").fetchone()
        assert odd[0] == 0, f"{odd[0]} rows of `{one}` are not in `{other}`, one of aircraft {odd[1]}"
    query = "select count(*), sum(legs_1d), sum(late_legs_1d) from legs"
    return dict(zip(["rows", "legs", "late_legs"], map(int, database.execute(query).fetchone())))


def dataset(database, sql, flights, joined):
    legs(database, sql, flights)
    database.execute(f"create table theirs as select * from read_parquet({quoted(joined)})")
    fresh = f"theirs.event_timestamp - legs.event_timestamp <= {TTL}"
    differs = " or ".join(f"theirs.{it} is distinct from case when {fresh} then legs.{it} end" for it in FEATURES)
    join = "theirs asof left join legs on theirs.tailnum = legs.tailnum and theirs.event_timestamp >= legs.event_timestamp"
    odd = database.execute(f"select count(*), any_value(flight_id) from {join} where {differs}").fetchone()
    assert odd[0] == 0, f"{odd[0]} flights have other legs here, one of them flight {odd[1]}"
    # Nothing else of the spine changed, and no row is lost or there twice.
    names = [name for (name, *_) in database.execute("describe source").fetchall()]
    spine = ", ".join(names)
    odd = database.execute(f"select count(*) from (select {spine} from source except all select {spine} from theirs)")
    assert odd.fetchone()[0] == 0, "rows of the spine are missing"
    query = """select count(*), count(legs_1d), (select count(*) from source),
        avg(late::int) filter (where late_legs_1d > 0), avg(late::int) filter (where late_legs_1d = 0) from theirs"""
    count, with_legs, spine, late, others = database.execute(query).fetchone()
    assert count == spine, f"{count} rows of a spine of {spine}"
    return {"rows": count, "with_legs": with_legs, "late_after_late": late, "late_after_none": others}


def scores(database, scores):
    """AUC by model, of all first and then by window: the share of pairs of a late flight and one on time in which the late one
    has the greater score, ties counted half."""
    database.execute(f"create table scores as select * from read_parquet({quoted(scores)}) where late is not null")
    models = [name for (name, *_) in database.execute("describe scores").fetchall() if "@" in name]
    window = f"cast(floor((epoch_us(event_timestamp) - epoch_us({FROM})) / {WINDOW}e6) as int)"
    found = {}
    for model in models:
        found[model] = []
        for part in ["0", window]:
            query = f"""
                with steps as (
                    select {part} as part, "{model}" as score, count(*) filter (where late) as late,
                        count(*) filter (where not late) as others
                    from scores group by all
                ), below as (
                    select *, sum(others) over (partition by part order by score) - others / 2 as fewer from steps
                )
                select cast(sum(late * fewer) as double) / (cast(sum(late) as double) * cast(sum(others) as double))
                from below group by part order by part"""
            found[model] += [auc for (auc,) in database.execute(query).fetchall()]
    return found


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


if __name__ == "__main__":
    main()
