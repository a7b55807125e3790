"""Point-in-time join of a training set: Cairn beside Polars `join_asof`, DuckDB ASOF and, where it is installed, pandas.

Each measurement is a process of its own: from the spine's Parquet file to the joined Arrow table in memory. The peers read
history from Parquet, sorted by time as a log would be; Cairn's lies in the segments to which it moved it. All answers
are compared by exact sums and counts. Run it by `make bench-history`; bench/README.md says what the numbers mean.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

FEATURES = 10
TTL_DAYS = 30
DAY_US = 86_400_000_000
YEAR_US = 364 * DAY_US
FIRST_US = 1_735_689_600_000_000  # 2025-01-01
SETTLED_WITHIN_S = 900


def parse():
    here = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here.add_argument("--bin", required=True, help="folder with cairn and cairnd")
    here.add_argument("--folder", help="where data is made [default: a temporary folder, removed at the end]")
    here.add_argument("--entities", type=int, default=100_000)
    here.add_argument("--versions", type=int, default=100, help="rows an entity and view")
    here.add_argument("--spine", type=int, default=1_000_000)
    here.add_argument("--views", default="1,3", help="joins of so many views")
    here.add_argument("--growth", default="", help="also joins of one view with so many times the history: 1,3,10")
    here.add_argument("--rounds", type=int, default=3, help="systems take turns so often; medians are shown")
    here.add_argument("--only", default="cairn,polars,duckdb,pandas")
    here.add_argument("--out", help="every number as a line of JSON")
    here.add_argument("--child", help=argparse.SUPPRESS)
    here.add_argument("--node", help=argparse.SUPPRESS)
    return here.parse_args()


def columns(view):
    return [f"v{view}_f{at}" for at in range(FEATURES)]


# ---- data: functions of row numbers, the same on every machine


def make(folder, entities, versions, spine_rows, views):
    import duckdb

    db = duckdb.connect(config={"threads": 2, "memory_limit": "4GB", "temp_directory": f"{folder}/spill"})
    day = f"make_timestamptz(CAST({FIRST_US} + {{}} AS BIGINT))"
    number = "CAST((hash(i + {}) >> 11) % {} AS BIGINT)"
    for view in range(views):
        path = f"{folder}/view{view}_{versions}.parquet"
        if os.path.exists(path):
            continue
        # One entity in ten is not heard of any more in the second half of the year.
        step = f"(CASE WHEN i // {versions} % 10 = 0 THEN {YEAR_US // versions // 2} ELSE {YEAR_US // versions} END)"
        at = day.format(f"i % {versions} * {step} + CAST((hash(i + {view} * 1000003) >> 11) % {step} AS BIGINT)")
        features = ", ".join(
            f"CAST({number.format((view * 100 + at) * 7_000_003 + 1, 1 << 24)} / 16777216.0 AS FLOAT) AS {name}"
            for at, name in enumerate(columns(view))
        )
        db.execute(
            f"COPY (SELECT CAST(i // {versions} AS BIGINT) AS entity_id, {at} AS event_timestamp, {features} "
            f"FROM range({entities * versions}) AS t(i) ORDER BY event_timestamp) TO '{path}' "
            "(FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE 1000000)"
        )
    path = f"{folder}/spine.parquet"
    if not os.path.exists(path):
        # Some entities are unknown; some times are before all history, some long after it.
        entity = number.format(11, entities * 102 // 100)
        at = day.format(f"{number.format(12, 380 * DAY_US)} - {5 * DAY_US}")
        db.execute(
            f"COPY (SELECT i AS row_id, {entity} AS entity_id, {at} AS event_timestamp FROM range({spine_rows}) AS t(i)) "
            f"TO '{path}' (FORMAT parquet)"
        )


# ---- the systems: each from files to a table in memory


def join_polars(folder, versions, views):
    import polars as pl
    from datetime import timedelta

    joined = pl.scan_parquet(f"{folder}/spine.parquet").sort("event_timestamp")
    for view in range(views):
        history = pl.scan_parquet(f"{folder}/view{view}_{versions}.parquet").set_sorted("event_timestamp")
        joined = joined.join_asof(
            history, on="event_timestamp", by="entity_id", strategy="backward", tolerance=timedelta(days=TTL_DAYS)
        )
    return joined.collect().to_arrow()


def join_duckdb(folder, versions, views):
    import duckdb

    db = duckdb.connect(config={"threads": 2})
    db.execute("SET TimeZone='UTC'")
    chosen, tables = ["s.row_id", "s.entity_id", "s.event_timestamp"], f"read_parquet('{folder}/spine.parquet') s"
    for view in range(views):
        young = f"h{view}.event_timestamp >= s.event_timestamp - INTERVAL {TTL_DAYS} DAY"
        chosen += [f"CASE WHEN {young} THEN h{view}.{name} END AS {name}" for name in columns(view)]
        tables += (
            f" ASOF LEFT JOIN read_parquet('{folder}/view{view}_{versions}.parquet') h{view} "
            f"ON s.entity_id = h{view}.entity_id AND s.event_timestamp >= h{view}.event_timestamp"
        )
    return db.sql(f"SELECT {', '.join(chosen)} FROM {tables}").to_arrow_table()


def join_pandas(folder, versions, views):
    import pandas as pd
    import pyarrow as pa

    joined = pd.read_parquet(f"{folder}/spine.parquet").sort_values("event_timestamp")
    for view in range(views):
        history = pd.read_parquet(f"{folder}/view{view}_{versions}.parquet")
        tolerance = pd.Timedelta(days=TTL_DAYS)
        joined = pd.merge_asof(joined, history, on="event_timestamp", by="entity_id", tolerance=tolerance)
    return pa.Table.from_pandas(joined, preserve_index=False)


def join_cairn(folder, versions, views, node):
    import pyarrow.parquet as pq
    from pyarrow import flight

    spine = pq.read_table(f"{folder}/spine.parquet")
    client = flight.connect(f"grpc://{node}")
    ask = {"op": "get_historical_features", "features": [f"view{view}_{versions}" for view in range(views)]}
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(json.dumps(ask).encode()))
    with writer:
        writer.begin(spine.schema)
        writer.write_table(spine, max_chunksize=65_536)
        writer.done_writing()
        return reader.read_all()


def peak_mib(process):
    with open(f"/proc/{process}/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def cpu_ticks(process):
    with open(f"/proc/{process}/stat") as stat:
        return sum(int(field) for field in stat.read().rpartition(")")[2].split()[11:13])


def child(args):
    """One measurement; prints it as a line of JSON."""
    versions, views = args.versions, int(args.views)
    if args.child == "make":
        return make(args.folder, args.entities, versions, args.spine, views)
    import pyarrow.compute as pc

    __import__({"cairn": "pyarrow.flight"}.get(args.child, args.child))
    __import__("pyarrow.parquet")
    started = time.perf_counter()
    more = [args.node] if args.child == "cairn" else []
    joined = globals()[f"join_{args.child}"](args.folder, versions, views, *more)
    seconds = time.perf_counter() - started
    peak = peak_mib("self")
    checks = []
    for view in range(views):
        for name in columns(view):
            # Every value is a multiple of 2^-24, so the sum is exact.
            values = pc.cast(joined.column(name), "float64")
            checks.append([len(values) - values.null_count, pc.sum(pc.multiply(values, 16777216.0)).as_py()])
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "rows": joined.num_rows, "checks": checks}))


# ---- Cairn's node


class Node:
    def __init__(self, args, folder):
        self.bin, self.folder = args.bin, folder
        free = [socket.socket() for _ in range(2)]
        [one.bind(("127.0.0.1", 0)) for one in free]
        self.ports = [one.getsockname()[1] for one in free]
        [one.close() for one in free]
        self.address = f"127.0.0.1:{self.ports[0]}"
        self.process = None

    def start(self, tiering_interval_s):
        listen = ["--listen", self.address, "--peer-listen", f"127.0.0.1:{self.ports[1]}"]
        more = ["--cache-mib", "64", "--tiering-interval-s", str(tiering_interval_s)]
        command = [f"{self.bin}/cairnd", "--data-dir", f"{self.folder}/node", *listen, *more]
        log = open(f"{self.folder}/cairnd.log", "a")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        while line := self.process.stdout.readline():
            if "cairnd ready" in line:
                return
        raise SystemExit(f"cairnd ended with {self.process.wait()}; see {log.name}")

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def cairn(self, *line):
        said = subprocess.run(
            [f"{self.bin}/cairn", "--node", self.address, *line], capture_output=True, text=True, cwd=self.folder
        )
        if said.returncode:
            raise SystemExit(f"cairn {' '.join(line)}: {said.stderr}")
        return said.stdout

    def fill(self, views, rows):
        """Defines and stores views, and waits until all their history is in segments."""
        text = "kind: Entity\nname: entity\nspec: {join_keys: [{name: entity_id, type: int64}]}\n"
        for name, path, features in views:
            listed = ", ".join(f"{{name: {feature}, type: float32}}" for feature in features)
            text += (
                f"---\nkind: FeatureView\nname: {name}\n"
                f"spec: {{entities: [entity], ttl: {TTL_DAYS}d, hot_window: 1d, features: [{listed}]}}\n"
            )
        with open(f"{self.folder}/views.yaml", "w") as out:
            out.write(text)
        # History moves once it is all there, so that none of it waits for the next step of its window.
        self.start(86_400)
        self.cairn("apply", "-f", "views.yaml")
        started = time.perf_counter()
        for name, path, _ in views:
            self.cairn("ingest", name, path, "--timeout", "600")
        stored = time.perf_counter() - started
        self.stop()
        self.start(1)
        started = time.perf_counter()
        while True:
            segments = json.loads(self.cairn("segments", "--output", "json"))
            segments = segments["segments"] if isinstance(segments, dict) else segments
            if sum(one["rows"] for one in segments) >= rows and all(one["state"] == "alone" for one in segments):
                break
            if time.perf_counter() - started > SETTLED_WITHIN_S:
                raise SystemExit(f"history did not come to segments within {SETTLED_WITHIN_S} s")
            time.sleep(0.5)
        moved = time.perf_counter() - started
        size = sum(one["bytes"] for one in segments) / 2**20
        print(
            f"{rows:,} rows stored in {stored:.0f} s ({rows / stored:,.0f} rows/s), in {len(segments)} segments "
            f"({size:,.0f} MiB) {moved:.0f} s later",
            flush=True,
        )

    def forget_peak(self):
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as out:
            out.write("5")

    def rest(self):
        """Waits until compactions are over."""
        ticks = os.sysconf("SC_CLK_TCK")
        for _ in range(60):
            before = cpu_ticks(self.process.pid)
            time.sleep(1)
            if cpu_ticks(self.process.pid) - before < ticks // 20:
                return


# ---- the run


def median(values):
    return sorted(values)[len(values) // 2]


class Run:
    def __init__(self, args, folder):
        self.args, self.folder, self.node = args, folder, Node(args, folder)
        self.out = open(args.out, "a") if args.out else None

    def note(self, **what):
        if self.out:
            print(json.dumps(what), file=self.out, flush=True)

    def child(self, what, versions, views):
        command = [sys.executable, __file__, "--bin", self.args.bin, "--folder", self.folder, "--child", what]
        command += ["--versions", str(versions), "--views", str(views), "--node", self.node.address]
        command += ["--entities", str(self.args.entities), "--spine", str(self.args.spine)]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(f"{what}: {said.stderr[-2000:]}")
        return said.stdout

    def measure(self, system, versions, views):
        if system == "cairn":
            self.node.forget_peak()
        found = json.loads(self.child(system, versions, views).splitlines()[-1])
        if system == "cairn":
            found["client_mib"], found["node_mib"] = found["peak_mib"], peak_mib(self.node.process.pid)
            found["peak_mib"] = found["client_mib"] + found["node_mib"]
        return found

    def cell(self, systems, versions, views):
        rows, spine = self.args.entities * versions * views, self.args.spine
        print(f"\n{spine:,} spine rows × {rows:,} history rows in {views} view{'s' * (views > 1)}")
        print(f"{'':10} {'seconds':>8} {'rows/s':>12} {'peak MiB':>9}   {'Cairn ÷ it':>10}")
        found = {system: [] for system in systems}
        if "cairn" in systems:
            self.node.rest()
        for number in range(self.args.rounds + 1):
            for system in systems:
                run = self.measure(system, versions, views)
                # In the first round files come into memory.
                if number > 0:
                    found[system].append(run)
        expected = found[systems[0]][0]
        shown = {}
        for system, runs in found.items():
            for run in runs:
                if (run["rows"], run["checks"]) != (expected["rows"], expected["checks"]):
                    raise SystemExit(f"{system} and {systems[0]} differ: {run['checks']} and {expected['checks']}")
            shown[system] = median([run["seconds"] for run in runs]), median([run["peak_mib"] for run in runs])
        for system, (seconds, peak) in shown.items():
            against = ""
            if "cairn" in shown and system != "cairn":
                against = f"{seconds / shown['cairn'][0]:10.2f}   memory {shown['cairn'][1] / peak:.2f}"
            if system == "cairn":
                run = found[system][0]
                against = f"{'':10}   node {run['node_mib']:,.0f}, client {run['client_mib']:,.0f}"
            print(f"{system:10} {seconds:8.2f} {spine / seconds:12,.0f} {peak:9,.0f}   {against}", flush=True)
            self.note(system=system, spine=spine, history=rows, views=views, seconds=seconds, peak_mib=peak)
        return shown

    def all(self):
        args = self.args
        installed = [system for system in args.only.split(",") if system == "cairn" or has(system)]
        left_out = sorted(set(args.only.split(",")) - set(installed))
        if left_out:
            print(f"not installed, so left out: {', '.join(left_out)}")
        counts = [int(count) for count in args.views.split(",")]
        grown = [int(args.versions * float(times)) for times in args.growth.split(",") if times]
        try:
            self.history(args.versions, max(counts), installed, counts)
            for versions in grown:
                self.history(versions, 1, [system for system in installed if system != "pandas"], [1])
        finally:
            self.node.stop()

    def history(self, versions, views, systems, counts):
        self.child("make", versions, views)
        if "cairn" in systems:
            shutil.rmtree(f"{self.folder}/node", ignore_errors=True)
            named = [(f"view{view}_{versions}", f"{self.folder}/view{view}_{versions}.parquet") for view in range(views)]
            defined = [(name, path, columns(view)) for view, (name, path) in enumerate(named)]
            self.node.fill(defined, self.args.entities * versions * views)
        for count in counts:
            self.cell(systems, versions, count)
        self.node.stop()


def has(module):
    try:
        __import__(module)
        return True
    except ImportError:
        return False


def main():
    args = parse()
    args.bin = os.path.abspath(args.bin)
    if args.child:
        return child(args)
    folder = args.folder or tempfile.mkdtemp(prefix="cairn-history-")
    os.makedirs(folder, exist_ok=True)
    try:
        Run(args, os.path.abspath(folder)).all()
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
