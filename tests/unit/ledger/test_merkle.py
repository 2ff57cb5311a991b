"""Trees and proofs: against the published vectors, and one implementation against the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.ledger import merkle
from personae_serve import audit_verify
from personae_serve.audit_verify import Invalid, RunningRoot, check_consistency, check_inclusion

# The vectors of Certificate Transparency's reference implementation (merkletree/merkle_tree_test.cc): eight leaves, the
# roots of the first one to eight of them, and proofs; index counts from 0.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


class Tree:
    """The ledger's tree with its nodes in memory."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.nodes: dict[merkle.Node, bytes] = {}
        frontier = merkle.Frontier(0, [], self.nodes.__setitem__)
        for leaf in leaves:
            frontier.append(merkle.leaf_hash(leaf))
        self.root = frontier.root

    def hashes(self, ranges: list[merkle.Range]) -> list[bytes]:
        return [merkle.fold([self.nodes[node] for node in merkle.complete(leaves)]) for leaves in ranges]


def running(leaves: list[bytes]) -> bytes:
    """The root as the verifier finds it."""
    found = RunningRoot()
    for leaf in leaves:
        found.add(leaf)
    return found.root()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_the_published_ones(size: int) -> None:
    assert Tree(LEAVES[:size]).root.hex() == running(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_the_root_of_nothing_is_the_hash_of_nothing() -> None:
    # RFC 9162, section 2.1.1: MTH({}) = HASH().
    published = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle.EMPTY_ROOT.hex() == running([]).hex() == published


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_the_published_ones(index: int, size: int) -> None:
    hashes = Tree(LEAVES[:size]).hashes(merkle.inclusion(index, size))
    assert [found.hex() for found in hashes] == INCLUSION[index, size]
    check_inclusion(audit_verify.leaf_hash(LEAVES[index]), index, size, bytes.fromhex(ROOTS[size - 1]), hashes)


@pytest.mark.parametrize(("first", "second"), CONSISTENCY)
def test_consistency_proofs_are_the_published_ones(first: int, second: int) -> None:
    hashes = Tree(LEAVES[:second]).hashes(merkle.consistency(first, second))
    assert [found.hex() for found in hashes] == CONSISTENCY[first, second]
    roots = bytes.fromhex(ROOTS[first - 1]), bytes.fromhex(ROOTS[second - 1])
    check_consistency(first, second, *roots, hashes)


@given(st.integers(1, 300), st.data())
def test_proofs_of_any_tree_hold_and_only_of_what_they_are_of(size: int, data: st.DataObject) -> None:
    leaves = [index.to_bytes(2, "big") for index in range(size)]
    tree = Tree(leaves)
    assert tree.root == running(leaves)
    index = data.draw(st.integers(0, size - 1))
    hashes = tree.hashes(merkle.inclusion(index, size))
    check_inclusion(audit_verify.leaf_hash(leaves[index]), index, size, tree.root, hashes)
    for other, proof in (
        (index ^ 1, hashes),
        (index, [*hashes, tree.root]),
        (index, hashes[:-1] if hashes else [tree.root]),
        (index, [bytes(32), *hashes[1:]] if hashes else [bytes(32)]),
    ):
        with pytest.raises(Invalid):
            check_inclusion(audit_verify.leaf_hash(leaves[index]), other, size, tree.root, proof)

    first = data.draw(st.integers(1, size))
    before = running(leaves[:first])
    assert tree.hashes([(0, first)]) == [before]
    steps = tree.hashes(merkle.consistency(first, size))
    check_consistency(first, size, before, tree.root, steps)
    changed = data.draw(st.integers(0, first - 1))
    forged = running([*leaves[:changed], b"forged", *leaves[changed + 1 : first]])
    with pytest.raises(Invalid):
        check_consistency(first, size, forged, tree.root, steps)
    with pytest.raises(Invalid):
        check_consistency(first, size, before, tree.root, [*steps, bytes(32)])


@given(st.lists(st.integers(1, 40), max_size=8))
def test_a_tree_that_grows_in_batches_is_the_same(batches: list[int]) -> None:
    leaves: list[bytes] = []
    nodes: dict[merkle.Node, bytes] = {}
    for count in batches:
        more = [(len(leaves) + index).to_bytes(2, "big") for index in range(count)]
        edge = [nodes[node] for node in merkle.complete((0, len(leaves)))]
        frontier = merkle.Frontier(len(leaves), edge, nodes.__setitem__)
        for leaf in more:
            frontier.append(merkle.leaf_hash(leaf))
        leaves += more
        assert frontier.root == running(leaves)
    assert nodes == Tree(leaves).nodes
