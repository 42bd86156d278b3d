"""No file runs code: nothing in the product reads pickles, or what contains them, without refusing what they may name.

The source is searched, calls inside functions and under other names included.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.test_architecture import ROOT, files

# What runs code from a file, or may, however it is called.
NEVER = {
    "builtins.eval",
    "builtins.exec",
    "builtins.__import__",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "dill.loads",
    "importlib.import_module",
    "joblib.load",
    "jsonpickle.decode",
    "marshal.load",
    "marshal.loads",
    "mxnet.nd.load",
    "mxnet.ndarray.load",
    "pandas.read_pickle",
    "pickle.Unpickler",
    "pickle._Unpickler",
    "pickle._load",
    "pickle._loads",
    "pickle.load",
    "pickle.loads",
    "runpy.run_path",
    "shelve.open",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.serialization.add_safe_globals",
    "torch.serialization.safe_globals",
    "torch.distributed.checkpoint.FileSystemReader",
    "torch.distributed.checkpoint.load",
    "torch.distributed.checkpoint.load_state_dict",
    "torch.distributed.checkpoint.state_dict_loader.load",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
# What is safe with one argument as it is here; a keyword that may be missing has its safe value then.
WITH = {
    "torch.load": ("weights_only", {"True"}, "needed"),
    "numpy.load": ("allow_pickle", {"False"}, "may be missing"),
    "numpy.lib.format.read_array": ("allow_pickle", {"False"}, "may be missing"),
    "yaml.load": ("Loader", {"SafeLoader", "CSafeLoader"}, "needed"),
}
# Base classes that are safe once this method of theirs is replaced.
REPLACED = {"pickle.Unpickler": "find_class", "pickle._Unpickler": "find_class"}

# File and name → why it is right there. An entry that is no longer needed fails.
ALLOWED = {
    ("benchmarks/gpu/worker.py", "importlib.import_module"): "a module of its own package, named by the command",
    ("models/sharded.py", "torch.distributed.checkpoint.FileSystemReader"): "its pickle is read by another reader",
    ("models/sharded.py", "torch.distributed.checkpoint.load"): "with a reader and a planner that run nothing",
    ("models/sharded.py", "pickle._Unpickler"): "steps of it, in an unpickler that admits names from a list",
    ("models/weight_files.py", "torch.serialization.safe_globals"): "maps names to a class that does nothing",
    ("pipelines/sources/bins.py", "pickle._Unpickler"): "steps of it, in an unpickler that admits names from a list",
}


def names(tree: ast.AST) -> dict[str, str]:
    """What every imported name stands for, in full."""
    found = {name: f"builtins.{name}" for name in ("eval", "exec", "__import__")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def full_name(node: ast.AST, known: dict[str, str]) -> str:
    """``np.lib.load`` as numpy.lib.load; nothing for what is no imported name."""
    if isinstance(node, ast.Attribute):
        before = full_name(node.value, known)
        return before and f"{before}.{node.attr}"
    return known.get(node.id, "") if isinstance(node, ast.Name) else ""


def safe_loaders(tree: ast.AST, known: dict[str, str]) -> set[str]:
    """Loaders of YAML that make plain values, those derived from them here included."""
    safe = {"SafeLoader", "CSafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(full_name(b, known).endswith(".SafeLoader") for b in node.bases):
            safe.add(node.name)
    return safe


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each use of something that may run code from a file."""
    tree = ast.parse(source)
    known, right = names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (rule := WITH.get(full_name(node.func, known))):
            keyword, values, needed = rule
            if keyword == "Loader":
                values = safe_loaders(tree, known)
            given = [k.value for k in node.keywords if k.arg == keyword]
            if keyword == "Loader" and len(node.args) > 1:
                given.append(node.args[1])
            said = [ast.unparse(value).rpartition(".")[2] for value in given]
            unpacked = any(k.arg is None for k in node.keywords)
            if (set(said) <= values) and (said or needed == "may be missing") and not unpacked:
                right.add(node.func)
        elif isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            right |= {base for base in node.bases if REPLACED.get(full_name(base, known)) in methods}
    for node in ast.walk(tree):
        name = full_name(node, known) if isinstance(node, ast.Attribute | ast.Name) else ""
        if (name in NEVER or name in WITH) and node not in right:
            yield node.lineno, name


def test_nothing_unpickles_freely():
    used = {
        (str(file.relative_to(ROOT)), name): line for file in files(ROOT) for line, name in faults(file.read_text())
    }
    assert [f"{file}:{line}: {name}" for (file, name), line in used.items() if (file, name) not in ALLOWED] == []
    assert [entry for entry in ALLOWED if entry not in used] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "import pickle as p\nread = p.loads",
        "from pickle import loads as read\nread(data)",
        "import pickle\npickle.Unpickler(file).load()",
        "import pickle\nclass Mine(pickle.Unpickler):\n    def persistent_load(self, x): pass",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=safe)",
        "import torch\ntorch.load(path, **options)",
        "import torch\nread = torch.load",
        "from torch import load\ndef f():\n    load(path)",
        "import torch\ntorch.jit.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, **options)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.load(text, Loader=yaml.UnsafeLoader)",
        "import yaml\nyaml.load(text)",
        "import yaml\nclass L(yaml.FullLoader): pass\nyaml.load(text, L)",
        "import yaml\nyaml.unsafe_load(text)",
        "import torch.distributed.checkpoint as dcp\ndcp.load(state, checkpoint_id=path)",
        "import torch.distributed.checkpoint\ntorch.distributed.checkpoint.load(state)",
        "from torch.distributed.checkpoint import FileSystemReader\nFileSystemReader(path)",
        "def f():\n    import dill\n    dill.load(file)",
        "import mxnet as mx\nmx.nd.load(path)",
        "eval(text)",
    ],
)
def test_what_may_run_code_is_found(source):
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)\nmodel.eval()\nmodel.load()",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.load(text, yaml.SafeLoader)\nyaml.safe_load(text)",
        "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load(text, L)",
        "import pickle\npickle.dump(x, file)",
        "import pickle\nclass Mine(pickle.Unpickler):\n    def find_class(self, module, name): raise ValueError",
        "import json\njson.load(file)",
    ],
)
def test_what_is_safe_passes(source):
    assert not list(faults(source))
