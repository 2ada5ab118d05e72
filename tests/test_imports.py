"""Who may import whom: the layers of the package stay layers."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import schnetpack_softadapt

PACKAGE = Path(schnetpack_softadapt.__file__).parent
NAME = "schnetpack_softadapt"

#: what every part may import
EVERYONES = {"__version__", "files", "lazy", "quantities"}

#: what each part of the package may import from the package
ALLOWED = {
    "properties": set(),
    "quantities": set(),
    "errors": set(),
    "files": set(),
    "lazy": set(),
    "neighbors": {"neighbors", "properties"},
    "descriptors": {"descriptors", "neighbors", "properties"},
    "data": {"data", "neighbors", "descriptors", "errors", "properties"},
    "model": {"model", "neighbors", "data", "descriptors", "properties"},
    "training": {"training", "neighbors", "model", "data", "descriptors", "errors", "properties"},
    "reports": {"reports", "neighbors", "model", "training", "data", "properties"},
    "deploy": {"deploy", "neighbors", "training", "model", "descriptors", "data", "properties"},
    "learn": {"learn", "api", "deploy", "model", "descriptors", "data", "neighbors"},
    "cli": {
        "__version__",
        "api",
        "cli",
        "learn",
        "neighbors",
        "data",
        "descriptors",
        "model",
        "training",
        "reports",
        "deploy",
        "errors",
        "properties",
    },
    "hydra_searchpath": set(),
    "configs": set(),
    "__init__": {"api", "deploy", "model", "training"},
    "api": {"deploy", "reports", "training"},
    "examples": {"SoftAdaptCalculator", "SoftAdaptTask", "deploy", "training"},
}

#: parts that know neither SchNetPack nor Lightning
FRAMEWORK_FREE = (
    "neighbors",
    "descriptors",
    "errors.py",
    "files.py",
    "lazy.py",
    "properties.py",
    "quantities.py",
    "training/rules",
    "reports",
)
FRAMEWORKS = {"schnetpack", "pytorch_lightning", "lightning"}


def imported_modules(path: Path) -> list[str]:
    """Absolute names of all modules a file imports, at any depth."""
    package = [NAME, *path.relative_to(PACKAGE).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    local = {
        name.split(".")[1]
        for name in imported_modules(path)
        if name.split(".")[0] == NAME and len(name.split(".")) > 1
    }
    local -= EVERYONES
    assert local <= ALLOWED[part], f"{path.name} of {part} imports {sorted(local - ALLOWED[part])}"


def test_framework_free_parts():
    for entry in FRAMEWORK_FREE:
        target = PACKAGE / entry
        for path in [target] if target.is_file() else sorted(target.rglob("*.py")):
            # training may also import lazily; descriptors and rules must not at all
            roots = {name.split(".")[0] for name in imported_modules(path)}
            if entry == "reports":
                roots -= {"schnetpack"}  # predictions of stock runs are made on request
            assert not roots & FRAMEWORKS, f"{path} imports {roots & FRAMEWORKS}"


def test_no_utils_module_and_all_modules_declare_all():
    for path in MODULES:
        assert "utils" not in path.stem
        text = path.read_text()
        if path.stem != "__init__" and "def " in text:
            assert "__all__" in text, f"{path} does not declare __all__"


def test_modules_stay_small():
    long = {str(p): n for p in MODULES if (n := len(p.read_text().splitlines())) > 600}
    assert not long, f"two ideas in one module? {long}"


def test_search_path_plugin_is_light():
    """Every Hydra program on the machine imports it: torch would cost each of them seconds."""
    code = (
        "import sys, schnetpack_softadapt\n"
        "from hydra_plugins.schnetpack_softadapt_searchpath import SoftAdaptSearchPath\n"
        "print([m for m in ('torch', 'schnetpack', 'numba') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert out.stdout.strip() == "[]"


def test_the_package_is_the_installed_one():
    """The source tree has no `schnetpack_softadapt.configs`."""
    assert importlib.util.find_spec("schnetpack_softadapt.configs") is not None


def test_python_m_pytest_from_the_checkout():
    """It puts the source tree first on the path, where it would shadow the installed package."""
    this = Path(__file__)
    name = f"tests/{this.name}::test_the_package_is_the_installed_one"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", name]
    done = subprocess.run(command, cwd=this.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_without_installation_one_sentence(tmp_path):
    """An empty environment stands for one without the package: -S leaves site-packages out."""
    conftest = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-S", "-I", str(conftest)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "pip install" in done.stderr
