"""OpenVINO as a peer: a step is an inference of one stateful ScaledDotProductAttention, on the CPU.

The graph appends the new token to a state and attends over it, as OpenVINO's language models do.
The CPU plugin makes one node of that, which keeps the cache [position, kv_head, dim] with room to
grow and copies nothing. Every layer is an infer request with a state of its own. A step lengthens
the cache by its token, so that a run begins by restoring the length when it has drifted.
"""

import dataclasses

import numpy as np
import openvino
from openvino import PartialShape, Type, opset13 as ops, properties

import protocol
from protocol import Problem, Unsupported


@dataclasses.dataclass
class Kind:
    """Types of the cache and of the computation."""

    cache: Type
    compute: Type
    bytes: int


KINDS = {
    "f32": Kind(Type.f32, Type.f32, 4),
    "f16": Kind(Type.f16, Type.f32, 2),
    "bf16": Kind(Type.bf16, Type.bf16, 2),
    "int8": Kind(Type.u8, Type.f32, 1),
}


def model(problem: Problem) -> openvino.Model:
    heads, kv_heads, dim = problem.heads, problem.kv_heads, problem.head_dim

    def tokens(name: str, of: int) -> openvino.Node:
        given = ops.parameter(PartialShape([1, of, -1, dim]), Type.f32)
        given.output(0).set_names({name})
        return given

    def constant(*values: int) -> openvino.Node:
        return ops.constant(np.array(values, np.int64))

    query, key, value = tokens("query", heads), tokens("key", kv_heads), tokens("value", kv_heads)
    # generation has a batch of beams, which this gathers; the plugin looks for it
    beams = ops.parameter(PartialShape([-1]), Type.i32)
    beams.output(0).set_names({"beams"})
    rows, states = [], []
    for name, new in (("keys", key), ("values", value)):
        empty = ops.constant(np.zeros((1, kv_heads, 0, dim), np.float32))
        past = ops.read_value(empty, name, Type.f32, PartialShape([-1, kv_heads, -1, dim]))
        past = ops.gather(past, beams, ops.constant(0, Type.i32))
        present = ops.concat([past, new], 2)
        states.append(ops.assign(present, name))
        if problem.group > 1:
            present = ops.unsqueeze(present, constant(2))
            shape = constant(1, kv_heads, problem.group, 1, dim)
            present = ops.broadcast(present, shape, broadcast_spec="BIDIRECTIONAL")
            present = ops.reshape(present, constant(0, heads, -1, dim), True)
        rows.append(present)
    out = ops.scaled_dot_product_attention(query, *rows, causal=problem.queries > 1)
    return openvino.Model([ops.result(out)], states, [query, key, value, beams], "attention")


def compiled(problem: Problem, kind: Kind) -> openvino.CompiledModel:
    settings = {
        properties.hint.inference_precision: kind.compute,
        properties.hint.kv_cache_precision: kind.cache,
        properties.inference_num_threads: problem.threads,
        properties.num_streams: 1,
    }
    made = openvino.Core().compile_model(model(problem), "CPU", settings)
    for name, wanted in settings.items():
        if (got := made.get_property(name)) != wanted:
            raise Unsupported(f"type {problem.type}: on this machine {name} is {got}, not {wanted}")
    nodes = made.get_runtime_model().get_ops()
    layers = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
    if "ScaledDotProductAttention" not in layers or "Concatenation" in layers:
        raise Unsupported(f"the plugin did not fuse the graph: {' '.join(layers)}")
    return made


class Attention(protocol.Attention):
    note = f"openvino {openvino.__version__}"

    def __init__(self, problem: Problem):
        protocol.require_supported(problem, KINDS, "position_major", "[position, kv_head, dim]")
        self.problem = problem
        kind = KINDS[problem.type]
        model = compiled(problem, kind)
        generator = np.random.default_rng(7)

        def random(heads: int, positions: int) -> openvino.Tensor:
            array = np.empty((1, heads, positions, problem.head_dim), np.float32)
            protocol.fill(array, generator)
            return openvino.Tensor(array)

        # layers have memory of their own, but of the same numbers, because a request keeps what its
        # state was set from
        past = problem.length - problem.queries
        self.past = {name: random(problem.kv_heads, past) for name in ("keys", "values")}
        self.requests = [model.create_infer_request() for _ in range(problem.layers(kind.bytes))]
        inputs = {name: random(problem.kv_heads, problem.queries) for name in ("key", "value")}
        inputs["query"] = random(problem.heads, problem.queries)
        inputs["beams"] = openvino.Tensor(np.zeros(1, np.int32))
        for request in self.requests:
            for name, tensor in inputs.items():
                request.set_tensor(name, tensor)
        self.query = inputs["query"]
        self.latest = -1
        self.rewind()

    def rewind(self) -> None:
        """Sets every layer to its length; a pass over them then makes room for more."""
        self.steps = 0
        if self.problem.queries == 1:
            for request in self.requests:
                for state in request.query_state():
                    state.state = self.past[state.name]
        for _ in self.requests:
            self.step()

    def prepare(self) -> None:
        if self.steps > len(self.requests) * (1 + self.problem.length / 100):
            self.rewind()

    def step(self) -> None:
        self.latest = (self.latest + 1) % len(self.requests)
        self.steps += 1
        request = self.requests[self.latest]
        if self.problem.queries > 1:
            request.reset_state()
        request.infer()

    def last(self) -> tuple[np.ndarray, ...]:
        request = self.requests[self.latest]
        states = {state.name: state.state.data[0] for state in request.query_state()}
        tensors = self.query, request.get_output_tensor()
        query, out = (tensor.data[0].swapaxes(0, 1) for tensor in tensors)
        return query, out, states["keys"], states["values"]


if __name__ == "__main__":
    protocol.serve(Attention)
