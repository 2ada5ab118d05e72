"""Makes the configs of this package visible to every Hydra program, `spktrain` first of all.

Hydra imports this module whenever any Hydra program starts on the machine, so it must import
nothing heavy. It is installed as `hydra_plugins.schnetpack_softadapt_searchpath`, where Hydra
looks for plugins.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["SoftAdaptSearchPath"]


class SoftAdaptSearchPath(SearchPathPlugin):
    """Appends `pkg://schnetpack_softadapt.configs`; SchNetPack's own configs keep precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add our config package to the end of Hydra's search path."""
        search_path.append(
            provider="schnetpack-softadapt", path="pkg://schnetpack_softadapt.configs"
        )
