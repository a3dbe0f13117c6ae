"""Sums over neighbours: as dense products, without a wait for the device or a break in compiled code, made where a batch is loaded."""

import pytest
import torch
from spikingjelly.activation_based import functional
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_geometric.data import Data

from conftest import GRAPHS
from models.fake_cuda import Operations, Waits
from snnexp.engine.experiment import restore_kernels
from snnexp.models.adjacency import WEIGHTS, add_adjacency, adjacency_of, make_adjacency, multiply, multiply_in_order
from snnexp.models.spiking_gnn import SpikingGNN

EDGES = torch.tensor([[0, 1, 1, 3, 3, 0], [1, 0, 2, 3, 2, 1]])
"""Directed edges between 5 nodes: one of them double, a self-loop, a node without any."""


def dense(kind: str) -> torch.Tensor:
    """The matrix by which the features of the 5 nodes are multiplied: its row is the target of an edge."""
    matrix = torch.zeros(5, 5, dtype=torch.float64).index_put((EDGES[1], EDGES[0]), torch.ones(6, dtype=torch.float64), accumulate=True)
    if kind == "gcn":
        matrix += torch.diag((matrix.diag() == 0).double())
        scale = matrix.sum(1).rsqrt()
        return scale[:, None] * matrix * scale
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1) if kind == "sage" else matrix


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("conv_type", ["gcn", "sage", "gin"])
def test_the_product_and_its_gradient_are_those_of_a_dense_matrix(conv_type, n):
    matrix = torch.block_diag(*[dense(WEIGHTS[conv_type])] * n)
    x = torch.randn(5 * n, 4, dtype=torch.float64, requires_grad=True)
    adjacency = make_adjacency(EDGES, 5, conv_type, torch.float64).repeat(n, 5)
    product, gradient = adjacency.sum_of_neighbours(x), torch.randn(5 * n, 4, dtype=torch.float64)
    torch.testing.assert_close(product, matrix @ x)
    torch.testing.assert_close(torch.autograd.grad(product, x, gradient)[0], matrix.T @ gradient)
    compiled = torch.compile(adjacency.sum_of_neighbours, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, product)
    torch.testing.assert_close(torch.autograd.grad(compiled, x, gradient)[0], matrix.T @ gradient)


@pytest.mark.parametrize("edges", [EDGES, EDGES[:, :0]], ids=["some", "none"])
@pytest.mark.parametrize("conv_type", ["gcn", "sage", "gin"])
def test_the_product_in_a_fixed_order_is_the_same(conv_type, edges):
    x = torch.randn(5, 4, dtype=torch.float64)
    matrices = make_adjacency(edges, 5, conv_type, torch.float64)
    for matrix in (matrices[:3], matrices[3:]):
        torch.testing.assert_close(multiply_in_order(*matrix, x), multiply(*matrix, x))


def test_a_deterministic_product_on_cuda_does_without_cusparse():
    with restore_kernels(), FakeTensorMode(), Operations() as mode:
        torch.use_deterministic_algorithms(True)
        bounds, columns = torch.empty(6, dtype=torch.int64, device="cuda"), torch.empty(9, dtype=torch.int64, device="cuda")
        product = multiply(bounds, columns, columns.float(), torch.empty(5, 4, device="cuda"))
        assert product.device.type == "cuda" and product.shape == (5, 4)
    assert "segment_reduce" in mode.names and not any("sparse" in name for name in mode.names)


def test_attention_has_one_loop_for_each_node():
    edges = make_adjacency(EDGES, 5, "gat").repeat(2, 5)
    real = [(0, 1), (1, 0), (1, 2), (3, 2), (0, 1)]
    assert list(map(tuple, edges.T.tolist())) == [*real, *[(a + 5, b + 5) for a, b in real], *[(i, i) for i in range(10)]]


@pytest.mark.parametrize("conv_type", WEIGHTS)
def test_a_loaded_batch_is_computed_without_a_wait_and_compiled_as_one_graph(conv_type):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = SpikingGNN(num_features=3, num_outputs=2, T=2, num_layers=2, width=8, conv_type=conv_type, heads=2)
    counter = CompileCounterWithBackend("eager")
    net = torch.compile(model, backend=counter, fullgraph=True)
    for nodes in (5, 7, 9):
        graphs = Data(x=torch.rand(nodes, 3), edge_index=EDGES, ptr=torch.tensor([0, 4, 4, nodes]))
        with Waits() as made_there:
            expected = model(graphs)
        functional.reset_net(model)
        model.at_loading((graphs,))
        with Waits() as loaded:
            output = model(graphs)
            output.sum().backward()
        functional.reset_net(model)
        assert made_there.found and not loaded.found and torch.equal(output, expected)
        torch.testing.assert_close(net(graphs), output)
        functional.reset_net(model)
    assert counter.frame_count == 2, "one for the first size, one for any"


def test_what_was_loaded_is_used_for_its_own_type_alone():
    graphs = Data(x=torch.rand(5, 3), edge_index=EDGES)
    add_adjacency((graphs,), "gcn")
    assert adjacency_of(graphs, "gcn", torch.float32) is graphs.gcn_adjacency
    assert adjacency_of(graphs, "gcn", torch.float64).weights.dtype == torch.float64
    assert adjacency_of(graphs, "gin", torch.float32).weights.tolist() == [1, 2, 1, 1, 1]
    assert graphs.to("meta").gcn_adjacency.weights.device.type == "meta"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_makes_it(make, workers):
    x = make(f"workers={workers}", base=GRAPHS)
    graphs, y = next(iter(x.train_loader))
    wanted = make_adjacency(graphs.edge_index, len(graphs.x), "gcn")
    assert all(map(torch.equal, graphs.gcn_adjacency, wanted)) and len(y) == len(graphs.ptr) - 1
