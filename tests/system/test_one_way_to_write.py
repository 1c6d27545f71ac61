"""Whatever the package writes goes through system/atomic.py, system/folders.py or system/tensors.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusion_lab

PACKAGE = Path(diffusion_lab.__path__[0])
WRITERS = {"system/atomic.py", "system/folders.py", "system/tensors.py"}
TO_A_PATH = {"write_text", "write_bytes", "savefig", "to_parquet"}  # methods
INTO = {"np.save": 0, "np.savez": 0, "save_file": 1, "torch.save": 1, "json.dump": 1, "pq.write_table": 1}
"""Functions that write to a path or a file object, and which argument that is."""
RENAMES = {"os.replace", "os.rename", "os.renames", "shutil.move", "os.fdopen", "tempfile.mkstemp"}
IN_MEMORY = {"BytesIO", "BufferOutputStream", "writing", "fresh_file"}  # or atomic's own sink
ALLOWED = {
    (
        "recipes/miniature/data.py",
        "np.lib.format.open_memmap",
    ): "filled by several processes, then `atomic.move`",
    ("runs/resume.py", "os.open"): "the lock, which holds nothing",
    ("system/gpus.py", "os.open"): "the lock of a GPU, which holds nothing",
    ("system/streams.py", "open"): "the null device",
    ("system/streams.py", "os.open"): "the null device",
    ("training/meter.py", "Path('/proc/self/clear_refs').write_text"): "a counter of the kernel",
    ("training/optimizers.py", "open"): "the null device",
}
"""(file, call) that may do otherwise, and why."""


def opens_for_writing(node: ast.Call) -> bool:
    """Of `open(path, mode)` and `path.open(mode)`: any mode but a constant one for reading."""
    modes = [*node.args[0 if isinstance(node.func, ast.Attribute) else 1 :][:1]]
    modes += [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
    return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes)


def in_memory(function: ast.AST, target: ast.expr) -> bool:
    """Whether `target` is a buffer or a sink of `atomic` made in this function."""
    if isinstance(target, ast.Call) and ast.unparse(target.func) == "cast":
        target = target.args[1]
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            made, names = node.value, node.targets
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            made, names = node.context_expr, [node.optional_vars]
        else:
            continue
        if ast.unparse(target) in map(ast.unparse, names) and isinstance(made, ast.Call):
            return ast.unparse(made.func).split(".")[-1] in IN_MEMORY
    return False


def writes(function: ast.AST, node: ast.Call) -> bool:
    """Whether the call, in `function`, writes to a path by itself, or renames one."""
    name, last = ast.unparse(node.func), ast.unparse(node.func).split(".")[-1]
    is_method = isinstance(node.func, ast.Attribute)
    if last in ("open", "open_memmap") and name not in ("Image.open", "self._log.open"):
        return name in ("os.open", "np.lib.format.open_memmap") or opens_for_writing(node)
    if name in RENAMES:
        return True
    if name in INTO:
        return not in_memory(function, node.args[INTO[name]])
    if not is_method or name.startswith(("atomic.", "tensors.")):
        return False
    if last in TO_A_PATH:
        return True
    if last in ("replace", "rename"):  # Path's have one argument, text's two
        return len(node.args) == 1 and not node.keywords
    if last == "save" and "image" in name.casefold():
        return not in_memory(function, node.args[0])
    return False


def found(source: str) -> Iterator[tuple[str, int]]:
    """Calls that write, and their lines."""

    def visit(node: ast.AST, function: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.FunctionDef):
            function = node
        if isinstance(node, ast.Call) and writes(function, node):
            yield ast.unparse(node.func), node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    tree = ast.parse(source)
    return visit(tree, tree)


def test_no_module_writes_by_itself() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 200
    calls = {
        (path.relative_to(PACKAGE).as_posix(), call): line
        for path in files
        for call, line in found(path.read_text("utf-8"))
        if path.relative_to(PACKAGE).as_posix() not in WRITERS
    }
    others = [f"{file}:{calls[file, call]}: {call}" for file, call in calls if (file, call) not in ALLOWED]
    assert not others, "write these through diffusion_lab.system.atomic, folders or tensors"
    assert set(ALLOWED) <= set(calls), "an exception that no longer occurs: take it out of the list"


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('a')",
        "(folder / 'a').write_bytes(b'')",
        "open(path, 'w')",
        "path.open('ab')",
        "open(path, mode=mode)",
        "os.open(path, flags)",
        "save_file(tensors, path)",
        "np.save(path, array)",
        "torch.save(state, path)",
        "Image.fromarray(pixels).save(path)",
        "os.replace(a, b)",
        "a.replace(b)",
        "path.rename(other)",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert len(list(found(f"def f():\n    {line}\n"))) == 1


@pytest.mark.parametrize(
    "lines",
    [
        "atomic.write_text(path, 'a')",
        "path.open('rb'); open(path); path.open(encoding='utf-8')",
        "text.replace('a', 'b'); dataclasses.replace(one, n=2)",
        "buffer = io.BytesIO()\n    image.save(buffer, 'PNG')",
        "with atomic.writing(path) as sink:\n        torch.save(state, cast('IO[bytes]', sink))",
        "method.save(pipe, folder)",
    ],
)
def test_the_search_lets_pass(lines: str) -> None:
    assert not list(found(f"def f():\n    {lines}\n"))
