"""The Hydra configs: found from anywhere, complete, and shadowing nobody's."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import schnetpack
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

import schnetpack_softadapt.configs as our_configs

CONFIGS = Path(our_configs.__path__[0])
NAMES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))
EXPERIMENTS = sorted(Path(n).stem for n in NAMES if n.startswith("experiment/"))


@pytest.fixture(scope="module")
def resolvers():
    """`spktrain` registers its resolvers when imported."""
    import schnetpack.cli  # noqa: F401


def targets(config):
    """All `_target_` names below a config node."""
    if isinstance(config, DictConfig):
        for key in config:
            if OmegaConf.is_missing(config, key):
                continue
            value = config._get_node(key)
            if key == "_target_":
                yield config[key]
            elif isinstance(value, DictConfig | ListConfig):
                yield from targets(value)
    elif isinstance(config, ListConfig):
        for value in config:
            yield from targets(value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose(name, resolvers):
    with initialize_config_module("schnetpack.configs", version_base="1.2"):
        config = compose("train", overrides=[f"experiment={name}"])
    found = set(targets(config.model)) | set(targets(config.data)) | set(targets(config.task))
    found |= set(targets(config.callbacks)) | set(targets(config.trainer))
    assert any("schnetpack_softadapt" in target for target in found)
    for target in found:
        get_class_or_function(target)
    assert config.run.id, "a fixed run name, so that the same command continues a killed run"


def readme_settings():
    """Settings that README names in code, those of one span together."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    for span in re.findall(r"`([^`\n]+)`", text):
        if "=" in span and not span.startswith(("spktrain", "spk-softadapt")):
            words = shlex.split(span)
            settings = [
                word for word in words if re.match(r"(data|globals|model|task|trainer)\b", word)
            ]
            if settings:
                yield settings


#: what the README names beside a setting that only this has
CONTEXTS = (
    ["experiment=recommended_softadapt"],
    ["experiment=ace_softadapt"],
    ["experiment=ace_softadapt", "model/start_from=model_softadapt"],
    ["experiment=recommended_softadapt", "model/baseline=zbl_softadapt"],
    ["experiment=linear_softadapt"],
    ["experiment=snap_network_a"],
)


@pytest.mark.parametrize("settings", readme_settings(), ids=" ".join)
def test_settings_of_the_readme_compose(settings, resolvers):
    name, _, choices = settings[0].partition("=")
    with initialize_config_module("schnetpack.configs", version_base="1.2"):
        for choice in choices.split("|"):
            for context in CONTEXTS:
                try:
                    compose("train", overrides=[*context, f"{name}={choice}", *settings[1:]])
                    break
                except ConfigCompositionException as error:
                    refused = error
            else:
                raise refused


def test_the_former_name_of_the_recipe_is_the_recipe(resolvers, caplog):
    with initialize_config_module("schnetpack.configs", version_base="1.2"):
        new, old = (
            compose("train", overrides=[f"experiment={name}"])
            for name in ("recommended_softadapt", "mlearn_softadapt")
        )
    OmegaConf.set_struct(old, False)
    callback = instantiate(old.callbacks.pop("renamed"))
    callback.on_fit_start(SimpleNamespace(is_global_zero=True), None)
    assert "experiment=mlearn_softadapt is now experiment=recommended_softadapt" in caplog.text
    old.run.id = new.run.id  # runs that were started are found
    assert old == new


@pytest.mark.parametrize("representation", ["acsf", "snap", "ace"])
@pytest.mark.parametrize("experiment", ["recommended_softadapt", "molecule_softadapt"])
def test_other_descriptors_in_the_recipes(experiment, representation, resolvers):
    """What a recipe says of symmetry functions is no argument of others."""
    choice = [f"experiment={experiment}", f"model/representation={representation}"]
    with initialize_config_module("schnetpack.configs", version_base="1.2"):
        config = compose("train", overrides=choice)
    representation = instantiate(config.model.representation)
    representation.build(["Mo", "Te"])
    assert representation.descriptor.cutoff == config.globals.cutoff


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("study/")])
@pytest.mark.parametrize("experiment", ["study_mote2", "study_mlearn"])
def test_cases_of_a_study_replace_the_rule(name, experiment, resolvers):
    case = Path(name).stem
    with initialize_config_module("schnetpack.configs", version_base="1.2"):
        config = compose("train", overrides=[f"experiment={experiment}", f"study={case}", "seed=7"])
    assert config.run.id.endswith(f"/{case}_7")
    rule = instantiate(config.task.weighting)
    rule.begin(["energy", "forces", "stress"], lr=1e-3)
    assert sum(rule.weights.values()) > 0
    shipped = CONFIGS / "task" / "weighting" / f"{case}.yaml"
    if shipped.exists():  # the four other rules are studied as they are shipped
        shipped = OmegaConf.load(shipped)
        assert {**config.task.weighting, "switch": 0} == {**shipped, "switch": 0}


def get_class_or_function(target):
    from hydra.utils import get_object

    try:
        return get_class(target)
    except ValueError:
        return get_object(target)


def test_names_shadow_nobody():
    stock = Path(schnetpack.__file__).parent / "configs"
    theirs = {str(p.relative_to(stock)) for p in stock.rglob("*.yaml")}
    assert not theirs & set(NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("experiment/")])
def test_package_directive_is_where_hydra_reads_it(name):
    """Hydra reads only the first 512 characters for the package directive."""
    assert "# @package _global_" in (CONFIGS / name).read_text()[:512]
