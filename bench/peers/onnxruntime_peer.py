"""ONNX Runtime as a peer: a step is a run of a model of one GroupQueryAttention, on the CPU.

Past and present are the same buffer, as in ONNX Runtime's own generation loop: the operator then
writes the new token's row into the cache and copies nothing else.
"""

import dataclasses

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import protocol
from protocol import Problem, Unsupported


@dataclasses.dataclass
class Kind:
    """Element types of a cache and of its queries, and the scale of a quantised cache."""

    cache: type
    queries: type
    scale: float | None = None


KINDS = {
    "f32": Kind(np.float32, np.float32),
    "f16": Kind(np.float16, np.float16),
    "int8": Kind(np.int8, np.float32, 4 / 127),
}


def model(problem: Problem, kind: Kind) -> bytes:
    """A model of one operator."""
    tokens = [1, problem.queries, None]
    cache = [1, problem.kv_heads, problem.length, problem.head_dim]
    scales = ["k_scale", "v_scale"] if kind.scale else []
    quantised = dict(k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR", kv_cache_bit_width=8)

    def describe(name: str, dtype: type, shape: list) -> onnx.ValueInfoProto:
        tensor_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, tensor_type, shape)

    inputs = [
        *(describe(name, kind.queries, tokens) for name in ("query", "key", "value")),
        *(describe(name, kind.cache, cache) for name in ("past_key", "past_value")),
        describe("seqlens_k", np.int32, [1]),
        describe("total_sequence_length", np.int32, []),
        *(describe(name, np.float32, [1]) for name in scales),
    ]
    outputs = [
        describe("out", kind.queries, tokens),
        *(describe(name, kind.cache, cache) for name in ("present_key", "present_value")),
    ]
    names = [given.name for given in inputs]
    # between them the operator has optional inputs, for what isn't used here
    names[7:] = [""] * 5 + scales if scales else []
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        [given.name for given in outputs],
        domain="com.microsoft",
        num_heads=problem.heads,
        kv_num_heads=problem.kv_heads,
        **(quantised if kind.scale else {}),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


class Attention(protocol.Attention):
    note = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, problem: Problem):
        protocol.require_supported(problem, KINDS, "head_major", "[kv_head, position, dim]")
        self.problem = problem
        self.kind = KINDS[problem.type]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = problem.threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model(problem, self.kind), options, providers=["CPUExecutionProvider"]
        )
        generator = np.random.default_rng(7)
        self.query = np.empty((problem.queries, problem.heads, problem.head_dim), self.kind.queries)
        protocol.fill(self.query, generator)
        self.out = np.empty_like(self.query)
        self.values: list[onnxruntime.OrtValue] = []  # keeps alive what is bound
        self.caches: list[np.ndarray] = []
        self.bindings: list[onnxruntime.IOBinding] = []
        for _ in range(problem.layers(np.dtype(self.kind.cache).itemsize)):
            shape = (2, problem.kv_heads, problem.length, problem.head_dim)
            cache = np.empty(shape, self.kind.cache)
            protocol.fill(cache, generator, self.kind.scale or 1)
            self.caches.append(cache)
            self.bindings.append(self.bind(cache))
        self.latest = -1
        for _ in self.bindings:
            self.step()

    def bind(self, cache: np.ndarray) -> onnxruntime.IOBinding:
        """Inputs and outputs of a layer. Its new tokens are the rows that its cache ends with."""
        problem = self.problem
        binding = self.session.io_binding()

        def value(array: np.ndarray) -> onnxruntime.OrtValue:
            self.values.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
            if self.values[-1].data_ptr() != array.ctypes.data:
                raise Unsupported("onnxruntime copies what it is given")
            return self.values[-1]

        def tokens(array: np.ndarray) -> onnxruntime.OrtValue:
            return value(array.reshape(1, problem.queries, -1))

        binding.bind_ortvalue_input("query", tokens(self.query))
        binding.bind_ortvalue_output("out", tokens(self.out))
        for name, rows in zip(("key", "value"), cache):
            new = self.decode(rows[:, -problem.queries :]).swapaxes(0, 1)
            binding.bind_ortvalue_input(name, tokens(np.ascontiguousarray(new)))
            shared = value(rows[np.newaxis])
            binding.bind_ortvalue_input(f"past_{name}", shared)
            binding.bind_ortvalue_output(f"present_{name}", shared)
            if self.kind.scale:
                scale = np.array([self.kind.scale], np.float32)
                binding.bind_ortvalue_input(f"{name[0]}_scale", value(scale))
        length = np.array(problem.length, np.int32)
        binding.bind_ortvalue_input("total_sequence_length", value(length))
        binding.bind_ortvalue_input("seqlens_k", value(length.reshape(1) - 1))
        return binding

    def decode(self, rows: np.ndarray) -> np.ndarray:
        return (rows * np.float32(self.kind.scale)) if self.kind.scale else rows

    def step(self) -> None:
        self.latest = (self.latest + 1) % len(self.bindings)
        self.session.run_with_iobinding(self.bindings[self.latest])

    def last(self) -> tuple[np.ndarray, ...]:
        return self.query, self.out, *map(self.decode, self.caches[self.latest])


if __name__ == "__main__":
    protocol.serve(Attention)
