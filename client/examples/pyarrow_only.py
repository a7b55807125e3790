# Ingests, reads and predicts with pyarrow alone. CAIRN_NODE is HOST:PORT of a node with the flights example on it.
import datetime
import json
import os

import pyarrow as pa
import pyarrow.flight as flight

client = flight.connect("grpc://" + os.environ.get("CAIRN_NODE", "127.0.0.1:7700"))
now = pa.array([datetime.datetime.now(datetime.timezone.utc)], pa.timestamp("us", tz="UTC"))


def exchange(rows, **command):
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(json.dumps(command).encode()))
    with writer:
        writer.begin(rows.schema)
        writer.write_batch(rows)  # as many as you like: each gets one batch back
        return reader.read_chunk().data.to_pylist()


weather = pa.record_batch({"origin": ["JFK"], "event_timestamp": now, "temp": [41.0], "wind_speed": [9.2]})
put = flight.FlightDescriptor.for_command(json.dumps({"op": "ingest", "feature_view": "weather"}).encode())
writer, replies = client.do_put(put, weather.schema)
writer.write_batch(weather)
print("ingested", reply := json.loads(replies.read().to_pybytes()))
read = {"level": "session", "token": reply["token"]}  # see what was just written, on any node
print("read", exchange(weather.select(["origin"]), op="get_online_features", features=["weather:temp"], read=read))
trip = {"carrier": ["B6"], "origin": ["JFK"], "dest": ["BOS"], "tailnum": ["N318JB"], "distance": [187.0]}
trip |= {"scheduled_minutes": [75.0], "local_hour": [17.5], "weekday": [4.0]}
print("predicted", exchange(pa.record_batch(trip), op="predict", deployment="flight_delay", read=read))
