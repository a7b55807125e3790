"""Trains the two shipped models on training sets that a running Cairn node builds, and writes models/ and metrics.json.

    CAIRN_NODE=127.0.0.1:7700 python train.py

The node holds the definitions and all the data of this example (`make demo KEEP=1` leaves such a node running).
January to November train, December is held out; each flight's features are those known at its scheduled departure.
Both models read one float32 tensor `features` [rows, features], null as NaN, columns in the feature service's order.
"""

import json
import os
import platform
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxmltools
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight
import pyarrow.parquet as pq
import sklearn
import xgboost
from onnx import TensorProto, helper, numpy_helper
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).parent
SEED = 2013
SPINE = [
    "flight_id",
    "event_timestamp",
    "carrier",
    "origin",
    "dest",
    "tailnum",
    "distance",
    "scheduled_minutes",
    "local_hour",
    "weekday",
    "month",
    "late",
]


def main():
    node = os.environ.get("CAIRN_NODE") or sys.exit("set CAIRN_NODE to HOST:PORT of a node with this example's data")
    table, token = training_set(node, spine())
    train_and_write(table, token)


def spine():
    """Every flight that arrived; the others have no label."""
    flights = pq.read_table(HERE / "data/flights.parquet", columns=SPINE)
    return flights.filter(pc.is_valid(flights["late"]))


def training_set(node, rows):
    """The spine with the features of service `flight_delay` as of each row's own time, and the token it came with."""
    client = flight.connect(f"grpc://{node}")
    command = {"op": "get_historical_features", "feature_service": "flight_delay"}
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(json.dumps(command).encode()))

    def send():
        writer.begin(rows.schema)
        for batch in rows.to_batches(max_chunksize=32_768):
            writer.write_batch(batch)
        writer.done_writing()

    sender = threading.Thread(target=send)
    sender.start()  # answers may start before the last question is sent
    batches, token = [], ""
    for chunk in reader:
        if chunk.data is not None and chunk.data.num_rows:
            batches.append(chunk.data)
        if chunk.app_metadata:
            token = json.loads(chunk.app_metadata.to_pybytes()).get("token") or token
    sender.join()
    writer.close()
    client.close()
    return pa.Table.from_batches(batches), token


def train_and_write(table, token):
    names = [name for name in table.column_names if name not in SPINE]
    month = table["month"].to_numpy()
    features = np.column_stack([column(table[name]) for name in names])
    late = table["late"].to_numpy(zero_copy_only=False).astype(np.int64)
    train, test = month < 12, month == 12
    print(f"{train.sum():,} rows to train, {test.sum():,} held out, {len(names)} features")

    (HERE / "models").mkdir(exist_ok=True)
    models = {
        "delay_trees": train_trees(features[train], late[train]),
        "delay_mlp": train_mlp(features[train], late[train]),
    }
    results = {}
    for name, (graph, own_answer) in models.items():
        path = HERE / f"models/{name}.onnx"
        onnx.checker.check_model(graph)
        path.write_bytes(graph.SerializeToString(deterministic=True))
        probability = run_onnx(path, features[test])
        worst = np.abs(probability - own_answer(features[test])).max()
        assert worst < 1e-5, f"{name}: the exported model is {worst} away from the trained one"
        results[name] = {
            "auc": round(float(roc_auc_score(late[test], probability)), 6),
            "log_loss": round(float(log_loss(late[test], probability)), 6),
            "bytes": path.stat().st_size,
        }
        print(f"{name}: {results[name]}")
    base_rate = np.full(test.sum(), late[train].mean())
    summary = {
        "models": results,
        "hold_out": "December 2013, every flight that arrived, measured by onnxruntime",
        "train_rows": int(train.sum()),
        "test_rows": int(test.sum()),
        "late_share_train": round(float(late[train].mean()), 6),
        "late_share_test": round(float(late[test].mean()), 6),
        "log_loss_of_the_base_rate": round(float(log_loss(late[test], base_rate)), 6),
        "features": names,
        "training_set_token": token,
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            **{it.__name__: it.__version__ for it in (np, pa, sklearn, xgboost, onnx, onnxmltools, onnxruntime)},
        },
    }
    (HERE / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")


def column(values):
    return values.cast(pa.float32()).to_numpy(zero_copy_only=False)


def train_trees(features, late):
    model = xgboost.XGBClassifier(
        n_estimators=200,
        max_depth=6,
        learning_rate=0.06,
        min_child_weight=200,
        subsample=0.8,
        colsample_bytree=0.6,
        reg_lambda=5.0,
        tree_method="hist",
        random_state=SEED,
    )
    model.fit(features, late)
    graph = onnxmltools.convert_xgboost(
        model, "delay_trees", initial_types=[("features", FloatTensorType([None, features.shape[1]]))], target_opset=15
    )
    return graph, lambda rows: model.predict_proba(rows)[:, 1]


def train_mlp(features, late):
    mean, deviation = np.nanmean(features, axis=0), np.nanstd(features, axis=0)
    deviation = np.where(deviation > 0, deviation, 1)

    def prepare(rows):
        return np.where(np.isnan(rows), 0, (rows - mean) / deviation)

    model = MLPClassifier(
        hidden_layer_sizes=(64, 32),
        alpha=1e-3,
        batch_size=1024,
        learning_rate_init=1e-3,
        max_iter=12,
        random_state=SEED,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed number of passes is wanted here, not convergence
        model.fit(prepare(features.astype(np.float64)), late)
    return mlp_graph(model, mean, deviation), lambda rows: model.predict_proba(prepare(rows.astype(np.float64)))[:, 1]


def mlp_graph(model, mean, deviation):
    """The network as a PyTorch exporter would write it, with scaling and imputation (missing = mean) inside."""
    constants = {
        "mean": mean.astype(np.float32),
        "deviation": deviation.astype(np.float32),
        "zero": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["scaled"]),
        helper.make_node("Where", ["missing", "zero", "scaled"], ["hidden_0"]),
    ]
    last = len(model.coefs_) - 1
    for layer, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_)):
        constants[f"layers.{layer}.weight"] = np.ascontiguousarray(weight.T, np.float32)
        constants[f"layers.{layer}.bias"] = bias.astype(np.float32)
        inputs = [f"hidden_{layer}", f"layers.{layer}.weight", f"layers.{layer}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [f"linear_{layer}"], transB=1))
        activation, output = ("Sigmoid", "probability") if layer == last else ("Relu", f"hidden_{layer + 1}")
        nodes.append(helper.make_node(activation, [f"linear_{layer}"], [output]))
    graph = helper.make_graph(
        nodes,
        "delay_mlp",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(mean)])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run_onnx(path, features):
    """Probability of being late: the last column of the last output of either model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"features": features})[-1][:, -1]


if __name__ == "__main__":
    main()
