# Ingests, reads and predicts with pyarrow alone. CAIRN_NODE is HOST:PORT of a node with the flights example on it.
import datetime
import json
import os

from pyarrow import flight, record_batch

client = flight.connect("grpc://" + os.environ.get("CAIRN_NODE", "127.0.0.1:7700"))


def exchange(rows, **command):
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(json.dumps(command).encode()))
    with writer:
        writer.begin(rows.schema)
        writer.write_batch(rows)  # as many as you like: each gets one batch back
        return reader.read_chunk().data.to_pylist()


plane = {"tailnum": ["N318JB"], "event_timestamp": [datetime.datetime.now(datetime.timezone.utc)], "built": [2015.0]}
plane |= {"engines": [2], "seats": [200], "type": ["Fixed wing multi engine"], "manufacturer": ["AIRBUS"]}
plane = record_batch(plane | {"model": ["A321-231"]})
put = flight.FlightDescriptor.for_command(json.dumps({"op": "ingest", "feature_view": "plane_facts"}).encode())
writer, replies = client.do_put(put, plane.schema)
writer.write_batch(plane)
print("ingested", reply := json.loads(replies.read().to_pybytes()))
read = {"level": "session", "token": reply["token"]}  # see what was just written, on any node
print("read", exchange(plane.select(["tailnum"]), op="get_online_features", features=["plane_facts:model"], read=read))
trip = {"carrier": ["B6"], "origin": ["JFK"], "dest": ["BOS"], "tailnum": ["N318JB"], "distance": [187.0]}
trip |= {"scheduled_minutes": [75.0], "local_hour": [17.5], "weekday": [4.0]}
print("predicted", exchange(record_batch(trip), op="predict", deployment="flight_delay", read=read))
