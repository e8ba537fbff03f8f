"""What the tests with a real container runtime share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runtime.node import Node
from tests.runtime.releases import INSTALLED, find_release


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """One for the tests of a module; see releases() for one of each containerd."""
    with Node(find_release(getattr(request, "param", INSTALLED))) as node:
        yield node


@pytest.fixture
def empty_node(node: Node) -> Iterator[Node]:
    """The module's, without pods."""
    yield node
    node.remove_all_pods()
