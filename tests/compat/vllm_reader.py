"""Reads vLLM's Python sources without importing them: routes, classes with their fields, options, variables.

Everything is given as text that is equal exactly where the source says the same: positions, comments, docstrings and
field descriptions left out.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERBS = ("get", "post", "put", "delete", "patch", "head", "options")
Found = tuple[str, ast.AST]
"""Module and node of a definition."""


class NotThere(LookupError):
    """The sources have no such thing; says which."""


@dataclass
class Sources:
    """The directory that holds `vllm/`. `patched`: file -> text that stands for it, to play another release."""

    root: Path
    patched: Mapping[str, str] = field(default_factory=dict)
    _trees: dict[str, ast.Module] = field(default_factory=dict)
    _routes: list[tuple[str, str, str]] = field(default_factory=list)

    def text(self, file: str) -> str:
        return self.patched.get(file) or (self.root / file).read_text()

    def file(self, module: str) -> str:
        base = module.replace(".", "/")
        for name in (f"{base}.py", f"{base}/__init__.py"):
            if (self.root / name).exists():
                return name
        raise NotThere(f"module {module}")

    def tree(self, module: str) -> ast.Module:
        file = self.file(module)
        if file not in self._trees:
            self._trees[file] = ast.parse(self.text(file))
        return self._trees[file]

    def find(self, module: str, name: str) -> Found:
        """The definition of `name` as seen in `module`: class, function, or the value that is assigned to it."""
        for node in _statements(self.tree(module)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._imported(_absolute(node, module, self.file(module)), alias.name)
            if isinstance(node, ast.AnnAssign | ast.Assign) and name in _targets(node):
                return module, node.value or node
        raise NotThere(f"{name} in {module}")

    def _imported(self, module: str, name: str) -> Found:
        if not module.startswith("vllm"):
            return module, ast.Name(id=f"{module}.{name}")
        try:
            return self.find(module, name)
        except NotThere:
            return f"{module}.{name}", self.tree(f"{module}.{name}")

    # --- classes

    def lineage(self, module: str, name: str) -> list[tuple[str, ast.ClassDef]]:
        """The class and its bases as far as they are vLLM's, nearest first."""
        place, node = self.find(module, name)
        if not isinstance(node, ast.ClassDef):
            return []
        found = [(place, node)]
        for base in node.bases:
            if isinstance(base, ast.Name):
                found += self.lineage(place, base.id)
        return found

    def member(self, module: str, name: str, member: str) -> str:
        """A field with its type and default, a method whole, or an attribute that __init__ sets."""
        for place, node in self.lineage(module, name):
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == member:
                    return plain(statement)
                if isinstance(statement, ast.AnnAssign | ast.Assign) and member in _targets(statement):
                    return self._field(place, statement)
            if (value := _set_in_init(node, member)) is not None:
                return value
        raise NotThere(f"{member} of {module}.{name}")

    def signature(self, module: str, name: str, method: str) -> str:
        """A method's arguments with their types and defaults."""
        for _, node in self.lineage(module, name):
            for one in node.body:
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == method:
                    return plain(one.args)
        raise NotThere(f"{method} of {module}.{name}")

    def abstract(self, module: str, name: str) -> list[str]:
        """The methods that a subclass must have."""
        methods = [one for _, node in self.lineage(module, name) for one in node.body
                   if isinstance(one, ast.FunctionDef)]
        return sorted({one.name for one in methods if "abstractmethod" in map(ast.unparse, one.decorator_list)})

    def _field(self, module: str, node: ast.AnnAssign | ast.Assign) -> str:
        """Type and default; names of other modules' literals and defaults are followed once."""
        kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        names = {one.id for one in ast.walk(node.annotation) if isinstance(one, ast.Name)} \
            if isinstance(node, ast.AnnAssign) else set()
        literals = {name: literal for name in sorted(names) if (literal := self._literal(module, name))}
        return f"{kind} = {self._default(module, node.value)} {literals or ''}".rstrip()

    def _literal(self, module: str, name: str) -> str:
        try:
            _, node = self.find(module, name)
        except (NotThere, SyntaxError):
            return ""
        return ast.unparse(node) if isinstance(node, ast.Subscript) else ""

    def _default(self, module: str, node: ast.expr | None) -> str:
        source = node.args[0] if isinstance(node, ast.Call) and ast.unparse(node.func) == "get_field" else node
        if isinstance(source, ast.Attribute) and isinstance(source.value, ast.Name):
            return f"{ast.unparse(source)}: {self.member(*self._class(module, source.value.id), source.attr)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "get_field" and len(node.args) == 2:
            owner = ast.unparse(node.args[0])
            return f"{owner}: {self.member(*self._class(module, owner), ast.literal_eval(node.args[1]))}"
        return plain(node) if node is not None else "required"

    def _class(self, module: str, name: str) -> tuple[str, str]:
        place, node = self.find(module, name)
        return (place, node.name) if isinstance(node, ast.ClassDef) else (place, name)

    # --- routes, variables

    def routes(self, path: str) -> list[tuple[str, str]]:
        """(method, handler without its decorators) of every route with this path."""
        if not self._routes:
            self._routes = list(self._all_routes())
        return [(verb, handler) for place, verb, handler in self._routes if place == path]

    def _all_routes(self) -> Iterator[tuple[str, str, str]]:
        for path in sorted((self.root / "vllm" / "entrypoints").rglob("*.py")):
            text = self.text(str(path.relative_to(self.root)))
            if "router." in text:
                body = ast.parse(text).body
                yield from (route for node in body for route in (*_routes_of(node), *_added_routes(node, body)))

    def variable(self, name: str) -> str:
        """How an environment variable is read."""
        for node in ast.walk(self.tree("vllm.envs")):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == name:
                        return plain(value)
        raise NotThere(f"variable {name} in vllm.envs")


