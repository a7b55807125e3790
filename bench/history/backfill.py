"""A backfill of history from a Parquet file: Cairn beside DuckDB, which reads the same file and writes it again.

DuckDB writes the rows as they come, and sorted as history lies: by entity, newest first. Cairn's time is that of its job,
from the moment it begins to the one in which the view is served. Run it by `make bench-backfill`.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time

import run


def parse():
    here = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here.add_argument("--bin", required=True, help="folder with cairn and cairnd")
    here.add_argument("--folder", help="where data is made [default: a temporary folder, removed at the end]")
    here.add_argument("--entities", type=int, default=100_000)
    here.add_argument("--versions", type=int, default=50, help="rows an entity")
    here.add_argument("--rounds", type=int, default=3, help="systems take turns so often; medians are shown")
    here.add_argument("--chunk", help="event time of one chunk, such as 30d [default: what the node suggests]")
    here.add_argument("--out", help="every number as a line of JSON")
    return here.parse_args()


def write(source, target, order):
    import duckdb

    started = time.perf_counter()
    db = duckdb.connect(config={"threads": 2})
    ordered = "ORDER BY entity_id, event_timestamp DESC" if order else ""
    db.execute(f"COPY (SELECT * FROM read_parquet('{source}') {ordered}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - started


def definitions(path):
    listed = ", ".join(f"{{name: {feature}, type: float32}}" for feature in run.columns(0))
    return (
        "kind: Entity\nname: entity\nspec: {join_keys: [{name: entity_id, type: int64}]}\n---\nkind: FeatureView\n"
        f"name: filled\nspec: {{entities: [entity], features: [{listed}], source: {{path: '{path}'}}}}\n"
    )


def backfill(args, folder, source, rows):
    node = run.Node(args, folder)
    try:
        node.start(60)
        with open(f"{folder}/filled.yaml", "w") as out:
            out.write(definitions(source))
        node.cairn("apply", "-f", "filled.yaml")
        chunk = ["--chunk", args.chunk] if args.chunk else []
        node.cairn("backfill", "filled", "--from", "2024-12-01T00:00:00Z", "--to", "2026-02-01T00:00:00Z", *chunk)
        [job] = json.loads(node.cairn("jobs", "--output", "json"))["jobs"]
        if job["state"] != "done" or job["rows"] != rows:
            raise SystemExit(f"the job ended as {job}")
        counted = node.cairn("sql", "select count(*) as n from history('filled')", "--output", "json")
        if str(rows) not in counted:
            raise SystemExit(f"{rows} rows were filled and {counted} are there")
        return job, run.peak_mib(node.process.pid)
    finally:
        node.stop()
        shutil.rmtree(f"{folder}/node", ignore_errors=True)


def main():
    args = parse()
    folder = args.folder or tempfile.mkdtemp(prefix="cairn-backfill-")
    os.makedirs(folder, exist_ok=True)
    rows = args.entities * args.versions
    run.make(folder, args.entities, args.versions, 10, 1)
    source = f"{folder}/view0_{args.versions}.parquet"
    took = {"DuckDB, as they come": [], "DuckDB, sorted": [], "Cairn": []}
    peak = 0
    for _ in range(args.rounds):
        took["DuckDB, as they come"].append(write(source, f"{folder}/written.parquet", False))
        took["DuckDB, sorted"].append(write(source, f"{folder}/written.parquet", True))
        job, peak = backfill(args, folder, source, rows)
        took["Cairn"].append(seconds(job))
    best = {name: run.median(times) for name, times in took.items()}
    print(f"{rows:,} rows of {run.FEATURES} float32 features, {os.path.getsize(source) / 2**20:,.0f} MiB of Parquet")
    for name, time_s in best.items():
        share = best["DuckDB, as they come"] / time_s
        sorted_share = best["DuckDB, sorted"] / time_s
        print(
            f"{name:22} {time_s:7.2f} s  {rows / time_s:10,.0f} rows/s  {share:5.2f} of DuckDB's as they come, "
            f"{sorted_share:5.2f} of DuckDB's sorted"
        )
    print(f"Cairn's node took {peak:,.0f} MiB at most")
    if args.out:
        with open(args.out, "a") as out:
            for name, time_s in best.items():
                print(json.dumps({"kind": "backfill", "system": name, "rows": rows, "seconds": time_s}), file=out)
    if not args.folder:
        shutil.rmtree(folder)


def seconds(job):
    from datetime import datetime

    begun, ended = (datetime.fromisoformat(job[name].replace("Z", "+00:00")) for name in ("begun", "ended"))
    return (ended - begun).total_seconds()


if __name__ == "__main__":
    sys.exit(main())
