"""Look for known vulnerabilities in the versions that constraints.txt names: `audit.py PIP_AUDIT`.

Exits with 1 where there are some. A service that cannot be asked is no failure of the project; that
nothing was audited then is told.
"""

import json
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parent.parent / "constraints.txt"
UNREACHABLE = ("ConnectionError", "ProxyError", "SSLError", "Timeout", "may be blocking")
OPTIONS = "--no-deps --disable-pip --vulnerability-service=osv --timeout=5 --format=json --desc=off"


def main(program: str) -> int:
    done = subprocess.run(
        [program, "--progress-spinner=off", *OPTIONS.split(), f"--requirement={PINS}"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        audited = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = done.stderr.strip().rpartition("\n")[2]
        print(f"nothing was audited: {last}")
        return 0 if any(word in done.stderr for word in UNREACHABLE) else 1
    unknown = [each["name"] for each in audited if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version'}"
        for each in audited
        for hole in each.get("vulns", [])
    ]
    print(*found, f"{len(audited) - len(unknown)} of {len(audited)} pins were audited", sep="\n")
    return 1 if found or unknown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
