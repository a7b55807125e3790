"""Makes the models of this folder and what onnxruntime answers for them.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make_golden.py

- `<name>.onnx` with `<name>.bin`: a model, 1,000 rows for it, and onnxruntime's answer
- `trees.bin`: small random tree ensembles, one for each combination of node mode, aggregate, post transform, base values, labels
- `nodes.bin`: the node tests of the onnx wheel for the operators that this crate has

A `.bin` file is one line of JSON, then the bytes it points into: little endian, offsets from the end of that line.
The seed is fixed. The libraries are pinned: another version may give other models.
"""

import itertools
import json
import pathlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent
ROWS = 1000
RNG = np.random.default_rng(20260)
DTYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}


class Pack:
    """Bytes with a JSON index."""

    def __init__(self):
        self.blob = bytearray()

    def add(self, data):
        offset = len(self.blob)
        self.blob += data
        return {"offset": offset, "bytes": len(data)}

    def tensor(self, name, array):
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        if array.dtype.kind in "OUS":
            strings = [s.decode() if isinstance(s, bytes) else str(s) for s in array.ravel()]
            return {"name": name, "datatype": "BYTES", "shape": list(array.shape), "strings": strings}
        entry = {"name": name, "datatype": DTYPES[str(array.dtype)], "shape": list(array.shape)}
        return entry | self.add(array.astype(array.dtype.newbyteorder("<")).tobytes())

    def write(self, path, header):
        path.write_bytes(json.dumps(header).encode() + b"\n" + bytes(self.blob))


def answer(model, inputs):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = {}
    for name, value in zip(names, session.run(None, inputs)):
        if isinstance(value, list):  # ZipMap: a list of dictionaries; here the probabilities in key order of the first
            value = np.array([[row[key] for key in value[0]] for row in value], dtype=np.float32)
        results[name] = np.asarray(value)
    return results


def golden(name, model, inputs):
    onnx.checker.check_model(model)
    pack = Pack()
    outputs = answer(model, inputs)
    header = {
        "inputs": [pack.tensor(key, value) for key, value in inputs.items()],
        "outputs": [pack.tensor(key, value) for key, value in outputs.items()],
    }
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())
    pack.write(HERE / f"{name}.bin", header)
    print(name, {key: value.shape for key, value in outputs.items()})


