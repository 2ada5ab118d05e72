"""Makes the configs of this package visible to every Hydra program, `spktrain` first of all.

Hydra imports this module whenever any Hydra program starts on the machine, so it must import
nothing heavy. It is installed as `hydra_plugins.schnetpack_softadapt_searchpath`, where Hydra
looks for plugins.
"""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["SoftAdaptSearchPath"]


class SoftAdaptSearchPath(SearchPathPlugin):
    """Appends `pkg://schnetpack_softadapt.configs`; SchNetPack's own configs keep precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add our config package to the end of Hydra's search path."""
        search_path.append(
            provider="schnetpack-softadapt", path="pkg://schnetpack_softadapt.configs"
        )
        _name_misspelt_classes()


def _name_misspelt_classes() -> None:
    """Let `spktrain` say in one line that optimizer or scheduler do not exist.

    Upstream looks these classes up itself, before it makes anything of ours, and the user gets a
    traceback. Hydra prints its own exceptions without one.
    """
    spktrain = sys.modules.get("schnetpack.cli")
    look_up = getattr(spktrain, "str2class", None)
    if look_up is None or look_up.__module__ == __name__:
        return

    def str2class(path):
        try:
            return look_up(path)
        except (AttributeError, ImportError, ValueError) as error:
            raise InstantiationException(
                f"there is no class {path} ({error}); correct task.optimizer_cls,"
                " task.scheduler_cls or data.train_sampler_cls"
            ) from error

    spktrain.str2class = str2class
