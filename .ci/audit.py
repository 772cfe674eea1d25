"""Looks for published vulnerabilities of the direct dependencies, in the versions installed here.

Fails (status 1) for a known one. Where the service that knows them cannot be reached, or does not
know a package, it says so in a line and passes: that is no fault of the code.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any


def direct() -> list[str]:
    """The direct dependencies as `name==version`, without those of extras."""
    required = [r for r in metadata.requires("gan") or () if "extra ==" not in r]
    names = [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in required]
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def asked(packages: list[str]) -> dict[str, Any] | None:
    """What pip-audit reports on these packages; None where it gets no answer."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "direct.txt").write_text("\n".join(packages))
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip"]
        command += ["--timeout", "20", "-f", "json", "-r", f"{folder}/direct.txt"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(answer.stdout)
    except ValueError:
        return None


def verdict(report: dict[str, Any] | None, packages: list[str]) -> tuple[int, str]:
    """The exit status and what to say."""
    if report is None:
        return 0, "audit: the vulnerability service cannot be reached; nothing was looked up"
    found = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in "
        f"{', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in report["dependencies"]
        for flaw in one.get("vulns", ())
    ]
    if found:
        return 1, "\n".join(["audit: known vulnerabilities of direct dependencies", *found])
    known = [one for one in report["dependencies"] if "skip_reason" not in one]
    if len(known) < len(packages):
        return 0, f"audit: the service answered for {len(known)} of {len(packages)} packages only"
    return 0, f"audit: no known vulnerability in {len(known)} direct dependencies"


if __name__ == "__main__":
    chosen = direct()
    status, words = verdict(asked(chosen), chosen)
    print(words)
    sys.exit(status)
