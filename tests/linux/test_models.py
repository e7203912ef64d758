"""Does `linux.models` say which processors an old kernel leaves alone? The lists were read from the trees named."""

from __future__ import annotations

import pytest

from splitlock.linux.models import LISTED, UNANNOUNCED, looked_at
from splitlock.linux.versions import release

# split_lock_cpu_ids[] of each tree.
READ = {
    "5.7.6": "6A 7E 96 86 9C",
    "5.7.14": "6A 7E 96 86 9C",
    "5.8.1": "6A 7E 6C 96 86 9C 8C 8D",
    "5.9.1": "6A 7E 6C 96 86 9C 8C 8D 8F 97",
    "5.10.262": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A",
    "5.11.0": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A",
    "5.12.9": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A",
    "5.15.145": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A",
    "5.18.12": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A",
    "5.19.0": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A B7",
    "6.1.192": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A B7",
    "6.3.8": "6A 7E 6C 96 86 9C 8C 8D 8F 97 9A B7",
}


@pytest.mark.parametrize("tree", READ)
def test_the_list_of_each_tree(tree: str) -> None:
    kernel = release(tree)
    assert kernel is not None
    listed = {int(model, 16) for model in READ[tree].split()}
    for model in range(256):
        assert looked_at(kernel, model) == ("yes" if model in listed else "no"), hex(model)


@pytest.mark.parametrize("text", ["6.4.6", "6.12.118", "7.3.4", "6.8.0-60-generic"])
def test_later_kernels_believe_the_processor(text: str) -> None:
    kernel = release(text)
    assert kernel is not None
    assert {looked_at(kernel, model) for model in range(256)} == {"yes"}


def test_a_kernel_with_much_taken_back_may_believe_the_processor() -> None:
    kernel = release("5.14.0-427.el9.x86_64")
    assert kernel is not None
    assert looked_at(kernel, 0xBE) == "unknown"  # Alder Lake-N: N100
    assert looked_at(kernel, 0x97) == "yes"
    assert not UNANNOUNCED.keys() & LISTED.keys()
