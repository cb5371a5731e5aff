"""The real `terraform` binary in a folder of its own, against a backend of ours, and nothing beyond this machine."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.processes import Process, Processes

EMPTY_BLOCK = 'terraform {\n  backend "http" {}\n}\n'
CONFIGURATION = (
    EMPTY_BLOCK
    + """
variable "input" { default = "hello" }
variable "wait_for" { default = "" }

resource "terraform_data" "held" {
  input            = var.input
  triggers_replace = var.wait_for
  provisioner "local-exec" {
    command = "until [ -z '${var.wait_for}' ] || [ -e '${var.wait_for}' ]; do sleep 0.05; done"
  }
}

output "said" { value = terraform_data.held.output }
"""
)
"""A built-in resource, so no provider is fetched. With `wait_for` an apply lasts until that file exists."""


class Done(NamedTuple):
    status: int
    text: str


class Folder:
    """A working folder: one user's checkout. `address` is the state's URL at one node."""

    def __init__(self, binary: str, folder: Path, address: str, user: str = "", key: str = "") -> None:
        folder.mkdir(parents=True)
        self._binary = binary
        self.folder = folder
        self._address = address
        (folder / "main.tf").write_text(CONFIGURATION)
        (folder / "rc").write_text("disable_checkpoint = true\n")
        (folder / "plugins").mkdir()
        credentials = {"TF_HTTP_USERNAME": user, "TF_HTTP_PASSWORD": key} if user else {}
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TF_CLI_CONFIG_FILE": str(folder / "rc"),
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
            "CHECKPOINT_DISABLE": "1",
            "NO_PROXY": "127.0.0.1",
            **credentials,
        }

    def init(self, address: str | None = None, *, fails: bool = False) -> Done:
        """Make, or point anew, the backend."""
        self._address = url = address or self._address
        lines = {"address": url, "lock_address": url, "unlock_address": url, "retry_max": 6, "retry_wait_min": 1,
                 "retry_wait_max": 2}  # fmt: skip
        options = [f"-backend-config={name}={value}" for name, value in lines.items()]
        return self.run("init", "-reconfigure", f"-plugin-dir={self.folder / 'plugins'}", *options, fails=fails)

    def run(self, *arguments: str, fails: bool = False) -> Done:
        """Run to the end; with `fails` it must not succeed, else it must. What it printed."""
        done = subprocess.run(
            [self._binary, *arguments], cwd=self.folder, env=self._env, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=100,
        )  # fmt: skip
        text = done.stdout + done.stderr
        assert (done.returncode != 0) is fails, f"{arguments}: {done.returncode}\n{text}"
        return Done(done.returncode, done.stdout if not fails else text)

    def apply(self, *arguments: str, fails: bool = False, **variables: str) -> Done:
        return self.run(*_apply(arguments, variables), fails=fails)

    def applying(self, processes: Processes, name: str, *arguments: str, **variables: str) -> Process:
        """An apply under way."""
        env: Mapping[str, str] = {**dict.fromkeys(set(os.environ) - set(self._env), ""), **self._env}
        return processes.start([self._binary, *_apply(arguments, variables)], cwd=self.folder, env=env, name=name)

    def pull(self) -> Any:
        return json.loads(self.run("state", "pull").text)


def _apply(arguments: tuple[str, ...], variables: Mapping[str, str]) -> list[str]:
    given = (f"-var={name}={value}" for name, value in variables.items())
    return ["apply", "-auto-approve", "-no-color", *arguments, *given]
