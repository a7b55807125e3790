"""SQL beside serving, on one node: what queries and backtests do to online reads, what a scan of history takes beside
DataFusion on the very same Parquet files, and what an as-of online read takes beside a latest one.

What is compared takes turns, round by round; medians and the ratio are shown. Run it by `make bench-sql`; bench/README.md
says what the numbers mean.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

FEATURES = 10
DAY_US = 86_400_000_000
YEAR_US = 364 * DAY_US
FIRST_US = 1_735_689_600_000_000  # 2025-01-01
SETTLED_WITHIN_S = 900
# What one client may be busy with beside reads, and how long it may take to end.
ENDS_WITHIN_S = 120
# The inputs of the flights example's trees, in order.
INPUTS = (
    "hour_sin hour_cos weekday_sin weekday_cos log_distance scheduled_speed dew_point_spread gust_excess "
    "route_against_carrier origin_trend temp humid wind_speed precip pressure visib built engines seats "
    "carrier_arr_delay_1d carrier_late_share_1d carrier_late_share_7d origin_flights_1d origin_dep_delay_1d "
    "origin_late_share_1d route_flights_7d route_arr_delay_1d route_arr_delay_7d route_late_share_7d"
).split()
ONLINE = [f"f{at:02}" for at in range(27)]
COLUMNS = [f"f{at}" for at in range(FEATURES)]
SUMS = "count(*) as n, " + ", ".join(f"sum({name}) as {name}" for name in COLUMNS)
ALL = ", ".join(["user_id", "event_timestamp", "created_timestamp", "committed_timestamp", "deleted", *COLUMNS])


def parse():
    here = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    here.add_argument("--bin", required=True, help="folder with cairn, cairnd and cairn-bench")
    here.add_argument("--folder", help="where data is made [default: a temporary folder, removed at the end]")
    here.add_argument("--entities", type=int, default=30_000)
    here.add_argument("--versions", type=int, default=100, help="rows of history an entity")
    here.add_argument("--spine", type=int, default=200_000, help="rows of the backtest")
    here.add_argument("--rounds", type=int, default=5, help="what is compared takes turns so often")
    here.add_argument("--seconds", type=float, default=6.0, help="of online reads in a round")
    here.add_argument("--rate", type=int, default=200, help="online requests a second beside SQL, of 100 entities each")
    here.add_argument("--only", default="scan,as_of,beside")
    here.add_argument("--out", help="every number as a line of JSON")
    here.add_argument("--child", help=argparse.SUPPRESS)
    here.add_argument("--node", help=argparse.SUPPRESS)
    here.add_argument("--view", help=argparse.SUPPRESS)
    return here.parse_args()


# ---- data: functions of row numbers, the same on every machine


def make(folder, entities, versions, spine):
    import duckdb

    db = duckdb.connect(config={"threads": 2, "memory_limit": "4GB", "temp_directory": f"{folder}/spill"})
    number = "CAST((hash(i + {}) >> 11) % {} AS BIGINT)"
    share = "CAST({} / 16777216.0 AS {})"

    def values(names, seed, kind):
        one = lambda at: share.format(number.format((seed + at) * 7_000_003 + 1, 1 << 24), kind)
        return ", ".join(f"{one(at)} AS {name}" for at, name in enumerate(names))

    def write(name, rows, key, at, columns):
        time = f"make_timestamptz(CAST({at} AS BIGINT)) AS event_timestamp"
        chosen = f"SELECT CAST({key} AS BIGINT) AS user_id, {time}, {columns} FROM range({rows}) AS t(i)"
        db.execute(f"COPY ({chosen} ORDER BY event_timestamp) TO '{folder}/{name}.parquet' (FORMAT parquet)")

    step = YEAR_US // versions
    at = f"{FIRST_US} + i % {versions} * {step} + " + number.format(5, step)
    write("history", entities * versions, f"i // {versions}", at, values(COLUMNS, 0, "DOUBLE"))
    write("online", entities, "i", FIRST_US + YEAR_US, values(ONLINE, 100, "FLOAT"))
    write("flights", entities, "i", FIRST_US, values(INPUTS, 200, "FLOAT"))
    late = f"{number.format(7, 2)} = 1 AS late"
    write("spine", spine, number.format(11, entities), f"{FIRST_US} + {number.format(12, YEAR_US)} + 1", late)


# ---- measured in processes of their own


def cairn_query(node, sql):
    import adbc_driver_flightsql.dbapi as flightsql

    options = {"adbc.flight.sql.client_option.with_max_msg_size": str(64 << 20)}
    with flightsql.connect(f"grpc://{node}", db_kwargs=options, autocommit=True) as db, db.cursor() as cursor:
        started = time.perf_counter()
        cursor.execute(sql)
        rows = cursor.fetch_arrow_table()
        return rows, time.perf_counter() - started


def datafusion_query(folder, sql, partitions):
    from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext

    context = SessionContext(SessionConfig().with_target_partitions(partitions), RuntimeEnvBuilder())
    started = time.perf_counter()
    context.register_parquet("history", f"{folder}/segments")
    rows = context.sql(sql).to_arrow_table()
    return rows, time.perf_counter() - started


def duckdb_query(folder, sql, threads):
    import duckdb

    db = duckdb.connect(config={"threads": threads})
    started = time.perf_counter()
    rows = db.sql(sql.replace(" history", f" read_parquet('{folder}/segments/*.parquet')")).to_arrow_table()
    return rows, time.perf_counter() - started


def child(args):
    """One scan; prints what it found as a line of JSON."""
    what, form = args.child.split("-")
    if what == "make":
        return make(args.folder, args.entities, args.versions, args.spine)
    import pyarrow.compute as pc

    # Cairn's queries step back behind everything else on the machine, so the peers do, too.
    if what != "cairn":
        os.nice(10)
    sql = f"select {SUMS if form == 'sums' else ALL} from "
    if what == "cairn":
        rows, seconds = cairn_query(args.node, f"{sql} history('{args.view}')")
    elif what == "duckdb":
        rows, seconds = duckdb_query(args.folder, f"{sql} history", 2)
    else:
        rows, seconds = datafusion_query(args.folder, f"{sql} history", int(what.removeprefix("datafusion")))
    # Every value is a multiple of 2^-24, so sums are exact.
    if form == "sums":
        found = [rows.column("n")[0].as_py(), *(rows.column(name)[0].as_py() for name in COLUMNS)]
    else:
        found = [rows.num_rows, *(pc.sum(rows.column(name)).as_py() for name in COLUMNS)]
    print(json.dumps({"seconds": seconds, "found": found}))


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
        more = ["--tiering-interval-s", str(tiering_interval_s)]
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

    def command(self, *line):
        return [f"{self.bin}/cairn", "--node", self.address, "--timeout", "600", *line]

    def cairn(self, *line):
        said = subprocess.run(self.command(*line), capture_output=True, text=True, cwd=self.folder)
        if said.returncode:
            raise SystemExit(f"cairn {' '.join(line)}: {said.stderr}")
        return said.stdout

    def fill(self, rows):
        """Defines and stores everything, and waits until the history that is to be in segments is there."""
        text = "kind: Entity\nname: user\nspec: {join_keys: [{name: user_id, type: int64}]}\n"

        def view(name, features, kind, more=""):
            listed = ", ".join(f"{{name: {feature}, type: {kind}}}" for feature in features)
            return f"---\nkind: FeatureView\nname: {name}\nspec: {{entities: [user], {more}features: [{listed}]}}\n"

        text += view("cold", COLUMNS, "float64", "hot_window: 1d, ") + view("hot", COLUMNS, "float64")
        text += view("online", ONLINE, "float32") + view("flights", INPUTS, "float32")
        text += '---\nkind: FeatureService\nname: flights\nspec: {features: ["flights"]}\n'
        text += "---\nkind: Model\nname: delay\nspec: {feature_service: flights}\n"
        with open(f"{self.folder}/views.yaml", "w") as out:
            out.write(text)
        # History moves once it is all there, so that none of it waits for the next step of its window.
        self.start(86_400)
        self.cairn("apply", "-f", "views.yaml")
        for name, path in [("cold", "history"), ("hot", "history"), ("online", "online"), ("flights", "flights")]:
            self.cairn("ingest", name, f"{path}.parquet")
        self.stop()
        self.start(1)
        started = time.perf_counter()
        while True:
            found = json.loads(self.cairn("segments", "--output", "json"))
            segments = found["segments"] if isinstance(found, dict) else found
            if sum(one["rows"] for one in segments) >= rows and all(one["state"] == "alone" for one in segments):
                break
            if time.perf_counter() - started > SETTLED_WITHIN_S:
                raise SystemExit(f"history did not come to segments within {SETTLED_WITHIN_S} s")
            time.sleep(0.5)
        size = sum(one["bytes"] for one in segments) / 2**20
        print(f"{rows:,} rows of history in {len(segments)} segments ({size:,.0f} MiB), and as many in the database", flush=True)
        shutil.rmtree(f"{self.folder}/segments", ignore_errors=True)
        self.cairn("segments", "--view", "cold", "--fetch", "segments")

    def rest(self):
        """Waits until compactions are over."""
        ticks = os.sysconf("SC_CLK_TCK")
        for _ in range(60):
            before = cpu_ticks(self.process.pid)
            time.sleep(1)
            if cpu_ticks(self.process.pid) - before < ticks // 20:
                return


def cpu_ticks(process):
    with open(f"/proc/{process}/stat") as stat:
        return sum(int(field) for field in stat.read().rpartition(")")[2].split()[11:13])


class Beside:
    """A command run over and over while something else is measured."""

    def __init__(self, command, folder):
        self.command, self.folder = command, folder
        self.done, self.failed, self.ending = 0, None, threading.Event()
        self.begun = threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()
        self.begun.wait(ENDS_WITHIN_S)
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.process.terminate()
        self.thread.join(ENDS_WITHIN_S)

    def loop(self):
        while not self.ending.is_set():
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=self.folder
            )
            self.begun.set()
            _, errors = self.process.communicate()
            if self.ending.is_set():
                return
            if self.process.returncode:
                self.failed = errors
                return
            self.done += 1


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

    def child(self, what, view=""):
        args = self.args
        command = [sys.executable, __file__, "--bin", args.bin, "--folder", self.folder, "--child", what]
        command += ["--node", self.node.address, "--view", view, "--entities", str(args.entities)]
        command += ["--versions", str(args.versions), "--spine", str(args.spine)]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(f"{what}: {said.stderr[-2000:]}")
        return said.stdout

    def paced(self, view, rate, as_of_us=None):
        """Latencies of online reads, microseconds."""
        args = self.args
        command = [f"{args.bin}/cairn-bench", "paced", "--node", self.node.address, "--view", view]
        command += ["--entities", str(args.entities), "--rate", str(rate), "--seconds", str(args.seconds)]
        command += [] if as_of_us is None else ["--as-of-us", str(as_of_us)]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(f"reads of `{view}`: {said.stderr}")
        return json.loads(said.stdout)

    def all(self):
        args = self.args
        rows = args.entities * args.versions
        self.child("make-all")
        shutil.rmtree(f"{self.folder}/node", ignore_errors=True)
        try:
            self.node.fill(rows)
            self.node.rest()
            for section in args.only.split(","):
                getattr(self, section)()
        finally:
            self.node.stop()

    # Scans of history.
    def scan(self):
        rows = self.args.entities * self.args.versions
        systems = [("Cairn, segments", "cairn", "cold"), ("Cairn, database", "cairn", "hot")]
        if has("datafusion"):
            systems += [("DataFusion, 1 partition", "datafusion1", ""), ("DataFusion, 2 partitions", "datafusion2", "")]
        else:
            print("datafusion is not installed, so left out")
        systems += [("DuckDB, 2 threads", "duckdb", "")]
        for form, title in [("sums", "count and sum of each feature"), ("rows", "all rows, fetched")]:
            print(f"\nhistory, {rows:,} rows × {FEATURES} float64 features: {title}")
            print(f"{'':26} {'seconds':>8} {'rows/s':>12}   {'Cairn in segments ÷ it':>22}")
            found = {name: [] for name, *_ in systems}
            expected = None
            for number in range(self.args.rounds + 1):
                for name, what, view in systems:
                    run = json.loads(self.child(f"{what}-{form}", view).splitlines()[-1])
                    expected = expected or run["found"]
                    if run["found"] != expected or expected[0] != rows:
                        raise SystemExit(f"{name} finds {run['found']}, not {expected}")
                    # In the first round files come into memory.
                    if number > 0:
                        found[name].append(run["seconds"])
            ours = median(found[systems[0][0]])
            for name, runs in found.items():
                seconds = median(runs)
                ratio = ours / seconds
                print(f"{name:26} {seconds:8.3f} {rows / seconds:12,.0f}   {ratio:22.2f}", flush=True)
                self.note(
                    section="scan", form=form, system=name, rows=rows, seconds=seconds, all=runs, cairn_over_it=ratio
                )

    # As-of reads beside latest ones.
    def as_of(self):
        now_us, past_us = int(time.time() * 1e6), FIRST_US + YEAR_US * 2 // 3
        cells = [("latest", None), ("as of now", now_us), ("as of the past", past_us)]
        for view, where in [("hot", "in the database"), ("cold", "in segments")]:
            print(f"\nonline reads of 100 entities × {FEATURES} features, 8 clients, history {where}")
            print(f"{'':16} {'requests/s':>10} {'p50 µs':>9} {'p99 µs':>9}   {'it ÷ latest, p50':>16} {'p99':>6}")
            found = {name: [] for name, _ in cells}
            for number in range(self.args.rounds + 1):
                for name, as_of_us in cells:
                    run = self.paced(view, 0, as_of_us)
                    if number > 0:
                        found[name].append(run)
            latest = [median([run[what] for run in found["latest"]]) for what in ("p50_us", "p99_us")]
            for name, runs in found.items():
                rate, p50, p99 = (median([run[what] for run in runs]) for what in ("requests_per_s", "p50_us", "p99_us"))
                ratios = p50 / latest[0], p99 / latest[1]
                print(f"{name:16} {rate:10,.0f} {p50:9,.0f} {p99:9,.0f}   {ratios[0]:16.2f} {ratios[1]:6.2f}", flush=True)
                self.note(
                    section="as_of", history=view, read=name, requests_per_s=rate, p50_us=p50, p99_us=p99,
                    over_latest_p50=ratios[0], over_latest_p99=ratios[1],
                )  # fmt: skip

    # Online reads while something else is asked.
    def beside(self):
        args, node = self.args, self.node
        model = os.path.join(os.path.dirname(__file__), "../../client/examples/flights/models/delay_trees.onnx")
        node.cairn("model", "register", "delay", os.path.abspath(model), "--service", "flights")
        when = ["--from", str(FIRST_US), "--to", str(FIRST_US + YEAR_US + 2)]
        loads = {
            "a scan in SQL": node.command("sql", f"select {SUMS} from history('cold')"),
            "a scan of the database": node.command("sql", f"select {SUMS} from history('hot')"),
            "a backtest": node.command("backtest", "--models", "delay@1", *when, "--label", "late", "spine.parquet"),
        }
        print(
            f"\nonline reads of 100 entities × {len(ONLINE)} features, 8 clients, {args.rate} requests/s in all, "
            f"{args.seconds:.0f} s a round"
        )
        print(f"{'beside':24} {'p50 µs':>9} {'p99 µs':>9}   {'it ÷ alone, p50':>15} {'p99':>6} {'times':>6}")
        alone, found = [], {name: [] for name in loads}
        done = dict.fromkeys(loads, 0)
        self.paced("online", args.rate)
        for _ in range(args.rounds):
            for name, command in loads.items():
                alone.append(self.paced("online", args.rate))
                with Beside(command, self.folder) as load:
                    run = self.paced("online", args.rate)
                if load.failed is not None:
                    raise SystemExit(f"{' '.join(command)}: {load.failed}")
                found[name].append(run)
                done[name] += load.done
        still = [median([run[what] for run in alone]) for what in ("p50_us", "p99_us")]
        for name, runs in {"nothing": alone, **found}.items():
            p50, p99 = (median([run[what] for run in runs]) for what in ("p50_us", "p99_us"))
            ratios = p50 / still[0], p99 / still[1]
            times = done.get(name, 0)
            print(f"{name:24} {p50:9,.0f} {p99:9,.0f}   {ratios[0]:15.2f} {ratios[1]:6.2f} {times:6}", flush=True)
            self.note(
                section="beside", beside=name, rate=args.rate, p50_us=p50, p99_us=p99, over_alone_p50=ratios[0],
                over_alone_p99=ratios[1], times=times, p99s_us=[run["p99_us"] for run in runs],
            )  # fmt: skip


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
    folder = args.folder or tempfile.mkdtemp(prefix="cairn-sql-")
    os.makedirs(folder, exist_ok=True)
    try:
        Run(args, os.path.abspath(folder)).all()
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)


main()
