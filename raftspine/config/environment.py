"""RAFTSPINE_<SECTION>_<KEY>: settings from outside the cluster file, for containers and unit files.

The rule: a variable overrides the one setting of its name, is checked like it and named in its faults. A
variable that names nothing is a warning and not a fault, because the client and the scripts have variables of
their own and an upgrade may retire one.
"""

import difflib
from collections.abc import Mapping

from raftspine.config.keys import SETTINGS
from raftspine.config.reader import Report

PREFIX = "RAFTSPINE_"
SECRET = "RAFTSPINE_CLUSTER_SECRET"

ELSEWHERE = frozenset(
    PREFIX + name for name in ("URL", "API_KEY", "DEBUG", "LOG_LEVEL", "NODE", "CI", "DATASET", "OUTPUT")
)
"""Read by the command line, the provisioning and the test suite."""

VARIABLES = {f"{PREFIX}{section}_{key}".upper(): (section, key) for section, keys in SETTINGS.items() for key in keys}


def overrides(env: Mapping[str, str], report: Report) -> dict[str, dict[str, tuple[str, str]]]:
    """For each section, the keys that are overridden: variable and text."""
    found: dict[str, dict[str, tuple[str, str]]] = {section: {} for section in SETTINGS}
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable == SECRET or variable in ELSEWHERE:
            continue
        if variable in VARIABLES:
            section, key = VARIABLES[variable]
            found[section][key] = (variable, env[variable])
        else:
            close = difflib.get_close_matches(variable, [*VARIABLES, SECRET], 1, 0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            report.warnings.append(f"{variable} is set but names no setting{hint}")
    return found
