"""The layers of ARCHITECTURE.md hold."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest
from imports import CLIENT, ROOT, SERVER, Import, imports_of

# The server from top to bottom: a part may import parts of lower layers, and itself.
LAYERS = (
    {"commands", "demo"},
    {"app"},
    {"guard", "path_prefix"},
    {"api", "pages"},
    {"parts"},
    {"services"},
    {"storage", "channels", "live"},
    {"worker", "access", "metrics", "problems"},
    {"settings"},
    {"errors"},
)
# What the server may take from the client, besides the version.
SHARED = {"rules", "signals", "wire", "__version__"}
BACKENDS = {"keras", "tensorflow", "jax", "torch"}
# Towards the training, towards a rule, towards a channel: these may catch everything.
BROAD = {"boundary.py", "rulebook.py", "outbox.py"}


def _listed(imports: Iterable[Import]) -> str:
    return "\n".join(str(each) for each in imports)


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _rank(part: str) -> int:
    ranks = [i for i, layer in enumerate(LAYERS) if part in layer]
    assert ranks, f"say in LAYERS where trainsanity_server.{part} belongs"
    return ranks[0]


def _own_part(file: Path) -> str:
    return file.relative_to(SERVER).parts[0].removesuffix(".py")


def test_parts_of_the_server_import_lower_layers_only():
    wrong = []
    for each in imports_of(SERVER):
        if each.top != "trainsanity_server" or _own_part(each.file) == "__init__":
            continue
        own, other = _own_part(each.file), _part(each.module)
        if other in ("", own):
            continue
        if _rank(other) <= _rank(own):
            wrong.append(each)
    assert not wrong, _listed(wrong)


def test_server_takes_rules_signals_and_wire_from_the_client_and_nothing_else():
    wrong = [
        each
        for each in imports_of(SERVER)
        if each.top == "trainsanity" and _part(each.module) not in SHARED | {""}
    ]
    assert not wrong, _listed(wrong)


def test_client_never_imports_the_server():
    wrong = [each for each in imports_of(CLIENT) if each.top == "trainsanity_server"]
    assert not wrong, _listed(wrong)


def test_rules_import_neither_keras_nor_a_backend_nor_the_rest_of_the_client():
    allowed = {"rules", "wire", "signals"}
    wrong = [
        each
        for each in imports_of(CLIENT / "rules")
        if each.top in BACKENDS or (each.top == "trainsanity" and _part(each.module) not in allowed)
    ]
    assert not wrong, _listed(wrong)


def test_a_backend_is_imported_by_its_own_files_only():
    wrong = [
        each
        for each in imports_of(CLIENT)
        if each.top in BACKENDS - {"keras"}
        and not (each.file.parent == CLIENT / "backends" and each.file.stem.startswith(each.top))
    ]
    assert not wrong, _listed(wrong)


def test_server_imports_no_keras():
    wrong = [each for each in imports_of(SERVER) if each.top in BACKENDS]
    assert not wrong, _listed(wrong)


@pytest.mark.parametrize("folder", [CLIENT, SERVER], ids=["client", "server"])
def test_only_the_boundaries_catch_everything(folder: Path):
    wrong = []
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node) and file.name not in BROAD:
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, f"catch what you can do something about, not everything: {wrong}"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    # What is raised again, such as after cleaning up, is not swallowed.
    raises = any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))
    return bool(names & {"Exception", "BaseException"}) and not raises


def test_the_client_reads_no_frames_of_other_threads():
    """In Python 3.11 that ends in a crash (python/cpython#106092), a lock-up (#106883) or, as once
    here, in objects of other kinds among the frames.
    """
    readers = {"_current_frames", "_current_exceptions"}
    asks = [
        f"{file}:{node.lineno}"
        for file in sorted(CLIENT.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in readers
    ]
    assert not asks, asks


def test_the_client_multiplies_no_arrays_by_blas():
    """Its threads wait in a busy loop for more, as OpenBLAS' for a tenth of a second, on processors
    that training needs. Where a product is worth it, it says so by calling `np.matmul`.
    """
    by_blas = {"dot", "vdot", "inner", "tensordot", "linalg"}
    multiplies = [
        f"{file}:{node.lineno}"
        for file in sorted(CLIENT.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult))
        or (
            isinstance(node, ast.Attribute)
            and node.attr in by_blas
            and isinstance(node.value, ast.Name)
            and node.value.id == "np"
        )
    ]
    assert not multiplies, multiplies


def test_the_client_draws_no_numbers_from_the_generators_of_python_and_numpy():
    """Training draws from them too, and would draw others next; only their state is looked at."""
    harmless = {"Random", "getstate", "setstate", "get_state", "set_state"}
    harmless |= {"Generator", "PCG64", "RandomState", "default_rng"}
    draws = [
        f"{file}:{node.lineno}"
        for file in sorted(CLIENT.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr not in harmless
        if ast.unparse(node.value) in ("random", "np.random", "numpy.random")
    ]
    assert not draws, draws
