"""Losses, their weights, and what a run needs to be trained, killed, resumed and judged.

Import from the modules: `training.rules` and `training.rules` must stay importable without
SchNetPack and Lightning. Import paths of rules and losses are part of the format of checkpoints.
"""