def weights(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def model_of(nodes, inputs, outputs, constants, opset=17, ml=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("ai.onnx.ml", ml)] if ml else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


# Neural networks, with the operators that PyTorch's exporter writes.


def mlp():
    """The plain one: Linear, ReLU, Linear, ReLU, Linear, as Gemm with transB."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h1"], transB=1),
        node("Relu", ["h1"], ["a1"]),
        node("Gemm", ["a1", "w2", "b2"], ["h2"], transB=1),
        node("Relu", ["h2"], ["a2"]),
        node("Gemm", ["a2", "w3", "b3"], ["logit"], transB=1),
        node("Sigmoid", ["logit"], ["probability"]),
    ]
    constants = {"w1": weights(20, 64).T.copy(), "b1": weights(64), "w2": weights(64, 32).T.copy(), "b2": weights(32)}
    constants |= {"w3": weights(32, 1).T.copy(), "b3": weights(1)}
    model = model_of(nodes, [("x", 1, ["batch", 20])], [("probability", 1, ["batch", 1])], constants)
    golden("mlp", model, {"x": RNG.standard_normal((ROWS, 20)).astype(np.float32)})


def tabular_network():
    """Embeddings by category, batch norm, a residual block with layer norm and GELU (the Erf form), softmax."""
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "carrier"], ["embedded"], axis=0),
        node("Squeeze", ["embedded", "one"], ["vector"]),
        node("Shape", ["distance"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"], axis=0),
        node("Unsqueeze", ["rows", "zeros"], ["rows1"]),
        node("Constant", [], ["minus"], value=helper.make_tensor("m", TensorProto.INT64, [1], [-1])),
        node("Concat", ["rows1", "minus"], ["to"], axis=0),
        node("Reshape", ["weather", "to"], ["flat"]),
        node("IsNaN", ["flat"], ["absent"]),
        node("Where", ["absent", "nought", "flat"], ["filled"]),
        node("BatchNormalization", ["filled", "scale", "shift", "mean", "var"], ["normal"], epsilon=1e-5),
        node("Log", ["distance"], ["log_distance"]),
        node("Cast", ["weekend"], ["weekend_f"], to=1),
        node("Concat", ["vector", "normal", "log_distance", "weekend_f"], ["joined"], axis=1),
        node("MatMul", ["joined", "w1"], ["m1"]),
        node("Add", ["m1", "b1"], ["h1"]),
        # GELU
        node("Div", ["h1", "root2"], ["g1"]),
        node("Erf", ["g1"], ["g2"]),
        node("Add", ["g2", "unit"], ["g3"]),
        node("Mul", ["h1", "g3"], ["g4"]),
        node("Mul", ["g4", "half"], ["a1"]),
        node("Dropout", ["a1"], ["d1"]),
        node("MatMul", ["d1", "w2"], ["m2"]),
        node("Add", ["b2", "m2"], ["h2"]),
        node("Tanh", ["h2"], ["a2"]),
        node("Add", ["a1", "a2"], ["sum"]),
        node("LayerNormalization", ["sum", "ln_scale", "ln_bias"], ["ln"], axis=-1, epsilon=1e-5),
        node("ReduceMean", ["ln"], ["pooled"], axes=[1], keepdims=1),
        node("Sub", ["ln", "pooled"], ["centred"]),
        node("Clip", ["centred", "low", "high"], ["clipped"]),
        node("LeakyRelu", ["clipped"], ["leaky"], alpha=0.1),
        node("Gemm", ["leaky", "w3", "b3"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=-1),
        node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    constants = {
        "table": weights(16, 6), "one": np.array([1]), "zero": np.array(0), "zeros": np.array([0]),
        "nought": np.array(0.0, np.float32), "scale": weights(4) + 1, "shift": weights(4), "mean": weights(4),
        "var": np.abs(weights(4)) + 0.5, "w1": weights(12, 24), "b1": weights(24), "w2": weights(24, 24), "b2": weights(24),
        "root2": np.array(np.sqrt(2), np.float32), "unit": np.array(1.0, np.float32), "half": np.array(0.5, np.float32),
        "ln_scale": weights(24) + 1, "ln_bias": weights(24), "low": np.array(-1.5, np.float32),
        "high": np.array(1.5, np.float32), "w3": weights(24, 3), "b3": weights(3),
    }  # fmt: skip
    inputs = [("carrier", 7, ["n", 1]), ("weather", 1, ["n", 4]), ("distance", 1, ["n", 1]), ("weekend", 9, ["n", 1])]
    outputs = [("label", 7, ["n"]), ("probabilities", 1, ["n", 3])]
    weather = RNG.standard_normal((ROWS, 4)).astype(np.float32)
    weather[RNG.random(weather.shape) < 0.1] = np.nan
    data = {
        "carrier": RNG.integers(0, 16, (ROWS, 1)),
        "weather": weather,
        "distance": RNG.uniform(50, 3000, (ROWS, 1)).astype(np.float32),
        "weekend": RNG.random((ROWS, 1)) < 0.3,
    }
    golden("tabular_network", model_of(nodes, inputs, outputs, constants), data)


def attention_network():
    """Features as tokens, one self-attention block: batched MatMul, Transpose, Split, Slice, Expand."""
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["x", "two"], ["x3"]),  # [n, 8, 1]
        node("Mul", ["x3", "w_token"], ["t0"]),  # [n, 8, 12]
        node("Add", ["t0", "b_token"], ["t1"]),
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "zero1", "one1"], ["n1"]),
        node("Concat", ["n1", "tail"], ["cls_shape"], axis=0),
        node("Expand", ["cls", "cls_shape"], ["cls_rows"]),
        node("Concat", ["cls_rows", "t1"], ["t"], axis=1),  # [n, 9, 12]
        node("MatMul", ["t", "w_qkv"], ["qkv"]),
        node("Split", ["qkv", "thirds"], ["q", "k", "v"], axis=2),
        node("Concat", ["n1", "heads"], ["heads_shape"], axis=0),
        node("Reshape", ["q", "heads_shape"], ["qh"]),
        node("Reshape", ["k", "heads_shape"], ["kh"]),
        node("Reshape", ["v", "heads_shape"], ["vh"]),
        node("Transpose", ["qh"], ["qt"], perm=[0, 2, 1, 3]),
        node("Transpose", ["kh"], ["kt"], perm=[0, 2, 3, 1]),
        node("Transpose", ["vh"], ["vt"], perm=[0, 2, 1, 3]),
        node("MatMul", ["qt", "kt"], ["qk"]),
        node("Mul", ["qk", "inv"], ["scaled"]),
        node("Softmax", ["scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "vt"], ["o"]),
        node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Concat", ["n1", "merged"], ["merged_shape"], axis=0),
        node("Reshape", ["ot", "merged_shape"], ["om"]),
        node("Add", ["om", "t"], ["r"]),
        node("ReduceMean", ["r", "last"], ["mu"], keepdims=1),
        node("Sub", ["r", "mu"], ["c"]),
        node("Pow", ["c", "square"], ["c2"]),
        node("ReduceMean", ["c2", "last"], ["vv"], keepdims=1),
        node("Add", ["vv", "eps"], ["ve"]),
        node("Sqrt", ["ve"], ["sd"]),
        node("Div", ["c", "sd"], ["z"]),
        node("Gather", ["z", "first"], ["z0"], axis=1),
        node("Gelu", ["z0"], ["g"], approximate="tanh"),
        node("Gemm", ["g", "w_out", "b_out"], ["y2"]),
        node("Squeeze", ["y2", "one1"], ["eta"]),
    ]
    constants = {
        "two": np.array([2]), "w_token": weights(1, 8, 12), "b_token": weights(1, 8, 12) * 0.3, "zero1": np.array([0]),
        "one1": np.array([1]), "tail": np.array([1, 12]), "cls": weights(1, 1, 12), "w_qkv": weights(12, 36),
        "thirds": np.array([12, 12, 12]), "heads": np.array([9, 3, 4]), "inv": np.array(0.5, np.float32),
        "merged": np.array([9, 12]), "last": np.array([-1]), "square": np.array(2.0, np.float32),
        "eps": np.array(1e-5, np.float32), "first": np.array(0), "w_out": weights(12, 1), "b_out": weights(1),
    }  # fmt: skip
    model = model_of(nodes, [("x", 1, ["n", 8])], [("eta", 1, ["n"])], constants, opset=20)
    golden("attention_network", model, {"x": RNG.standard_normal((ROWS, 8)).astype(np.float32)})


# Trees and linear models, through the converters that people use.


def table(features=12, missing=0.0):
    x = RNG.standard_normal((ROWS, features)).astype(np.float32)
    signal = x[:, 0] * 1.5 - x[:, 1] * x[:, 2] + np.sin(x[:, 3] * 2) + 0.3 * RNG.standard_normal(ROWS)
    if missing:
        x[RNG.random(x.shape) < missing] = np.nan
    return x, signal.astype(np.float32)


def boosted():
    import lightgbm
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, signal = table(missing=0.1)
    kind = [("features", FloatTensorType([None, x.shape[1]]))]
    three = np.digitize(signal, [-0.7, 0.7])
    settings = {"n_estimators": 60, "max_depth": 6, "random_state": 1, "n_jobs": 1}

    def convert(how, model):
        return how(model, initial_types=kind, target_opset=15)

    xgb = onnxmltools.convert_xgboost
    golden("xgboost_regressor", convert(xgb, xgboost.XGBRegressor(**settings).fit(x, signal)), {"features": x})
    golden("xgboost_classifier", convert(xgb, xgboost.XGBClassifier(**settings).fit(x, (signal > 0).astype(int))), {"features": x})
    small = settings | {"n_estimators": 20, "max_depth": 4}
    golden("xgboost_three_classes", convert(xgb, xgboost.XGBClassifier(**small).fit(x, three)), {"features": x})
    lgb = onnxmltools.convert_lightgbm
    leaves = {"n_estimators": 60, "num_leaves": 31, "random_state": 1, "n_jobs": 1, "verbose": -1}
    golden("lightgbm_classifier", convert(lgb, lightgbm.LGBMClassifier(**leaves).fit(x, (signal > 0).astype(int))), {"features": x})
    small = leaves | {"n_estimators": 15}
    golden("lightgbm_three_classes", convert(lgb, lightgbm.LGBMClassifier(**small).fit(x, three)), {"features": x})


def sklearn_models():
    from skl2onnx import to_onnx
    from sklearn.ensemble import (
        ExtraTreesRegressor,
        GradientBoostingClassifier,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Binarizer, Normalizer, StandardScaler

    opsets = {"": 18, "ai.onnx.ml": 3}

    def make(name, model, x, y, options=None):
        model.fit(x, y)
        golden(name, to_onnx(model, x[:1], target_opset=opsets, options=options), {"X": x})

    x, signal = table()
    holes, holes_signal = table(missing=0.1)
    three = np.digitize(signal, [-0.7, 0.7])
    words = np.array(["early", "on time", "late"])[three]
    forest = {"n_estimators": 10, "max_depth": 9, "random_state": 1}
    make("random_forest_classifier", RandomForestClassifier(**forest), x, three)
    make("random_forest_binary", RandomForestClassifier(**forest), x, (signal > 0).astype(int))
    make("random_forest_regressor", RandomForestRegressor(**forest), x, signal)
    make("extra_trees_two_targets", ExtraTreesRegressor(**(forest | {"max_depth": 6})), x, np.stack([signal, -x[:, 5]], 1))
    make("gradient_boosting", GradientBoostingClassifier(n_estimators=40, random_state=1), x, (signal > 0).astype(int))
    make("scaled_logistic", make_pipeline(StandardScaler(), LogisticRegression()), x, (signal > 0).astype(int))
    make("scaled_logistic_words", make_pipeline(StandardScaler(), LogisticRegression()), x, words)
    imputed = make_pipeline(SimpleImputer(), StandardScaler(), Normalizer(), LogisticRegression())
    make("imputed_logistic", imputed, holes, (holes_signal > 0).astype(int))
    make("linear_regression", make_pipeline(Binarizer(threshold=0.2), LinearRegression()), x, signal)


# Every corner of the tree operators.


def random_ensemble(op, mode, aggregate, post, targets, base, class_ids, labels, positive, depth, missing, double):
    """Four trees; leaves carry one weight for each of `class_ids`."""
    nodes = {key: [] for key in "treeids nodeids featureids modes values truenodeids falsenodeids".split()}
    nodes["missing_value_tracks_true"] = []
    leaf = {key: [] for key in ["treeids", "nodeids", "ids", "weights"]}
    modes = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"] if mode == "MIXED" else [mode]

    for tree in range(4):
        ids = itertools.count(1)

        def grow(node, level):
            is_leaf = level == depth or (level > 1 and RNG.random() < 0.35)
            left, right = (0, 0) if is_leaf else (next(ids), next(ids))
            row = [tree, node, int(RNG.integers(4)), "LEAF" if is_leaf else str(RNG.choice(modes)),
                   0.0 if is_leaf else float(np.round(RNG.standard_normal() * 2) / 2), left, right,
                   int(missing and RNG.random() < 0.5)]  # fmt: skip
            for key, value in zip(nodes, row):
                nodes[key].append(value)
            if is_leaf:
                for target in class_ids:
                    weight = RNG.random() if positive else RNG.standard_normal()
                    for key, value in zip(leaf, [tree, node, target, float(weight) / (4 if positive else 1)]):
                        leaf[key].append(value)
            else:
                grow(left, level + 1)
                grow(right, level + 1)

        grow(0, 0)

    attributes = {f"nodes_{key}": value for key, value in nodes.items()}
    attributes["nodes_hitrates"] = [1.0] * len(nodes["modes"])
    kind = "class" if op == "TreeEnsembleClassifier" else "target"
    attributes |= {f"{kind}_{key}": value for key, value in leaf.items()}
    attributes["post_transform"] = post
    if base:
        attributes["base_values"] = base
    if double:
        for key in ["nodes_values", "nodes_hitrates", f"{kind}_weights"] + (["base_values"] if base else []):
            values = np.array(attributes.pop(key), np.float64)
            attributes[f"{key}_as_tensor"] = numpy_helper.from_array(values, key)
    if op == "TreeEnsembleRegressor":
        attributes |= {"n_targets": targets, "aggregate_function": aggregate}
        outputs = [("y", 1, ["n", targets])]
    else:
        attributes["classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"] = labels
        outputs = [("label", 8 if isinstance(labels[0], str) else 7, ["n"]), ("y", 1, ["n", len(labels)])]
    node = helper.make_node(op, ["x"], [output[0] for output in outputs], domain="ai.onnx.ml", **attributes)
    return model_of([node], [("x", 11 if double else 1, ["n", 4])], outputs, {}, ml=3)


def tree_corners():
    pack, cases = Pack(), []
    modes = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "MIXED"]
    transforms = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"]
    reg, cls = "TreeEnsembleRegressor", "TreeEnsembleClassifier"
    asks = [(reg, m, "SUM", "NONE", 1, [], [0], None, False, d, True, False) for m in modes for d in (3, 10)]
    asks += [(reg, m, "SUM", "NONE", 1, [0.25], [0], None, False, 4, True, True) for m in modes]
    for aggregate, targets, base in itertools.product(["SUM", "AVERAGE", "MIN", "MAX"], [1, 3], [False, True]):
        values = [0.5, -1.0, 2.0][:targets] if base else []
        asks.append((reg, "MIXED", aggregate, "NONE", targets, values, list(range(targets)), None, False, 4, True, False))
    asks += [(reg, "BRANCH_LEQ", "SUM", t, 3, [], [0, 1, 2], None, True, 4, False, False) for t in transforms]
    asks += [(reg, "BRANCH_LEQ", "SUM", t, 1, [0.1], [0], None, True, 4, False, False) for t in transforms]
    for transform, ids, base, positive in itertools.product(transforms, [[0], [1], [0, 1]], [0, 1, 2], [False, True]):
        if transform == "PROBIT":  # onnxruntime leaves half of its output unwritten
            continue
        values = [0.3, 0.1][:base]
        # With weights for both classes onnxruntime answers 0 and 1 for labels that are whole numbers.
        labels = ["no", "yes"] if transform == "SOFTMAX" else [4, 9] if len(ids) == 1 else [0, 1]
        asks.append((cls, "BRANCH_LEQ", "SUM", transform, 2, values, ids, labels, positive, 3, True, False))
    for transform, base in itertools.product(transforms, [[], [0.1, -0.2, 0.3]]):
        labels = ["a", "b", "c"] if base else [7, 3, 5]
        asks.append((cls, "MIXED", "SUM", transform, 3, base, [0, 1, 2], labels, transform == "PROBIT", 3, True, False))
    x = (np.round(RNG.standard_normal((64, 4)) * 2) / 2).astype(np.float32)
    x[RNG.random(x.shape) < 0.15] = np.nan
    x[0], x[1] = np.inf, -np.inf
    shared = {"float32": pack.tensor("x", x), "float64": pack.tensor("x", x.astype(np.float64))}
    for ask in asks:
        model = random_ensemble(*ask)
        dtype = "float64" if ask[-1] else "float32"
        outputs = answer(model, {"x": x.astype(dtype)})
        name = " ".join(str(part) for part in ask)
        files = [pack.tensor(key, value) for key, value in outputs.items()]
        cases.append({"name": name, "model": pack.add(model.SerializeToString()), "inputs": [shared[dtype]], "outputs": files})
    pack.write(HERE / "trees.bin", {"cases": cases})
    print("trees", len(cases))


# The node tests of the standard.

OPERATORS = """Gemm MatMul Add Sub Mul Div Neg Pow Sqrt Exp Log Abs Relu LeakyRelu Elu Sigmoid Tanh Softmax LogSoftmax Erf Gelu Clip
Where IsNaN Not And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual Cast Identity Dropout Flatten Reshape Squeeze Unsqueeze Concat
Transpose Slice Split Gather Constant ConstantOfShape Shape Size Expand ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1
ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp BatchNormalization LayerNormalization ArgMax ArgMin Min Max Sum Mean Reciprocal
Floor Ceil Sign Softplus HardSigmoid Selu PRelu ArrayFeatureExtractor Binarizer LabelEncoder""".split()
KINDS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING}
# Training, tensors without elements, strings in tensor operations; and compositions, which say little about one operator.
SKIPPED = ["training", "zeroinput", "empty_set", "equal_string", "_expanded", "out_of_bounds", "zero_size"]


def as_array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def node_tests():
    from onnx.backend.test.case.node import collect_testcases

    pack, cases = Pack(), []
    for case in collect_testcases(None):
        graph = case.model.graph
        if any(node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx.ml") for node in graph.node):
            continue
        values = list(graph.input) + list(graph.output)
        if any(not v.type.HasField("tensor_type") or v.type.tensor_type.elem_type not in KINDS for v in values):
            continue
        casts = [a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"]
        if any(to not in KINDS for to in casts) or any(word in case.name for word in SKIPPED):
            continue
        for opset in case.model.opset_import:  # the newest tests name operator sets that only allow more types
            opset.version = min(max(opset.version, 7), 24) if opset.domain == "" else opset.version
        inputs, outputs = ([as_array(value) for value in side] for side in case.data_sets[0])
        if sum(value.nbytes for value in inputs + outputs) > 8_000:
            continue
        names = [value.name for value in graph.input]
        cases.append({
            "name": case.name,
            "model": pack.add(case.model.SerializeToString()),
            "inputs": [pack.tensor(n, v) for n, v in zip(names, inputs)],
            "outputs": [pack.tensor(v.name, o) for v, o in zip(graph.output, outputs)],
        })  # fmt: skip
    pack.write(HERE / "nodes.bin", {"cases": cases})
    print("nodes", len(cases))


if __name__ == "__main__":
    mlp()
    tabular_network()
    attention_network()
    boosted()
    sklearn_models()
    tree_corners()
    node_tests()
