"""Operators that a stored graph may have, and those with which it could do as it likes once it has passed its trial."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from model_store import InvalidArtifactError
from service.engine.graph_check import read_graph
from service.engine.operators import MAX_NODES
from tests.toys import AnyArray

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
FILE = Path("decoder.onnx")
Nodes = list[NodeProto]


def make(operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> NodeProto:
    node: NodeProto = helper.make_node(operator, inputs, outputs, domain=domain or None, **attributes)  # type: ignore[arg-type]
    return node


def model_of(
    nodes: Nodes,
    *,
    constants: dict[str, AnyArray] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
    opset: int = 20,
) -> ModelProto:
    """Input `z` [batch, 3]; the output `y` is what the nodes make of it, which nobody looks at before it runs."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("z", FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 3])],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions or [], ir_version=10)


def problem(model: ModelProto) -> str:
    """What it is refused for, or nothing."""
    try:
        read_graph(model.SerializeToString(), FILE, inputs={"z": [3]}, outputs={"y": [3]})
    except InvalidArtifactError as error:
        return error.problem if error.file == FILE else f"names {error.file}"
    return ""


def body(
    nodes: Nodes, inputs: dict[str, tuple[int, list[object]]], outputs: dict[str, tuple[int, list[object]]]
) -> GraphProto:
    def values(named: dict[str, tuple[int, list[object]]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in named.items()]  # type: ignore[arg-type]

    return helper.make_graph(nodes, "body", values(inputs), values(outputs))


def function(
    name: str, nodes: Nodes, domain: str = "ours", opsets: tuple[str, ...] = ("ours",), opset: int = 20
) -> onnx.FunctionProto:
    """Of one input `a` and one output `b`."""
    versions = [helper.make_opsetid("", opset), *(helper.make_opsetid(other, 1) for other in opsets)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, versions)


def loop(trips: str) -> NodeProto:
    kept = [make("Identity", ["go"], ["on"]), make("Add", ["v", "v"], ["w"])]
    row: list[object] = ["b", 3]
    inner = body(kept, {"i": (INT64, []), "go": (BOOL, []), "v": (FLOAT, row)}, {"on": (BOOL, []), "w": (FLOAT, row)})
    return make("Loop", [trips, "yes", "z"], ["y"], body=inner)


def branch() -> Nodes:
    def same(name: str) -> GraphProto:
        return body([make("Identity", ["z"], [name])], {}, {name: (FLOAT, ["b", 3])})

    total = make("ReduceSum", ["z"], ["total"], keepdims=0)
    positive = make("Greater", ["total", "nought"], ["positive"])
    return [total, positive, make("If", ["positive"], ["y"], then_branch=same("one"), else_branch=same("other"))]


def scan() -> NodeProto:
    inner = body(
        [make("Add", ["s", "v"], ["t"]), make("Identity", ["t"], ["o"])],
        {"s": (FLOAT, [3]), "v": (FLOAT, [3])},
        {"t": (FLOAT, [3]), "o": (FLOAT, [3])},
    )
    return make("Scan", ["start", "z"], ["last", "y"], body=inner, num_scan_inputs=1)


YES: dict[str, AnyArray] = {"yes": np.array(True), "nought": np.array(0, np.float32), "start": np.zeros(3, np.float32)}
TRIPS = YES | {"trips": np.array(2**60)}


def of_numbers() -> Nodes:
    """A number of trips that is computed from z: harmless in a trial, and for ever when somebody wants it."""
    total = [make("ReduceSum", ["z"], ["total"], keepdims=0), make("Cast", ["total"], ["trips"], to=INT64)]
    return [*total, loop("trips")]


CONTROL = {
    "a loop of many trips": model_of([loop("trips")], constants=TRIPS),
    "a loop of as many trips as the input says": model_of(of_numbers(), constants=YES),
    "a loop of one trip": model_of([loop("trips")], constants=YES | {"trips": np.array(1)}),
    "a branch": model_of(branch(), constants=YES),
    "a scan": model_of([scan()], constants=YES),
    "a loop in a function": model_of(
        [make("Turn", ["z"], ["y"], "ours")],
        functions=[
            function(
                "Turn",
                [
                    make("Constant", [], ["trips"], value=numpy_helper.from_array(np.array(2**60))),
                    make("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
                    make("Identity", ["a"], ["z"]),
                    loop("trips"),
                    make("Identity", ["y"], ["b"]),
                ],
            )
        ],
        domains=("ours",),
    ),
}


@pytest.mark.parametrize("model", CONTROL.values(), ids=CONTROL)
def test_what_may_compute_more_for_some_inputs_is_refused(model: ModelProto) -> None:
    found = problem(model)
    assert found.startswith(("operator 'Loop' is refused", "operator 'If' is refused", "operator 'Scan' is refused"))


def test_a_graph_inside_any_operator_is_refused() -> None:
    """Whatever its name: a later opset may have another one that is not on a list."""
    model = model_of([make("Neg", ["z"], ["y"])])
    hidden = AttributeProto(name="body", type=AttributeProto.GRAPH)
    hidden.g.CopyFrom(body([make("Identity", ["z"], ["q"])], {}, {"q": (FLOAT, ["b", 3])}))
    call = make("Turn", ["z"], ["y"], "ours")
    call.attribute.append(hidden)
    model = model_of([call], functions=[function("Turn", [make("Neg", ["a"], ["b"])])], domains=("ours",))
    assert problem(model) == "operator 'Turn' is refused: it has a graph inside"


RANDOM = {
    "RandomNormalLike": [make("RandomNormalLike", ["z"], ["y"])],
    "RandomUniformLike": [make("RandomUniformLike", ["z"], ["y"])],
    "RandomNormal": [make("RandomNormal", [], ["n"], shape=[1, 3]), make("Add", ["z", "n"], ["y"])],
    "RandomUniform": [make("RandomUniform", [], ["n"], shape=[1, 3], seed=1.0), make("Add", ["z", "n"], ["y"])],
    "Bernoulli": [make("Sigmoid", ["z"], ["p"]), make("Bernoulli", ["p"], ["y"])],
    "Multinomial": [make("Multinomial", ["z"], ["m"], sample_size=3), make("Cast", ["m"], ["y"], to=FLOAT)],
}


@pytest.mark.parametrize(("operator", "nodes"), RANDOM.items(), ids=RANDOM)
def test_what_gives_other_numbers_every_time_is_refused(operator: str, nodes: Nodes) -> None:
    assert problem(model_of(nodes)) == f"operator {operator!r} is refused: it gives other numbers every time"


@pytest.mark.parametrize(
    ("inputs", "constants", "refused"),
    [
        (["z"], {}, False),
        (["z", "half"], {"half": np.array(0.5, np.float32)}, False),
        (["z", "half", "mode"], {"half": np.array(0.5, np.float32), "mode": np.array(False)}, False),
        (["z", "half", "mode"], {"half": np.array(0.5, np.float32), "mode": np.array(True)}, True),
    ],
)
def test_dropout_is_for_training(inputs: list[str], constants: dict[str, AnyArray], refused: bool) -> None:
    found = problem(model_of([make("Dropout", inputs, ["y"])], constants=constants))
    assert found == ("operator 'Dropout' is refused: it may be in training mode, at random" if refused else "")


def test_dropout_whose_mode_is_computed_is_refused() -> None:
    nodes = [
        make("ReduceSum", ["z"], ["total"], keepdims=0),
        make("Greater", ["total", "half"], ["mode"]),
        make("Dropout", ["z", "half", "mode"], ["y"]),
    ]
    assert "'Dropout' is refused" in problem(model_of(nodes, constants={"half": np.array(0.5, np.float32)}))


@pytest.mark.parametrize("mode", [0, 1])
def test_batch_normalisation_in_training_mixes_images(mode: int) -> None:
    names = ["scale", "bias", "mean", "variance"]
    outputs = ["y", "new_mean", "new_variance"] if mode else ["y"]
    node = make("BatchNormalization", ["z", *names], outputs, training_mode=mode)
    found = problem(model_of([node], constants={name: np.ones(3, np.float32) for name in names}))
    assert found == ("operator 'BatchNormalization' is refused: it is in training mode" if mode else "")


def shape_of(numbers: str) -> Nodes:
    """A size `n` [1] that is computed from these numbers."""
    return [
        make("ReduceSum", [numbers], ["total"], keepdims=0),
        make("Cast", ["total"], ["whole"], to=INT64),
        make("Reshape", ["whole", "one"], ["n"]),
    ]


SIZED: dict[str, Nodes] = {
    "ConstantOfShape": [*shape_of("z"), make("ConstantOfShape", ["n"], ["y"])],
    "Expand": [*shape_of("z"), make("Expand", ["z", "n"], ["y"])],
    "Tile": [*shape_of("z"), make("Concat", ["n", "one"], ["r"], axis=0), make("Tile", ["z", "r"], ["y"])],
    "Range": [*shape_of("z"), make("Squeeze", ["n"], ["s"]), make("Range", ["zero", "s", "step"], ["y"])],
    "Reshape": [*shape_of("z"), make("Concat", ["n", "one"], ["r"], axis=0), make("Reshape", ["z", "r"], ["y"])],
    "Pad": [*shape_of("z"), make("Concat", ["n"] * 4, ["p"], axis=0), make("Pad", ["z", "p"], ["y"])],
    "Slice": [*shape_of("z"), make("Slice", ["z", "n", "n"], ["y"])],
    "TopK": [*shape_of("z"), make("TopK", ["z", "n"], ["y", "where"])],
    "OneHot": [*shape_of("z"), make("OneHot", ["one", "n", "both"], ["y"])],
    "Resize": [*shape_of("z"), make("Concat", ["n", "n"], ["s"], axis=0), make("Resize", ["z", "", "", "s"], ["y"])],
    "ReduceMax": [*shape_of("z"), make("ReduceMax", ["z", "n"], ["y"])],
    "HannWindow": [*shape_of("z"), make("Squeeze", ["n"], ["s"]), make("HannWindow", ["s"], ["y"])],
    "RoiAlign": [
        make("Reshape", ["z", "pictures"], ["p"]),
        *[make("Tile", ["z", "twice"], ["wide"]), make("Slice", ["wide", "none", "four", "one"], ["r"])],
        make("RoiAlign", ["p", "r", "none"], ["y"]),
    ],
    "CenterCropPad": [
        *shape_of("z"),
        make("Concat", ["n", "n"], ["s"], axis=0),
        make("CenterCropPad", ["z", "s"], ["y"]),
    ],
}
SIZES = {
    "one": np.array([1]),
    "zero": np.array(0),
    "step": np.array(1),
    "both": np.array([0, 1], np.float32),
    "none": np.array([0]),
    "four": np.array([4]),
    "twice": np.array([1, 2]),
    "pictures": np.array([-1, 1, 1, 3]),
}


@pytest.mark.parametrize(("operator", "nodes"), SIZED.items(), ids=SIZED)
def test_a_size_that_the_inputs_numbers_decide_is_refused(operator: str, nodes: Nodes) -> None:
    """It may be small in a trial and larger than any memory later."""
    found = problem(model_of(nodes, constants=SIZES))
    assert found == f"operator {operator!r} takes a size that is computed from the input's numbers"


WHOLE = [make("Cast", ["z"], ["whole"], to=INT64), make("Shape", ["z"], ["shape"])]
DIVIDED: dict[str, tuple[list[str], AnyArray | None]] = {
    "by numbers of the input": (["two", "whole"], None),
    "by the size of the batch": (["two", "shape"], None),
    "by -1": (["whole", "by"], np.array(-1)),
    "by 0": (["whole", "by"], np.array(0)),
    "by 3 and -1": (["whole", "by"], np.array([3, -1, 3])),
    "of 32 bits": (["few", "few"], None),
}


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("divided", DIVIDED.values(), ids=DIVIDED)
@pytest.mark.parametrize("claimed", [False, True])
def test_whole_numbers_that_are_divided_by_what_may_be_anything_are_refused(
    operator: str, divided: tuple[list[str], AnyArray | None], claimed: bool
) -> None:
    """The least of them divided by −1 ends the process; a file that calls them fractions is not believed."""
    inputs, by = divided
    nodes = [*WHOLE, make("Cast", ["z"], ["few"], to=TensorProto.INT32), make(operator, inputs, ["q"])]
    constants: dict[str, AnyArray] = {"two": np.array(2)} | ({} if by is None else {"by": by})
    model = model_of([*nodes, make("Cast", ["q"], ["y"], to=FLOAT)], constants=constants)
    if claimed:
        names = {*inputs, "q", "whole", "few"} - constants.keys()
        model.graph.value_info.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in sorted(names))
    assert problem(model) == f"operator {operator!r} is refused: it divides whole numbers by what may be 0 or -1"


def test_a_division_hidden_in_a_function_is_refused() -> None:
    nodes = [make("Cast", ["a"], ["whole"], to=INT64), make("Mod", ["whole", "whole"], ["q"])]
    own = function("Part", [*nodes, make("Cast", ["q"], ["b"], to=FLOAT)])
    model = model_of([make("Part", ["z"], ["y"], "ours")], functions=[own], domains=("ours",))
    assert "it divides whole numbers" in problem(model)


def test_fractions_may_be_divided_by_anything_and_whole_numbers_by_constants() -> None:
    """As in a standardisation, and where an exporter works out half a size."""
    nodes = [
        *[make("Exp", ["z"], ["e"]), make("Div", ["z", "e"], ["f"]), make("Cast", ["f"], ["d"], to=TensorProto.DOUBLE)],
        *[make("Mod", ["d", "d"], ["m"], fmod=1), make("Cast", ["m"], ["g"], to=FLOAT)],
        *[make("Shape", ["z"], ["s"]), make("Div", ["s", "two"], ["half"])],
        make("Constant", [], ["three"], value=numpy_helper.from_array(np.array([3]))),
        *[make("Mod", ["half", "three"], ["rest"]), make("Cast", ["rest"], ["r"], to=FLOAT)],
        *[make("ReduceMax", ["r"], ["t"], keepdims=0), make("Add", ["g", "t"], ["y"])],
    ]
    assert problem(model_of(nodes, constants={"two": np.array(2)})) == ""


def test_a_size_hidden_in_a_function_is_refused() -> None:
    nodes = [*shape_of("a"), make("ConstantOfShape", ["n"], ["b"])]
    one = make("Constant", [], ["one"], value=numpy_helper.from_array(np.array([1])))
    model = model_of(
        [make("Grow", ["z"], ["y"], "ours")], functions=[function("Grow", [one, *nodes])], domains=("ours",)
    )
    assert problem(model) == "operator 'ConstantOfShape' takes a size that is computed from the input's numbers"


@pytest.mark.parametrize("operator", ["NonZero", "Unique", "Compress", "NonMaxSuppression"])
def test_what_gives_as_much_as_the_numbers_say_is_refused(operator: str) -> None:
    """The shape of such an output would be a size that the input's numbers decide."""
    nodes = {
        "NonZero": [make("NonZero", ["z"], ["q"]), make("Cast", ["q"], ["y"], to=FLOAT)],
        "Unique": [make("Unique", ["z"], ["y"])],
        "Compress": [make("Greater", ["z", "nought"], ["c"]), make("Compress", ["z", "c"], ["y"])],
        "NonMaxSuppression": [
            make("Reshape", ["z", "boxes"], ["a"]),
            make("NonMaxSuppression", ["a", "a"], ["q"]),
            make("Cast", ["q"], ["y"], to=FLOAT),
        ],
    }[operator]
    found = problem(model_of(nodes, constants={"nought": np.array(0, np.float32), "boxes": np.array([1, -1, 4])}))
    assert found.startswith(f"operator {operator!r} is refused: the size of what it gives")


def test_a_size_that_the_batch_decides_is_taken() -> None:
    """As exporters write it: the shape of a tensor that was computed, a constant, and what is reckoned from both."""
    nodes = [
        make("Tanh", ["z"], ["h"]),
        make("Shape", ["h"], ["s"]),
        make("Gather", ["s", "zero"], ["b"]),
        make("Unsqueeze", ["b", "one"], ["b1"]),
        make("Constant", [], ["three"], value=numpy_helper.from_array(np.array([3]))),
        make("Concat", ["b1", "three"], ["wanted"], axis=0),
        make("Size", ["h"], ["count"]),
        make("Reshape", ["h", "wanted"], ["r"]),
        make("Expand", ["nought", "wanted"], ["e"]),
        make("Add", ["r", "e"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array([0]), "nought": np.zeros((1, 3), np.float32)}
    assert problem(model_of(nodes, constants=constants)) == ""


def test_other_domains_are_refused() -> None:
    for domain, operator in (("com.microsoft", "Gelu"), ("ai.onnx.ml", "Binarizer"), ("theirs", "Gelu")):
        model = model_of([make(operator, ["z"], ["y"], domain)], domains=(domain,))
        assert problem(model) == f"operator {operator!r} is of the domain {domain!r}, which the format does not have"


@pytest.mark.parametrize("domain", ["", "ai.onnx", "com.microsoft", "ai.onnx.ml"])
def test_no_function_may_bear_an_operators_name(domain: str) -> None:
    """Whether the function runs or the operator would be up to the runtime."""
    own = function("RandomNormalLike", [make("Neg", ["a"], ["b"])], domain=domain, opsets=())
    model = model_of(
        [make("RandomNormalLike", ["z"], ["y"], domain)], functions=[own], domains=(domain,) if domain else ()
    )
    assert "has operators" in problem(model) or "not a valid ONNX graph" in problem(model)


@pytest.mark.parametrize(
    "nodes",
    [
        [make("SequenceConstruct", ["z"], ["q"]), make("ConcatFromSequence", ["q"], ["y"], axis=0)],
        [make("Optional", ["z"], ["q"]), make("OptionalGetElement", ["q"], ["y"])],
    ],
)
def test_what_is_not_about_tensors_is_refused(nodes: Nodes) -> None:
    assert "it is not about tensors of numbers" in problem(model_of(nodes))


def chain(count: int) -> ModelProto:
    names = ["z", *(f"t{index}" for index in range(count - 1)), "y"]
    return model_of([make("Neg", [names[index]], [names[index + 1]]) for index in range(count)])


def test_the_number_of_nodes_is_bounded() -> None:
    assert problem(chain(1000)) == ""
    assert problem(chain(MAX_NODES + 1)) == f"has more than {MAX_NODES} nodes ({MAX_NODES + 1})"


def tower(height: int) -> ModelProto:
    """Functions, each of which calls the one below twice: 2^height nodes in a few hundred bytes."""
    functions = [function("F0", [make("Neg", ["a"], ["b"])])]
    for level in range(1, height + 1):
        calls = [make(f"F{level - 1}", ["a"], ["c"], "ours"), make(f"F{level - 1}", ["c"], ["b"], "ours")]
        functions.append(function(f"F{level}", calls))
    return model_of([make(f"F{height}", ["z"], ["y"], "ours")], functions=functions, domains=("ours",))


def test_functions_are_counted_where_they_are_called() -> None:
    assert problem(tower(5)) == ""
    assert problem(tower(30)) == f"has more than {MAX_NODES} nodes ({2**30})"
    assert problem(tower(300)).startswith(f"has more than {MAX_NODES} nodes")


@pytest.mark.parametrize("calls", [["F"], ["G", "F"]])
def test_functions_that_call_themselves_are_refused(calls: list[str]) -> None:
    ring = ["F", *calls]
    functions = [function(caller, [make(called, ["a"], ["b"], "ours")]) for caller, called in pairwise(ring)]
    model = model_of([make("F", ["z"], ["y"], "ours")], functions=functions, domains=("ours",))
    assert problem(model) == "has functions that call themselves"