def plain(node: ast.AST) -> str:
    """Source without docstrings, decorators of routes, or the descriptions of fields."""
    node = copy.deepcopy(node)
    for one in ast.walk(node):
        body = getattr(one, "body", None)
        if isinstance(body, list):
            kept = [line for line in body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
            one.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
        if isinstance(one, ast.Call):
            one.keywords = [word for word in one.keywords if word.arg != "description"]
    return ast.unparse(node)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Top-level statements, then the imports that stand deeper."""
    yield from tree.body
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))


def _targets(node: ast.AnnAssign | ast.Assign) -> list[str]:
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _absolute(node: ast.ImportFrom, module: str, file: str) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    up = node.level - (1 if file.endswith("__init__.py") else 0)
    return ".".join([*parts[:len(parts) - up], *filter(None, [node.module])])


def _set_in_init(node: ast.ClassDef, member: str) -> str | None:
    """What __init__ assigns to self.<member>."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            for one in ast.walk(method):
                targets: list[Any] = one.targets if isinstance(one, ast.Assign) else \
                    [one.target] if isinstance(one, ast.AnnAssign) else []
                if f"self.{member}" in map(ast.unparse, targets):
                    return plain(one)
    return None


def _added_routes(node: ast.stmt, body: list[ast.stmt]) -> Iterator[tuple[str, str, str]]:
    """The same of `router.add_api_route(path, handler, methods=[...])`."""
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_api_route":
        path, handler = ast.literal_eval(call.args[0]), ast.unparse(call.args[1])
        methods = next((ast.literal_eval(word.value) for word in call.keywords if word.arg == "methods"), ["GET"])
        source = next((plain(one) for one in body if getattr(one, "name", "") == handler), handler)
        yield from ((path, method, source) for method in methods)


def _routes_of(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """(path, method, handler) by its decorators."""
    for decorator in getattr(node, "decorator_list", []):
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute) \
                and decorator.func.attr in VERBS and decorator.args and isinstance(decorator.args[0], ast.Constant):
            handler = copy.deepcopy(node)
            handler.decorator_list = []  # type: ignore[attr-defined]
            yield str(decorator.args[0].value), decorator.func.attr.upper(), plain(handler)
